"""Small data sets in the layouts that users have, for several tests."""

import gzip
import io
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from robust_ham.config.experiment import DatasetConfig
from robust_ham.data.datasets import load_split
from robust_ham.errors import RequestError


def mnist_like(count=30, size=28, seed=0):
    stream = np.random.default_rng(seed)
    return stream.integers(0, 256, (count, size, size), np.uint8), np.arange(count) % 10


def write_idx(folder, stem, images, labels, *, compress=False):
    folder.mkdir(parents=True, exist_ok=True)
    opener, suffix = (gzip.open, ".gz") if compress else (open, "")
    with opener(folder / f"{stem}-images-idx3-ubyte{suffix}", "wb") as file:
        file.write(struct.pack(">IIII", 0x803, *images.shape) + images.tobytes())
    with opener(folder / f"{stem}-labels-idx1-ubyte{suffix}", "wb") as file:
        file.write(struct.pack(">II", 0x801, len(labels)) + labels.astype(np.uint8).tobytes())


def png(pixels):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def write_parquet(path, images, labels, image="image", label="label"):
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": png(pixels), "path": None} for pixels in images]
    pq.write_table(pa.table({image: cells, label: np.asarray(labels, dtype=np.int64)}), path)


def write_folders(folder, images, labels, prefix="class"):
    for i, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        target = folder / f"{prefix}{label}"
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{i:03}.png").write_bytes(png(pixels))


def assert_refused(name, root, message, **options):
    with pytest.raises(RequestError, match=message) as error:
        load_split(DatasetConfig(name=name, **options), "test", root)
    assert "\n" not in str(error.value)
