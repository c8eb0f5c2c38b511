"""Random numbers that depend only on a seed and the bytes of an image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from torch import Tensor


def image_streams(images: Tensor, key: str) -> Iterator[np.random.Generator]:
    """Yield a generator per image (N, C, H, W), seeded by ``key`` and the float32 pixels."""
    for image in images.detach().cpu():
        digest = hashlib.sha256(key.encode() + image.float().numpy().tobytes()).digest()
        yield np.random.default_rng(np.frombuffer(digest, np.uint32))
