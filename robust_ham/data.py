"""Named data sets as uint8 tensors in memory, from any of the layouts users have (contract 4)."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from robust_ham.config import DatasetConfig, RequestError

SplitName = Literal["train", "test"]

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
PACKAGED = Path(__file__).parent / "datasets"
_IDX_IMAGES, _IDX_LABELS = 0x803, 0x801
_MAX_IDX_BYTES = 1 << 30
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm"}


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


class Dataset:
    """The splits of a configured data set, each read when it is first asked for, with its hash."""

    def __init__(self, config: DatasetConfig, data_root: Path | None = None) -> None:
        self.config = config
        self.data_root = data_root

    @cached_property
    def _train_validation(self) -> tuple[Split, Split | None]:
        return load_train_validation(self.config, self.data_root)

    @cached_property
    def test(self) -> Split:
        """The test split."""
        return load_split(self.config, "test", self.data_root)

    @property
    def train(self) -> Split:
        """The images trained on."""
        return self._train_validation[0]

    @property
    def validation(self) -> Split:
        """The images held out of the training split, or the test split where none are."""
        return self._train_validation[1] or self.test

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of ``train`` and ``validation``, the images that a trained model depends on."""
        return {"train": self.train.hash(), "validation": self.validation.hash()}

    @cached_property
    def test_hash(self) -> str:
        """SHA-256 of the test split."""
        return self.test.hash()


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


def load_train_validation(
    config: DatasetConfig, data_root: Path | None = None
) -> tuple[Split, Split | None]:
    """Training images, and the images held out after them (None where none are asked for).

    Raises:
        RequestError: not found, damaged, or fewer images than asked for.
    """
    split = load_split(config, "train", data_root)
    held_out = config.num_validation
    num_train = config.num_train or len(split) - held_out
    if not 0 < num_train <= len(split) - held_out:
        hint = f"; all of them: {KNOWN[config.name].get}" if config.name in KNOWN else ""
        raise RequestError(
            f"dataset.num_train: asked for {num_train} + {held_out} held out, "
            f"found {len(split)} in {split.source}{hint}"
        )
    validation = split[num_train : num_train + held_out] if held_out else None
    return split[:num_train], validation


def load_split(config: DatasetConfig, split: SplitName, data_root: Path | None = None) -> Split:
    """One split of a data set, from the first place that has it.

    Looks in ``data_root``, else in the folder ``ROBUST_HAM_DATA`` names, else in
    ``config.data_root``; then in Debian's package, the copy inside this package, and last, where
    ``config.download`` allows it, at torchvision's download.

    Raises:
        RequestError: not found (names the places), or damaged (names the file).
    """
    searched: list[str] = []
    for place, reader in _places(config, data_root):
        searched.append(str(place))
        found = reader(place, config, split)
        if found is not None:
            return _checked(found, config, place)
    if config.download and config.name in _DOWNLOADS:
        root = _root(config, data_root) or Path.home() / ".cache" / "robust-ham"
        return _checked(_download(root, config, split), config, root)
    known = KNOWN.get(config.name)
    hint = known.get if known else "--data-root FOLDER"
    raise RequestError(
        f"dataset {config.name} ({split}): not found in {', '.join(searched) or 'any place'}; "
        f"to get it: {hint}"
    )


def available(name: str, data_root: Path | None = None) -> str | None:
    """Where the test split of ``name`` is found, without reading it whole; None if nowhere."""
    config = DatasetConfig(name=name)
    for place, reader in _places(config, data_root):
        if reader is _read_idx_folder:
            if _idx_file(place, "test", "images") is not None:
                return str(place)
        elif reader is _read_cifar:
            if (place / KNOWN[name].torchvision_folder).is_dir():
                return str(place)
        elif _has_parquet_or_folders(place):
            return str(place)
    return None


# --- where to look ---------------------------------------------------------------------------

