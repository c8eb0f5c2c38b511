"""Files written whole or not at all, read within limits, and content keys.

A leaf without torch. A file appears under its name only when it is complete: it is written beside
its place, flushed to the disk and renamed. Libraries serialise into memory, and the bytes are
written here: of a full disk, some raise what is no ``OSError``.
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
import re
import secrets
import shutil
import stat
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from robust_ham.config.experiment import SCHEMA
from robust_ham.errors import RequestError, ending_with, naming
from robust_ham.regular_files import open_regular, read_bytes, read_text
from robust_ham.storage.locks import locked, owner
from robust_ham.storage.signals import uninterrupted
from robust_ham.storage.spreadsheets import guard_table, restore_table
from robust_ham.storage.working_folder import check_unmoved

log = logging.getLogger(__name__)

MAX_TEXT_BYTES = 10_000_000
"""Of a card, a manifest, a list of failures."""
MAX_CSV_BYTES = 100_000_000
_CHUNK_BYTES = 1 << 20
MAX_ROWS, MAX_COLUMNS = 10_000_000, 1_000
_MAX_CONTAINERS = 1_000_000
"""Lists and objects of a JSON text, each of which takes 20 times its length in memory."""


def content_key(content: Any) -> str:  # noqa: ANN401
    """SHA-256 of ``content`` as canonical JSON: equal for equal content, whatever the key order."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path, *, follow_links: bool = False) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        RequestError: not a regular file, or one that grows while it is read.
    """
    digest = hashlib.sha256()
    with naming(path), open_regular(path, follow_links=follow_links) as file:
        left = os.fstat(file.fileno()).st_size
        while content := file.read(_CHUNK_BYTES):
            left -= len(content)
            if left < 0:
                raise RequestError(f"{path}: expected a file at rest, got one that grows")
            digest.update(content)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say of which file it is when what it holds makes no sense."""
    try:
        yield
    except _DAMAGED as error:
        raise RequestError(f"{path}: damaged ({type(error).__name__})") from None


_DAMAGED = (
    *(ValueError, LookupError, TypeError, ArithmeticError, EOFError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, pa.ArrowException),
)
"""What readers raise for contents that make no sense; ``RecursionError`` is a ``RuntimeError``."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that becomes ``path`` if nothing raises."""
    with (
        uninterrupted(),
        _temporary(path, path.suffix) as (temporary, mode),
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
    """Like ``writing`` for a folder, which must not be there yet."""
    with uninterrupted(), _temporary(folder) as (temporary, mode):
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


_LOCK = ".tmp.lock"
_TEMPORARY = re.compile(
    r"(?P<stem>\.(?P<name>.+)\.[0-9a-f]{8})\.tmp(?P<ending>(\.[^.]+)?|\.lock\.held)"
)


@contextlib.contextmanager
def _temporary(path: Path, suffix: str = "") -> Iterator[tuple[Path, int]]:
    """A name beside ``path``, locked as long as its owner lives, and the mode of new files there.

    That of the lock: what the umask, or the folder's access control list, leaves of ``rw-rw-rw-``.

    Raises:
        OSError: what the system says of it, under the name of ``path``.
    """
    stem = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    lock = path.with_name(f"{stem.name}{_LOCK}")
    with naming(path, stem), locked(lock):
        yield path.with_name(f"{stem.name}.tmp{suffix}"), stat.S_IMODE(lock.stat().st_mode)


def _set_mode(path: Path, mode: int) -> None:
    """Give a file the mode of new files; some libraries make theirs for one user alone."""
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


def being_written(name: str) -> str | None:
    """What a temporary file or folder, or its lock, is for; None: the name is of another kind."""
    found = _TEMPORARY.fullmatch(name)
    if found is None:
        return None
    target = found["name"]
    if found["ending"] not in ("", ".lock", ".lock.held", Path(target).suffix):
        return None
    return being_written(target) or target  # of a lock beside a temporary file, too


def remove_leftovers(root: Path, folders: Collection[str], files: Collection[str]) -> None:
    """Remove what killed processes had half-written; what others write stays.

    Looked at are ``folders`` of ``root``, with all that lies below them, and beside them the
    temporary names of ``files``. Links are not followed.
    """
    for name in os.listdir(root):
        if being_written(name) in files:
            _remove_leftover(root / name)
    for place in folders:
        if (root / place).is_symlink():
            continue
        for folder, below, names in os.walk(root / place):  # passes over what disappears meanwhile
            for name in (*below, *names):
                if being_written(name) is not None:
                    _remove_leftover(Path(folder, name))
            below[:] = (name for name in below if not name.startswith("."))


def _remove_leftover(path: Path) -> None:
    found = _TEMPORARY.fullmatch(path.name)
    assert found is not None
    if path.is_symlink() or owner(path.with_name(f"{found['stem']}{_LOCK}")) is not None:
        return
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_empty(path: Path, root: Path) -> None:
    """Remove the folders above what was removed, up to ``root``, as far as they are empty."""
    with contextlib.suppress(OSError):  # one is not, or another process was quicker
        for folder in path.parents:
            if folder == root:
                return
            folder.rmdir()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole."""
    with writing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` with ``schema`` as its first key."""
    write_text(path, json.dumps({"schema": SCHEMA} | content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, *, follow_links: bool = False) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: not a JSON object of this schema, or it holds NaN or ∞.
        RequestError: too large, or no regular file.
    """
    try:
        content = parse_json(read_text(path, MAX_TEXT_BYTES, follow_links=follow_links))
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: not a JSON file") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError(f"{path}: expected a JSON object with schema {SCHEMA}")
    return content


def parse_json(text: str, *, finite: bool = True) -> Any:  # noqa: ANN401
    """A JSON value, without NaN and ∞ unless ``finite`` is off.

    Only some programs write NaN and ∞, and no others read them.

    Raises:
        ValueError: not such a value, or one of more lists and objects than any file here has.
        RecursionError: too deep.
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
    """Whether an error of reading a file is of that file: missing, a folder, or damaged.

    Any other (too many open files, an I/O error, no permission) says nothing about the content:
    a result must not be computed again because of it. What pyarrow raises for a damaged table has
    no number.
    """
    return error.errno in (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


def read_csv(path: Path, *, follow_links: bool = False, **options: Any) -> pd.DataFrame:  # noqa: ANN401
    """Read a CSV file; ``options`` are those of ``pandas.read_csv``.

    Raises:
        ValueError: not such a file.
        RequestError: no regular file, too large, or of too many columns.
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

    Text that a spreadsheet would compute is guarded by an apostrophe; ``read_csv`` takes it away.
    """
    write_text(path, csv_text(table))


def csv_text(table: pd.DataFrame) -> str:
    """What ``write_csv`` writes."""
    text: str = guard_table(table).to_csv(index=False, lineterminator="\n")
    return text


def read_rows(path: Path, columns: list[str]) -> pd.DataFrame:
    """Rows of a CSV that is kept up to date, as text, so that they are written back as they were.

    None if the file is missing, damaged, or of other columns: all is made anew.
    """
    try:
        table = read_csv(path, dtype=str, keep_default_na=False)
    except (FileNotFoundError, ValueError):
        return pd.DataFrame(columns=columns)
    return table if list(table.columns) == columns else pd.DataFrame(columns=columns)
