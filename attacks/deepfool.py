"""DeepFool (Moosavi-Dezfooli et al., arXiv 1511.04599), batched.

Every image follows the path it would follow alone. Finished images leave the batch before any
gradient is taken, one forward pass serves the gradients of all classes, and a class is left out
when it cannot be the nearest (``prune``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from attacks.outcome import AttackOutcome, margins_of, misclassified
from attacks.prepare import Model, chunks, run_confirmed

Norm = Literal["l2", "linf"]

STEP_CONSTANT = 1e-4
"""Added to the distance of every step but the first, so that no image stalls at the boundary."""

CHUNK_IMAGES = 64
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
    prune: float | None = 2.5,
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
        norm: of the perturbation.
        steps: most linearisations per image; the point after the last one is judged too.
        overshoot: factor 1 + overshoot on the accumulated perturbation.
        candidates: most likely classes at the clean image that are considered, the label
            included; ``"all"``: every class.
        prune: γ: classes are taken in the order of their logit gap, and an image's remaining ones
            are skipped once gap / (γ · largest dual norm seen in this step) reaches its best
            distance; None: none are skipped.
        refine: bisect back towards the boundary and end 0.1 % beyond it.

    Returns:
        An ``AttackOutcome``; ``transform`` and ``margins`` are None.

    Raises:
        ValueError: an option or the input is out of range.
    """
    check_options(norm, steps, overshoot, candidates, prune)
    attack = partial(
        search,
        norm=norm,
        steps=steps,
        overshoot=overshoot,
        candidates=candidates,
        prune=prune,
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
    prune: float | None,
    refine: bool,
) -> AttackOutcome:
    """DeepFool on a model already in attack mode; arguments as for ``deepfool``."""
    count, device = len(images), images.device
    points = images.clone()  # the overshot, clipped point of each image
    perturbation = torch.zeros_like(images)
    fooled = torch.zeros(count, dtype=torch.bool, device=device)
    forwards = torch.zeros(count, dtype=torch.int64, device=device)
    backwards = torch.zeros_like(forwards)
    needed = torch.zeros_like(forwards)  # gradients taken in the last step
    classes = torch.zeros(0, dtype=torch.int64, device=device)  # (N, m) after the first step
    live = torch.isfinite(images).flatten(1).all(1).nonzero().squeeze(1)
    for step in range(steps + 1):
        survivors = []
        live = live[needed[live].argsort(stable=True)]  # chunk-mates need about as many gradients
        for rows in chunks(live, CHUNK_IMAGES):
            boundary = _nearest_boundary(
                model,
                points[rows],
                labels[rows],
                candidates if step == 0 else classes[rows],
                norm=norm,
                prune=prune,
                judge_only=step == steps,
            )
            if step == 0:
                classes = (
                    boundary.classes.new_empty(count, boundary.classes.shape[1])
                    if len(classes) == 0
                    else classes
                )
                classes[rows] = boundary.classes
            fooled[rows] = boundary.fooled
            forwards[rows] += boundary.forwards
            backwards[rows] += boundary.backwards
            needed[rows] = boundary.needed
            going = boundary.reachable.nonzero().squeeze(1)
            moving = rows[going]
            length = boundary.distance[going] + (STEP_CONSTANT if step > 0 else 0.0)
            perturbation[moving] += length.view(-1, 1, 1, 1) * boundary.direction[going]
            moved = images[moving] + (1 + overshoot) * perturbation[moving]
            points[moving] = moved.clamp(0, 1)
            survivors.append(moving)
        live = torch.cat(survivors) if survivors else live[:0]
        if len(live) == 0:
            break
    if refine:
        moved = fooled & (points != images).flatten(1).any(1)
        for rows in chunks(moved.nonzero().squeeze(1), CHUNK_IMAGES):
            points[rows] = refined(model, images[rows], points[rows], labels[rows])
            forwards[rows] += BISECTIONS + 1
    return AttackOutcome(points, fooled, forwards, backwards)


def _likely_classes(logits: Tensor, labels: Tensor, candidates: int | Literal["all"]) -> Tensor:
    """The most likely classes but the label: logits (B, K) to int64 (B, m)."""
    wanted = logits.shape[1] if candidates == "all" else min(candidates, logits.shape[1])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.argsort(dim=1, descending=True, stable=True)[:, : wanted - 1]


