"""Atomic writes, bounded reads, JSON, CSV and hashes.

A file appears under its name only when complete: it is written under a temporary name, flushed to
the disk and renamed. Libraries serialise into memory and the bytes are written here, because some
raise something other than ``OSError`` when the disk is full.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import logging
import math
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from robust_ham.config.experiment import SCHEMA
from robust_ham.errors import RequestError, ending_with, naming
from robust_ham.regular_files import open_regular, read_bytes, read_text
from robust_ham.storage.signals import uninterrupted
from robust_ham.storage.spreadsheets import guard_table, restore_table
from robust_ham.storage.temporary_files import temporary_path
from robust_ham.storage.working_folder import check_unmoved

log = logging.getLogger(__name__)

MAX_TEXT_BYTES = 10_000_000
"""Limit of cards, manifests and lists of failures."""
MAX_CSV_BYTES = 100_000_000
_CHUNK_BYTES = 1 << 20
MAX_ROWS, MAX_COLUMNS = 10_000_000, 1_000
_MAX_CONTAINERS = 1_000_000
"""Limit of lists and objects in a JSON text: each takes 20 times its length in memory."""


def content_key(content: Any) -> str:  # noqa: ANN401
    """Return the SHA-256 of ``content`` as canonical JSON, independent of the order of keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path, *, follow_links: bool = False) -> str:
    """Return the SHA-256 of a file's bytes.

    Raises:
        RequestError: not a regular file, or it grows during the read.
    """
    digest = hashlib.sha256()
    with naming(path), open_regular(path, follow_links=follow_links) as file:
        left = os.fstat(file.fileno()).st_size
        while content := file.read(_CHUNK_BYTES):
            left -= len(content)
            if left < 0:
                raise RequestError(f"{path}: expected a complete file, got one that grows")
            digest.update(content)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    if os.name == "nt":  # Windows opens no folder, and flushes no file that is open for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Re-raise parse errors with the file's name."""
    try:
        yield
    except _DAMAGED as error:
        raise RequestError(f"{path}: damaged ({type(error).__name__})") from None


_DAMAGED = (
    *(ValueError, LookupError, TypeError, ArithmeticError, EOFError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, pa.ArrowException),
)
"""What readers raise for damaged content; ``RecursionError`` is a ``RuntimeError``."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and rename it to ``path`` if the block succeeds."""
    with (
        uninterrupted(),
        temporary_path(path, path.suffix) as (temporary, mode),
        ending_with(lambda: temporary.unlink(missing_ok=True)),
    ):
        yield temporary
        _set_mode(temporary, mode)
        _flush(temporary)
        check_unmoved(path)
        temporary.replace(path)
        _flush(path.parent)


@contextlib.contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """Do the same for a folder that does not exist yet."""
    with uninterrupted(), temporary_path(folder) as (temporary, mode):
        temporary.mkdir()
        try:
            yield temporary
            for path in temporary.iterdir():
                if path.is_file():
                    _set_mode(path, mode)
                _flush(path)
            _flush(temporary)
            check_unmoved(folder)
            temporary.replace(folder)
            _flush(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _set_mode(path: Path, mode: int) -> None:
    """Give a file the mode of new files; some libraries create files for one user only."""
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with writing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, with ``schema`` as its first key."""
    write_text(path, json.dumps({"schema": SCHEMA} | content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, *, follow_links: bool = False) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: not a JSON object of this schema, or it holds NaN or ∞.
        RequestError: too large, or not a regular file.
    """
    try:
        content = parse_json(read_text(path, MAX_TEXT_BYTES, follow_links=follow_links))
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: not a JSON file") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError(f"{path}: expected a JSON object with schema {SCHEMA}")
    return content


def parse_json(text: str, *, finite: bool = True) -> Any:  # noqa: ANN401
    """Parse JSON; refuse NaN and ∞, which are not standard JSON, if ``finite``.

    Raises:
        ValueError: not JSON, NaN or ∞, or too many lists and objects.
        RecursionError: nested too deeply.
    """
    if text.count("[") + text.count("{") > _MAX_CONTAINERS:
        raise ValueError(f"expected at most {_MAX_CONTAINERS:,} lists and objects")
    if not finite:
        return json.loads(text)
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {text}")
    return value


def is_missing_or_damaged(error: OSError) -> bool:
    """Whether a read failed because the file is missing, a folder, or damaged.

    Other errors (too many open files, an I/O error, no permission) say nothing about the content,
    so a result must not be recomputed because of them. For damaged tables, pyarrow raises an
    ``OSError`` without a number.
    """
    return error.errno in (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


def read_csv(path: Path, *, follow_links: bool = False, **options: Any) -> pd.DataFrame:  # noqa: ANN401
    """Read a CSV file; ``options`` go to ``pandas.read_csv``.

    Raises:
        ValueError: not a CSV file.
        RequestError: not a regular file, too large, or too many columns.
    """
    content = io.BytesIO(read_bytes(path, MAX_CSV_BYTES, follow_links=follow_links))
    num_columns = 1 + max(map(_num_commas, content), default=0)
    if num_columns > MAX_COLUMNS:
        raise RequestError(f"{path}: expected at most {MAX_COLUMNS:,} columns, got {num_columns:,}")
    content.seek(0)
    table: pd.DataFrame = pd.read_csv(content, **options)
    return restore_table(table)


def _num_commas(line: bytes) -> int:
    return line.count(b",")


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, floats in the shortest form that reads back equal.

    An apostrophe guards text that a spreadsheet would compute; ``read_csv`` removes it.
    """
    write_text(path, csv_text(table))


def csv_text(table: pd.DataFrame) -> str:
    """Return the text that ``write_csv`` writes."""
    text: str = guard_table(table).to_csv(index=False, lineterminator="\n")
    return text
