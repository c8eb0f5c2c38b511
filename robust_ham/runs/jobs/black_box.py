"""Adversarial images without gradients: from other models' perturbations or random search."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from attacks import margins_of
from attacks.utils.boundary import Norm
from attacks.utils.model import Model, attack_mode, predict_logits
from attacks.utils.prepare import prepare
from attacks.utils.random_streams import image_streams
from robust_ham.analysis.statistics import Values

QUERIES = 100
"""Maximum forward passes of the random search per image."""

_FIRST_AREA = 0.3  # share of the image that the first squares cover
_L2_STEP = 0.25  # L2 length of a square in a channel, as a share of epsilon


def random_search(
    model: nn.Module, images: Tensor, labels: Tensor, epsilon: Values, norm: Norm
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return for which images a random search finds an adversarial within ``epsilon``, (n,).

    After the Square Attack (arXiv 1912.00049): the perturbation starts as vertical stripes of full
    length; each of 100 queries changes a random square, shrinking over time, and is kept if it
    lowers the margin. Draws depend only on the image. The search runs on a prepared copy of the
    model; its findings are confirmed on the model itself.

    Args:
        model: logits of images in [0, 1].
        images: floats (n, C, H, W).
        labels: int64 (n,).
        epsilon: largest length of each image's perturbation, (n,); finite.
        norm: norm of that length.
    """
    if not len(images):
        return np.zeros(0, dtype=np.bool_)
    limit = torch.from_numpy(epsilon).to(images).view(-1, 1, 1, 1)
    squares, delta = _draws(images)  # (n, Q, 2 + C), (n, C, H, W)
    with attack_mode(model), torch.no_grad():
        fast = partial(predict_logits, prepare(model, images))
        rows = torch.arange(len(images), device=images.device)
        delta = _to_length(delta, limit, norm)
        margins = margins_of(fast((images + delta).clamp(0, 1)), labels)
        for query in range(QUERIES):
            rows = rows[margins[rows] >= 0]  # the others are fooled
            if not len(rows):
                break
            moved = _with_square(delta[rows], limit[rows], squares[rows, query], query, norm)
            tried = margins_of(fast((images[rows] + moved).clamp(0, 1)), labels[rows])
            lower = tried < margins[rows]
            delta[rows[lower]], margins[rows[lower]] = moved[lower], tried[lower]
        fooled = margins_of(predict_logits(model, (images + delta).clamp(0, 1)), labels) < 0
    return fooled.cpu().numpy()


def _draws(images: Tensor) -> tuple[Tensor, Tensor]:
    """Draw place and signs of squares, in [−1, 1), (n, Q, 2 + C); stripes of ±1 (n, C, H, W)."""
    channels, height, width = images.shape[1:]
    squares, stripes = [], []
    for stream in image_streams(images, "random search"):
        squares.append(2 * stream.random((QUERIES, 2 + channels), np.float32) - 1)
        stripes.append(stream.choice(np.array([-1, 1], np.float32), (channels, 1, width)))
    spread = torch.from_numpy(np.stack(stripes)).to(images).repeat(1, 1, height, 1)
    return torch.from_numpy(np.stack(squares)).to(images), spread


def _with_square(delta: Tensor, limit: Tensor, draw: Tensor, query: int, norm: Norm) -> Tensor:
    """Change one square in all channels; keep the length ``limit``; (n, C, H, W)."""
    height, width = delta.shape[-2:]
    area = _FIRST_AREA * (1 - query / QUERIES) ** 2 * height * width
    size = min(max(1, round(area**0.5)), height, width)
    top = ((draw[:, 0] + 1) / 2 * (height - size + 1)).long().view(-1, 1, 1)
    left = ((draw[:, 1] + 1) / 2 * (width - size + 1)).long().view(-1, 1, 1)
    down = torch.arange(height, device=delta.device).view(1, -1, 1)
    right = torch.arange(width, device=delta.device).view(1, 1, -1)
    inside = (down >= top) & (down < top + size) & (right >= left) & (right < left + size)
    inside = inside[:, None]  # (n, 1, H, W)
    signs = torch.where(draw[:, 2:] < 0, -1.0, 1.0).to(delta)[:, :, None, None]
    if norm == "linf":
        return torch.where(inside, signs * limit, delta)
    return _to_length(delta + inside * signs * (_L2_STEP * limit / size), limit, norm)


def _to_length(delta: Tensor, limit: Tensor, norm: Norm) -> Tensor:
    if norm == "linf":
        return delta.sign() * limit
    length = delta.flatten(1).norm(dim=1).clamp_min(torch.finfo(delta.dtype).tiny)
    scaled: Tensor = delta * (limit / length.view(-1, 1, 1, 1))
    return scaled


def nearest_along(model: nn.Module, images: Tensor, labels: Tensor, ends: list[Tensor]) -> Values:
    """Return the L2 distance to the nearest adversarial on the lines to ``ends``, (n,).

    Scans each line from 1/16 to 4 times its length and bisects the first crossing. 0: misclassified
    without an attack; ∞: no line crosses the boundary. Uses a prepared copy of the model.
    """
    distances = np.full(len(images), np.inf)
    with attack_mode(model), torch.no_grad():
        fast = partial(predict_logits, prepare(model, images))
        wrong = margins_of(fast(images), labels) <= 0
        for end in ends:
            distances = np.minimum(distances, _first_crossing(fast, images, labels, end))
    return np.where(wrong.cpu().numpy(), 0.0, distances)


def _first_crossing(model: Model, images: Tensor, labels: Tensor, ends: Tensor) -> Values:
    """Return the L2 distance at which each line crosses the boundary, (n,); ∞: it does not."""
    ways = ends - images

    def moved(rows: Tensor, share: Tensor) -> Tensor:
        return (images[rows] + share.view(-1, 1, 1, 1) * ways[rows]).clamp(0, 1)

    def fools(rows: Tensor, share: Tensor) -> Tensor:
        return margins_of(model(moved(rows, share)), labels[rows]) < 0

    low = torch.zeros(len(images), device=images.device)
    high = torch.full_like(low, torch.inf)
    left = torch.arange(len(images), device=images.device)
    for share in np.geomspace(1 / 16, 4, 13):
        at = torch.full((len(left),), share, dtype=low.dtype, device=images.device)
        crossed = fools(left, at)
        high[left[crossed]] = share
        left = left[~crossed]
        low[left] = share
        if len(left) == 0:
            break
    reached = torch.isfinite(high).nonzero().squeeze(1)
    for _ in range(8 if len(reached) else 0):
        middle = (low[reached] + high[reached]) / 2
        crossed = fools(reached, middle)
        low[reached] = torch.where(crossed, low[reached], middle)
        high[reached] = torch.where(crossed, middle, high[reached])
    distance = np.full(len(images), np.inf)
    step = (moved(reached, high[reached]) - images[reached]).double().flatten(1)
    distance[reached.cpu().numpy()] = step.norm(dim=1).cpu().numpy()
    return distance
