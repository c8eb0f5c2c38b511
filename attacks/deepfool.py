"""DeepFool (Moosavi-Dezfooli et al., arXiv 1511.04599), batched.

Each image follows the same path as in a batch of its own. Finished images leave the batch before
gradients are computed, one forward pass serves the gradients of all classes, and classes that
cannot be the nearest are skipped (``prune``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from attacks.utils.confirm import run_confirmed
from attacks.utils.linearise import Norm, Pruning, Rivals, first_boundary, nearest_boundary
from attacks.utils.model import Model, chunks
from attacks.utils.outcome import AttackOutcome, margins_of, misclassified

STEP_CONSTANT = 1e-4
"""Added to the distance of all steps but the first, so that no image stalls at the boundary."""

PRUNE = 2.5
"""Default γ: bound on an unseen gradient, as a multiple of those seen."""

BISECTIONS = 12
_BEYOND = 1.001


def deepfool(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    norm: Norm = "l2",
    steps: int = 50,
    overshoot: float = 0.02,
    candidates: int | Literal["all"] = 10,
    prune: float | None = PRUNE,
    refine: bool = False,
) -> AttackOutcome:
    """Near-minimal perturbation to the nearest linearised decision boundary.

    Each step goes to argmin_l |f_l − f_0| / ‖∇f_l − ∇f_0‖ over the candidate classes, linearised
    at the overshot, clipped point (Algorithm 2; equations 8–10, for L∞ 11–12). The overshoot is
    applied once, to the accumulated perturbation.

    Args:
        model: images (N, C, H, W) in [0, 1] to logits (N, K).
        images: floats (N, C, H, W) in [0, 1].
        labels: int64 (N,), the original classes.
        norm: norm of the perturbation.
        steps: maximum number of linearisations per image; the final point is judged too.
        overshoot: factor 1 + overshoot on the accumulated perturbation.
        candidates: number of most likely classes at the clean image to consider, including the
            label; ``"all"``: all classes.
        prune: γ, the factor by which a gradient may exceed its expected norm; a class that cannot
            be the nearest even then is skipped. The expected norm is the class's own when it was
            last computed; before that, it is proportional to its gradient at the last layer, if a
            sample of the images confirms the proportion (``attacks.utils.linearise``). None: no
            class is skipped.
        refine: bisect back towards the boundary and end 0.1 % beyond it.

    Returns:
        An ``AttackOutcome``; ``transform`` and ``margins`` are None.

    Raises:
        ValueError: an option or the input is out of range.
    """
    check_options(norm, steps, overshoot, candidates, prune)

    def attack(model: Model, images: Tensor, labels: Tensor) -> AttackOutcome:
        return search(
            model,
            images,
            labels,
            norm=norm,
            steps=steps,
            overshoot=overshoot,
            candidates=candidates,
            pruning=Pruning(prune),
            refine=refine,
        )

    return run_confirmed(attack, model, images, labels)


def check_options(
    norm: Norm,
    steps: int,
    overshoot: float,
    candidates: int | Literal["all"],
    prune: float | None,
) -> None:
    """Refuse options out of range.

    Raises:
        ValueError: names the option.
    """
    if norm not in ("l2", "linf"):
        raise ValueError(f"norm: expected l2 or linf, got {norm!r}")
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    if not 0 <= overshoot < float("inf"):
        raise ValueError(f"overshoot: expected at least 0, got {overshoot}")
    if candidates != "all" and (not isinstance(candidates, int) or candidates < 2):
        raise ValueError(f"candidates: expected all or at least 2, got {candidates!r}")
    if prune is not None and not prune > 0:
        raise ValueError(f"prune: expected a positive number or null, got {prune}")


def search(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    norm: Norm,
    steps: int,
    overshoot: float,
    candidates: int | Literal["all"],
    pruning: Pruning,
    refine: bool,
    project: Callable[[Tensor], Tensor] | None = None,
) -> AttackOutcome:
    """Run DeepFool on a model already in attack mode; arguments as for ``deepfool``.

    ``project`` maps gradients (B, C, H, W) to the subspace of allowed perturbations.
    """
    count, device = len(images), images.device
    points = images.clone(memory_format=torch.channels_last)  # overshot and clipped
    perturbation = torch.zeros_like(points)
    fooled = torch.zeros(count, dtype=torch.bool, device=device)
    forwards = torch.zeros(count, dtype=torch.int64, device=device)
    backwards = torch.zeros_like(forwards)
    live = torch.isfinite(images).flatten(1).all(1).nonzero().squeeze(1)
    rivals: Rivals | None = None  # of the live images
    for step in range(steps + 1):
        if len(live) == 0:
            break
        arguments = model, points[live], labels[live]
        if rivals is None:
            boundary = first_boundary(
                *arguments, candidates, norm=norm, pruning=pruning, project=project
            )
        else:
            boundary = nearest_boundary(
                *arguments,
                rivals,
                norm=norm,
                prune=pruning.gamma,
                judge_only=step == steps,
                project=project,
            )
        fooled[live] = boundary.fooled
        forwards[live] += boundary.forwards
        backwards[live] += boundary.backwards
        going = torch.isfinite(boundary.distance).nonzero().squeeze(1)
        going = going[boundary.seen[going].argsort(stable=True)]  # neighbours need similar work
        live, rivals = live[going], boundary.rivals(going)
        length = boundary.distance[going] + (STEP_CONSTANT if step > 0 else 0.0)
        perturbation[live] += length.view(-1, 1, 1, 1) * boundary.direction[going]
        points[live] = (images[live] + (1 + overshoot) * perturbation[live]).clamp(0, 1)
    if refine:
        moved = fooled & (points != images).flatten(1).any(1)
        for rows in chunks(moved.nonzero().squeeze(1)):
            points[rows] = refined(model, images[rows], points[rows], labels[rows])
            forwards[rows] += BISECTIONS + 1
    return AttackOutcome(points.contiguous(), fooled, forwards, backwards)


@torch.no_grad()
def refined(model: Model, images: Tensor, fooling: Tensor, labels: Tensor) -> Tensor:
    """Bisect from fooling towards clean images; end 0.1 % beyond the boundary, or unrefined."""
    low = torch.zeros(len(images), dtype=images.dtype, device=images.device)
    high = torch.ones_like(low)

    def along(share: Tensor) -> Tensor:
        return images + share.view(-1, 1, 1, 1) * (fooling - images)

    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        inside = margins_of(model(along(middle)), labels) < 0
        high = torch.where(inside, middle, high)
        low = torch.where(inside, low, middle)
    refined = along((high * _BEYOND).clamp_max(1))
    holds = misclassified(model(refined), labels)
    return torch.where(holds.view(-1, 1, 1, 1), refined, fooling)
