"""Images and labels in memory, and what is fixed about the data sets known by name."""

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
class Known:
    """What is fixed about a named data set."""

    num_classes: int
    torchvision_folder: str
    get: str


KNOWN: dict[str, Known] = {
    "fashion_mnist": Known(
        10, "FashionMNIST", "Debian's package: apt-get install dataset-fashion-mnist"
    ),
    "mnist": Known(10, "MNIST", "-o dataset.download=true"),
    "cifar10": Known(10, "cifar-10-batches-py", "-o dataset.download=true"),
    "cifar100": Known(100, "cifar-100-python", "-o dataset.download=true"),
    "imagenet": Known(1000, "imagenet", "image-net.org, as folders train/<class>/, val/<class>/"),
}


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
        """The split restricted to some images."""
        return Split(self.images[index], self.labels[index], self.num_classes, self.source)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def hash(self) -> str:
        """SHA-256 over shape, decoded pixels and labels: equal for equal data in any layout."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().tobytes())
        digest.update(self.labels.contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class FileSplit:
    """A split too large for memory: image files, read as they are needed, as colour images.

    ``labels`` int64 (N,) in 0 … num_classes − 1; without augmentation, an image's short side is
    resized to ``short_side`` and its central square of ``image_size`` pixels kept.
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
        """The split restricted to some images."""
        part = (self.files[index], self.labels[index])
        return FileSplit(*part, self.num_classes, self.source, self.image_size, self.short_side)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return 3, self.image_size, self.image_size

    def hash(self) -> str:
        """SHA-256 over size of images, class folders, names and sizes of files, and labels.

        Not over pixels: to decode a data set of this size takes hours.
        """
        digest = hashlib.sha256(f"{self.image_size} {self.short_side}".encode())
        for file, label in zip(self.files, self.labels.tolist(), strict=True):
            name = f"{file.parent.name}/{file.name}"
            digest.update(f"{name} {file.stat().st_size} {label}\n".encode())
        return digest.hexdigest()


def to_float(images: Tensor) -> Tensor:
    """uint8 images to float32 in [0, 1]; same shape."""
    return images.float().div_(255)


def balanced_order(labels: Tensor, seed: int) -> NDArray[np.int64]:
    """Indices of all images, classes taking turns: every prefix is as balanced as it can be.

    Within a class, the order is a permutation drawn from ``seed``.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    classes = labels.numpy()[shuffled]
    by_class = np.argsort(classes, kind="stable")
    first = np.searchsorted(classes[by_class], np.unique(classes))
    counts = np.diff(np.append(first, len(classes)))
    turn = np.concatenate([np.arange(count) for count in counts])
    order = np.lexsort((classes[by_class], turn))
    return np.asarray(shuffled[by_class][order], dtype=np.int64)