Reader = Callable[[Path, DatasetConfig, SplitName], "Split | None"]


def _root(config: DatasetConfig, data_root: Path | None) -> Path | None:
    """The folder of data sets that was named, by precedence.

    Raises:
        RequestError: it is no folder.
    """
    named = [
        ("--data-root", data_root),
        ("ROBUST_HAM_DATA", os.environ.get("ROBUST_HAM_DATA")),
        ("dataset.data_root", config.data_root),
    ]
    for origin, value in named:
        if value:
            if not Path(value).is_dir():
                raise RequestError(f"{origin}: expected a folder, got {value}")
            return Path(value)
    return None


def _places(config: DatasetConfig, data_root: Path | None) -> list[tuple[Path, Reader]]:
    name = config.name
    root = _root(config, data_root)
    places: list[tuple[Path, Reader]] = []
    if name not in KNOWN and Path(name).is_dir():
        places.append((Path(name), _read_parquet_or_folders))
    if root is not None:
        if name in {"mnist", "fashion_mnist"}:
            places.append((root / KNOWN[name].torchvision_folder / "raw", _read_idx_folder))
        if name in {"cifar10", "cifar100"}:
            places.append((root, _read_cifar))
        places.append((root / name, _read_parquet_or_folders))
    if name == "fashion_mnist":
        places.append((DEBIAN_FASHION_MNIST, _read_idx_folder))
        places.append((PACKAGED / name, _read_idx_folder))
    return places


def _checked(split: Split, config: DatasetConfig, place: Path) -> Split:
    """Subsample, then refuse what no later step could make sense of."""
    if len(split) == 0:
        raise RequestError(f"{place}: no images")
    if len(split.images) != len(split.labels):
        raise RequestError(f"{place}: {len(split.images)} images, {len(split.labels)} labels")
    low, high = int(split.labels.min()), int(split.labels.max())
    if low < 0 or high >= split.num_classes:
        raise RequestError(
            f"{place}: label out of range: expected 0 … {split.num_classes - 1}, "
            f"got {low if low < 0 else high}"
        )
    return Split(
        _subsample(split.images, config.image_size), split.labels, split.num_classes, split.source
    )


def _subsample(images: Tensor, image_size: int | None) -> Tensor:
    """Every second (third …) pixel, without a low-pass: that would remove the effect under test."""
    height, width = images.shape[2:]
    if image_size is None or image_size == min(height, width):
        return images
    step = min(height, width) // image_size
    if height % image_size or width % image_size or step < 1:
        raise RequestError(
            f"dataset.image_size: expected a divisor of {height}×{width}, got {image_size}"
        )
    return images[:, :, ::step, ::step].contiguous()


# --- IDX: MNIST and Fashion-MNIST ------------------------------------------------------------


def _idx_file(folder: Path, split: SplitName, kind: Literal["images", "labels"]) -> Path | None:
    stem = "t10k" if split == "test" else "train"
    name = f"{stem}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _read_idx_folder(folder: Path, config: DatasetConfig, split: SplitName) -> Split | None:
    images, labels = (_idx_file(folder, split, kind) for kind in ("images", "labels"))
    if images is None and labels is None:
        return None
    if images is None or labels is None:
        raise RequestError(f"{folder}: has images or labels of {config.name}, not both")
    pixels = read_idx(images, _IDX_IMAGES)
    return Split(
        torch.from_numpy(pixels).unsqueeze(1),  # (N, 1, H, W)
        torch.from_numpy(read_idx(labels, _IDX_LABELS).astype(np.int64)),
        KNOWN[config.name].num_classes,
        str(folder),
    )


