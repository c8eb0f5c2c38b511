"""Worst rotation and translation (Engstrom et al., arXiv 1712.02779), batched.

"Worst" is the candidate with the smallest margin, the lowest index among equals. With
``stop="first"``, candidates are tried in a fixed order, the largest first, until one fools. This
fools the same images as trying all candidates. Late candidates are screened in bfloat16, where that
is fast (``attacks.utils.screening``); each candidate counts as one forward pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from attacks.utils.confirm import run_confirmed
from attacks.utils.model import Model, chunks
from attacks.utils.outcome import AttackOutcome
from attacks.utils.random_streams import image_streams
from attacks.utils.screening import NUM_PROBES, Screen, low_precision, margins_of_images
from attacks.utils.search_order import search_order
from attacks.utils.transforms import (
    check_rotation,
    grid_transforms,
    shift_transforms,
    translation_limit,
)
from attacks.utils.warp import Padding, sampling_grids, shift, warp, warp_all

Stop = Literal["first"] | None

MAX_DRAWS = 100_000
"""Draws per image of ``spatial_random``; those of a whole batch are in memory at once."""
_LARGEST_BLOCK = 32
_BLOCKS_BEFORE_SCREENING = 6  # of 1, 1, 2, 4, 8 and 16 candidates

log = logging.getLogger(__name__)


def spatial_grid(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    max_rotation: float = 30.0,
    max_translation: float | None = None,
    num_rotations: int = 31,
    num_translations: int = 5,
    padding: Padding = "zeros",
    stop: Stop = None,
) -> AttackOutcome:
    """Worst rotation + translation of a grid that contains the identity.

    Args:
        model: images (N, C, H, W) in [0, 1] to logits (N, K).
        images: floats (N, C, H, W) in [0, 1].
        labels: int64 (N,).
        max_rotation: largest angle in degrees, in both directions.
        max_translation: largest shift in pixels, in all four directions; None: 10 % of the shorter
            side, rounded to half a pixel.
        num_rotations: number of angles, odd.
        num_translations: number of shifts per axis, odd.
        padding: values outside the image: ``zeros``, ``border`` or ``reflection``.
        stop: ``"first"``: stop at a candidate that fools; None: try all and return their
            ``margins``, in the order of ``transformation_grid``.

    Returns:
        An ``AttackOutcome`` with ``transform``, and ``margins`` if ``stop`` is None.

    Raises:
        ValueError: an option or the input is out of range.
    """
    _check_stop(stop)
    _check_padding(padding)
    grid = grid_transforms(
        images.shape,
        max_rotation=max_rotation,
        max_translation=max_translation,
        num_rotations=num_rotations,
        num_translations=num_translations,
    )
    return _attack(model, images, labels, lambda _: grid, padding, stop)


def spatial_random(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    num_draws: int = 10,
    max_rotation: float = 30.0,
    max_translation: float | None = None,
    padding: Padding = "zeros",
    stop: Stop = None,
    seed: int = 0,
) -> AttackOutcome:
    """Worst of ``num_draws`` rotations + translations, uniform in the continuous box.

    Each image has its own random stream, keyed by ``seed`` and a hash of its bytes: more draws
    continue the same stream, and the result does not depend on the batch. ``stop="first"`` tries
    the draws in order. Other arguments, result and errors are as for ``spatial_grid``.
    """
    _check_stop(stop)
    _check_padding(padding)
    if not 1 <= num_draws <= MAX_DRAWS:
        raise ValueError(
            f"num_draws: expected at least 1 and at most {MAX_DRAWS:,}, got {num_draws}"
        )
    check_rotation(max_rotation)
    limit = translation_limit(images.shape, max_translation)
    reach = np.array([max_rotation, limit, limit])

    def draws(images: Tensor) -> Tensor:
        drawn = torch.zeros(len(images), num_draws, 3, dtype=torch.float64)
        for i, stream in enumerate(image_streams(images, f"{seed}/")):
            drawn[i] = torch.from_numpy(stream.uniform(-reach, reach, (num_draws, 3)))
        return drawn

    return _attack(model, images, labels, draws, padding, stop)


def spatial_shift(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    max_translation: int | None = None,
    padding: Padding = "zeros",
    stop: Stop = None,
) -> AttackOutcome:
    """Worst translation by whole pixels, without rotation and interpolation.

    ``max_translation`` is a whole number; None: 10 % of the shorter side, rounded to half a pixel
    and then down. Other arguments, result and errors are as for ``spatial_grid``.
    """
    _check_stop(stop)
    _check_padding(padding)
    grid = shift_transforms(images.shape, max_translation=max_translation)
    reach = int(grid.max())
    if padding == "reflection" and reach >= min(images.shape[-2:]):
        raise ValueError(f"max_translation: expected less than the image's side, got {reach}")
    return _attack(model, images, labels, lambda _: grid, padding, stop, whole_pixels=True)


def _check_stop(stop: Stop) -> None:
    if stop not in ("first", None):
        raise ValueError(f"stop: expected first or null, got {stop!r}")


def _check_padding(padding: Padding) -> None:
    if padding not in get_args(Padding):
        raise ValueError(f"padding: expected {', '.join(get_args(Padding))}, got {padding!r}")


def _attack(
    model: Model,
    images: Tensor,
    labels: Tensor,
    transforms_of: Callable[[Tensor], Tensor],
    padding: Padding,
    stop: Stop,
    *,
    whole_pixels: bool = False,
) -> AttackOutcome:
    """Try the transforms (T, 3) or (N, T, 3) that ``transforms_of`` returns for N images."""

    def search(model: Model, images: Tensor, labels: Tensor) -> AttackOutcome:
        transforms = transforms_of(images).to(images.device)
        return _search(model, images, labels, _Candidates(transforms, padding, whole_pixels), stop)

    outcome = run_confirmed(search, model, images, labels, retry_survivors=False)
    if len(images):
        return outcome
    count = transforms_of(images).shape[-2]
    margins = images.new_zeros(0, count) if stop is None else None
    return replace(outcome, transform=images.new_zeros(0, 3), margins=margins)


@dataclass(frozen=True)
class _Candidates:
    """Transforms (T, 3) shared by all images, or (N, T, 3), and how to apply them."""

    transforms: Tensor
    padding: Padding
    whole_pixels: bool

    @property
    def shared(self) -> bool:
        """Whether all images have the same transforms."""
        return self.transforms.ndim == 2

    def renderer(self, images: Tensor, block: Tensor) -> Callable[[Tensor], Tensor]:
        """Return a function that applies the transforms in ``block`` (B,) to ``images[rows]``.

        It maps rows (L,) to (B · L, C, H, W), all images under the first transform first.
        """
        if not self.shared:
            every = self.transforms[:, block]
            return lambda rows: self._render_own(images[rows], every[rows].transpose(0, 1))
        if self.whole_pixels:
            moves = [(int(x), int(y)) for _, x, y in self.transforms[block].tolist()]
            return lambda rows: torch.cat([shift(images[rows], *m, self.padding) for m in moves])
        grids = sampling_grids(self.transforms[block], *images.shape[2:]).to(images.dtype)
        return lambda rows: warp_all(images[rows], grids, self.padding).flatten(0, 1)

    def of(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The transform of each pair of an image and a candidate, (P, 3)."""
        return self.transforms[columns] if self.shared else self.transforms[rows, columns]

    def render(self, images: Tensor, transforms: Tensor) -> Tensor:
        """Apply one transform (P, 3) to each image (P, C, H, W)."""
        if not self.whole_pixels:
            return self._render_own(images, transforms[None])
        moves = [(int(x), int(y)) for _, x, y in transforms.round().tolist()]
        pairs = zip(images.split(1), moves, strict=True)
        return torch.cat([shift(image, *move, self.padding) for image, move in pairs])

    def _render_own(self, images: Tensor, transforms: Tensor) -> Tensor:
        """Apply transforms (B, L, 3) of their own to images (L, C, H, W): (B · L, C, H, W)."""
        grids = sampling_grids(transforms.flatten(0, 1), *images.shape[2:])
        return warp(images.repeat(len(transforms), 1, 1, 1), grids, self.padding)


