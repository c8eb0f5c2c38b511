"""A step of DeepFool: find the nearest linearised decision boundary of many points at once.

The distance to a class is the gap of its logit to the label's, divided by the dual norm of the
gap's gradient. Most classes are too far away to be worth a backward pass to the pixels:

1. The expected norm of a class is its norm at the image's last step; at the first step, the norm of
   its gradient at the final linear layer; without either, ∞.
2. A class is visited if its expected distance is at most a factor times that of the nearest class.
3. On the way to the pixels, the norm of the gradient so far takes the place of the expected norm,
   and classes that are too far by a factor are dropped (``Factors``). The factor falls from layer
   to layer. All classes of all images go back together (``Tape``).
4. Classes are visited after all if the nearest one was not the one expected.
5. The factors are so large that no class of a sample would have been dropped wrongly, and exceed
   3 standard deviations of the sample's norms (``first_boundary``).
6. Of two images, all classes are visited at all steps. If one would have been missed, the caller is
   told so (``Boundary.missed``) and repeats the attack without pruning.

Models without a tape are differentiated by autograd, one class of each image after the other: rules
1, 2, 4 and 6. The result of an image does not depend on the others, unless pruning errs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from attacks.utils.model import Model, chunks, gradient
from attacks.utils.outcome import misclassified
from attacks.utils.prepare import FastCopy
from attacks.utils.tape import Cut, Recording, Tape, norms_of

Norm = Literal["l2", "linf"]
Project = Callable[[Tensor], Tensor]
Observed = dict[float, Tensor]
"""Norms (B, m) of the gradients so far, by the share of layers ahead; NaN: unknown."""

_SAMPLED_IMAGES = 10
_SAMPLED_SHARE = 20  # at most one image of so many
_SAMPLED_CLASSES = 20
_AUDITED_IMAGES = 2
_DEVIATIONS = 3
_LARGEST_EXPONENT = 50
_ON_THE_WAY = 0.5
_MISSED = 1.001  # a nearest class that is farther by this factor than another one is wrong
_PAIRS_AT_ONCE = 128
_TINY = 1e-30


@dataclass(frozen=True)
class Factors:
    """How many times farther than the nearest class a class may seem to be.

    ``logits``: where no layer but the last two has been passed; ``way``: the factor is
    ``way`` ^ √u with the share u of layers ahead, and ``way`` itself for norms of the last step.
    """

    logits: float
    way: float

    @classmethod
    def of(cls, prune: float) -> Factors:
        """The smallest factors for the option ``prune``."""
        return cls(max(1.0, prune), max(1.0, prune) ** _ON_THE_WAY)

    def at(self, layers_ahead: float) -> float:
        """The factor with this share of layers ahead."""
        return self.logits if layers_ahead == 1 else float(self.way ** (layers_ahead**0.5))


@dataclass
class Rivals:
    """The m candidate classes of each of L images.

    ``classes`` int64 (L, m); ``norms`` (L, m): expected dual norm of the class's gradient, up to a
    factor of each image; ∞: unknown.
    """

    classes: Tensor
    norms: Tensor

    def of(self, rows: Tensor) -> Rivals:
        """Rivals of the images in ``rows``."""
        return Rivals(self.classes[rows], self.norms[rows])


@dataclass
class Boundary:
    """The search for the nearest linearised boundary of L points; every field is (L, …).

    ``fooled``; ``active``: correctly classified and finite; ``complete``: whether its nearest 20
    rivals are visited in any case. Of each rival, in the order of expected distance: its class,
    expected dual norm (``norms``), logit ``gaps``, whether it was ``visited``, its ``distances``
    (∞: not known) and, if it was dropped, how many times farther than the nearest it ``seemed``
    (else 0). ``direction``: unit step to the nearest boundary; ``missed``: whether pruning would
    have missed that one; ``forwards``, ``backwards``: passes, of which a dropped pair has spent a
    part.
    """

    fooled: Tensor
    active: Tensor
    complete: Tensor
    classes: Tensor
    norms: Tensor
    gaps: Tensor
    visited: Tensor
    distances: Tensor
    seemed: Tensor
    direction: Tensor
    missed: Tensor
    forwards: Tensor
    backwards: Tensor

    @property
    def distance(self) -> Tensor:
        """Distance to the nearest boundary, (L,); ∞: none."""
        return self.distances.amin(1)

    def of(self, rows: Tensor) -> Boundary:
        """The search for the points in ``rows``."""
        return Boundary(*(getattr(self, field.name)[rows] for field in fields(Boundary)))

    def rivals(self) -> Rivals:
        """Rivals with the norms that this step has measured, else estimated."""
        nearest = self.distances.argmin(1, keepdim=True)
        distance = self.distances.gather(1, nearest)
        growth = self.gaps.gather(1, nearest) / distance / self.norms.gather(1, nearest)
        unvisited = self.norms * growth
        dropped = self.gaps / (self.seemed * distance)
        norms = torch.where(self.seemed > 0, dropped, unvisited)
        norms = torch.where(torch.isfinite(self.distances), self.gaps / self.distances, norms)
        usable = torch.isfinite(norms) & (norms > 0)
        return Rivals(self.classes, torch.where(usable, norms, torch.inf))

    def wanted(self, rows: Tensor, factor: float | None) -> Tensor:
        """Whether each rival of ``rows`` still has to be visited: bool (B, m)."""
        open_ = self.active[rows, None] & ~self.visited[rows]
        if factor is None:
            return open_
        expected = self.gaps[rows] / self.norms[rows]
        reference = _reference(expected, self.distances[rows], open_)
        in_any_case = torch.arange(expected.shape[1], device=rows.device) < _SAMPLED_CLASSES
        in_any_case = self.complete[rows, None] & in_any_case
        return open_ & ((expected <= factor * reference) | in_any_case)

    def take(self, rows: Tensor, columns: Tensor, gradients: Tensor, norm: Norm) -> None:
        """Enter the gradients (P, C, H, W) of rivals, given by row and column."""
        dual = _dual_norm(gradients, norm)
        usable = torch.isfinite(dual) & (dual > 0)
        distance = torch.where(usable, self.gaps[rows, columns] / dual, torch.inf)
        self.distances[rows, columns] = distance
        nearest = usable & (self.distances[rows].argmin(1) == columns)
        self.direction[rows[nearest]] = _unit_step(gradients[nearest], dual[nearest], norm)


def _reference(expected: Tensor, distances: Tensor, is_open: Tensor) -> Tensor:
    """Expected distance (B, 1) of the nearest rival so far; before, the smallest one.

    ∞ if nothing was expected of the nearest, so that all rivals are visited. All arguments (B, m);
    ``distances`` ∞: not known; ``is_open``: not yet visited.
    """
    nearest = distances.argmin(1, keepdim=True)
    of_nearest = expected.gather(1, nearest)
    of_nearest = torch.where(of_nearest > 0, of_nearest, torch.inf)
    smallest = torch.where(is_open, expected, torch.inf).amin(1, keepdim=True)
    return torch.where(torch.isfinite(distances.gather(1, nearest)), of_nearest, smallest)


def nearest_boundary(
    model: Model,
    points: Tensor,
    labels: Tensor,
    rivals: Rivals | int | Literal["all"],
    *,
    norm: Norm,
    factors: Factors | None,
    complete: Tensor,
    judge_only: bool = False,
    project: Project | None = None,
    normals: bool = False,
    observed: Observed | None = None,
) -> Boundary:
    """Judge L points and find each one's nearest linearised boundary (equations 8 and 11).

    Args:
        model: logits of images.
        points: (L, C, H, W).
        labels: int64 (L,).
        rivals: those of each point; or the number of most likely classes to consider.
        norm: norm of the perturbation.
        factors: of the pruning rules; None: no class is skipped.
        complete: bool (L,), points whose nearest 20 rivals are visited in any case.
        judge_only: only classify.
        project: maps gradients (B, C, H, W) to the subspace of allowed steps.
        normals: return as ``direction`` of points that fool the unit normal of the boundary that
            they have crossed: the gradient of the predicted class's gap to the label's.
        observed: gets the norms of at most one chunk of points on the way.
    """
    every = torch.arange(len(points), device=points.device)
    start = None
    if factors is not None:
        start = factors.way if isinstance(rivals, Rivals) else factors.logits
    rules = _Rules(norm, factors, start, project)
    tape = model.tape if isinstance(model, FastCopy) else None
    parts = []
    for rows in chunks(every):
        label, inputs = labels[rows], points[rows]
        if tape:
            recording = tape.record(inputs)
            logits = recording.logits
        else:
            inputs = inputs.requires_grad_(not judge_only)
            logits = model(inputs)
        candidates = rivals.of(rows) if isinstance(rivals, Rivals) else rivals
        chosen = _chosen(logits, label, candidates, tape)
        part = _judged(logits.detach(), points[rows], label, chosen, complete[rows])
        parts.append(part)
        graph = _Graph(every[: len(rows)], inputs, logits, label)
        if normals:
            _find_normals(part, recording if tape else None, graph, norm)
        if judge_only or not (tape or logits.requires_grad):  # else the model hides its gradient
            part.active[:] = False
        elif tape:
            _visit_by_tape(part, recording, label, rules, observed)
        else:
            _visit_by_autograd(part, graph, rules)
    boundary = _joined(parts)
    rows = every[boundary.wanted(every, start).any(1)]
    while len(rows):
        for some in chunks(rows):
            inputs = points[some].requires_grad_()
            boundary.forwards[some] += 1
            graph = _Graph(some, inputs, model(inputs), labels[some])
            _visit_by_autograd(boundary, graph, rules)
        rows = rows[boundary.wanted(rows, start).any(1)]
    if start is not None:
        _audit(boundary, start)
    return boundary


def first_boundary(
    model: Model,
    points: Tensor,
    labels: Tensor,
    candidates: int | Literal["all"],
    *,
    norm: Norm,
    prune: float | None,
    project: Project | None = None,
) -> tuple[Boundary, Factors | None, Tensor]:
    """``nearest_boundary`` of L points at their first step.

    Returns:
        The boundary; the factors for this and all other steps (None: no pruning); and the points to
        audit at the other steps, bool (L,).
    """

    def find(rows: Tensor, factors: Factors | None, observed: Observed | None = None) -> Boundary:
        return nearest_boundary(
            model,
            points[rows],
            labels[rows],
            candidates,
            norm=norm,
            factors=factors,
            complete=torch.full_like(rows, observed is not None, dtype=torch.bool),
            project=project,
            observed=observed,
        )

    sampled = _sample(labels)
    audited = sampled & (sampled.cumsum(0) <= _AUDITED_IMAGES)
    factors = None if prune is None else Factors.of(prune)
    if factors is None or not (isinstance(model, FastCopy) and model.tape):
        return find(torch.arange(len(points), device=points.device), factors), factors, audited
    sample, others = sampled.nonzero().squeeze(1), (~sampled).nonzero().squeeze(1)
    observed: Observed = {}
    parts = [find(sample, factors, observed)]
    factors = _sufficient(parts[0], observed, factors)
    parts[0].missed[:] = False  # with these factors
    if len(others):
        parts.append(find(others, factors))
    return _joined(parts, torch.cat([sample, others]).argsort()), factors, audited


def _sample(labels: Tensor) -> Tensor:
    """Choose images from as many classes as possible: bool (L,)."""
    size = max(_AUDITED_IMAGES, min(_SAMPLED_IMAGES, len(labels) // _SAMPLED_SHARE))
    size = min(size, len(labels))
    ordered, by_class = labels.sort(stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    rows = by_class[(~first).argsort(stable=True)]  # the first of each class, then all others
    spread = torch.linspace(0, max(int(first.sum()), size) - 1, size, device=labels.device)
    sampled = torch.zeros_like(labels, dtype=torch.bool)
    sampled[rows[spread.round().long()]] = True
    return sampled


def _sufficient(boundary: Boundary, observed: Observed, least: Factors) -> Factors:
    """Factors for which the norms ``observed`` on the way would not have misled.

    The error of a norm is the logarithm of its ratio to that at the pixels, relative to the nearest
    class, and divided by √u.
    """
    final = boundary.gaps / boundary.distances
    nearest = boundary.distances.argmin(1, keepdim=True)

    def sufficient(factor: float, norms_at: Observed) -> float:
        errors, needed = [], [math.log(factor)]
        for layers_ahead, norms in norms_at.items():
            error = (norms / final).log() / layers_ahead**0.5
            error -= error.gather(1, nearest)
            usable = torch.isfinite(error)
            errors.append(error[usable.scatter(1, nearest, False)])
            distance = torch.where(usable, boundary.gaps / norms, torch.inf)
            too_far = (distance.gather(1, nearest).squeeze(1) / distance.amin(1)).log()
            needed += (too_far[torch.isfinite(too_far)] / layers_ahead**0.5).tolist()
        pooled = torch.cat(errors) if errors else final[:0].flatten()
        if len(pooled):
            needed.append(_DEVIATIONS * float(pooled.square().mean().sqrt()))
        return math.exp(min(max(needed), _LARGEST_EXPONENT))

    at_logits = {u: norms for u, norms in observed.items() if u == 1}
    on_the_way = {u: norms for u, norms in observed.items() if u < 1}
    return Factors(sufficient(least.logits, at_logits), sufficient(least.way, on_the_way))


@dataclass(frozen=True)
class _Rules:
    """Options of ``nearest_boundary``, and the factor for expected distances."""

    norm: Norm
    factors: Factors | None
    start: float | None
    project: Project | None

    def projected(self, gradients: Tensor) -> Tensor:
        """Gradients in the subspace of allowed steps."""
        return self.project(gradients) if self.project else gradients


def _visit_by_tape(
    boundary: Boundary,
    recording: Recording,
    labels: Tensor,
    rules: _Rules,
    observed: Observed | None,
) -> None:
    """Visit all wanted rivals of B recorded points."""
    every = torch.arange(len(labels), device=labels.device)
    if observed is not None:
        observed[1.0] = torch.where(torch.isfinite(boundary.norms), boundary.norms, torch.nan)
    while len(wanted := boundary.wanted(every, rules.start).nonzero()):
        for piece in wanted.tensor_split(max(1, round(len(wanted) / _PAIRS_AT_ONCE))):
            rows, columns = piece.unbind(1)
            race = _Race(boundary, rows, columns, rules, observed)
            seeds = _seeds(recording.logits, boundary.classes[rows, columns], labels[rows])
            drop = race.drop if rules.factors else None
            race.finish(*recording.gradients(race.rows, seeds, drop))


def _seeds(logits: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """Gradients (P, K) of the gaps of classes (P,) to labels (P,) with respect to the logits."""
    seeds = logits.new_zeros(len(classes), logits.shape[1])
    return seeds.scatter_(1, classes[:, None], 1.0).scatter_(1, labels[:, None], -1.0)


class _Race:
    """Pairs (P,) of a point and a rival on their way from the logits to the pixels."""

    def __init__(
        self,
        boundary: Boundary,
        rows: Tensor,
        columns: Tensor,
        rules: _Rules,
        observed: Observed | None,
    ) -> None:
        self.boundary, self.rows, self.columns = boundary, rows, columns
        self.rules, self.observed = rules, observed
        self.gaps = boundary.gaps[rows, columns]
        self.seemed = torch.zeros_like(self.gaps)
        self.work = torch.ones_like(self.gaps)

    def drop(self, pairs: Tensor, norms: Tensor, cut: Cut) -> Tensor:
        """Whether each of ``pairs``, whose gradients have ``norms`` so far, goes on."""
        rows, running = self.rows[pairs], self.seemed[pairs] == 0
        if self.observed is not None:
            table = self.observed.setdefault(
                cut.layers_ahead, torch.full_like(self.boundary.gaps, torch.nan)
            )
            table[rows, self.columns[pairs]] = norms
        distance = self.gaps[pairs] / norms
        nearest = torch.full_like(self.boundary.gaps[:, 0], torch.inf)
        among = torch.where(running, distance, torch.inf)
        seems = distance / nearest.scatter_reduce(0, rows, among, "amin")[rows]
        assert self.rules.factors
        lost = running & (seems > self.rules.factors.at(cut.layers_ahead))
        self.seemed[pairs[lost]] = seems[lost]
        stops = lost & ~self.boundary.complete[rows]
        self.work[pairs[stops]] = 1 - cut.work_ahead
        return ~stops

    def finish(self, gradients: Tensor, arrived: Tensor) -> None:
        """Enter the gradients (P', C, H, W) of the pairs that have ``arrived`` at the pixels."""
        self.boundary.visited[self.rows, self.columns] = True
        self.boundary.seemed[self.rows, self.columns] = self.seemed
        self.boundary.backwards.index_add_(0, self.rows, self.work)
        gradients = self.rules.projected(gradients)
        rows, columns = self.rows[arrived], self.columns[arrived]
        self.boundary.take(rows, columns, gradients, self.rules.norm)


@dataclass
class _Graph:
    """A forward pass with gradients: ``rows`` of the points, their images, logits and labels."""

    rows: Tensor
    inputs: Tensor
    logits: Tensor
    labels: Tensor


def _visit_by_autograd(boundary: Boundary, graph: _Graph, rules: _Rules) -> None:
    """Visit a rival of each point at a time, while at least half of the points want one."""
    while True:
        wanted = boundary.wanted(graph.rows, rules.start)
        wanting = wanted.any(1)
        if not wanting.any() or 2 * int(wanting.sum()) < len(wanting):
            return
        column = wanted.to(torch.uint8).argmax(1)  # the first one
        rival = boundary.classes[graph.rows, column]
        gap = graph.logits.gather(1, rival[:, None]) - graph.logits.gather(1, graph.labels[:, None])
        slope = gradient((gap.squeeze(1) * wanting).sum(), graph.inputs)
        slope = rules.projected(slope)
        rows, column = graph.rows[wanting], column[wanting]
        boundary.visited[rows, column] = True
        boundary.backwards[graph.rows] += 1
        boundary.take(rows, column, slope[wanting], rules.norm)


def _find_normals(
    boundary: Boundary, recording: Recording | None, graph: _Graph, norm: Norm
) -> None:
    """Enter the normal of the boundary that each fooling point has crossed as its direction."""
    rows = boundary.fooled.nonzero().squeeze(1)
    if len(rows) == 0:
        return
    predicted = graph.logits.argmax(1, keepdim=True)
    if recording:
        seeds = _seeds(graph.logits, predicted[rows, 0], graph.labels[rows])
        slope, _ = recording.gradients(rows, seeds)
    else:
        gap = graph.logits.gather(1, predicted) - graph.logits.gather(1, graph.labels[:, None])
        slope = gradient((gap.squeeze(1) * boundary.fooled).sum(), graph.inputs)[rows]
    dual = _dual_norm(slope, norm).clamp_min(_TINY)
    boundary.direction[rows] = _unit_step(slope, dual, norm)
    boundary.backwards[rows] += 1


def _audit(boundary: Boundary, factor: float) -> None:
    """See whether the nearest boundary of complete points would not have been visited, or dropped.

    ``factor``: for expected distances.
    """
    expected, distances = boundary.gaps / boundary.norms, boundary.distances
    unknown, every = torch.full_like(distances, torch.inf), torch.ones_like(boundary.visited)
    started = expected <= factor * _reference(expected, unknown, every)
    first = torch.where(started, distances, torch.inf)
    started |= expected <= factor * _reference(expected, first, ~started)
    kept = started & (boundary.seemed == 0)
    found = torch.where(kept, distances, torch.inf).amin(1)
    boundary.missed = boundary.complete & boundary.active & (found > _MISSED * boundary.distance)


def _judged(
    logits: Tensor, points: Tensor, labels: Tensor, rivals: Rivals, complete: Tensor
) -> Boundary:
    """Start the search for B points from their logits (B, K)."""
    gaps = logits.gather(1, labels[:, None]) - logits.gather(1, rivals.classes)
    order = (gaps / rivals.norms).argsort(dim=1, stable=True)
    fooled = misclassified(logits, labels)
    zeros = torch.zeros_like(gaps[:, 0])
    return Boundary(
        fooled=fooled,
        active=torch.isfinite(logits).all(1) & ~fooled,
        complete=complete,
        classes=rivals.classes.gather(1, order),
        norms=rivals.norms.gather(1, order),
        gaps=gaps.gather(1, order),
        visited=torch.zeros_like(gaps, dtype=torch.bool),
        distances=torch.full_like(gaps, torch.inf),
        seemed=torch.zeros_like(gaps),
        direction=torch.zeros_like(points),
        missed=torch.zeros_like(fooled),
        forwards=zeros + 1,
        backwards=zeros.clone(),
    )


def _joined(parts: list[Boundary], order: Tensor | None = None) -> Boundary:
    """Join parts, each field at a time so that no more than one is in memory twice."""
    joined = {}
    for field in fields(Boundary):
        values = torch.cat([getattr(part, field.name) for part in parts])
        joined[field.name] = values if order is None else values[order]
        for part in parts:
            delattr(part, field.name)
    return Boundary(**joined)


def _chosen(
    logits: Tensor, labels: Tensor, candidates: Rivals | int | Literal["all"], tape: Tape | None
) -> Rivals:
    """Return the given rivals, or choose the most likely classes from logits (B, K)."""
    if isinstance(candidates, Rivals):
        return candidates
    count = logits.shape[1] if candidates == "all" else min(candidates, logits.shape[1])
    others = logits.detach().scatter(1, labels[:, None], -torch.inf)
    classes = others.argsort(dim=1, descending=True, stable=True)[:, : count - 1]
    if tape is None or tape.head is None:
        return Rivals(classes, torch.full_like(classes, torch.inf, dtype=logits.dtype))
    norms = torch.cdist(tape.head[labels], tape.head).gather(1, classes).to(logits)
    return Rivals(classes, torch.where(norms > 0, norms, torch.inf))


def _dual_norm(gradient: Tensor, norm: Norm) -> Tensor:
    """‖g‖₂ for L2, ‖g‖₁ for L∞: (B, C, H, W) to (B,)."""
    return norms_of(gradient) if norm == "l2" else gradient.abs().sum((1, 2, 3))


def _unit_step(gradient: Tensor, dual: Tensor, norm: Norm) -> Tensor:
    """Unit step of steepest ascent, same shape as the gradient."""
    return gradient / dual.view(-1, 1, 1, 1) if norm == "l2" else gradient.sign()
