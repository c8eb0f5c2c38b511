"""A step of DeepFool: find the nearest linearised decision boundary of many points at once.

One forward pass serves the gradients of all classes. Classes are visited in the order of their
expected distance, and the rest is skipped (pruned) when none of them can be nearer. The bound is

- the dual norm of the class's gradient when it was last computed for this image, or
- before that, its gradient at the last layer, in proportion to the visited classes; this is used
  only if it holds for a sample of the images, for which all classes are visited
  (``first_boundary``).

Apart from the result for that sample, no point affects the result of another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from attacks.utils.model import Model, chunks, gradient
from attacks.utils.outcome import misclassified
from attacks.utils.prepare import FastCopy

Norm = Literal["l2", "linf"]

AUDITED_POINTS = 10
"""Number of sampled points, from different classes; 2 if there are many candidates."""


@dataclass
class Pruning:
    """How to skip classes: γ (None: skip none), and whether pruning is valid at the start.

    ``holds_at_start`` is None until the first call of ``first_boundary``.
    """

    gamma: float | None
    holds_at_start: bool | None = None


@dataclass
class Rivals:
    """The m candidate classes of each of L images.

    ``classes`` int64 (L, m); ``duals`` (L, m): dual norm of the class's gradient when last
    computed, 0: never; ``sizes`` (L, m): norm of its gradient at the last layer; ``sized`` bool
    (L,): whether that is known.
    """

    classes: Tensor
    duals: Tensor
    sizes: Tensor
    sized: Tensor

    def of(self, rows: Tensor) -> Rivals:
        """Rivals of the images in ``rows``."""
        return Rivals(*(getattr(self, field.name)[rows] for field in fields(Rivals)))

    def expected(self) -> Tensor:
        """Expected dual norm of each gradient, (L, m): the last one, else in proportion to size."""
        ratio = (self.duals / self.sizes).amax(1, keepdim=True)
        return torch.where(
            self.duals > 0, self.duals, self.sizes * torch.where(ratio > 0, ratio, 1)
        )


@dataclass
class Boundary:
    """The search for the nearest linearised boundary of L points; every field is (L, …).

    ``fooled``; ``active``: correctly classified and finite; ``classes``, ``duals``, ``sizes``,
    ``sized`` of the rivals in the order of visits, and their logit ``gaps``; ``seen``: number of
    visited rivals; ``distance`` (∞: none) and unit ``direction`` of the nearest boundary so far;
    ``largest``: largest dual norm so far, in units of the rival's size; ``forwards``,
    ``backwards``: passes.
    """

    fooled: Tensor
    active: Tensor
    classes: Tensor
    duals: Tensor
    sizes: Tensor
    sized: Tensor
    gaps: Tensor
    seen: Tensor
    distance: Tensor
    direction: Tensor
    largest: Tensor
    forwards: Tensor
    backwards: Tensor

    def of(self, rows: Tensor) -> Boundary:
        """The search for the points in ``rows``."""
        return Boundary(*(getattr(self, field.name)[rows] for field in fields(Boundary)))

    def rivals(self, rows: Tensor) -> Rivals:
        """Rivals of the points in ``rows``."""
        return Rivals(self.classes, self.duals, self.sizes, self.sized).of(rows)

    def next(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column of the rival that each point visits next, or of its last one."""
        return rows, self.seen[rows].clamp_max(self.classes.shape[1] - 1)

    def wanted(self, rows: Tensor, prune: float | None) -> Tensor:
        """Whether each of ``rows`` needs the gradient of its next rival: bool (B,)."""
        wanted = self.active[rows] & (self.seen[rows] < self.classes.shape[1])
        if prune is None:
            return wanted
        upcoming = self.next(rows)
        bound = _dual_bound(
            prune,
            self.duals[upcoming],
            torch.where(self.sized[rows], self.sizes[upcoming], torch.inf),
            self.largest[rows],
            self.seen[rows],
        )
        return wanted & (self.gaps[upcoming] < bound * self.distance[rows])

    def take(self, rows: Tensor, wanted: Tensor, gradients: Tensor, norm: Norm) -> None:
        """Update ``rows`` with the gradient (B, C, H, W) of their next rival where wanted."""
        upcoming, dual = self.next(rows), _dual_norm(gradients, norm)
        usable = wanted & torch.isfinite(dual) & (dual > 0)
        distance = torch.where(usable, self.gaps[upcoming] / dual, torch.inf)
        nearer = (distance < self.distance[rows]).view(-1, 1, 1, 1)
        step = _unit_step(gradients, dual, norm)
        self.direction[rows] = torch.where(nearer, step, self.direction[rows])
        self.distance[rows] = self.distance[rows].minimum(distance)
        self.duals[upcoming] = torch.where(usable, dual, self.duals[upcoming])
        dual = torch.where(usable, dual / self.sizes[upcoming], 0.0)
        self.largest[rows] = self.largest[rows].maximum(dual)
        self.seen[rows] += wanted
        self.backwards[rows] += 1