@torch.no_grad()
def _search(
    model: Model,
    images: Tensor,
    labels: Tensor,
    candidates: _Candidates,
    stop: Stop,
    *,
    screening: bool = True,
) -> AttackOutcome:
    count, num_candidates = len(images), candidates.transforms.shape[-2]
    order = torch.arange(num_candidates, device=images.device)
    if stop == "first" and candidates.shared:
        order = search_order(candidates.transforms)
    clean = margins_of_images(model, images, labels)
    margins = images.new_full((count, num_candidates), torch.nan)
    exact = torch.ones_like(margins, dtype=torch.bool)  # margins in full precision
    forwards = torch.ones(count, dtype=torch.int64, device=images.device)
    chosen = torch.full_like(forwards, -1)  # candidate that fools, or the worst one
    valid = torch.isfinite(images).flatten(1).all(1) & torch.isfinite(clean)
    live = (valid & (clean >= 0)).nonzero().squeeze(1)
    screen: Screen | None = None
    screened_from = _BLOCKS_BEFORE_SCREENING if screening and stop == "first" else None
    for number, block in enumerate(_blocks(order, stop)):
        if len(live) == 0:
            break
        low = low_precision(model, images) if number == screened_from else None
        if low:
            rows, columns = _spread(margins, live, NUM_PROBES)
            probes = candidates.render(images[rows], candidates.of(rows, columns))
            screen = Screen(model, low, probes, labels[rows], margins[rows, columns])
        render = candidates.renderer(images, block)
        for rows in chunks(live, passes_per_row=len(block)):
            warped, label = render(rows), labels[rows].repeat(len(block))
            if screen:
                tried, is_exact = screen.margins(warped, label)
                exact[rows[:, None], block] = is_exact.view(len(block), len(rows)).T
            else:
                tried = margins_of_images(model, warped, label)
            margins[rows[:, None], block] = tried.view(len(block), len(rows)).T
            forwards[rows] += len(block)
        if stop == "first":
            fools = margins[live][:, block] < 0  # (L, B)
            hit = fools.any(1)
            chosen[live[hit]] = block[_first_true(fools[hit])]
            live = live[~hit]
    if screen:
        for rows, columns in _doubtful(margins, exact, live, screen.threshold):
            warped = candidates.render(images[rows], candidates.of(rows, columns))
            margins[rows, columns] = screen.confirmed(warped, labels[rows], margins[rows, columns])
        if screen.failed:
            log.warning(
                "bfloat16 is not exact enough for this network, so it is off (slower, same result)"
            )
            again = _search(model, images, labels, candidates, stop, screening=False)
            return replace(again, forwards=again.forwards + forwards)
    comparable = margins.nan_to_num(nan=torch.inf).cpu().numpy()
    worst = torch.from_numpy(comparable.argmin(1)).to(chosen)  # the lowest index among equals
    moved = valid & (clean >= 0)
    chosen = torch.where(chosen < 0, worst, chosen)
    rows = torch.arange(count, device=images.device)
    transform = torch.where(moved[:, None], candidates.of(rows, chosen), 0.0)
    adversarials = images.clone()
    for part in chunks(moved.nonzero().squeeze(1)):
        adversarials[part] = candidates.render(images[part], transform[part])
    fooled = torch.where(moved, margins[rows, chosen] < 0, valid & (clean < 0))
    zeros = torch.zeros_like(forwards)
    return AttackOutcome(
        adversarials,
        fooled,
        forwards,
        zeros,
        transform.to(images.dtype),
        margins if stop is None else None,
    )


