"""``SHA256SUMS`` of a run folder: checksums of all files except logs, for ``sha256sum -c``.

Every writer of a file of a finished run records it here; ``verify`` names every file that has
changed, is missing or was added since. Results have receipts as well (``receipts``).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
from collections.abc import Iterable
from pathlib import Path

from robust_ham.errors import RequestError
from robust_ham.regular_files import is_regular, read_text
from robust_ham.storage.files import MAX_TEXT_BYTES, file_hash, write_text
from robust_ham.storage.locks import locked
from robust_ham.storage.run_folder import LOGS, RunFolder
from robust_ham.storage.working_folder import check_unmoved

log = logging.getLogger(__name__)

_TEMPORARY = ("locks", "unfinished", "superseded")
"""Folders of a run in progress, and of superseded results."""
_LINE = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>[^/\\\n][^\\\n]*)")


def is_covered(name: str) -> bool:
    """Whether a file, by its path inside the run folder, should have a checksum."""
    return name not in LOGS and name.partition("/")[0] not in _TEMPORARY


def read_checksums(run: RunFolder) -> dict[str, str]:
    """Return path inside the run folder to SHA-256; empty if nothing is recorded.

    Raises:
        RequestError: a line is not in the format of ``sha256sum``.
    """
    try:
        lines = read_text(run.checksums, MAX_TEXT_BYTES, errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    checksums = dict[str, str]()
    for number, line in enumerate(lines, 1):
        parts = _LINE.fullmatch(line)
        if parts is None or parts["name"] in checksums or ".." in Path(parts["name"]).parts:
            raise RequestError(
                f"{run.checksums}: line {number}: expected a SHA-256 and a file named once, "
                f"got {line[:100]!r}"
            )
        checksums[parts["name"]] = parts["digest"]
    return checksums


def hash_files(run: RunFolder, files: Iterable[Path]) -> dict[str, str]:
    """Return path inside the run folder to SHA-256, for the files that exist."""
    hashes = dict[str, str]()
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            hashes[path.relative_to(run.root).as_posix()] = file_hash(path)
    return hashes


def record_files(run: RunFolder, files: Iterable[Path]) -> None:
    """Record files that have just been written; keep the other lines."""
    _update(run, {}, hash_files(run, files))


def record_run(run: RunFolder, hashes: dict[str, str]) -> None:
    """Record the files that a run has written; drop the lines of files that no longer exist."""
    removed = {name for name in read_checksums(run) if not is_regular(run.root / name)}
    _update(run, removed, hashes)


def check_present(run: RunFolder, names: Iterable[str]) -> None:
    """Check that files of a run still exist; ``names``: their paths inside the folder.

    Raises:
        OSError: the folder was moved, or a file was removed.
    """
    check_unmoved(run.root)
    for name in names:
        if not (run.root / name).exists():
            raise FileNotFoundError(errno.ENOENT, "removed during the run", str(run.root / name))


def forget_files(run: RunFolder, files: Iterable[Path]) -> None:
    """Drop the lines of files that will be rewritten; drop all lines if any is damaged."""
    names = {path.relative_to(run.root).as_posix() for path in files}
    try:
        if not names.isdisjoint(read_checksums(run)):
            _update(run, names, {})
    except RequestError as error:
        log.warning("%s: removed", error)
        run.checksums.unlink(missing_ok=True)


def _update(run: RunFolder, dropped: Iterable[str], added: dict[str, str]) -> None:
    with locked(run.checksums.with_name(f".{run.checksums.name}.lock")):
        kept = {k: v for k, v in read_checksums(run).items() if k not in dropped}
        lines = sorted((kept | added).items())
        write_text(run.checksums, "".join(f"{digest}  {name}\n" for name, digest in lines))