def _dual_bound(
    prune: float, duals: Tensor, sizes: Tensor, largest: Tensor, seen: Tensor
) -> Tensor:
    """Upper bound on the dual norm of a rival's gradient; all arguments (B,).

    γ^½ times the rival's last dual norm. For a rival that was never visited: γ_j times ``largest``
    in proportion to its size, ∞ if its size is unknown. γ_j = 1 + 2 (γ − 1) / (j + 1) falls with
    the number j of rivals visited at this point.
    """
    gamma = 1 + 2 * (prune - 1) / (seen + 1)
    in_proportion = torch.where(largest > 0, gamma * largest * sizes, torch.inf)
    return torch.where(duals > 0, prune**0.5 * duals, in_proportion)


def nearest_boundary(
    model: Model,
    points: Tensor,
    labels: Tensor,
    rivals: Rivals | int | Literal["all"],
    *,
    norm: Norm,
    prune: float | None,
    judge_only: bool,
    project: Callable[[Tensor], Tensor] | None = None,
) -> Boundary:
    """Judge L points and find each one's nearest linearised boundary (equations 8 and 11).

    ``rivals``: those of each point, or the number of most likely classes to consider; ``project``
    maps gradients to the subspace of allowed steps. A graph is dropped when fewer than half of its
    images need it; the remaining gradients are computed in new graphs, together with those of other
    chunks.
    """
    every = torch.arange(len(points), device=points.device)
    parts = []
    for rows in chunks(every):
        label = labels[rows]
        inputs = points[rows].requires_grad_(not judge_only)
        logits = model(inputs)
        if isinstance(rivals, Rivals):
            chosen = rivals.of(rows)
        else:
            chosen = _likely(logits, label, rivals, None if judge_only else _features(model))
        part = _judged(logits.detach(), inputs, label, chosen)
        parts.append(part)
        if judge_only or not logits.requires_grad:  # the model hides its gradient
            part.active[:] = False
        else:
            _follow(part, every[: len(rows)], inputs, logits, label, norm, prune, project)
    boundary = _joined(parts)
    rows = every[boundary.wanted(every, prune)]
    while len(rows):
        for part_rows in chunks(rows):
            inputs = points[part_rows].requires_grad_()
            boundary.forwards[part_rows] += 1
            label = labels[part_rows]
            _follow(boundary, part_rows, inputs, model(inputs), label, norm, prune, project)
        rows = rows[boundary.wanted(rows, prune)]
    return boundary


def first_boundary(
    model: Model,
    points: Tensor,
    labels: Tensor,
    candidates: int | Literal["all"],
    *,
    norm: Norm,
    pruning: Pruning,
    project: Callable[[Tensor], Tensor] | None = None,
) -> Boundary:
    """``nearest_boundary`` of L images at the start, when no rival has been visited.

    The first call visits all rivals of a sample of the images. The others are pruned only if
    pruning, even with a γ smaller by a third, would find the same boundaries for the sample.
    """
    few = candidates != "all" and candidates <= 20
    find = partial(nearest_boundary, model, norm=norm, judge_only=False, project=project)
    gamma = pruning.gamma
    if gamma is None or pruning.holds_at_start is not None:
        trusted = gamma if pruning.holds_at_start else None
        return find(points, labels, candidates, prune=trusted)
    sampled = _sample(labels, AUDITED_POINTS if few else 2)
    sample, others = sampled.nonzero().squeeze(1), (~sampled).nonzero().squeeze(1)
    in_full = find(points[sample], labels[sample], candidates, prune=None)
    pruning.holds_at_start = _prunes_rightly(in_full, gamma / 1.5)
    if len(others) == 0:
        return in_full
    trusted = gamma if pruning.holds_at_start else None
    pruned = find(points[others], labels[others], candidates, prune=trusted)
    return _joined([in_full, pruned]).of(torch.cat([sample, others]).argsort())


