"""Arrays in .npz files: atomic writes, bounded reads."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from robust_ham.errors import RequestError
from robust_ham.memory import check_memory, memory_share
from robust_ham.regular_files import read_bytes
from robust_ham.storage.files import reading, write_bytes

ARRAY_HEADER_BYTES = 10_000
"""Limit of the headers of all arrays in a file."""


def read_arrays(path: Path, limit: int | None = None) -> dict[str, np.ndarray[Any, Any]]:
    """Read the arrays of an .npz file, by name.

    Args:
        path: path of the file.
        limit: limit for all arrays together, in bytes, if their size is known; never more than a
            third of this machine's memory.

    Raises:
        RequestError: damaged, too large when unpacked, or not arrays of plain numbers.
    """
    # Read here, because zipfile reports a failing disk as a damaged file.
    file = io.BytesIO(read_bytes(path, memory_share(1 / 3)))
    with reading(path), zipfile.ZipFile(file) as archive:
        size = sum(member.file_size for member in archive.infolist())
        if limit is not None and size > limit:
            raise RequestError(
                f"{path}: expected at most {limit:,} bytes when unpacked, got {size:,}"
            )
        check_memory(str(path), size, part=3)
        for member in archive.infolist():
            with archive.open(member) as packed:
                _check_array(packed, member.file_size)
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)


def write_arrays(path: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    """Write arrays by name as a compressed .npz file."""
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    write_bytes(path, file.getvalue())


def _check_array(file: IO[bytes], size: int) -> None:
    """Compare an array's header with its actual size before allocating memory.

    Raises:
        ValueError: they differ, or the array does not hold plain numbers.
    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.kind not in "biuf" or file.tell() + math.prod(shape) * dtype.itemsize != size:
        raise ValueError("not an array of plain numbers, or its header gives another size")
