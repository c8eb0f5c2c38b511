"""Decode image files to 8-bit grey or colour pixels, and collect them in one tensor."""

from __future__ import annotations

import contextlib
import io
import math
import re
import threading
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from robust_ham.config.datasets import DATASETS
from robust_ham.config.experiment import DatasetConfig
from robust_ham.errors import RequestError
from robust_ham.memory import check_memory
from robust_ham.regular_files import read_bytes

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "GIF", "TIFF")
"""Accepted formats; some others (EPS) make Pillow start programs."""
_MAX_PIXELS = 89_000_000
"""Limit for one image, below Pillow's own."""
_MAX_FILE_BYTES = 1 << 29
_MAX_PPM_HEADER = 4_096
_PPM_BREAK = rb"(?:\s|#[^\n]*\n)+"
_PPM_HEADER = re.compile(rb"(?:P[14]|P[2356]%b\d+)%b\d+%b\d+\s" % ((_PPM_BREAK,) * 3), re.ASCII)
"""Type and two or three numbers, separated by white space and comments."""
_LARGE_PIXELS = 4_000_000
"""Larger images are decoded one at a time, even by several threads."""
_decoding_large = threading.Lock()
_COLOUR_MODES = {"RGB", "RGBA", "RGBX", "P", "PA", "LA", "CMYK", "YCbCr"}
"""Pillow's 8-bit modes that ``convert("RGB")`` maps without clipping."""
_EXIF_ORIENTATION = 0x0112
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → transposition that turns the image upright."""


def open_image(content: bytes | Path, where: str | None = None) -> Image.Image:
    """Decode an image file: grey ("L") or colour ("RGB"), turned upright by its EXIF orientation.

    16-bit pixels keep their high byte. Transparency is dropped, as
    ``torchvision.datasets.ImageFolder`` does. A stereo JPEG gives its first image.

    Raises:
        RequestError: the image is unreadable, has several frames, or has pixels without a fixed
            range (floats, 32-bit integers). The message names ``where``, or else the path.
    """
    where = where or str(content)
    if isinstance(content, Path):
        content = read_bytes(content, _MAX_FILE_BYTES, follow_links=True)
    try:
        _check_header(content)
        with (
            contextlib.ExitStack() as turn,
            Image.open(io.BytesIO(content), formats=_FORMATS) as image,
        ):
            if image.width * image.height > _MAX_PIXELS:
                raise RequestError(
                    f"{where}: expected an image of at most {_MAX_PIXELS:,} pixels, "
                    f"got {image.width}×{image.height}"
                )
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise RequestError(f"{where}: expected one image, got several frames")
            if image.width * image.height > _LARGE_PIXELS:
                turn.enter_context(_decoding_large)
            image.load()
            return _upright(_to_8_bits(image, where), image)
    except RequestError:
        raise
    except Exception:  # Pillow raises many types of errors for a damaged file
        raise RequestError(f"{where}: not a readable image") from None


def _check_header(content: bytes) -> None:
    """Refuse a PPM with a long header, which Pillow reads byte by byte.

    Raises:
        ValueError: the header has thousands of characters.
    """
    start = content[:_MAX_PPM_HEADER]
    is_ppm = start[:1] == b"P" and start[1:2] in b"123456"
    if is_ppm and len(start) == _MAX_PPM_HEADER and _PPM_HEADER.match(start) is None:
        raise ValueError("a long header")


def _to_8_bits(image: Image.Image, where: str) -> Image.Image:
    if image.mode in {"1", "L"}:
        return image.convert("L")
    if image.mode in _COLOUR_MODES:
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # else Pillow warns
        return image.convert("RGB")
    if _is_16_bit_grey(image):  # convert() would clip
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    raise RequestError(
        f"{where}: expected 8- or 16-bit grey or 8-bit colour pixels, got Pillow's mode "
        f"{image.mode}, which has no fixed range; convert it to 8 bits"
    )


def _is_16_bit_grey(image: Image.Image) -> bool:
    """Whether pixels use 0 … 65535; TIFF also has 12-bit, inverted and signed ones."""
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        is_plain = tags.get(_TIFF_BITS) == (16,) and tags.get(_TIFF_PHOTOMETRIC) == 1
        return is_plain and image.mode.startswith("I;16")
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in {"PNG", "PPM"})


def _upright(pixels: Image.Image, original: Image.Image) -> Image.Image:
    """Apply the EXIF orientation of ``original`` to ``pixels``; damaged EXIF is ignored."""
    try:
        orientation = original.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # Pillow raises many types of errors for damaged metadata
        return pixels
    return pixels.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else pixels


def resize_and_crop(image: Image.Image, size: int, short_side: int) -> Image.Image:
    """Resize the short side to ``short_side`` pixels and keep the central ``size`` × ``size``.

    Of a very long image, only the central square is resized. A pixel may then differ by a grey
    level, because Pillow rounds the corners of the square to float32.
    """
    scale = short_side / min(image.size)
    width, height = (max(size, round(length * scale)) for length in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    if width * height > _LARGE_PIXELS:
        across, down = image.width / width, image.height / height
        right, bottom = (left + size) * across, (top + size) * down
        box = (left * across, top * down, min(right, image.width), min(bottom, image.height))
        return image.resize((size, size), Image.Resampling.BILINEAR, box)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return image.crop((left, top, left + size, top + size))


def short_side(name: str, size: int) -> int:
    """Return the short side of an image before its central crop: 256 for ImageNet at 224."""
    return round(size * DATASETS[name].resize_ratio) if name in DATASETS else size


def pixels_of(image: Image.Image, config: DatasetConfig) -> NDArray[np.uint8]:
    """Convert an image to uint8 (H, W, C), C = 1 or 3, resized and cropped to ``image_size``.

    Images of small named data sets keep their size: they are subsampled later.
    """
    size = config.image_size
    known = DATASETS.get(config.name)
    if size is not None and not (known and known.is_subsampled):
        image = resize_and_crop(image, size, short_side(config.name, size))
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


class Pixels:
    """Collects the decoded images of a split; the first image sets their size."""

    def __init__(self, where: Path, count: int) -> None:
        """``count`` is the number of images to come."""
        self.where, self.count, self.num_added = where, count, 0
        self.pixels = np.empty((0, 0, 0, 0), np.uint8)  # (N, C, H, W)

    def add(self, image: NDArray[np.uint8]) -> None:
        """Add an image (H, W, C); a grey image among colour images gets three channels.

        Raises:
            RequestError: its size differs from the first image's, or all images together exceed
                the memory.
        """
        height, width, channels = image.shape
        if self.num_added == 0:
            self.pixels = self._empty(channels, height, width)
        if (height, width) != self.pixels.shape[2:]:
            first, other = ("×".join(map(str, s)) for s in (self.pixels.shape[2:], (height, width)))
            raise RequestError(
                f"{self.where}: images of different sizes ({first}, {other}); set "
                "dataset.image_size to resize and crop them"
            )
        if channels > self.pixels.shape[1]:  # the first colour image
            grey, self.pixels = self.pixels, self._empty(channels, height, width)
            self.pixels[: self.num_added] = grey[: self.num_added]
        self.pixels[self.num_added] = image.transpose(2, 0, 1)
        self.num_added += 1

    def _empty(self, *shape: int) -> NDArray[np.uint8]:
        num_bytes = self.count * math.prod(shape)
        description = f"{self.where}: {self.count:,} decoded images"
        hint = "set dataset.image_size to shrink them, or dataset.stream to leave them on the disk"
        try:
            check_memory(description, num_bytes, part=3)
        except RequestError as error:
            raise RequestError(f"{error}; {hint}") from None
        return np.empty((self.count, *shape), np.uint8)

    def tensor(self) -> Tensor:
        """Return all images, (N, C, H, W) uint8."""
        assert self.num_added == self.count
        return torch.from_numpy(self.pixels)
