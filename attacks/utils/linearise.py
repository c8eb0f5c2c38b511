"""A step of DeepFool: judge many points, and find the nearest linearised boundary of each.

One forward pass serves the gradients of all classes. With a tape, all (point, class) pairs that are
wanted go back together, and some are dropped on the way (``attacks.utils.pruning``). Other models
are differentiated by autograd, one class of each point after the other.

The result of a point does not depend on the others, unless pruning errs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attacks.utils.boundary import Boundary, Norm, Rivals, dual_norm, joined, unit_step
from attacks.utils.model import Model, chunks, gradient
from attacks.utils.prepare import FastCopy
from attacks.utils.pruning import (
    AUDITED_IMAGES,
    Factors,
    Observed,
    Race,
    audit,
    sample,
    sufficient,
    wanted,
)
from attacks.utils.tape import Recording, Tape

Project = Callable[[Tensor], Tensor]

_PAIRS_AT_ONCE = 128
_TINY = 1e-30


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
        complete: bool (L,), points whose nearest rivals are visited in any case.
        judge_only: only classify.
        project: maps gradients (B, C, H, W) to the subspace of allowed steps.
        normals: return as ``direction`` of points that fool the unit normal of the boundary that
            they have crossed: the gradient of the predicted class's gap to the label's.
        observed: gets the norms on the way, of at most one chunk of points.
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
        part = Boundary.judged(logits.detach(), points[rows], label, chosen, complete[rows])
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
    boundary = joined(parts)
    rows = every[wanted(boundary, every, start).any(1)]
    while len(rows):  # models without a tape
        for some in chunks(rows):
            inputs = points[some].requires_grad_()
            boundary.forwards[some] += 1
            graph = _Graph(some, inputs, model(inputs), labels[some])
            _visit_by_autograd(boundary, graph, rules)
        rows = rows[wanted(boundary, rows, start).any(1)]
    if start is not None:
        audit(boundary, start)
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

    sampled = sample(labels)
    audited = sampled & (sampled.cumsum(0) <= AUDITED_IMAGES)
    factors = None if prune is None else Factors.of(prune)
    if factors is None or not (isinstance(model, FastCopy) and model.tape):
        return find(torch.arange(len(points), device=points.device), factors), factors, audited
    chosen, others = sampled.nonzero().squeeze(1), (~sampled).nonzero().squeeze(1)
    observed: Observed = {}
    parts = [find(chosen, factors, observed)]
    factors = sufficient(parts[0], observed, factors)
    parts[0].missed[:] = False  # with these factors
    if len(others):
        parts.append(find(others, factors))
    return joined(parts, torch.cat([chosen, others]).argsort()), factors, audited


@dataclass(frozen=True)
class _Rules:
    """Options of ``nearest_boundary``, and the factor for expected distances (``start``)."""

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
        observed[None] = boundary.norms
    while len(pairs := wanted(boundary, every, rules.start).nonzero()):
        for piece in pairs.tensor_split(max(1, round(len(pairs) / _PAIRS_AT_ONCE))):
            rows, columns = piece.unbind(1)
            race = Race(boundary, rows, columns, rules.factors, observed)
            seeds = _seeds(recording.logits, boundary.classes[rows, columns], labels[rows])
            gradients, arrived = recording.gradients(rows, seeds, race.goes_on)
            race.finish(arrived, rules.projected(gradients), rules.norm)


def _seeds(logits: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """Gradients (P, K) of the gaps of classes (P,) to labels (P,) with respect to the logits."""
    seeds = logits.new_zeros(len(classes), logits.shape[1])
    return seeds.scatter_(1, classes[:, None], 1.0).scatter_(1, labels[:, None], -1.0)


@dataclass
class _Graph:
    """A forward pass with gradients: ``rows`` of the points, their images, logits and labels."""

    rows: Tensor
    inputs: Tensor
    logits: Tensor
    labels: Tensor

    def slopes(self, classes: Tensor, of: Tensor) -> Tensor:
        """Gradients (B, C, H, W) of the gaps of classes (B,) to the labels, where ``of`` (B,)."""
        gap = self.logits.gather(1, classes[:, None]) - self.logits.gather(1, self.labels[:, None])
        return gradient((gap.squeeze(1) * of).sum(), self.inputs)


def _visit_by_autograd(boundary: Boundary, graph: _Graph, rules: _Rules) -> None:
    """Visit a rival of each point at a time, while at least half of the points want one."""
    while True:
        wants = wanted(boundary, graph.rows, rules.start)
        wanting = wants.any(1)
        if not wanting.any() or 2 * int(wanting.sum()) < len(wanting):
            return
        column = wants.to(torch.uint8).argmax(1)  # the first one
        slope = rules.projected(graph.slopes(boundary.classes[graph.rows, column], wanting))
        rows, column = graph.rows[wanting], column[wanting]
        boundary.visited[rows, column] = True
        boundary.backwards[graph.rows] += 1
        boundary.enter(rows, column, slope[wanting], rules.norm)


def _find_normals(
    boundary: Boundary, recording: Recording | None, graph: _Graph, norm: Norm
) -> None:
    """Enter the normal of the boundary that each fooling point has crossed as its direction."""
    rows = boundary.fooled.nonzero().squeeze(1)
    if len(rows) == 0:
        return
    predicted = graph.logits.argmax(1)
    if recording:
        seeds = _seeds(graph.logits, predicted[rows], graph.labels[rows])
        slope, _ = recording.gradients(rows, seeds)
    else:
        slope = graph.slopes(predicted, boundary.fooled)[rows]
    dual = dual_norm(slope, norm).clamp_min(_TINY)
    boundary.direction[rows] = unit_step(slope, dual, norm)
    boundary.backwards[rows] += 1


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