def _spread(margins: Tensor, live: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of at most ``count`` known margins of ``live`` images, evenly spread."""
    known = torch.isfinite(margins[live]).nonzero()
    chosen = torch.linspace(0, len(known) - 1, min(count, len(known)), device=live.device)
    rows, columns = known[chosen.round().long()].unbind(1)
    return live[rows], columns


def _doubtful(
    margins: Tensor, exact: Tensor, live: Tensor, threshold: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the pairs that may be the worst of the ``live`` images, but are in low precision."""
    smallest = margins[live].amin(1, keepdim=True)
    close = ~exact[live] & (margins[live] <= smallest + threshold)
    for pairs in chunks(close.nonzero()):
        yield live[pairs[:, 0]], pairs[:, 1]


def _blocks(order: Tensor, stop: Stop) -> Iterator[Tensor]:
    """Yield candidates to try together: few at first, so that most images need few passes."""
    start, size = 0, _LARGEST_BLOCK if stop is None else 1
    while start < len(order):
        yield order[start : start + size]
        start += size
        size = min(start, _LARGEST_BLOCK) if stop == "first" else size


def _first_true(table: Tensor) -> Tensor:
    """Index of the first True of each row of (L, B): int64 (L,)."""
    columns = torch.arange(table.shape[1], device=table.device)
    return torch.where(table, columns, table.shape[1]).amin(1)
