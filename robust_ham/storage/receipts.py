"""Receipts: the key of a finished result and the checksums of its files.

A receipt is written after the files of its result. A result without a receipt is not finished, and
a file that does not match its receipt is never used.
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
from robust_ham.regular_files import is_regular
from robust_ham.storage.checksums import hash_files, read_checksums
from robust_ham.storage.files import (
    csv_text,
    file_hash,
    is_missing_or_damaged,
    read_csv,
    read_json,
    write_json,
    write_text,
)
from robust_ham.storage.run_folder import RunFolder, files_below

log = logging.getLogger(__name__)

BEFORE = "sha256_before"
"""Entry of an updated table's receipt while the table is rewritten: checksum of the old one."""


@dataclass(frozen=True)
class Receipt:
    """The receipt of one result."""

    key: str
    files: dict[str, str]
    """Path inside the run folder to SHA-256."""
    details: dict[str, Any]
    """Further entries."""


def sign(run: RunFolder, result: Path, key: str, files: Iterable[Path], **details: str) -> None:
    """Record a finished result: its key and its files' SHA-256."""
    hashes = {path.relative_to(run.root).as_posix(): file_hash(path) for path in sorted(files)}
    write_json(run.receipt(result), {"key": key, "files": hashes} | details)


def receipt_of(run: RunFolder, result: Path) -> Receipt | None:
    """Return the receipt of a result; None if it is missing or damaged.

    Raises:
        OSError: the receipt exists but cannot be read.
    """
    try:
        details = read_json(run.receipt(result))
        key, files = details.pop("key"), details.pop("files")
    except OSError as error:
        if not is_missing_or_damaged(error):
            raise
        return None
    except (ValueError, KeyError, RequestError):
        return None
    if not isinstance(key, str) or not isinstance(files, dict):
        return None
    if not all(_is_inside(name) and isinstance(digest, str) for name, digest in files.items()):
        return None
    return Receipt(key, files, details)


def _is_inside(name: str) -> bool:
    """Whether a relative path stays inside its folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def is_finished(run: RunFolder, result: Path, key: str) -> bool:
    """Whether a result is finished with this key."""
    receipt = receipt_of(run, result)
    return receipt is not None and receipt.key == key


def signed_hashes(run: RunFolder) -> dict[str, str]:
    """Return path inside the run folder to SHA-256, of all receipts and the files they name."""
    hashes = hash_files(run, files_below(run.receipts))
    for path in list(map(run.root.joinpath, hashes)):
        receipt = receipt_of(run, result_of(run, path))
        hashes |= receipt.files if receipt is not None else {}
    return hashes


def result_of(run: RunFolder, receipt: Path) -> Path:
    """Return the file or folder that a receipt is for."""
    return run.root / receipt.relative_to(run.receipts).with_suffix("")


def fault(run: RunFolder, receipt: Receipt) -> str | None:
    """Describe the first file that does not match its receipt; None if all match."""
    faults = (file_fault(run, receipt, name) for name in receipt.files)
    return next(filter(None, faults), None)


def file_fault(run: RunFolder, receipt: Receipt, name: str) -> str | None:
    """Describe how a file differs from its receipt; None if it matches."""
    path = run.root / name
    if not is_regular(path):
        return f"{name} is {'not a regular file' if os.path.lexists(path) else 'missing'}"
    if file_hash(path) not in (receipt.files[name], receipt.details.get(BEFORE)):
        return f"{name} has changed since it was written (SHA-256 differs)"
    return None


def check(run: RunFolder, result: Path, path: Path) -> None:
    """Check a file of a result against the receipt or, without one, ``SHA256SUMS``.

    A file with neither passes: it is third-party, or its process was killed before it signed, and
    files appear complete.

    Raises:
        RequestError: the checksum differs.
    """
    name = path.relative_to(run.root).as_posix()
    record = _record_of(run, result, name)
    while record and (difference := file_fault(run, record, name)):
        previous, record = record, _record_of(run, result, name)
        if record == previous:  # else the file was rewritten just now
            raise RequestError(
                f"{run.root}: {difference}; rerun the command that made this folder to recompute it"
            )


def _record_of(run: RunFolder, result: Path, name: str) -> Receipt | None:
    """Return the receipt of a file's result, else the file's line in ``SHA256SUMS``."""
    receipt = receipt_of(run, result)
    if receipt is not None and name in receipt.files:
        return receipt
    digest = read_checksums(run).get(name)
    return Receipt("", {name: digest}, {}) if digest is not None else None


# --- tables that a later run updates ---------------------------------------------------------


def kept_rows(run: RunFolder, path: Path, columns: list[str]) -> pd.DataFrame:
    """Read the rows of an updated table, as text; empty if it does not match its receipt."""
    receipt = receipt_of(run, path)
    difference = fault(run, receipt) if receipt else None
    if difference:
        log.warning("%s: recomputing it", difference)
    if receipt is None or difference:
        return pd.DataFrame(columns=columns)
    if BEFORE in receipt.details:  # its process was killed during the update
        sign(run, path, "", [path])
    return _read_text_rows(path, columns)


def _read_text_rows(path: Path, columns: list[str]) -> pd.DataFrame:
    """Read a CSV file as text; empty if the file is missing, damaged or has other columns.

    As text, so that rows are written back unchanged.
    """
    try:
        table = read_csv(path, dtype=str, keep_default_na=False)
    except (FileNotFoundError, ValueError):
        return pd.DataFrame(columns=columns)
    return table if list(table.columns) == columns else pd.DataFrame(columns=columns)


def write_kept(run: RunFolder, path: Path, table: pd.DataFrame) -> None:
    """Update a table; at any moment its receipt allows the file that exists."""
    text = csv_text(table)
    if receipt_of(run, path) is not None and is_regular(path):
        hashes = {path.relative_to(run.root).as_posix(): sha256(text.encode()).hexdigest()}
        write_json(run.receipt(path), {"key": "", "files": hashes, BEFORE: file_hash(path)})
    write_text(path, text)
    sign(run, path, "", [path])
