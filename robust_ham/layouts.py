"""Readers of the layouts in which users have data sets; each returns a split, or None: not here."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
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
from robust_ham.splits import KNOWN, Split, SplitName

# --- IDX: MNIST and Fashion-MNIST ------------------------------------------------------------

_IDX_IMAGES, _IDX_LABELS = 0x803, 0x801
_MAX_IDX_BYTES = 1 << 30


def idx_file(folder: Path, split: SplitName, kind: Literal["images", "labels"]) -> Path | None:
    """The images or labels of a split, packed or not; None: not here."""
    stem = "t10k" if split == "test" else "train"
    name = f"{stem}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def read_idx_folder(folder: Path, config: DatasetConfig, split: SplitName) -> Split | None:
    """MNIST's and Fashion-MNIST's own files.

    Raises:
        RequestError: one of the two is missing, or a file is damaged.
    """
    images, labels = (idx_file(folder, split, kind) for kind in ("images", "labels"))
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

_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm"}
_SPLIT_NAMES: dict[SplitName, tuple[str, ...]] = {
    "train": ("train",),
    "test": ("test", "validation", "valid", "val"),
}


def has_parquet_or_folders(folder: Path) -> bool:
    """Whether ``folder`` looks like one for ``read_parquet_or_folders``; nothing is read."""
    return folder.is_dir() and (
        any(folder.glob("*.parquet"))
        or any((folder / name).is_dir() for names in _SPLIT_NAMES.values() for name in names)
    )


def read_parquet_or_folders(folder: Path, config: DatasetConfig, split: SplitName) -> Split | None:
    """``<split>-*.parquet`` as Hugging Face has it, or ``<split>/<class>/`` with image files.

    Raises:
        RequestError: another layout, or a damaged file.
    """
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
    if size is None or config.name in DOWNLOADS:
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

DOWNLOADS = {
    "fashion_mnist": "FashionMNIST",
    "mnist": "MNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}


def read_cifar(root: Path, config: DatasetConfig, split: SplitName) -> Split | None:
    """CIFAR as torchvision keeps it: its reader checks the MD5 of every file before opening it."""
    if not (root / KNOWN[config.name].torchvision_folder).is_dir():
        return None
    try:
        return _torchvision(root, config, split, download=False)
    except (RuntimeError, OSError, ValueError):
        folder = root / KNOWN[config.name].torchvision_folder
        raise RequestError(f"{folder}: damaged or incomplete (MD5 of a file differs)") from None


def download(root: Path, config: DatasetConfig, split: SplitName) -> Split:
    """What torchvision downloads into ``root``.

    Raises:
        RequestError: the download failed.
    """
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

    kind = getattr(datasets, DOWNLOADS[config.name])
    found = kind(root=str(root), train=split == "train", download=download)
    pixels = torch.as_tensor(found.data)
    pixels = pixels.permute(0, 3, 1, 2).contiguous() if pixels.ndim == 4 else pixels.unsqueeze(1)
    labels = torch.as_tensor(found.targets, dtype=torch.int64)
    return Split(pixels, labels, KNOWN[config.name].num_classes, str(root))
