"""``SHA256SUMS`` of a run folder: a checksum of every file but logs, as ``sha256sum -c`` reads it.

Whatever writes a file of a finished run records it here; ``verify`` names every file that has
changed, is missing or was added since. Results carry receipts as well (``receipts``).
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
from robust_ham.storage.run_folder import RunFolder
from robust_ham.storage.working_folder import check_unmoved

log = logging.getLogger(__name__)

LOGS = ("run.log", "timings.csv")
"""Files that grow with every process that takes part in a run; nothing is computed from them."""
_TEMPORARY = ("locks", "unfinished", "superseded")
"""Folders of a run that is at work, or of results that no longer count."""
_LINE = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>[^/\\\n][^\\\n]*)")


def is_covered(name: str) -> bool:
    """Whether a file, by its path inside the run folder, should have a checksum."""
    return name not in LOGS and name.partition("/")[0] not in _TEMPORARY


def read_checksums(run: RunFolder) -> dict[str, str]:
    """Path inside the run folder to SHA-256; empty where nothing has been recorded.

    Raises:
        RequestError: a line is not one of ``sha256sum``.
    """
    try:
        lines = read_text(run.checksums, MAX_TEXT_BYTES, errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    found = dict[str, str]()
    for number, line in enumerate(lines, 1):
        parts = _LINE.fullmatch(line)
        if parts is None or parts["name"] in found or ".." in Path(parts["name"]).parts:
            raise RequestError(
                f"{run.checksums}: line {number}: expected a SHA-256 and a file named once, "
                f"got {line[:100]!r}"
            )
        found[parts["name"]] = parts["digest"]
    return found


def hash_files(run: RunFolder, files: Iterable[Path]) -> dict[str, str]:
    """Path inside the run folder to SHA-256, of those files that exist."""
    found = dict[str, str]()
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            found[path.relative_to(run.root).as_posix()] = file_hash(path)
    return found


def record_files(run: RunFolder, files: Iterable[Path]) -> None:
    """Record files that have just been written; other lines stay as they are."""
    _update(run, {}, hash_files(run, files))


def record_run(run: RunFolder, hashes: dict[str, str]) -> None:
    """Record what a run has written, and drop the lines of files that it has removed."""
    gone = {name for name in read_checksums(run) if not is_regular(run.root / name)}
    _update(run, gone, hashes)


def check_present(run: RunFolder, names: Iterable[str]) -> None:
    """Refuse a run folder that lacks files it should have; ``names``: their paths inside it.

    Raises:
        OSError: the folder is not the same any more, or a file has been removed.
    """
    check_unmoved(run.root)
    for name in names:
        if not (run.root / name).exists():
            raise FileNotFoundError(errno.ENOENT, "removed during the run", str(run.root / name))


def forget_files(run: RunFolder, files: Iterable[Path]) -> None:
    """Drop the lines of files that are about to be written again; all, where they are damaged."""
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
