"""Images and labels in memory, and what is fixed about the data sets known by name."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from robust_ham.errors import RequestError, printable

log = logging.getLogger(__name__)

SplitName = Literal["train", "test"]
MAX_CLASSES = 100_000


@dataclass(frozen=True)
class Known:
    """What is fixed about a named data set."""

    num_classes: int
    torchvision_folder: str
    get: str
    torchvision_class: str | None = None
    """Of ``torchvision.datasets``, where it can be downloaded."""
    ignored_labels: tuple[str, ...] = ()
    """Columns of labels that are not those of the data set."""

    @property
    def is_subsampled(self) -> bool:
        """Whether ``image_size`` leaves out pixels; larger images are resized and cropped."""
        return self.torchvision_class is not None


KNOWN: dict[str, Known] = {
    "fashion_mnist": Known(
        10,
        "FashionMNIST",
        "Debian's package: apt-get install dataset-fashion-mnist",
        "FashionMNIST",
    ),
    "mnist": Known(10, "MNIST", "-o dataset.download=true", "MNIST"),
    "cifar10": Known(10, "cifar-10-batches-py", "-o dataset.download=true", "CIFAR10"),
    "cifar100": Known(
        100, "cifar-100-python", "-o dataset.download=true", "CIFAR100", ("coarse_label",)
    ),
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
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
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
            name = file.relative_to(self.source).as_posix()
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


def check_labels(
    labels: NDArray[np.int64], data_set: str, where: Path, num_named: int | None = None
) -> int:
    """The number of classes: of a data set known by name, else ``num_named``, else from the labels.

    ``num_named``: how many classes the files name, if they do; without, the largest label + 1.

    Raises:
        RequestError: labels out of range, that do not begin at 0, of one class only, or without
            classes that they should have.
    """
    if not len(labels):
        return 0
    low, high = int(labels.min()), int(labels.max())
    known = KNOWN.get(data_set)
    num_classes = known.num_classes if known else num_named or high + 1
    if high >= MAX_CLASSES:
        raise RequestError(
            f"{where}: label out of range: expected below {MAX_CLASSES:,}, got {high:,}"
        )
    if low < 0 or high >= num_classes:
        hint = "; labels begin at 0, not at 1" if low == 1 and high == num_classes else ""
        raise RequestError(
            f"{where}: label out of range: expected 0 … {num_classes - 1}, "
            f"got {low if low < 0 else high}{hint}"
        )
    if low == high and (known is None or len(labels) > 1):
        raise RequestError(f"{where}: expected labels of at least 2 classes, got {low} only")
    counts = np.bincount(labels, minlength=num_classes)
    missing = np.flatnonzero(counts == 0)
    if known is None and low > 0 and num_named is None:
        raise RequestError(f"{where}: labels begin at {low}: expected 0 … {high - low}")
    if len(missing) and (known is None or _is_unlikely(counts, np.ones(num_classes))):
        raise RequestError(
            f"{where}: no image of class {missing[0]}: expected images of all {num_classes} classes"
        )
    return num_classes


def check_cut(labels: Tensor, kept: slice, key: str, source: str) -> None:
    """Warn if a part of a split, cut out by ``dataset.<key>``, lacks classes.

    Raises:
        RequestError: it lacks them because the split is ordered by class.
    """
    stored = labels.numpy()
    counts, kept_counts = (
        np.bincount(k, minlength=stored.max() + 1) for k in (stored, stored[kept])
    )
    num_kept, num_classes = np.count_nonzero(kept_counts), np.count_nonzero(counts)
    if num_kept == num_classes:
        return
    line = f"dataset.{key}: {num_kept} of the {num_classes} classes of {source} are among the "
    line += f"{len(stored[kept])} images used"
    if _is_unlikely(kept_counts, counts) or _is_ordered_by_class(stored):
        raise RequestError(
            f"{line}: its images are ordered by class; use all of them, or shuffle them first"
        )
    log.warning("%s", printable(line))


_DRAWS = 200


def _is_unlikely(counts: NDArray[np.int64], weights: NDArray[Any]) -> bool:
    """Whether random draws of as many images, classes by ``weights``, all have more classes."""
    draws = np.random.default_rng(0).multinomial(counts.sum(), weights / weights.sum(), _DRAWS)
    return bool(np.count_nonzero(counts) < np.count_nonzero(draws, axis=1).min())


def _is_ordered_by_class(labels: NDArray[np.int64]) -> bool:
    """Whether neighbours share their class more often than halfway between chance and always."""
    shares = np.bincount(labels) / len(labels)
    chance = float((shares**2).sum())
    return bool((labels[1:] == labels[:-1]).mean() > (1 + chance) / 2)
