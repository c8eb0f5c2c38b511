"""Readers of the layouts in which users have data sets; each returns a split, or None: not here."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from robust_ham.config import DatasetConfig, RequestError
from robust_ham.splits import KNOWN, FileSplit, Split, SplitName
from robust_ham.store import check_table

# --- IDX: MNIST and Fashion-MNIST ------------------------------------------------------------

_IDX_IMAGES, _IDX_LABELS = 0x803, 0x801
_MAX_IDX_BYTES = 1 << 30
_MOST_GZIP_GAINS = 1100
"""By how much gzip can shorten a file: one byte stands for at most 1032."""


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
        RequestError: wrong magic number, too large, or more or fewer bytes than the header says.
    """
    packed = path.suffix == ".gz"
    opener = gzip.open if packed else open
    most = path.stat().st_size * (_MOST_GZIP_GAINS if packed else 1)
    dimensions = magic & 0xFF
    try:
        with opener(path, "rb") as file:
            header = file.read(4 * (1 + dimensions))
            found, *shape = struct.unpack(f">{1 + dimensions}I", header)
            size = int(np.prod(shape, dtype=object))
            if found != magic:
                raise RequestError(f"{path}: not an IDX file of the expected kind")
            if size > _MAX_IDX_BYTES:
                raise RequestError(f"{path}: expected at most {_MAX_IDX_BYTES:,} bytes")
            if size > most:
                raise RequestError(f"{path}: damaged file: shorter than its header says")
            content = file.read(size + 1)
    except (struct.error, EOFError, gzip.BadGzipFile, zlib.error, ValueError):
        raise RequestError(f"{path}: damaged file") from None
    if len(content) != size:
        raise RequestError(f"{path}: expected {size} bytes after the header, got another number")
    return np.frombuffer(content, np.uint8).reshape(shape).copy()


# --- Hugging Face parquet and one folder per class -------------------------------------------

_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm"}
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "GIF", "TIFF")
"""Image formats that are read; Pillow knows others that start programs (EPS)."""
_MAX_PIXELS = 89_000_000
"""Of one image file, below what Pillow itself refuses."""
_MAX_SPLIT_BYTES = 1 << 35
"""Of all decoded images of a split in memory."""
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
            limit = config.num_test if split == "test" else None
            return _read_class_folders(folder / name, config, limit)
    if any(folder.iterdir()):
        expected = " or ".join(f"{n}-*.parquet or {n}/<class>/" for n in _SPLIT_NAMES[split][:1])
        raise RequestError(f"{folder}: wrong layout: expected {expected}")
    return None


def open_image(content: bytes | Path, where: str | None = None) -> Image.Image:
    """An image file, decoded: grey ("L") or colour ("RGB").

    Raises:
        RequestError: it cannot be read; names ``where``, else the path.
    """
    try:
        file = io.BytesIO(content) if isinstance(content, bytes) else content
        with Image.open(file, formats=_FORMATS) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise RequestError(
                    f"{where or content!s}: expected an image of at most {_MAX_PIXELS:,} pixels, "
                    f"got {image.width}×{image.height}"
                )
            if image.mode == "I;16":  # convert() would clip
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return image.convert("L" if image.mode in {"1", "L"} else "RGB")
    except RequestError:
        raise
    except Exception:  # Pillow raises many kinds for a damaged file
        raise RequestError(f"{where or content!s}: not an image that can be read") from None


def fit(image: Image.Image, size: int, short_side: int) -> Image.Image:
    """Resize the short side to ``short_side`` pixels and keep the central ``size`` × ``size``."""
    scale = short_side / min(image.size)
    width, height = (max(size, round(length * scale)) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


class _Pixels:
    """Decoded images of a split, as many as memory may be asked to hold."""

    def __init__(self, where: Path) -> None:
        self.where, self.images, self.num_bytes = where, list[NDArray[np.uint8]](), 0

    def add(self, image: NDArray[np.uint8]) -> None:
        """Keep one more.

        Raises:
            RequestError: they are too large together.
        """
        self.num_bytes += image.nbytes
        if self.num_bytes > _MAX_SPLIT_BYTES:
            raise RequestError(
                f"{self.where}: expected at most {_MAX_SPLIT_BYTES:,} bytes of decoded images; "
                "dataset.image_size makes them smaller, dataset.stream leaves them on the disk"
            )
        self.images.append(image)


def _stack(images: list[NDArray[np.uint8]], where: Path) -> Tensor:
    if len({image.shape[2] for image in images}) > 1:  # a few grey ones among colour images
        images = [np.repeat(i, 3, axis=2) if i.shape[2] == 1 else i for i in images]
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
    pixels = _Pixels(files[0].parent)
    labels: list[NDArray[np.int64]] = []
    for file in files:
        row = 0
        for cells, targets in _parquet_rows(file):
            labels.append(targets)
            for content in cells:
                if not isinstance(content, bytes):
                    raise RequestError(f"{file} row {row}: expected the image as bytes")
                pixels.add(_pixels(open_image(content, f"{file} row {row}"), config))
                row += 1
    if not pixels.images:
        raise RequestError(f"{files[0]}: no images")
    targets = np.concatenate(labels)
    return Split(
        _stack(pixels.images, files[0].parent),
        torch.from_numpy(targets),
        _num_classes(config, targets),
        str(files[0].parent),
    )


def _parquet_rows(file: Path) -> Iterator[tuple[list[Any], NDArray[np.int64]]]:
    """Image files and labels of a parquet file, some rows at a time.

    Raises:
        RequestError: damaged, too large, or of other columns.
    """
    try:
        check_table(file)
        with pq.ParquetFile(file) as table:
            schema = table.schema_arrow
            image = next((c for c in ("image", "img") if c in schema.names), None)
            label = next((c for c in ("label", "fine_label") if c in schema.names), None)
            if image is None or label is None:
                raise RequestError(f"{file}: expected columns image (or img) and label")
            if not (_holds_bytes(schema.field(image).type)):
                raise RequestError(f"{file} row 0: expected the image as bytes")
            if not pa.types.is_integer(schema.field(label).type):
                raise RequestError(f"{file}: {label}: expected whole numbers")
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=[image, label]):
                if batch[label].null_count:
                    raise RequestError(f"{file}: {label}: a row has none")
                cells = batch[image].to_pylist()
                contents = [c.get("bytes") if isinstance(c, dict) else c for c in cells]
                yield contents, batch[label].to_numpy().astype(np.int64)
    except _NO_PARQUET:
        raise RequestError(f"{file}: damaged or unreadable parquet file") from None


