"""The rotations and translations that the spatial attacks try, and in which order.

A transform is a row (angle, right, down) as in ``attacks.warp``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def grid_transforms(
    shape: Sequence[int],
    *,
    max_rotation: float = 30.0,
    max_translation: float | None = None,
    num_rotations: int = 31,
    num_translations: int = 5,
) -> Tensor:
    """The candidates of ``spatial_grid`` for images of ``shape`` (…, H, W): float64 (T, 3)."""
    limit = translation_limit(shape, max_translation)
    return transformation_grid(max_rotation, limit, num_rotations, num_translations)


def shift_transforms(shape: Sequence[int], *, max_translation: int | None = None) -> Tensor:
    """The candidates of ``spatial_shift`` for images of ``shape`` (…, H, W): float64 (T, 3)."""
    limit = translation_limit(shape, max_translation)
    if max_translation is not None and limit != int(limit):
        raise ValueError(f"max_translation: expected a whole number, got {max_translation}")
    return transformation_grid(0.0, int(limit), 1, 2 * int(limit) + 1)


def transformation_grid(
    max_rotation: float, max_translation: float, num_rotations: int, num_translations: int
) -> Tensor:
    """All combinations of angles and shifts, float64 (T, 3): degrees, pixels right, pixels down.

    The last column runs fastest. Odd counts only, so that the identity is among them.

    Raises:
        ValueError: an even count or a negative reach.
    """
    check_rotation(max_rotation)
    for name, number in (("num_rotations", num_rotations), ("num_translations", num_translations)):
        if number < 1 or number % 2 == 0:
            raise ValueError(f"{name}: expected an odd number, got {number}")
    angles = np.linspace(-max_rotation, max_rotation, num_rotations) if num_rotations > 1 else [0.0]
    shifts = np.linspace(-max_translation, max_translation, num_translations)
    if num_translations == 1:
        shifts = np.zeros(1)
    points = np.array(list(itertools.product(angles, shifts, shifts)))
    points[np.abs(points) < 1e-9] = 0.0  # the identity exactly, whatever linspace rounds to
    return torch.from_numpy(points)


def search_order(transforms: Tensor) -> Tensor:
    """Order in which (T, 3) transforms are tried until one fools: int64 (T,).

    The largest first, then each time the one farthest from all before it, the larger among equals;
    so a few candidates already reach into every corner. Axes are relative to their reach, angles
    count twice, for they change an image more.
    """
    reach = transforms.abs().amax(0).clamp_min(1e-12)
    places = (transforms / reach * torch.tensor([2.0, 1.0, 1.0]).to(transforms)).cpu().numpy()
    size = (places**2).sum(1)
    order = [int(size.argmax())]
    distance = np.full(len(places), np.inf)
    for _ in range(len(places) - 1):
        distance = np.minimum(distance, ((places - places[order[-1]]) ** 2).sum(1))
        distance[order[-1]] = -1.0
        order.append(int((distance.round(9) + 1e-6 * size).argmax()))
    return torch.tensor(order, device=transforms.device)


def check_rotation(max_rotation: float) -> None:
    """Refuse what is no angle up to half a turn.

    Raises:
        ValueError: not 0 … 180 degrees.
    """
    if not 0 <= max_rotation <= 180:
        raise ValueError(f"max_rotation: expected 0 … 180 degrees, got {max_rotation}")


def translation_limit(shape: Sequence[int], max_translation: float | None) -> float:
    """Pixels; None: 10 % of the shorter side of images (…, H, W) to the nearest half pixel.

    Raises:
        ValueError: negative or not finite.
    """
    if max_translation is None:
        return round(0.1 * min(shape[-2:]) * 2) / 2
    if not 0 <= max_translation < math.inf:
        raise ValueError(f"max_translation: expected at least 0 pixels, got {max_translation}")
    return float(max_translation)
