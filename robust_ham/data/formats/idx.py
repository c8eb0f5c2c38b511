"""Read IDX files, the format of MNIST and Fashion-MNIST."""

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

from robust_ham.config.datasets import DATASETS
from robust_ham.config.experiment import DatasetConfig
from robust_ham.data.label_checks import check_labels
from robust_ham.data.splits import Split, SplitName
from robust_ham.errors import RequestError
from robust_ham.regular_files import open_regular
from robust_ham.storage.files import MAX_ROWS

_IDX_IMAGES, _IDX_LABELS = 0x803, 0x801
_MAX_IDX_BYTES = 1 << 30
_CHUNK_BYTES = 1 << 20
_MAX_GZIP_RATIO = 1100
"""gzip compresses at most 1032 bytes into one."""

_PUBLISHED: dict[str, tuple[str, SplitName]] = {
    "6bbc9ace898e44ae57da46a324031adb": ("mnist", "train"),
    "a25bea736e30d166cdddb491f175f624": ("mnist", "train"),
    "2646ac647ad5339dbf082846283269ea": ("mnist", "test"),
    "27ae3e4e09519cfbb04c329615203637": ("mnist", "test"),
    "f4a8712d7a061bf5bd6d2ca38dc4d50a": ("fashion_mnist", "train"),
    "9018921c3c673c538a1fc5bad174d6f9": ("fashion_mnist", "train"),
    "8181f5470baa50b63fa0f6fddb340f0a": ("fashion_mnist", "test"),
    "15d484375f8d13e6eb1aabb0c3f46965": ("fashion_mnist", "test"),
    "56cb151f02f7a0ea897b87493b6c7586": ("fashion_mnist", "train"),  # in this package:
    "6017ecad9bfe54bba7fcc9dc44bdedd4": ("fashion_mnist", "train"),  # first 10,000 images
}
"""MD5 of the published images and labels, decompressed."""


def idx_file(folder: Path, split: SplitName, kind: Literal["images", "labels"]) -> Path | None:
    """Find the images or labels of a split, gzip or not; None if there are none."""
    stem = "t10k" if split == "test" else "train"
    name = f"{stem}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)


def read_idx_folder(folder: Path, config: DatasetConfig, split: SplitName) -> Split | None:
    """Read a split of MNIST or Fashion-MNIST.

    Raises:
        RequestError: a file is missing or damaged, or belongs to another data set or split.
    """
    images, labels = (idx_file(folder, split, kind) for kind in ("images", "labels"))
    if images is None and labels is None:
        other: SplitName = "train" if split == "test" else "test"
        if idx_file(folder, other, "images") is None or config.download:
            return None
        raise RequestError(f"{folder}: has {other} files of {config.name}, but no {split} files")
    if images is None or labels is None:
        missing = "images" if images is None else "labels"
        raise RequestError(f"{folder}: the {split} {missing} of {config.name} are missing")
    pixels, targets = read_idx(images, _IDX_IMAGES), read_idx(labels, _IDX_LABELS)
    for file, content in ((images, pixels), (labels, targets)):
        _check_origin(file, content, config.name, split)
    check_labels(targets.astype(np.int64), config.name, folder)
    return Split(
        torch.from_numpy(pixels).unsqueeze(1),  # (N, 1, H, W)
        torch.from_numpy(targets.astype(np.int64)),
        DATASETS[config.name].num_classes,
        str(folder),
    )


def _check_origin(file: Path, content: NDArray[np.uint8], data_set: str, split: SplitName) -> None:
    """Refuse a published file of another data set or split."""
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
    """Read an IDX file of bytes, gzip or not, in the shape of its header.

    Raises:
        RequestError: the magic number is wrong, the file is too large, or its length does not
            match the header.
    """
    is_gzip = path.suffix == ".gz"
    dimensions = magic & 0xFF
    try:
        with open_regular(path, _MAX_IDX_BYTES, follow_links=True) as stored:
            max_size = os.fstat(stored.fileno()).st_size * (_MAX_GZIP_RATIO if is_gzip else 1)
            file = gzip.GzipFile(fileobj=stored) if is_gzip else stored
            header = file.read(4 * (1 + dimensions))
            actual_magic, *shape = struct.unpack(f">{1 + dimensions}I", header)
            size = math.prod(shape)
            if actual_magic != magic:
                kind = "images" if magic == _IDX_IMAGES else "labels"
                raise RequestError(f"{path}: not an IDX file of {kind}")
            if shape[0] > MAX_ROWS:
                raise RequestError(
                    f"{path}: expected at most {MAX_ROWS:,} images, got {shape[0]:,}"
                )
            if size > _MAX_IDX_BYTES:
                raise RequestError(
                    f"{path}: expected at most {_MAX_IDX_BYTES:,} bytes, got {size:,}"
                )
            if size > max_size:
                raise RequestError(f"{path}: damaged: shorter than its header declares")
            content = np.empty(size, np.uint8)
            num_read = _read_into(file, content)
            is_longer = bool(file.read(1))
    except (struct.error, EOFError, gzip.BadGzipFile, zlib.error, ValueError):
        raise RequestError(f"{path}: damaged IDX file") from None
    if num_read != size or is_longer:
        got = "more" if is_longer else num_read
        raise RequestError(f"{path}: damaged: expected {size} bytes after the header, got {got}")
    return content.reshape(shape)


def _read_into(file: BinaryIO | gzip.GzipFile, content: NDArray[np.uint8]) -> int:
    """Read bytes into an array until it is full; return how many were read."""
    num_read = 0
    while num_read < len(content):
        part = file.read(min(_CHUNK_BYTES, len(content) - num_read))
        if not part:
            break
        content[num_read : num_read + len(part)] = np.frombuffer(part, np.uint8)
        num_read += len(part)
    return num_read
