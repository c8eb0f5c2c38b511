"""Images and labels in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

SplitName = Literal["train", "test"]
MAX_CLASSES = 100_000


@dataclass(frozen=True)
class Split:
    """Images and labels of one split.

    ``images`` uint8 (N, C, H, W); ``labels`` int64 (N,) in 0 … num_classes − 1.
    """

    images: Tensor
    labels: Tensor
    num_classes: int
    source: str

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __getitem__(self, index: slice | Tensor) -> Split:
        """Select some images."""
        return Split(self.images[index], self.labels[index], self.num_classes, self.source)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def hash(self) -> str:
        """Hash shape, decoded pixels and labels (SHA-256); equal for equal data in any layout."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class FileSplit:
    """A split too large for memory: image files that are decoded when needed, as colour images.

    ``labels`` int64 (N,) in 0 … num_classes − 1. Without augmentation, the short side of an image
    is resized to ``short_side``, and its central square of ``image_size`` pixels is kept.
    """

    files: list[Path]
    labels: Tensor
    num_classes: int
    source: str
    image_size: int
    short_side: int

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def __getitem__(self, index: slice) -> FileSplit:
        """Select some images."""
        part = (self.files[index], self.labels[index])
        return FileSplit(*part, self.num_classes, self.source, self.image_size, self.short_side)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return 3, self.image_size, self.image_size

    def hash(self) -> str:
        """Hash image size, class folders, names and sizes of files, and labels (SHA-256).

        Pixels are left out: decoding a data set of this size takes hours.
        """
        digest = hashlib.sha256(f"{self.image_size} {self.short_side}".encode())
        for file, label in zip(self.files, self.labels.tolist(), strict=True):
            name = file.relative_to(self.source).as_posix()
            digest.update(f"{name} {file.stat().st_size} {label}\n".encode())
        return digest.hexdigest()


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 images to float32 in [0, 1]; same shape."""
    return images.float().div_(255)


def balanced_order(labels: Tensor, seed: int) -> NDArray[np.int64]:
    """Order the indices of all images so that classes take turns: every prefix is balanced.

    Within a class, the order is a random permutation seeded by ``seed``.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    classes = labels.numpy()[shuffled]
    by_class = np.argsort(classes, kind="stable")
    first = np.searchsorted(classes[by_class], np.unique(classes))
    counts = np.diff(np.append(first, len(classes)))
    turn = np.concatenate([np.arange(count) for count in counts])
    order = np.lexsort((classes[by_class], turn))
    return np.asarray(shuffled[by_class][order], dtype=np.int64)
