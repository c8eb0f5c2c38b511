"""Move fooling images back towards the clean ones, to just beyond the decision boundary."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.utils.model import Model, chunks
from attacks.utils.outcome import margins_of

_WIDTH = 2**-12
"""Width of the final bracket, as a share of the perturbation."""
_BEYOND = 1.001
_PATIENCE = 3  # steps by interpolation before the first bisection


@torch.no_grad()
def refined(model: Model, images: Tensor, fooling: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Find the boundary between each image and its fooling image, and end 0.1 % beyond it.

    The margin is nearly linear in the position, so that interpolation needs about three points;
    where it does not narrow the bracket, bisection does.

    Args:
        model: logits of images.
        images: clean, correctly classified, (N, C, H, W).
        fooling: misclassified, (N, C, H, W).
        labels: int64 (N,).

    Returns:
        The refined images, or the fooling ones where the refined ones do not fool; and the number
        of forward passes, (N,).
    """
    parts = [
        _refined(model, images[rows], fooling[rows], labels[rows])
        for rows in chunks(torch.arange(len(images), device=images.device))
    ]
    if not parts:
        return fooling.clone(), images.new_zeros(0)
    refined, forwards = zip(*parts, strict=True)
    return torch.cat(refined), torch.cat(forwards)


def _refined(
    model: Model, images: Tensor, fooling: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    def margin_at(share: Tensor, rows: Tensor) -> Tensor:
        return margins_of(model(_between(images[rows], fooling[rows], share)), labels[rows])

    every = torch.arange(len(images), device=images.device)
    low, high = images.new_zeros(len(images)), images.new_ones(len(images))
    above, below = margin_at(low, every), margin_at(high, every)  # margins at low and high
    forwards = images.new_full((len(images),), 2.0)
    rows, step = every, 0
    while len(rows := rows[(high - low)[rows] > _WIDTH]):
        lowest, highest = low[rows], high[rows]
        root = lowest + (highest - lowest) * above[rows] / (above[rows] - below[rows])
        side = torch.where(root - lowest < highest - root, 0.5, -0.5)  # away from the nearer end
        tried = (root + side * _WIDTH).clamp(lowest + _WIDTH / 4, highest - _WIDTH / 4)
        bisects = ~torch.isfinite(tried) | (step >= _PATIENCE and step % 2 == 1)
        tried = torch.where(bisects, (lowest + highest) / 2, tried)
        margin = margin_at(tried, rows)
        fools = margin < 0
        inner, outer = rows[fools], rows[~fools]
        high[inner], below[inner] = tried[fools], margin[fools]
        low[outer], above[outer] = tried[~fools], margin[~fools]
        forwards[rows] += 1
        step += 1
    refined = _between(images, fooling, (high * _BEYOND).clamp_max(1))
    holds = margins_of(model(refined), labels) < 0
    return torch.where(holds.view(-1, 1, 1, 1), refined, fooling), forwards + 1


def _between(images: Tensor, fooling: Tensor, share: Tensor) -> Tensor:
    return images + share.view(-1, 1, 1, 1) * (fooling - images)
