"""One image file to 8-bit grey or colour pixels, and many of them to one tensor."""

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

from robust_ham.config.experiment import DatasetConfig
from robust_ham.data.splits import KNOWN
from robust_ham.errors import RequestError
from robust_ham.memory import check_memory
from robust_ham.regular_files import read_bytes

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "GIF", "TIFF")
"""Image formats that are read; Pillow knows others that start programs (EPS)."""
_MAX_PIXELS = 89_000_000
"""Of one image file, below what Pillow itself refuses."""
_MAX_FILE_BYTES = 1 << 29
_MAX_PPM_HEADER = 4_096
_PPM_BREAK = rb"(?:\s|#[^\n]*\n)+"
_PPM_HEADER = re.compile(rb"(?:P[14]|P[2356]%b\d+)%b\d+%b\d+\s" % ((_PPM_BREAK,) * 3), re.ASCII)
"""Kind and two or three numbers, with comments between them."""
_LARGE_PIXELS = 4_000_000
"""Images of more are decoded one at a time, however many threads decode."""
_decoding_large = threading.Lock()
_COLOUR_MODES = {"RGB", "RGBA", "RGBX", "P", "PA", "LA", "CMYK", "YCbCr"}
"""Pillow's names of 8-bit pixels that ``convert("RGB")`` maps without clipping."""
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
"""What turns an image of this EXIF orientation upright."""


def open_image(content: bytes | Path, where: str | None = None) -> Image.Image:
    """An image file, decoded and upright: grey ("L") or colour ("RGB").

    Its EXIF orientation is applied. 16-bit pixels keep their high byte; transparency is dropped,
    as ``torchvision.datasets.ImageFolder`` does. Of a stereo JPEG the first image is taken.

    Raises:
        RequestError: it cannot be read, has several frames, or pixels of no fixed range (floats,
            32-bit integers); names ``where``, else the path.
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
    except Exception:  # Pillow raises many kinds for a damaged file
        raise RequestError(f"{where}: not an image that can be read") from None


def _check_header(content: bytes) -> None:
    """Refuse a PPM whose header is long: Pillow reads it byte by byte.

    Raises:
        ValueError: a header of thousands of characters.
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
    """Whether pixels fill 0 … 65535; TIFF also keeps 12-bit, inverted and signed ones."""
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        is_plain = tags.get(_TIFF_BITS) == (16,) and tags.get(_TIFF_PHOTOMETRIC) == 1
        return is_plain and image.mode.startswith("I;16")
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in {"PNG", "PPM"})


def _upright(pixels: Image.Image, original: Image.Image) -> Image.Image:
    """``pixels`` turned as the EXIF orientation of ``original`` says; damaged EXIF says nothing."""
    try:
        orientation = original.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # Pillow raises many kinds for damaged metadata
        return pixels
    return pixels.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else pixels


def fit(image: Image.Image, size: int, short_side: int) -> Image.Image:
    """Resize the short side to ``short_side`` pixels and keep the central ``size`` × ``size``.

    Of an image so long that most of it would be resized in vain, only the square is computed: a
    pixel may then differ by a grey level, as Pillow rounds its corners to float32.
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
    """Of an image before its central crop to ``size``: of ImageNet, 256 for 224."""
    return round(size * 256 / 224) if name == "imagenet" else size


def pixels_of(image: Image.Image, config: DatasetConfig) -> NDArray[np.uint8]:
    """An image as (H, W, C) uint8, C = 1 or 3, resized and cropped where image_size asks for it.

    Small known data sets stay as they are: they are subsampled later.
    """
    size = config.image_size
    known = KNOWN.get(config.name)
    if size is not None and not (known and known.is_subsampled):
        image = fit(image, size, short_side(config.name, size))
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


class Pixels:
    """Decoded images of a split, in memory that is asked for once the first of them is known."""

    def __init__(self, where: Path, count: int) -> None:
        """``count``: how many images there will be."""
        self.where, self.count, self.num_added = where, count, 0
        self.pixels = np.empty((0, 0, 0, 0), np.uint8)  # (N, C, H, W)

    def add(self, image: NDArray[np.uint8]) -> None:
        """Keep one more, (H, W, C); grey images among colour ones get three channels.

        Raises:
            RequestError: it is of another size than the first, or all of them together will be too
                large.
        """
        height, width, channels = image.shape
        if self.num_added == 0:
            self.pixels = self._empty(channels, height, width)
        if (height, width) != self.pixels.shape[2:]:
            first, other = ("×".join(map(str, s)) for s in (self.pixels.shape[2:], (height, width)))
            raise RequestError(
                f"{self.where}: images of different shapes ({first}, {other}); set "
                "dataset.image_size to resize and crop them"
            )
        if channels > self.pixels.shape[1]:  # the first colour image
            grey, self.pixels = self.pixels, self._empty(channels, height, width)
            self.pixels[: self.num_added] = grey[: self.num_added]
        self.pixels[self.num_added] = image.transpose(2, 0, 1)
        self.num_added += 1

    def _empty(self, *shape: int) -> NDArray[np.uint8]:
        num_bytes = self.count * math.prod(shape)
        what = f"{self.where}: {self.count:,} decoded images"
        hint = "dataset.image_size makes them smaller, dataset.stream leaves them on the disk"
        try:
            check_memory(what, num_bytes, part=3)
        except RequestError as error:
            raise RequestError(f"{error}; {hint}") from None
        return np.empty((self.count, *shape), np.uint8)

    def tensor(self) -> Tensor:
        """All of them, (N, C, H, W) uint8."""
        assert self.num_added == self.count
        return torch.from_numpy(self.pixels)
