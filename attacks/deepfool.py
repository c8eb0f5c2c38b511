"""DeepFool (Moosavi-Dezfooli et al., arXiv 1511.04599), batched.

Each image follows the same path as in a batch of its own. Finished images leave the batch before
gradients are computed, and classes that cannot be the nearest are skipped
(``attacks.utils.pruning``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attacks.utils.boundary import Norm, Rivals
from attacks.utils.confirm import run_confirmed
from attacks.utils.linearise import Project, first_boundary, nearest_boundary
from attacks.utils.model import Model
from attacks.utils.outcome import AttackOutcome
from attacks.utils.pruning import Factors
from attacks.utils.refine import refined

STEP_CONSTANT = 1e-4
"""Added to the distance of all steps but the first, so that no image stalls at the boundary."""

PRUNE = 2.5
"""Default of ``prune``."""

log = logging.getLogger(__name__)


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
        prune: factor by which a class must seem farther than the nearest one to be skipped, judged
            at the logits; larger if a sample of the images shows that it must be
            (``attacks.utils.pruning``). None: no class is skipped.
        refine: move back towards the boundary and end 0.1 % beyond it.

    Returns:
        An ``AttackOutcome``; ``transform`` and ``margins`` are None.

    Raises:
        ValueError: an option or the input is out of range.
    """
    check_options(norm, steps, overshoot, candidates, prune)

    def attack(model: Model, images: Tensor, labels: Tensor) -> AttackOutcome:
        def attempt(prune: float | None) -> Found:
            found = search(
                model,
                images,
                labels,
                norm=norm,
                steps=steps,
                overshoot=overshoot,
                candidates=candidates,
                prune=prune,
            )
            if refine:
                found.refine(model, images, labels)
            return found

        return run_audited(attempt, prune)

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
    if prune is not None and not 0 < prune < float("inf"):
        raise ValueError(f"prune: expected a positive number or null, got {prune}")


@dataclass
class Known:
    """What a search has learnt about N images.

    ``rivals``: as at the last linearised point; ``audited`` bool (N,): images of which the nearest
    classes are never skipped; ``factors``: of the pruning rules.
    """

    rivals: Rivals
    audited: Tensor
    factors: Factors | None

    def of(self, rows: Tensor) -> Known:
        """What is known about the images in ``rows``."""
        return Known(self.rivals.of(rows), self.audited[rows], self.factors)

    def update(self, rows: Tensor, rivals: Rivals) -> None:
        """Enter the rivals of the images in ``rows``."""
        self.rivals.classes[rows], self.rivals.norms[rows] = rivals.classes, rivals.norms


@dataclass
class Found:
    """Result of DeepFool on N images.

    ``points`` (N, C, H, W): overshot and clipped; ``fooled`` bool (N,); ``normals`` (N, C, H, W):
    unit normal of the boundary at points that fool, if asked for; ``missed``: whether pruning would
    have missed the nearest boundary of an audited image; ``forwards``, ``backwards`` (N,): passes.
    """

    points: Tensor
    fooled: Tensor
    normals: Tensor | None
    known: Known | None
    missed: bool
    forwards: Tensor
    backwards: Tensor

    def refine(self, model: Model, images: Tensor, labels: Tensor) -> None:
        """Move fooling points back towards ``images``, to 0.1 % beyond the boundary."""
        moved = self.fooled & (self.points != images).flatten(1).any(1)
        rows = moved.nonzero().squeeze(1)
        nearer, forwards = refined(model, images[rows], self.points[rows], labels[rows])
        self.points[rows] = nearer
        self.forwards[rows] += forwards

    def outcome(self) -> AttackOutcome:
        """The outcome, with passes in whole numbers."""
        passes = self.forwards.round().long(), self.backwards.round().long()
        return AttackOutcome(self.points.contiguous(), self.fooled, *passes)


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
    project: Project | None = None,
    known: Known | None = None,
    normals: bool = False,
) -> Found:
    """Run DeepFool on a model already in attack mode; other arguments as for ``deepfool``.

    ``project`` maps gradients (B, C, H, W) to the subspace of allowed perturbations; ``known`` is
    what an earlier search has learnt about these images; ``normals``: also find the normal of the
    boundary where each point has crossed it.
    """
    count, device = len(images), images.device
    points = images.clone(memory_format=torch.channels_last)
    perturbation = torch.zeros_like(points)
    found_normals = torch.zeros_like(points) if normals else None
    fooled, missed = torch.zeros(count, dtype=torch.bool, device=device), False
    forwards, backwards = torch.zeros(2, count, device=device)
    live = torch.isfinite(images).flatten(1).all(1).nonzero().squeeze(1)
    for step in range(steps + 1):
        if len(live) == 0:
            break
        arguments = model, points[live], labels[live]
        if known is None:
            boundary, factors, audited = first_boundary(
                *arguments, candidates, norm=norm, prune=prune, project=project
            )
            shape = (count, boundary.classes.shape[1])
            rivals = Rivals(labels.new_zeros(shape), images.new_full(shape, torch.inf))
            known = Known(rivals, torch.zeros_like(fooled).index_copy(0, live, audited), factors)
        else:
            boundary = nearest_boundary(
                *arguments,
                known.rivals.of(live),
                norm=norm,
                factors=known.factors,
                complete=known.audited[live],
                judge_only=step == steps,
                project=project,
                normals=normals,
            )
        fooled[live] = boundary.fooled
        forwards[live] += boundary.forwards
        backwards[live] += boundary.backwards
        missed |= bool(boundary.missed.any())
        if found_normals is not None:
            found_normals[live] = boundary.direction
        going = torch.isfinite(boundary.distance).nonzero().squeeze(1)
        live, boundary = live[going], boundary.of(going)
        known.update(live, boundary.rivals())
        length = boundary.distance + (STEP_CONSTANT if step > 0 else 0.0)
        perturbation[live] += length.view(-1, 1, 1, 1) * boundary.direction
        points[live] = (images[live] + (1 + overshoot) * perturbation[live]).clamp(0, 1)
    return Found(points, fooled, found_normals, known, missed, forwards, backwards)


def run_audited(attempt: Callable[[float | None], Found], prune: float | None) -> AttackOutcome:
    """Make an attempt with ``prune``, and repeat it without pruning if its audit fails."""
    found = attempt(prune)
    if not found.missed:
        return found.outcome()
    log.warning("pruning is not exact for this network, so it is off (slower, same result)")
    again = attempt(None)
    again.forwards += found.forwards
    again.backwards += found.backwards
    return again.outcome()
