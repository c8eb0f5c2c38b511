"""What proves that a result is whole: the key of all that decides it, a checksum of each file.

A receipt is written after the files of its result. A result without one is not finished; a file
that is not as its receipt says is never believed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from robust_ham.errors import RequestError
from robust_ham.memory import memory_share
from robust_ham.regular_files import is_regular, read_bytes
from robust_ham.storage.checksums import hash_files, read_checksums
from robust_ham.storage.files import (
    MAX_TEXT_BYTES,
    csv_text,
    file_hash,
    is_missing_or_damaged,
    read_json,
    read_rows,
    write_bytes,
    write_json,
    write_text,
    writing_folder,
)
from robust_ham.storage.run_folder import RunFolder, files_below

log = logging.getLogger(__name__)

BEFORE = "sha256_before"
"""In the receipt of a table that is kept up to date, while it is written anew: of the old one."""


@dataclass(frozen=True)
class Receipt:
    """Of one result."""

    key: str
    files: dict[str, str]
    """Path inside the run folder to SHA-256."""
    about: dict[str, Any]


def sign(run: RunFolder, made: Path, key: str, files: Iterable[Path], **about: str) -> None:
    """Say that ``made``, of which ``files`` are all, is finished."""
    hashes = {path.relative_to(run.root).as_posix(): file_hash(path) for path in sorted(files)}
    write_json(run.receipt(made), {"key": key, "files": hashes} | about)


def receipt_of(run: RunFolder, made: Path) -> Receipt | None:
    """The receipt of a result; None: it is not finished, or the receipt itself is damaged.

    Raises:
        OSError: it cannot be read; what cannot be read is not taken for missing.
    """
    try:
        about = read_json(run.receipt(made))
        key, files = about.pop("key"), about.pop("files")
    except OSError as error:
        if not is_missing_or_damaged(error):
            raise
        return None
    except (ValueError, KeyError, RequestError):
        return None
    if not isinstance(key, str) or not isinstance(files, dict):
        return None
    if not all(_is_inside(name) and isinstance(found, str) for name, found in files.items()):
        return None
    return Receipt(key, files, about)


def _is_inside(name: str) -> bool:
    """Whether a path cannot leave the folder that it starts from."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def is_finished(run: RunFolder, made: Path, key: str) -> bool:
    """Whether a result is there, and the one that the key asks for."""
    receipt = receipt_of(run, made)
    return receipt is not None and receipt.key == key


def signed_hashes(run: RunFolder) -> dict[str, str]:
    """Path inside the run folder to SHA-256, of what receipts name and of the receipts."""
    found = hash_files(run, files_below(run.receipts))
    for path in list(map(run.root.joinpath, found)):
        receipt = receipt_of(run, made_by(run, path))
        found |= receipt.files if receipt is not None else {}
    return found


def made_by(run: RunFolder, receipt: Path) -> Path:
    """The file or folder of the run that a receipt is of."""
    return run.root / receipt.relative_to(run.receipts).with_suffix("")


def fault(run: RunFolder, receipt: Receipt) -> str | None:
    """The first file that is not as it was written; None: all are."""
    faults = (file_fault(run, receipt, name) for name in receipt.files)
    return next(filter(None, faults), None)


def file_fault(run: RunFolder, receipt: Receipt, name: str) -> str | None:
    """What is wrong with one file of a receipt; None: nothing."""
    path = run.root / name
    if not is_regular(path):
        return f"{name} is {'no regular file' if os.path.lexists(path) else 'missing'}"
    if file_hash(path) not in (receipt.files[name], receipt.about.get(BEFORE)):
        return f"{name} is not as it was written (SHA-256 differs)"
    return None


def check(run: RunFolder, made: Path, path: Path) -> None:
    """Refuse a file that is not as the receipt of its result, or ``SHA256SUMS``, says.

    A result without either is somebody else's, or of a run that was killed just now; its files
    have appeared whole.

    Raises:
        RequestError: the checksum differs.
    """
    name = path.relative_to(run.root).as_posix()
    record = _record_of(run, made, name)
    while record and (found := file_fault(run, record, name)):
        believed, record = record, _record_of(run, made, name)
        if record == believed:  # else the file has just been written anew
            raise RequestError(
                f"{run.root}: {found}; the command that made this folder makes it anew"
            )


def _record_of(run: RunFolder, made: Path, name: str) -> Receipt | None:
    """What is on record of a file of a result: its receipt, else its line in ``SHA256SUMS``."""
    receipt = receipt_of(run, made)
    if receipt is not None and name in receipt.files:
        return receipt
    digest = read_checksums(run).get(name)
    return Receipt("", {name: digest}, {}) if digest is not None else None


def read_signed(run: RunFolder, made: Iterable[Path]) -> dict[str, bytes]:
    """Finished results as they are to be written elsewhere: path inside the folder to content."""
    found = {}
    for path in made:
        receipt = receipt_of(run, path)
        if receipt is not None:
            for name in receipt.files:
                found[name] = read_bytes(run.root / name, memory_share(0.25))
            place = run.receipt(path)
            found[place.relative_to(run.root).as_posix()] = read_bytes(place, MAX_TEXT_BYTES)
    return found


def write_signed(run: RunFolder, files: dict[str, bytes]) -> None:
    """Write what another process has made: a result that is a folder whole, receipts last."""
    receipts = run.receipts.relative_to(run.root).as_posix()
    signed = [name for name in files if name.startswith(f"{receipts}/")]
    left = {name: content for name, content in files.items() if name not in signed}
    for receipt in signed:
        made = made_by(run, run.root / receipt)
        inside = [name for name in left if (run.root / name).parent == made]
        if inside:
            if made.is_dir():
                run.set_aside(made)
            with writing_folder(made) as temporary:
                for name in inside:
                    (temporary / PurePosixPath(name).name).write_bytes(left.pop(name))
    for name, content in [*left.items(), *((name, files[name]) for name in signed)]:
        write_bytes(run.root / name, content)


def kept_rows(run: RunFolder, path: Path, columns: list[str]) -> pd.DataFrame:
    """Rows of a table that is kept up to date; none where it is not as it was written."""
    receipt = receipt_of(run, path)
    found = fault(run, receipt) if receipt else None
    if found:
        log.warning("%s: made anew", found)
    if receipt is None or found:
        return pd.DataFrame(columns=columns)
    if BEFORE in receipt.about:  # its process was killed
        sign(run, path, "", [path])
    return read_rows(path, columns)


def write_kept(run: RunFolder, path: Path, table: pd.DataFrame) -> None:
    """Write a table that is kept up to date; at any moment its receipt knows what is there."""
    text = csv_text(table)
    if receipt_of(run, path) is not None and is_regular(path):
        hashes = {path.relative_to(run.root).as_posix(): sha256(text.encode()).hexdigest()}
        write_json(run.receipt(path), {"key": "", "files": hashes, BEFORE: file_hash(path)})
    write_text(path, text)
    sign(run, path, "", [path])
