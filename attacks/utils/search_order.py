"""Order in which spatial attacks try candidates when they stop at the first that fools."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

_SIZE_WEIGHT = 1e-6  # size breaks ties of distance
_DIGITS = 9  # precision of distances
_ROUNDING = 1e-9  # relative, of squared distances
_SLACK = 1e-5  # largest difference of squared distances at equal scores


def search_order(transforms: Tensor) -> Tensor:
    """Return the order in which to try the transforms (T, 3) of a grid: int64 (T,).

    The largest comes first, then always the one farthest from all before it, the larger among
    equals, so that a few candidates cover all corners. Axes are relative to their range; angles
    have weight 2, as they change an image more. Duplicates come last. Time: about T log T.

    Args:
        transforms: all combinations of values per axis, each axis ascending and the last one
            varying fastest, as from ``transformation_grid``.
    """
    reach = transforms.abs().amax(0).clamp_min(1e-12)
    places = (transforms / reach * torch.tensor([2.0, 1.0, 1.0]).to(transforms)).cpu().numpy()
    size = (places**2).sum(1)
    axes = [np.unique(places[:, axis]) for axis in range(3)]
    cells = np.ravel_multi_index(
        [np.searchsorted(axis, places[:, i]) for i, axis in enumerate(axes)],
        [len(axis) for axis in axes],
    )
    first = np.unique(cells, return_index=True)[1]  # of equal transforms
    assert len(first) == math.prod(map(len, axes))
    assert (np.diff(first) > 0).all()
    order = first[_farthest_first(axes, size[first])]
    again = np.setdiff1d(np.arange(len(places)), first, assume_unique=True)
    again = again[np.argsort(-_SIZE_WEIGHT * size[again], kind="stable")]
    return torch.from_numpy(np.concatenate([order, again])).to(transforms.device)


def _farthest_first(axes: list[Floats], size: Floats) -> NDArray[np.int64]:
    """Order the cells of a grid: the largest, then always the one farthest from those before.

    Taking a cell only changes the distances of cells nearer to it than the largest remaining
    distance, in a shrinking box. When no two cells are that near, the rest is sorted.

    Args:
        axes: ascending values per axis.
        size: sizes of the cells, flat.
    """
    shape = tuple(map(len, axes))
    values = [axis.tolist() for axis in axes]
    preferred = (_SIZE_WEIGHT * size).reshape(shape)
    distance = np.full(shape, np.inf)  # squared, to the nearest taken cell; -1: taken
    gaps = [float(np.diff(axis).min()) for axis in axes if len(axis) > 1]
    closest = min(gaps, default=math.inf) ** 2 * (1 + _ROUNDING)
    scores, block_length = _padded(size)  # (blocks, block_length)
    score = scores.reshape(-1)[: size.size].reshape(shape)
    block_maxima = scores.max(1)
    order: list[int] = []
    checked = 0
    while len(order) < size.size:
        block = int(block_maxima.argmax())
        cell = block * block_length + int(scores[block].argmax())
        place = _place(cell, shape)
        largest = float(distance[place])
        if largest <= closest and len(order) >= checked:  # others may be farther, of smaller size
            if distance.max() <= closest:
                break
            checked = len(order) + len(order) // 16 + 1
        order.append(cell)
        distance[place] = -1.0
        radius = math.sqrt(largest + _SLACK)
        box = tuple(_around(axis, i, radius) for axis, i in zip(values, place, strict=True))
        angles, rights, downs = (
            (axis[part] - axis[i]) ** 2 for axis, part, i in zip(axes, box, place, strict=True)
        )
        near = distance[box]
        np.minimum(near, angles[:, None, None] + rights[:, None] + downs, out=near)
        score[box] = near.round(_DIGITS) + preferred[box]
        start, stop = ((p0 * shape[1] + p1) * shape[2] + p2 for p0, p1, p2 in _corners(box))
        changed = slice(start // block_length, stop // block_length + 1)
        block_maxima[changed] = scores[changed].max(1)
    left = np.flatnonzero(distance >= 0)
    rest = left[np.argsort(-score.ravel()[left], kind="stable")]
    return np.concatenate([np.array(order, dtype=np.int64), rest])


def _padded(size: Floats) -> tuple[Floats, int]:
    """Arrange the sizes in rows, to find the largest from the rows' maxima."""
    length = math.isqrt(size.size - 1) + 1
    rows = np.full((-(-size.size // length), length), -np.inf)
    rows.reshape(-1)[: size.size] = size
    return rows, length


def _place(cell: int, shape: tuple[int, ...]) -> tuple[int, int, int]:
    rest, down = divmod(cell, shape[2])
    return (*divmod(rest, shape[1]), down)


def _around(axis: list[float], index: int, radius: float) -> slice:
    """Indices of the values of an ascending axis within ``radius``."""
    start = bisect_left(axis, axis[index] - radius)
    return slice(start, bisect_right(axis, axis[index] + radius))


def _corners(box: tuple[slice, ...]) -> list[tuple[int, ...]]:
    """The first and the last cell of a box."""
    return [tuple(part.start for part in box), tuple(part.stop - 1 for part in box)]