def read_idx(path: Path, magic: int) -> NDArray[np.uint8]:
    """An IDX file of bytes, gzip or not: shape as its header says.

    Raises:
        RequestError: wrong magic number, or more or fewer bytes than the header says.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    dimensions = magic & 0xFF
    try:
        with opener(path, "rb") as file:
            header = file.read(4 * (1 + dimensions))
            found, *shape = struct.unpack(f">{1 + dimensions}I", header)
            size = int(np.prod(shape, dtype=object))
            if found != magic or size > _MAX_IDX_BYTES:
                raise RequestError(f"{path}: not an IDX file of the expected kind")
            content = file.read(size + 1)
    except (struct.error, EOFError, gzip.BadGzipFile, zlib.error):
        raise RequestError(f"{path}: damaged file") from None
    if len(content) != size:
        raise RequestError(f"{path}: expected {size} bytes after the header, got another number")
    return np.frombuffer(content, np.uint8).reshape(shape).copy()


# --- Hugging Face parquet and one folder per class -------------------------------------------

_SPLIT_NAMES: dict[SplitName, tuple[str, ...]] = {
    "train": ("train",),
    "test": ("test", "validation", "valid", "val"),
}


def _has_parquet_or_folders(folder: Path) -> bool:
    return folder.is_dir() and (
        any(folder.glob("*.parquet"))
        or any((folder / name).is_dir() for names in _SPLIT_NAMES.values() for name in names)
    )


def _read_parquet_or_folders(folder: Path, config: DatasetConfig, split: SplitName) -> Split | None:
    if not folder.is_dir():
        return None
    for name in _SPLIT_NAMES[split]:
        files = sorted(folder.glob(f"{name}-*.parquet")) or sorted(
            folder.glob(f"data/{name}-*.parquet")
        )
        if files:
            return _read_parquet(files, config)
        if (folder / name).is_dir():
            return _read_class_folders(folder / name, config)
    if any(folder.iterdir()):
        expected = " or ".join(f"{n}-*.parquet or {n}/<class>/" for n in _SPLIT_NAMES[split][:1])
        raise RequestError(f"{folder}: wrong layout: expected {expected}")
    return None


def _decode(content: bytes | Path, where: str) -> NDArray[np.uint8]:
    """An image file as (H, W, C) uint8, C = 1 for grey and 3 for colour."""
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            grey = image.mode in {"1", "L", "I;16"}
            if image.mode == "I;16":  # convert() would clip
                pixels = (np.asarray(image) >> 8).astype(np.uint8)
            else:
                pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        raise RequestError(f"{where}: not an image that can be read") from None
    return pixels[:, :, None] if grey else pixels


def _stack(images: list[NDArray[np.uint8]], where: Path) -> Tensor:
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise RequestError(
            f"{where}: images of different shapes ({', '.join(map(str, sorted(shapes)[:3]))} …); "
            "set dataset.image_size to resize and crop them"
        )
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _num_classes(config: DatasetConfig, labels: NDArray[np.int64]) -> int:
    known = KNOWN.get(config.name)
    return known.num_classes if known else int(labels.max(initial=0)) + 1


def _read_parquet(files: list[Path], config: DatasetConfig) -> Split:
    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.int64]] = []
    for file in files:
        try:
            names = set(pq.read_schema(file).names)
            image = next((c for c in ("image", "img") if c in names), None)
            label = next((c for c in ("label", "fine_label") if c in names), None)
            if image is None or label is None:
                raise RequestError(f"{file}: expected columns image (or img) and label")
            table = pq.read_table(file, columns=[image, label])
            labels.append(table[label].to_numpy().astype(np.int64))
            cells = table[image].to_pylist()
        except (pa.ArrowException, OSError, ValueError):
            raise RequestError(f"{file}: damaged or unreadable parquet file") from None
        for row, cell in enumerate(cells):
            content = cell.get("bytes") if isinstance(cell, dict) else cell
            if not isinstance(content, bytes):
                raise RequestError(f"{file} row {row}: expected the image as bytes")
            pixels = _decode(content, f"{file} row {row}")
            images.append(_fitted(pixels, config))
    targets = np.concatenate(labels)
    return Split(
        _stack(images, files[0].parent),
        torch.from_numpy(targets),
        _num_classes(config, targets),
        str(files[0].parent),
    )


def _class_names(folder: Path) -> list[str]:
    visible = (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return sorted(path.name for path in visible)


def _read_class_folders(folder: Path, config: DatasetConfig) -> Split:
    own = _class_names(folder)
    if not own:
        raise RequestError(f"{folder}: wrong layout: expected one sub-folder per class")
    train = folder.parent / "train"  # its classes count, so that all splits agree
    classes = _class_names(train) if train.is_dir() else own
    foreign = sorted(set(own) - set(classes))
    if foreign:
        raise RequestError(f"{folder}: class {foreign[0]} is not in {train}")
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        path = folder / name
        for file in sorted(path.iterdir()) if path.is_dir() else []:
            if file.suffix.lower() in _IMAGE_SUFFIXES:
                images.append(_fitted(_decode(file, str(file)), config))
                labels.append(label)
    if not images:
        raise RequestError(f"{folder}: no image files in its sub-folders")
    targets = np.asarray(labels, dtype=np.int64)
    known = KNOWN.get(config.name)
    num_classes = known.num_classes if known else len(classes)
    return Split(_stack(images, folder), torch.from_numpy(targets), num_classes, str(folder))


def _fitted(pixels: NDArray[np.uint8], config: DatasetConfig) -> NDArray[np.uint8]:
    """Short side to image_size (ImageNet: to 256/224 of it), then the central square.

    Small known data sets stay as they are: they are subsampled later.
    """
    size = config.image_size
    if size is None or config.name in _DOWNLOADS:
        return pixels
    short = round(size * 256 / 224) if config.name == "imagenet" else size
    height, width = pixels.shape[:2]
    scale = short / min(height, width)
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    image = image.resize(
        (max(size, round(width * scale)), max(size, round(height * scale))),
        Image.Resampling.BILINEAR,
    )
    left, top = (image.width - size) // 2, (image.height - size) // 2
    resized = np.asarray(image.crop((left, top, left + size, top + size)))
    return resized[:, :, None] if resized.ndim == 2 else resized


# --- torchvision: CIFAR in its own layout, and downloads -------------------------------------

_DOWNLOADS = {
    "fashion_mnist": "FashionMNIST",
    "mnist": "MNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}


def _read_cifar(root: Path, config: DatasetConfig, split: SplitName) -> Split | None:
    """CIFAR as torchvision keeps it: its reader checks the MD5 of every file before opening it."""
    if not (root / KNOWN[config.name].torchvision_folder).is_dir():
        return None
    try:
        return _torchvision(root, config, split, download=False)
    except (RuntimeError, OSError, ValueError):
        folder = root / KNOWN[config.name].torchvision_folder
        raise RequestError(f"{folder}: damaged or incomplete (MD5 of a file differs)") from None


def _download(root: Path, config: DatasetConfig, split: SplitName) -> Split:
    root.mkdir(parents=True, exist_ok=True)
    try:
        return _torchvision(root, config, split, download=True)
    except (RuntimeError, OSError, ValueError) as error:
        raise RequestError(
            f"dataset {config.name}: download failed ({str(error).splitlines()[0][:100]}); "
            "put it under --data-root"
        ) from None


def _torchvision(root: Path, config: DatasetConfig, split: SplitName, *, download: bool) -> Split:
    from torchvision import datasets

    kind = getattr(datasets, _DOWNLOADS[config.name])
    found = kind(root=str(root), train=split == "train", download=download)
    pixels = torch.as_tensor(found.data)
    pixels = pixels.permute(0, 3, 1, 2).contiguous() if pixels.ndim == 4 else pixels.unsqueeze(1)
    labels = torch.as_tensor(found.targets, dtype=torch.int64)
    return Split(pixels, labels, KNOWN[config.name].num_classes, str(root))