@dataclass
class _Boundary:
    """The nearest linearised boundary of B points.

    ``fooled`` bool (B,); ``reachable`` bool (B,): right, finite, and some gradient is not zero;
    ``classes`` (B, m): the candidates; ``distance`` (B,) and unit ``direction`` (B, C, H, W) of the
    nearest boundary; ``forwards``, ``backwards`` (B,): passes; ``needed`` (B,): gradients used.
    """

    fooled: Tensor
    reachable: Tensor
    classes: Tensor
    distance: Tensor
    direction: Tensor
    forwards: Tensor
    backwards: Tensor
    needed: Tensor


def _nearest_boundary(
    model: Model,
    points: Tensor,
    labels: Tensor,
    classes: Tensor | int | Literal["all"],
    *,
    norm: Norm,
    prune: float | None,
    judge_only: bool,
) -> _Boundary:
    """Judge B points and find each one's nearest linearised boundary (equations 8 and 11).

    ``classes`` are the candidates (B, m), or how many of the likeliest to take.
    """
    count, device = len(points), points.device
    graph = torch.arange(count, device=device)  # rows of the batch that the autograd graph holds
    inputs = points.clone().requires_grad_(not judge_only)
    logits = model(inputs)
    values = logits.detach()
    fooled = misclassified(values, labels)
    active = torch.isfinite(values).all(1) & ~fooled
    if not isinstance(classes, Tensor):
        classes = _likely_classes(values, labels, classes)
    if judge_only:
        active = torch.zeros_like(active)
    gaps = values.gather(1, labels[:, None]) - values.gather(1, classes)  # (B, m)
    gaps, order = gaps.sort(dim=1, stable=True)
    classes = classes.gather(1, order)

    best = torch.full((count,), torch.inf, dtype=points.dtype, device=device)
    largest_dual = torch.zeros_like(best)
    direction = torch.zeros_like(points)
    forwards = torch.ones(count, dtype=torch.int64, device=device)
    backwards = torch.zeros_like(forwards)
    needed = torch.zeros_like(forwards)
    for j in range(classes.shape[1]):
        if j > 0 and prune is not None:
            bound = gaps[:, j] / (prune * largest_dual)  # ∞ or NaN before any gradient was met
            active = active & ~((largest_dual > 0) & (bound >= best))
        wanted = active.nonzero().squeeze(1)
        if len(wanted) == 0:
            break
        if 2 * len(wanted) < len(graph):  # a smaller graph costs less than idle rows in this one
            graph = wanted
            inputs = points[graph].requires_grad_()
            logits = model(inputs)
            forwards[graph] += 1
        rows = graph
        difference = logits.gather(1, classes[rows, j, None]) - logits.gather(1, labels[rows, None])
        if not logits.requires_grad:  # a model that ignores its input, or hides its gradient
            break
        (gradient,) = torch.autograd.grad(
            (difference.squeeze(1) * active[rows]).sum(), inputs, retain_graph=True
        )
        backwards[rows] += 1
        needed[wanted] += 1
        dual = _dual_norm(gradient, norm)
        usable = active[rows] & torch.isfinite(dual) & (dual > 0)
        distance = torch.where(usable, gaps[rows, j] / dual, torch.inf)
        nearer = distance < best[rows]
        best[rows] = torch.where(nearer, distance, best[rows])
        largest_dual[rows] = torch.where(
            usable, largest_dual[rows].maximum(dual), largest_dual[rows]
        )
        picked = nearer.nonzero().squeeze(1)
        direction[rows[picked]] = _unit_step(gradient[picked], dual[picked], norm)
    reachable = torch.isfinite(best)
    return _Boundary(fooled, reachable, classes, best, direction, forwards, backwards, needed)


def _dual_norm(gradient: Tensor, norm: Norm) -> Tensor:
    """‖g‖₂ for L2, ‖g‖₁ for L∞: (B, C, H, W) to (B,)."""
    norms: Tensor = torch.linalg.vector_norm(
        gradient.flatten(1), ord=2 if norm == "l2" else 1, dim=1
    )
    return norms


def _unit_step(gradient: Tensor, dual: Tensor, norm: Norm) -> Tensor:
    """The step of length 1 that raises the other class fastest: same shape as the gradient."""
    return gradient / dual.view(-1, 1, 1, 1) if norm == "l2" else gradient.sign()


@torch.no_grad()
def refined(model: Model, images: Tensor, fooling: Tensor, labels: Tensor) -> Tensor:
    """Bisect between clean and fooling images; end 0.1 % beyond the boundary, or where it was."""
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
