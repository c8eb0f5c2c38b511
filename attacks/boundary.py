"""The nearest linearised decision boundary of many points at once: a step of DeepFool.

One forward pass serves the gradients of all classes; classes are looked at from the likeliest on,
and left out once they cannot be the nearest. What one point needs never changes another's answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.outcome import misclassified
from attacks.prepare import Model, chunks

Norm = Literal["l2", "linf"]


@dataclass
class Rivals:
    """The classes that L images may be moved to, m each.

    ``classes`` int64 (L, m); ``sizes`` (L, m): how large each one's gradient may be expected to be
    beside the others', as the last layer alone has it; ``sized`` bool (L,): whether that is known.
    """

    classes: Tensor
    sizes: Tensor
    sized: Tensor

    def of(self, rows: Tensor) -> Rivals:
        """Those of some images."""
        return Rivals(self.classes[rows], self.sizes[rows], self.sized[rows])


@dataclass
class Boundary:
    """What is known of the nearest linearised boundary of L points; every field is (L, …).

    ``fooled``; ``active``: right and finite; ``classes``, ``sizes``, ``sized`` of the rivals, in
    the order in which they are looked at, and their logit ``gaps``; ``seen``: how many of them have
    been looked at; ``distance`` and unit ``direction`` of the nearest boundary so far, ∞ where
    there is none; ``largest_dual``: largest dual norm so far, in units of the rival's size;
    ``forwards``, ``backwards``: passes.
    """

    fooled: Tensor
    active: Tensor
    classes: Tensor
    sizes: Tensor
    sized: Tensor
    gaps: Tensor
    seen: Tensor
    distance: Tensor
    direction: Tensor
    largest_dual: Tensor
    forwards: Tensor
    backwards: Tensor

    def rivals(self, rows: Tensor) -> Rivals:
        """Rivals of some points."""
        return Rivals(self.classes, self.sizes, self.sized).of(rows)

    def next(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column of the rival that each point looks at next, or the last one."""
        return rows, self.seen[rows].clamp_max(self.classes.shape[1] - 1)

    def wanted(self, rows: Tensor, prune: float | None) -> Tensor:
        """Which of ``rows`` need the gradient of their next rival: bool (B,).

        No other gradient, in units of its rival's size, is taken to be larger than γ_j times the
        largest of the j seen: γ_j = 1 + 2 (γ − 1) / (j + 1), as the more have been seen the less
        the others surprise; γ throughout where sizes are not known.
        """
        wanted = self.active[rows] & (self.seen[rows] < self.classes.shape[1])
        if prune is None:
            return wanted
        gamma = 1 + 2 * (prune - 1) / (self.seen[rows] + 1)
        gamma = torch.where(self.sized[rows], gamma, prune)
        upcoming, largest = self.next(rows), self.largest_dual[rows]
        bound = self.gaps[upcoming] / (gamma * largest * self.sizes[upcoming])
        return wanted & ~((largest > 0) & (bound >= self.distance[rows]))

    def take(self, rows: Tensor, wanted: Tensor, gradient: Tensor, norm: Norm) -> None:
        """Take in the gradient (B, C, H, W) of the next rival of ``rows`` where it is wanted."""
        upcoming, dual = self.next(rows), _dual_norm(gradient, norm)
        usable = wanted & torch.isfinite(dual) & (dual > 0)
        distance = torch.where(usable, self.gaps[upcoming] / dual, torch.inf)
        nearer = (distance < self.distance[rows]).view(-1, 1, 1, 1)
        step = _unit_step(gradient, dual, norm)
        self.direction[rows] = torch.where(nearer, step, self.direction[rows])
        self.distance[rows] = self.distance[rows].minimum(distance)
        dual = torch.where(usable, dual / self.sizes[upcoming], 0.0)
        self.largest_dual[rows] = self.largest_dual[rows].maximum(dual)
        self.seen[rows] += wanted
        self.backwards[rows] += 1


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

    ``rivals`` are those of each point, or how many of the likeliest classes to consider;
    ``project`` maps gradients to the subspace that the step has to stay in. A graph is left when
    fewer than half of its images need it; what they still need is done in new graphs, shared with
    such images of other chunks.
    """
    every = torch.arange(len(points), device=points.device)
    parts = []
    for rows in chunks(every):
        own = labels[rows]
        inputs = points[rows].requires_grad_(not judge_only)
        if isinstance(rivals, Rivals):
            logits = model(inputs)
            chosen = rivals.of(rows)
        else:
            with _head_input(model) as head:
                logits = model(inputs)
            chosen = _likely(logits, own, rivals, head)
        part = _judged(logits.detach(), inputs, own, chosen)
        parts.append(part)
        if judge_only or not logits.requires_grad:  # as of a model that hides its gradient
            part.active[:] = False
        else:
            _follow(part, every[: len(rows)], inputs, logits, own, norm, prune, project)
    found = _joined(parts)
    rows = every[found.wanted(every, prune)]
    while len(rows):
        for part_rows in chunks(rows):
            inputs = points[part_rows].requires_grad_()
            found.forwards[part_rows] += 1
            own = labels[part_rows]
            _follow(found, part_rows, inputs, model(inputs), own, norm, prune, project)
        rows = rows[found.wanted(rows, prune)]
    return found


def _follow(
    found: Boundary,
    rows: Tensor,
    inputs: Tensor,
    logits: Tensor,
    labels: Tensor,
    norm: Norm,
    prune: float | None,
    project: Callable[[Tensor], Tensor] | None,
) -> None:
    """Take gradients from one graph, of ``rows``, while at least half of them need it."""
    while True:
        wanted = found.wanted(rows, prune)
        if 2 * int(wanted.sum()) < len(rows):
            return
        rival = found.classes[found.next(rows)]
        gap = logits.gather(1, rival[:, None]) - logits.gather(1, labels[:, None])
        (gradient,) = torch.autograd.grad(
            (gap.squeeze(1) * wanted).sum(), inputs, retain_graph=True
        )
        found.take(rows, wanted, project(gradient) if project else gradient, norm)


def _judged(logits: Tensor, points: Tensor, labels: Tensor, rivals: Rivals) -> Boundary:
    """What the logits (B, K) alone say of B points."""
    gaps = logits.gather(1, labels[:, None]) - logits.gather(1, rivals.classes)
    order = (gaps / rivals.sizes).argsort(dim=1, stable=True)
    fooled = misclassified(logits, labels)
    zeros = torch.zeros_like(labels)
    return Boundary(
        fooled=fooled,
        active=torch.isfinite(logits).all(1) & ~fooled,
        classes=rivals.classes.gather(1, order),
        sizes=rivals.sizes.gather(1, order),
        sized=rivals.sized,
        gaps=gaps.gather(1, order),
        seen=zeros.clone(),
        distance=torch.full_like(gaps[:, 0], torch.inf),
        direction=torch.zeros_like(points),
        largest_dual=torch.zeros_like(gaps[:, 0]),
        forwards=zeros + 1,
        backwards=zeros.clone(),
    )


def _joined(parts: list[Boundary]) -> Boundary:
    names = [field.name for field in fields(Boundary)]
    return Boundary(**{n: torch.cat([getattr(part, n) for part in parts]) for n in names})


def _likely(
    logits: Tensor, labels: Tensor, candidates: int | Literal["all"], head: list[Tensor]
) -> Rivals:
    """The most likely classes but the label, of logits (B, K)."""
    wanted = logits.shape[1] if candidates == "all" else min(candidates, logits.shape[1])
    others = logits.detach().scatter(1, labels[:, None], -torch.inf)
    classes = others.argsort(dim=1, descending=True, stable=True)[:, : wanted - 1]
    sizes = _sizes_at(head, logits, labels, classes)
    sized = torch.full_like(labels, sizes is not None, dtype=torch.bool)
    if sizes is None:
        sizes = torch.ones_like(classes, dtype=logits.dtype)
    return Rivals(classes, sizes, sized)


def _sizes_at(head: list[Tensor], logits: Tensor, labels: Tensor, classes: Tensor) -> Tensor | None:
    """‖∇(f_l − f_0)‖₂ with respect to the input of the last layer: (B, m); None: not to be had."""
    if not head or not head[0].requires_grad:
        return None
    sizes = []
    for rival in classes.unbind(1):
        gap = logits.gather(1, rival[:, None]) - logits.gather(1, labels[:, None])
        (gradient,) = torch.autograd.grad(gap.sum(), head[0], retain_graph=True, allow_unused=True)
        if gradient is None:
            return None
        sizes.append(torch.linalg.vector_norm(gradient, dim=1))
    found = torch.stack(sizes, dim=1)
    return torch.where(torch.isfinite(found), found, 1.0).clamp_min(torch.finfo(found.dtype).tiny)


@contextlib.contextmanager
def _head_input(model: Model) -> Iterator[list[Tensor]]:
    """While it is open, the list holds the features (B, d) that the last layer was last given.

    Nothing if the last layer with parameters is not linear: going back to its input would cost
    more than a glance.
    """
    latest: list[Tensor] = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        flat = isinstance(layer, nn.Linear) and inputs and inputs[0].ndim == 2
        latest[:] = [inputs[0]] if flat else []

    layers = list(model.modules()) if isinstance(model, nn.Module) else []
    own = [x for x in layers if next(x.parameters(recurse=False), None) is not None]
    handles = [layer.register_forward_pre_hook(look) for layer in own]
    try:
        yield latest
    finally:
        for handle in handles:
            handle.remove()


def _dual_norm(gradient: Tensor, norm: Norm) -> Tensor:
    """‖g‖₂ for L2, ‖g‖₁ for L∞: (B, C, H, W) to (B,)."""
    norms: Tensor = torch.linalg.vector_norm(
        gradient.flatten(1), ord=2 if norm == "l2" else 1, dim=1
    )
    return norms


def _unit_step(gradient: Tensor, dual: Tensor, norm: Norm) -> Tensor:
    """The step of length 1 that raises the other class fastest: same shape as the gradient."""
    return gradient / dual.view(-1, 1, 1, 1) if norm == "l2" else gradient.sign()
