"""The rotations and translations that spatial attacks try.

A transform is a row (angle, right, down) as in ``attacks.utils.warp``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MAX_CANDIDATES = 3_000_000
"""Candidates of a grid, each a pass per image; 31 angles and 301 shifts per axis: 2.8 million."""
MAX_TRANSLATION = 4_096
"""Pixels; images are not larger."""


def grid_transforms(
    shape: Sequence[int],
    *,
    max_rotation: float = 30.0,
    max_translation: float | None = None,
    num_rotations: int = 31,
    num_translations: int = 5,
) -> Tensor:
    """Candidates of ``spatial_grid`` for images of ``shape`` (…, H, W): float64 (T, 3)."""
    limit = translation_limit(shape, max_translation)
    return transformation_grid(max_rotation, limit, num_rotations, num_translations)


def shift_transforms(shape: Sequence[int], *, max_translation: int | None = None) -> Tensor:
    """Candidates of ``spatial_shift`` for images of ``shape`` (…, H, W): float64 (T, 3)."""
    limit = translation_limit(shape, max_translation)
    if max_translation is not None and limit != int(limit):
        raise ValueError(f"max_translation: expected a whole number, got {max_translation}")
    most = (math.isqrt(MAX_CANDIDATES) - 1) // 2
    if limit > most:
        raise ValueError(f"max_translation: expected at most {most}, got {max_translation}")
    return transformation_grid(0.0, int(limit), 1, 2 * int(limit) + 1)


def transformation_grid(
    max_rotation: float, max_translation: float, num_rotations: int, num_translations: int
) -> Tensor:
    """Combine angles and shifts, float64 (T, 3): degrees, pixels right, pixels down.

    The last column varies fastest. Counts are odd, so that the grid contains the identity.

    Raises:
        ValueError: an even count, an angle out of range, or more than ``MAX_CANDIDATES``.
    """
    check_rotation(max_rotation)
    for name, number in (("num_rotations", num_rotations), ("num_translations", num_translations)):
        if number < 1 or number % 2 == 0:
            raise ValueError(f"{name}: expected an odd number, got {number}")
    count = num_rotations * num_translations**2
    if count > MAX_CANDIDATES:
        raise ValueError(
            f"num_rotations, num_translations: expected at most {MAX_CANDIDATES:,} candidates, got "
            f"{num_rotations:,} angles × {num_translations:,}² shifts = {count:,}"
        )
    angles, shifts = (
        np.linspace(-limit, limit, number) if number > 1 else np.zeros(1)
        for limit, number in ((max_rotation, num_rotations), (max_translation, num_translations))
    )
    for values in (angles, shifts):  # make the identity exact
        values[np.abs(values) < 1e-9] = 0.0
    points = np.empty((num_rotations, num_translations, num_translations, 3))
    points[..., 0] = angles[:, None, None]
    points[..., 1] = shifts[:, None]
    points[..., 2] = shifts
    return torch.from_numpy(points.reshape(-1, 3))


def check_rotation(max_rotation: float) -> None:
    """Refuse an invalid maximum angle.

    Raises:
        ValueError: not 0 … 180 degrees.
    """
    if not 0 <= max_rotation <= 180:
        raise ValueError(f"max_rotation: expected 0 … 180 degrees, got {max_rotation}")


def translation_limit(shape: Sequence[int], max_translation: float | None) -> float:
    """Maximum translation in pixels; None: 10 % of the shorter side (…, H, W), to half a pixel.

    Raises:
        ValueError: negative, or more than ``MAX_TRANSLATION``.
    """
    if max_translation is None:
        return round(0.1 * min(shape[-2:]) * 2) / 2
    if not 0 <= max_translation <= MAX_TRANSLATION:
        raise ValueError(
            f"max_translation: expected at least 0 and at most {MAX_TRANSLATION:,} pixels, got "
            f"{max_translation}"
        )
    return float(max_translation)
