"""DeepFool (Moosavi-Dezfooli et al., arXiv 1511.04599), batched.

Every image follows the path it would follow alone. Finished images leave the batch before any
gradient is taken, one forward pass serves the gradients of all classes, and a class is left out
when it cannot be the nearest (``prune``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.outcome import AttackOutcome, margins_of, misclassified
from attacks.prepare import Model, chunks, run_confirmed

Norm = Literal["l2", "linf"]

STEP_CONSTANT = 1e-4
"""Added to the distance of every step but the first, so that no image stalls at the boundary."""

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
        prune: γ: an image's classes are taken in the order of their logit gap, in units of the
            class's size at the last layer, and the remaining ones are skipped once gap / (γ ·
            largest dual norm seen in this step, in the same units) reaches its best distance; γ
            shrinks towards 1 as more are seen; None: none are skipped.
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
    points = images.clone(memory_format=torch.channels_last)  # overshot and clipped
    perturbation = torch.zeros_like(points)
    fooled = torch.zeros(count, dtype=torch.bool, device=device)
    forwards = torch.zeros(count, dtype=torch.int64, device=device)
    backwards = torch.zeros_like(forwards)
    live = torch.isfinite(images).flatten(1).all(1).nonzero().squeeze(1)
    rivals: _Rivals | None = None  # of the live images
    for step in range(steps + 1):
        if len(live) == 0:
            break
        boundary = _nearest_boundary(
            model,
            points[live],
            labels[live],
            rivals or candidates,
            norm=norm,
            prune=prune,
            judge_only=step == steps,
        )
        fooled[live] = boundary.fooled
        forwards[live] += boundary.forwards
        backwards[live] += boundary.backwards
        going = torch.isfinite(boundary.distance).nonzero().squeeze(1)
        going = going[boundary.seen[going].argsort(stable=True)]  # neighbours need about as much
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


@dataclass
class _Rivals:
    """The classes that L images may be moved to, m each.

    ``classes`` int64 (L, m); ``sizes`` (L, m): how large each one's gradient may be expected to be
    beside the others', as the last layer alone has it; ``sized`` bool (L,): whether that is known.
    """

    classes: Tensor
    sizes: Tensor
    sized: Tensor


@dataclass
class _Boundary:
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

    def rivals(self, rows: Tensor) -> _Rivals:
        """Rivals of some points."""
        return _Rivals(self.classes[rows], self.sizes[rows], self.sized[rows])

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


def _nearest_boundary(
    model: Model,
    points: Tensor,
    labels: Tensor,
    rivals: _Rivals | int | Literal["all"],
    *,
    norm: Norm,
    prune: float | None,
    judge_only: bool,
) -> _Boundary:
    """Judge L points and find each one's nearest linearised boundary (equations 8 and 11).

    ``rivals`` are those of each point, or how many of the likeliest classes to consider. A graph is
    left when fewer than half of its images need it; what they still need is done in new graphs,
    shared with such images of other chunks.
    """
    every = torch.arange(len(points), device=points.device)
    parts = []
    for rows in chunks(every):
        own = labels[rows]
        with _head_input(model) as head:
            inputs = points[rows].requires_grad_(not judge_only)
            logits = model(inputs)
        chosen = (
            _Rivals(rivals.classes[rows], rivals.sizes[rows], rivals.sized[rows])
            if isinstance(rivals, _Rivals)
            else _likely(logits, own, rivals, head)
        )
        part = _judged(logits.detach(), inputs, own, chosen)
        parts.append(part)
        if judge_only or not logits.requires_grad:  # as of a model that hides its gradient
            part.active[:] = False
        else:
            _follow(part, every[: len(rows)], inputs, logits, own, norm, prune)
    found = _joined(parts)
    rows = every[found.wanted(every, prune)]
    while len(rows):
        for part_rows in chunks(rows):
            inputs = points[part_rows].requires_grad_()
            found.forwards[part_rows] += 1
            _follow(found, part_rows, inputs, model(inputs), labels[part_rows], norm, prune)
        rows = rows[found.wanted(rows, prune)]
    return found


def _follow(
    found: _Boundary,
    rows: Tensor,
    inputs: Tensor,
    logits: Tensor,
    labels: Tensor,
    norm: Norm,
    prune: float | None,
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
        found.take(rows, wanted, gradient, norm)


def _judged(logits: Tensor, points: Tensor, labels: Tensor, rivals: _Rivals) -> _Boundary:
    """What the logits (B, K) alone say of B points."""
    gaps = logits.gather(1, labels[:, None]) - logits.gather(1, rivals.classes)
    order = (gaps / rivals.sizes).argsort(dim=1, stable=True)
    fooled = misclassified(logits, labels)
    zeros = torch.zeros_like(labels)
    return _Boundary(
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


def _joined(parts: list[_Boundary]) -> _Boundary:
    names = [field.name for field in fields(_Boundary)]
    return _Boundary(**{n: torch.cat([getattr(part, n) for part in parts]) for n in names})


def _likely(
    logits: Tensor, labels: Tensor, candidates: int | Literal["all"], head: list[Tensor]
) -> _Rivals:
    """The most likely classes but the label, of logits (B, K)."""
    wanted = logits.shape[1] if candidates == "all" else min(candidates, logits.shape[1])
    others = logits.detach().scatter(1, labels[:, None], -torch.inf)
    classes = others.argsort(dim=1, descending=True, stable=True)[:, : wanted - 1]
    sizes = _sizes_at(head, logits, labels, classes)
    known = sizes is not None
    ones = torch.ones_like(others[:, : wanted - 1])
    sized = torch.full_like(labels, known, dtype=torch.bool)
    return _Rivals(classes, sizes if sizes is not None else ones, sized)


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
