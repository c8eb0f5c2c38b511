"""SuperDeepFool (Abdollahpoorrostam et al., arXiv 2303.12481), batched."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from attacks.deepfool import BISECTIONS, PRUNE, check_options, refined
from attacks.deepfool import search as deepfool_search
from attacks.utils.confirm import run_confirmed
from attacks.utils.linearise import Pruning
from attacks.utils.model import Model, chunks, gradient
from attacks.utils.outcome import AttackOutcome

_WORTHWHILE = 0.99  # stop when a round leaves more than this share of the perturbation's length


def superdeepfool(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int = 50,
    overshoot: float = 0.02,
    candidates: int | Literal["all"] = 10,
    prune: float | None = PRUNE,
) -> AttackOutcome:
    """Smaller L2 perturbation: DeepFool alternating with projections on the boundary's normal.

    SDF(∞, 1), Algorithm 2: each DeepFool run ends at x̃ and is followed by the projection
    x₀ + ((x̃ − x₀)·w / ‖w‖²) w, with w the gradient of f_adv − f_0 at x̃, until the projection fools.
    On a curved boundary it never does, and its direction oscillates. DeepFool therefore continues
    half-way between x̃ and the projection, and an image is finished when a round gains less than
    1 %. The nearest fooling point of all rounds is bisected back to 0.1 % beyond the boundary.

    Args:
        model: images (N, C, H, W) in [0, 1] to logits (N, K).
        images: floats (N, C, H, W) in [0, 1].
        labels: int64 (N,), the original classes.
        steps: maximum number of projections per image, and of DeepFool steps before each.
        overshoot: overshoot of each DeepFool run.
        candidates: classes considered, as in ``deepfool``.
        prune: γ of each DeepFool run, as in ``deepfool``; None: no class is skipped.

    Returns:
        An ``AttackOutcome``; ``transform`` and ``margins`` are None.

    Raises:
        ValueError: an option or the input is out of range.
    """
    check_options("l2", steps, overshoot, candidates, prune)
    search = partial(_search, steps=steps, overshoot=overshoot, candidates=candidates, prune=prune)
    return run_confirmed(search, model, images, labels)


def _search(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    overshoot: float,
    candidates: int | Literal["all"],
    prune: float | None,
) -> AttackOutcome:
    points = images.clone()  # where the next DeepFool run starts
    nearest = images.clone()  # nearest fooling point so far, else the last iterate
    distance = images.new_full((len(images),), torch.inf)
    forwards = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    backwards = torch.zeros_like(forwards)
    live, pruning = torch.arange(len(images), device=images.device), Pruning(prune)
    for _ in range(steps):
        outcome = deepfool_search(
            model,
            points[live],
            labels[live],
            norm="l2",
            steps=steps,
            overshoot=overshoot,
            candidates=candidates,
            pruning=pruning,
            refine=False,
        )
        forwards[live] += outcome.forwards
        backwards[live] += outcome.backwards
        length = _norm(outcome.images - images[live])
        better = outcome.fooled & (length < distance[live])
        improves = outcome.fooled & (length < _WORTHWHILE * distance[live])
        kept = better | ~torch.isfinite(distance[live])
        nearest[live[kept]] = outcome.images[kept]
        distance[live[better]] = length[better]
        continues = improves & (outcome.images != points[live]).flatten(1).any(1)
        live, reached = live[continues], outcome.images[continues]
        if len(live) == 0:
            break
        points[live] = (reached + _projected(model, images[live], reached, labels[live])) / 2
        forwards[live] += 1
        backwards[live] += 1
    fooled = torch.isfinite(distance)
    moved = (fooled & (distance > 0)).nonzero().squeeze(1)
    for rows in chunks(moved):
        nearest[rows] = refined(model, images[rows], nearest[rows], labels[rows])
        forwards[rows] += BISECTIONS + 1
    return AttackOutcome(nearest, fooled, forwards, backwards)


def _projected(model: Model, images: Tensor, reached: Tensor, labels: Tensor) -> Tensor:
    """x₀ + ((x̃ − x₀)·w / ‖w‖²) w, clipped, with w = ∇(f_adv − f_0) at x̃: (N, C, H, W)."""
    parts = []
    for rows in chunks(torch.arange(len(images), device=images.device)):
        inputs = reached[rows].requires_grad_()
        logits = model(inputs)
        gap = logits.gather(1, logits.argmax(1, keepdim=True)) - logits.gather(
            1, labels[rows, None]
        )
        normal = gradient(gap.sum(), inputs)
        step = (reached[rows] - images[rows]).flatten(1)
        size = (normal.flatten(1) ** 2).sum(1)
        along: Tensor = (step * normal.flatten(1)).sum(1) / size.clamp_min(
            torch.finfo(size.dtype).tiny
        )
        moved = images[rows] + along.view(-1, 1, 1, 1) * normal
        parts.append(torch.where(torch.isfinite(moved), moved, reached[rows]).clamp(0, 1))
    return torch.cat(parts)


def _norm(difference: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(difference.flatten(1), dim=1)
    return length