def _sample(labels: Tensor, size: int) -> Tensor:
    """Choose at most ``size`` images, from as many classes as possible: bool (L,)."""
    ordered, by_class = labels.sort(stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    rows = by_class[(~first).argsort(stable=True)]  # the first of each class, then all others
    most = max(int(first.sum()), min(size, len(labels)))
    spread = torch.linspace(0, most - 1, min(size, len(labels)), device=labels.device)
    sampled = torch.zeros_like(labels, dtype=torch.bool)
    sampled[rows[spread.round().long()]] = True
    return sampled


def _prunes_rightly(full: Boundary, prune: float) -> bool:
    """Whether pruning would find the same nearest boundaries as visiting all rivals (``full``).

    Distances may differ by a relative 1e-6. False if no point is active.
    """
    distance = torch.full_like(full.distance, torch.inf)
    largest, going = torch.zeros_like(distance), full.active.clone()
    for column, dual in enumerate(full.duals.unbind(1)):
        gap, size = full.gaps[:, column], full.sizes[:, column]
        sizes = torch.where(full.sized, size, torch.inf)
        seen = torch.full_like(full.seen, column)
        bound = _dual_bound(prune, torch.zeros_like(dual), sizes, largest, seen)
        going &= gap < bound * distance
        usable = going & (dual > 0)
        distance = torch.where(usable, distance.minimum(gap / dual), distance)
        largest = torch.where(usable, largest.maximum(dual / size), largest)
    same = (distance <= full.distance * (1 + 1e-6))[full.active]
    return bool(len(same) and same.all())


def _follow(
    boundary: Boundary,
    rows: Tensor,
    inputs: Tensor,
    logits: Tensor,
    labels: Tensor,
    norm: Norm,
    prune: float | None,
    project: Callable[[Tensor], Tensor] | None,
) -> None:
    """Compute gradients from the graph of ``rows`` while at least half of them need it."""
    while True:
        wanted = boundary.wanted(rows, prune)
        if 2 * int(wanted.sum()) < len(rows):
            return
        rival = boundary.classes[boundary.next(rows)]
        gap = logits.gather(1, rival[:, None]) - logits.gather(1, labels[:, None])
        slope = gradient((gap.squeeze(1) * wanted).sum(), inputs)
        boundary.take(rows, wanted, project(slope) if project else slope, norm)


def _judged(logits: Tensor, points: Tensor, labels: Tensor, rivals: Rivals) -> Boundary:
    """Start the search for B points from their logits (B, K)."""
    gaps = logits.gather(1, labels[:, None]) - logits.gather(1, rivals.classes)
    order = (gaps / rivals.expected()).argsort(dim=1, stable=True)
    fooled = misclassified(logits, labels)
    zeros = torch.zeros_like(labels)
    return Boundary(
        fooled=fooled,
        active=torch.isfinite(logits).all(1) & ~fooled,
        classes=rivals.classes.gather(1, order),
        duals=rivals.duals.gather(1, order),
        sizes=rivals.sizes.gather(1, order),
        sized=rivals.sized,
        gaps=gaps.gather(1, order),
        seen=zeros.clone(),
        distance=torch.full_like(gaps[:, 0], torch.inf),
        direction=torch.zeros_like(points),
        largest=torch.zeros_like(gaps[:, 0]),
        forwards=zeros + 1,
        backwards=zeros.clone(),
    )


def _joined(parts: list[Boundary]) -> Boundary:
    names = [field.name for field in fields(Boundary)]
    return Boundary(**{n: torch.cat([getattr(part, n) for part in parts]) for n in names})


def _likely(
    logits: Tensor, labels: Tensor, candidates: int | Literal["all"], features: Tensor | None
) -> Rivals:
    """Choose the most likely classes other than the label from logits (B, K)."""
    count = logits.shape[1] if candidates == "all" else min(candidates, logits.shape[1])
    others = logits.detach().scatter(1, labels[:, None], -torch.inf)
    classes = others.argsort(dim=1, descending=True, stable=True)[:, : count - 1]
    sizes = _sizes(features, logits, labels, classes)
    sized = torch.full_like(labels, sizes is not None, dtype=torch.bool)
    if sizes is None:
        sizes = torch.ones_like(classes, dtype=logits.dtype)
    return Rivals(classes, torch.zeros_like(sizes), sizes, sized)


def _features(model: Model) -> Tensor | None:
    """Last input of the model's final layer, (B, d), if known."""
    return model.features if isinstance(model, FastCopy) else None


def _sizes(
    features: Tensor | None, logits: Tensor, labels: Tensor, classes: Tensor
) -> Tensor | None:
    """‖∇(f_l − f_0)‖₂ with respect to ``features`` (B, d): (B, m); None: not available."""
    if features is None or not features.requires_grad:
        return None
    sizes = []
    for rival in classes.unbind(1):
        gap = logits.gather(1, rival[:, None]) - logits.gather(1, labels[:, None])
        slope = gradient(gap.sum(), features)
        sizes.append(torch.linalg.vector_norm(slope, dim=1))
    stacked = torch.stack(sizes, dim=1).to(logits)
    tiny = torch.finfo(stacked.dtype).tiny
    return torch.where(torch.isfinite(stacked), stacked, 1.0).clamp_min(tiny)


def _dual_norm(gradient: Tensor, norm: Norm) -> Tensor:
    """‖g‖₂ for L2, ‖g‖₁ for L∞: (B, C, H, W) to (B,)."""
    norms: Tensor = torch.linalg.vector_norm(
        gradient.flatten(1), ord=2 if norm == "l2" else 1, dim=1
    )
    return norms


def _unit_step(gradient: Tensor, dual: Tensor, norm: Norm) -> Tensor:
    """Unit step of steepest ascent, same shape as the gradient."""
    return gradient / dual.view(-1, 1, 1, 1) if norm == "l2" else gradient.sign()
