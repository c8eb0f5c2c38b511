"""IDX files, in which MNIST and Fashion-MNIST were released."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from robust_ham.config.experiment import DatasetConfig
from robust_ham.data.splits import KNOWN, Split, SplitName, check_labels
from robust_ham.errors import RequestError
from robust_ham.regular_files import open_regular
from robust_ham.storage.files import MAX_ROWS

_IDX_IMAGES, _IDX_LABELS = 0x803, 0x801
_MAX_IDX_BYTES = 1 << 30
_CHUNK_BYTES = 1 << 20
_MOST_GZIP_GAINS = 1100
"""By how much gzip can shorten a file: one byte stands for at most 1032."""

_PUBLISHED: dict[str, tuple[str, SplitName]] = {
    "6bbc9ace898e44ae57da46a324031adb": ("mnist", "train"),
    "a25bea736e30d166cdddb491f175f624": ("mnist", "train"),
    "2646ac647ad5339dbf082846283269ea": ("mnist", "test"),
    "27ae3e4e09519cfbb04c329615203637": ("mnist", "test"),
    "f4a8712d7a061bf5bd6d2ca38dc4d50a": ("fashion_mnist", "train"),
    "9018921c3c673c538a1fc5bad174d6f9": ("fashion_mnist", "train"),
    "8181f5470baa50b63fa0f6fddb340f0a": ("fashion_mnist", "test"),
    "15d484375f8d13e6eb1aabb0c3f46965": ("fashion_mnist", "test"),
    "56cb151f02f7a0ea897b87493b6c7586": ("fashion_mnist", "train"),  # in this package: the first
    "6017ecad9bfe54bba7fcc9dc44bdedd4": ("fashion_mnist", "train"),  # 10,000 images, their labels
}
"""MD5 of the published images and labels, unpacked."""


def idx_file(folder: Path, split: SplitName, kind: Literal["images", "labels"]) -> Path | None:
    """The images or labels of a split, packed or not; None: not here."""
    stem = "t10k" if split == "test" else "train"
    name = f"{stem}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)


def read_idx_folder(folder: Path, config: DatasetConfig, split: SplitName) -> Split | None:
    """MNIST's and Fashion-MNIST's own files.

    Raises:
        RequestError: a file is missing, damaged, or known to be of another data set or split.
    """
    images, labels = (idx_file(folder, split, kind) for kind in ("images", "labels"))
    if images is None and labels is None:
        other: SplitName = "train" if split == "test" else "test"
        if idx_file(folder, other, "images") is None or config.download:
            return None
        raise RequestError(f"{folder}: has the {other} files of {config.name}, no {split} files")
    if images is None or labels is None:
        raise RequestError(f"{folder}: has images or labels of {config.name}, not both")
    pixels, targets = read_idx(images, _IDX_IMAGES), read_idx(labels, _IDX_LABELS)
    for file, content in ((images, pixels), (labels, targets)):
        _check_origin(file, content, config.name, split)
    check_labels(targets.astype(np.int64), config.name, folder)
    return Split(
        torch.from_numpy(pixels).unsqueeze(1),  # (N, 1, H, W)
        torch.from_numpy(targets.astype(np.int64)),
        KNOWN[config.name].num_classes,
        str(folder),
    )


def _check_origin(file: Path, content: NDArray[np.uint8], data_set: str, split: SplitName) -> None:
    """Refuse the published file of another data set or split."""
    header = struct.pack(f">{1 + content.ndim}I", 0x800 + content.ndim, *content.shape)
    digest = hashlib.md5(header, usedforsecurity=False)
    digest.update(np.ascontiguousarray(content).data)
    published = _PUBLISHED.get(digest.hexdigest())
    if published is not None and published != (data_set, split):
        raise RequestError(
            f"{file}: expected the {split} split of {data_set}, got the file of "
            f"{published[0]} ({published[1]})"
        )


def read_idx(path: Path, magic: int) -> NDArray[np.uint8]:
    """An IDX file of bytes, gzip or not: shape as its header says.

    Raises:
        RequestError: wrong magic number, too large, or more or fewer bytes than the header says.
    """
    packed = path.suffix == ".gz"
    dimensions = magic & 0xFF
    try:
        with open_regular(path, _MAX_IDX_BYTES, follow_links=True) as stored:
            most = os.fstat(stored.fileno()).st_size * (_MOST_GZIP_GAINS if packed else 1)
            file = gzip.GzipFile(fileobj=stored) if packed else stored
            header = file.read(4 * (1 + dimensions))
            found, *shape = struct.unpack(f">{1 + dimensions}I", header)
            size = math.prod(shape)
            if found != magic:
                raise RequestError(f"{path}: not an IDX file of the expected kind")
            if shape[0] > MAX_ROWS:
                raise RequestError(
                    f"{path}: expected at most {MAX_ROWS:,} images, got {shape[0]:,}"
                )
            if size > _MAX_IDX_BYTES:
                raise RequestError(
                    f"{path}: expected at most {_MAX_IDX_BYTES:,} bytes, got {size:,}"
                )
            if size > most:
                raise RequestError(f"{path}: damaged file: shorter than its header says")
            content = np.empty(size, np.uint8)
            num_read = _read_into(file, content)
            is_longer = bool(file.read(1))
    except (struct.error, EOFError, gzip.BadGzipFile, zlib.error, ValueError):
        raise RequestError(f"{path}: damaged file") from None
    if num_read != size or is_longer:
        raise RequestError(f"{path}: expected {size} bytes after the header, got another number")
    return content.reshape(shape)


def _read_into(file: BinaryIO | gzip.GzipFile, content: NDArray[np.uint8]) -> int:
    """Fill an array of bytes; how many there were."""
    num_read = 0
    while num_read < len(content):
        part = file.read(min(_CHUNK_BYTES, len(content) - num_read))
        if not part:
            break
        content[num_read : num_read + len(part)] = np.frombuffer(part, np.uint8)
        num_read += len(part)
    return num_read
