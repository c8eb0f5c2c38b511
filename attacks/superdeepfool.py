"""SuperDeepFool (Abdollahpoorrostam et al., arXiv 2303.12481), batched."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from attacks.deepfool import PRUNE, Found, Known, check_options, run_audited, search
from attacks.utils.confirm import run_confirmed
from attacks.utils.model import Model
from attacks.utils.outcome import AttackOutcome
from attacks.utils.tape import norms_of

_WORTHWHILE = 0.98  # stop when a round leaves more than this share of the perturbation's length


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
    2 %. The nearest fooling point of all rounds is moved back to 0.1 % beyond the boundary.

    Args:
        model: images (N, C, H, W) in [0, 1] to logits (N, K).
        images: floats (N, C, H, W) in [0, 1].
        labels: int64 (N,), the original classes.
        steps: maximum number of projections per image, and of DeepFool steps before each.
        overshoot: overshoot of each DeepFool run.
        candidates: classes considered, as in ``deepfool``.
        prune: as in ``deepfool``, for each DeepFool run; None: no class is skipped.

    Returns:
        An ``AttackOutcome``; ``transform`` and ``margins`` are None.

    Raises:
        ValueError: an option or the input is out of range.
    """
    check_options("l2", steps, overshoot, candidates, prune)

    def attack(model: Model, images: Tensor, labels: Tensor) -> AttackOutcome:
        def attempt(prune: float | None) -> Found:
            found = _search(model, images, labels, steps, overshoot, candidates, prune)
            found.refine(model, images, labels)
            return found

        return run_audited(attempt, prune)

    return run_confirmed(attack, model, images, labels)


def _search(
    model: Model,
    images: Tensor,
    labels: Tensor,
    steps: int,
    overshoot: float,
    candidates: int | Literal["all"],
    prune: float | None,
) -> Found:
    """Return the nearest fooling points of all rounds, else the last iterates."""
    starts = images.clone()
    nearest, distance = images.clone(), images.new_full((len(images),), torch.inf)
    forwards, backwards = torch.zeros(2, len(images), device=images.device)
    live = torch.arange(len(images), device=images.device)
    known: Known | None = None
    missed = False
    for _ in range(steps):
        found = search(
            model,
            starts[live],
            labels[live],
            norm="l2",
            steps=steps,
            overshoot=overshoot,
            candidates=candidates,
            prune=prune,
            known=known,
            normals=True,
        )
        assert found.normals is not None
        missed |= found.missed
        forwards[live] += found.forwards
        backwards[live] += found.backwards
        length = norms_of(found.points - images[live])
        better = found.fooled & (length < distance[live])
        improves = found.fooled & (length < _WORTHWHILE * distance[live])
        kept = better | ~torch.isfinite(distance[live])
        nearest[live[kept]] = found.points[kept]
        distance[live[better]] = length[better]
        going = improves & (found.points != starts[live]).flatten(1).any(1)
        live, known = live[going], found.known and found.known.of(going)
        if len(live) == 0:
            break
        reached = found.points[going]
        projected = _projected(images[live], reached, found.normals[going])
        starts[live] = (reached + projected) / 2
    fooled = torch.isfinite(distance)
    return Found(nearest, fooled, None, known, missed, forwards, backwards)


def _projected(images: Tensor, reached: Tensor, normals: Tensor) -> Tensor:
    """x₀ + ((x̃ − x₀)·w) w, clipped, with unit ``normals`` w: (N, C, H, W)."""
    along = ((reached - images) * normals).sum((1, 2, 3))
    projected = images + along.view(-1, 1, 1, 1) * normals
    return torch.where(torch.isfinite(projected), projected, reached).clamp(0, 1)
