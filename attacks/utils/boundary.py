"""The search for the nearest linearised decision boundary: what is known of each class."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from attacks.utils.outcome import misclassified
from attacks.utils.tape import norms_of

Norm = Literal["l2", "linf"]


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
    """The search at L points; every field is (L, …).

    ``fooled``; ``active``: correctly classified and finite; ``complete``: whether its nearest
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

    @classmethod
    def judged(
        cls, logits: Tensor, points: Tensor, labels: Tensor, rivals: Rivals, complete: Tensor
    ) -> Boundary:
        """Start the search at L points from their logits (L, K)."""
        gaps = logits.gather(1, labels[:, None]) - logits.gather(1, rivals.classes)
        order = (gaps / rivals.norms).argsort(dim=1, stable=True)
        fooled = misclassified(logits, labels)
        zeros = torch.zeros_like(gaps[:, 0])
        return cls(
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

    @property
    def distance(self) -> Tensor:
        """Distance to the nearest boundary, (L,); ∞: none."""
        return self.distances.amin(1)

    @property
    def expected(self) -> Tensor:
        """Expected distance of each rival, (L, m), up to a factor of each point; 0: unknown."""
        return self.gaps / self.norms

    def of(self, rows: Tensor) -> Boundary:
        """The search at the points in ``rows``."""
        return Boundary(*(getattr(self, field.name)[rows] for field in fields(Boundary)))

    def enter(self, rows: Tensor, columns: Tensor, gradients: Tensor, norm: Norm) -> None:
        """Enter the gradients (P, C, H, W) of rivals, given by row and column."""
        dual = dual_norm(gradients, norm)
        usable = torch.isfinite(dual) & (dual > 0)
        distance = torch.where(usable, self.gaps[rows, columns] / dual, torch.inf)
        self.distances[rows, columns] = distance
        nearest = usable & (self.distances[rows].argmin(1) == columns)
        self.direction[rows[nearest]] = unit_step(gradients[nearest], dual[nearest], norm)

    def rivals(self) -> Rivals:
        """Rivals for the next step, with the norms that this step has measured, else estimated."""
        nearest = self.distances.argmin(1, keepdim=True)
        distance = self.distances.gather(1, nearest)
        growth = self.gaps.gather(1, nearest) / distance / self.norms.gather(1, nearest)
        unvisited = self.norms * growth
        dropped = self.gaps / (self.seemed * distance)
        norms = torch.where(self.seemed > 0, dropped, unvisited)
        norms = torch.where(torch.isfinite(self.distances), self.gaps / self.distances, norms)
        usable = torch.isfinite(norms) & (norms > 0)
        return Rivals(self.classes, torch.where(usable, norms, torch.inf))


def joined(parts: list[Boundary], order: Tensor | None = None) -> Boundary:
    """Join parts, which are emptied field by field to save memory, and reorder the points."""
    values = {}
    for field in fields(Boundary):
        value = torch.cat([getattr(part, field.name) for part in parts])
        values[field.name] = value if order is None else value[order]
        for part in parts:
            delattr(part, field.name)
    return Boundary(**values)


def dual_norm(gradient: Tensor, norm: Norm) -> Tensor:
    """‖g‖₂ for L2, ‖g‖₁ for L∞: (B, C, H, W) to (B,)."""
    return norms_of(gradient) if norm == "l2" else gradient.abs().sum((1, 2, 3))


def unit_step(gradient: Tensor, dual: Tensor, norm: Norm) -> Tensor:
    """Unit step of steepest ascent, same shape as the gradient."""
    return gradient / dual.view(-1, 1, 1, 1) if norm == "l2" else gradient.sign()