_ROWS_AT_ONCE = 256
_NO_PARQUET = (pa.ArrowException, OSError, ValueError, LookupError, TypeError, RuntimeError)
"""What pyarrow raises for damaged files."""


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds bytes, or, as Hugging Face has it, ``{bytes, path}``."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(folder: Path) -> list[str]:
    visible = (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return sorted(path.name for path in visible)


def _class_files(folder: Path) -> tuple[list[Path], list[int], int]:
    """Image files of ``folder/<class>/``, the classes taking turns; labels; number of classes."""
    own = _class_names(folder)
    if not own:
        raise RequestError(f"{folder}: wrong layout: expected one sub-folder per class")
    train = folder.parent / "train"  # its classes count, so that all splits agree
    classes = _class_names(train) if train.is_dir() else own
    foreign = sorted(set(own) - set(classes))
    if foreign:
        raise RequestError(f"{folder}: class {foreign[0]} is not in {train}")
    found: list[tuple[int, int, Path]] = []  # turn, label, file
    for label, name in enumerate(classes):
        path = folder / name
        files = sorted(path.iterdir()) if path.is_dir() else []
        images = [f for f in files if f.suffix.lower() in _IMAGE_SUFFIXES and f.is_file()]
        found += [(turn, label, file) for turn, file in enumerate(images)]
    if not found:
        raise RequestError(f"{folder}: no image files in its sub-folders")
    found.sort()
    return [file for *_, file in found], [label for _, label, _ in found], len(classes)


def _read_class_folders(folder: Path, config: DatasetConfig, limit: int | None) -> Split:
    files, labels, num_classes = _class_files(folder)
    files, labels = files[:limit], labels[:limit]
    pixels = _Pixels(folder)
    with ThreadPoolExecutor() as pool:  # decoding leaves the interpreter free
        for some in range(0, len(files), _ROWS_AT_ONCE):
            part = files[some : some + _ROWS_AT_ONCE]
            for image in pool.map(lambda file: _pixels(open_image(file), config), part):
                pixels.add(image)
    known = KNOWN.get(config.name)
    return Split(
        _stack(pixels.images, folder),
        torch.tensor(labels, dtype=torch.int64),
        known.num_classes if known else num_classes,
        str(folder),
    )


def read_files(folder: Path, config: DatasetConfig) -> FileSplit | None:
    """The training images as files under ``folder/train/<class>/``; None: not here."""
    train = folder / "train"
    if not train.is_dir():
        return None
    files, labels, num_classes = _class_files(train)
    size = config.image_size
    assert size is not None  # checked with the configuration
    known = KNOWN.get(config.name)
    return FileSplit(
        files,
        torch.tensor(labels, dtype=torch.int64),
        known.num_classes if known else num_classes,
        str(train),
        size,
        _short_side(config.name, size),
    )


def _pixels(image: Image.Image, config: DatasetConfig) -> NDArray[np.uint8]:
    """An image as (H, W, C) uint8, C = 1 or 3, resized and cropped where image_size asks for it.

    Small known data sets stay as they are: they are subsampled later.
    """
    size = config.image_size
    if size is not None and config.name not in DOWNLOADS:
        image = fit(image, size, _short_side(config.name, size))
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _short_side(name: str, size: int) -> int:
    """Of an image before its central crop: of ImageNet, 256 for 224."""
    return round(size * 256 / 224) if name == "imagenet" else size


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
