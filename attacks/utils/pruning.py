"""Which classes are not worth a backward pass, because they cannot be the nearest.

The distance to a class is the gap of its logit to the label's, divided by the dual norm of the
gap's gradient.

1. The expected norm of a class is its norm at the image's last step; at the first step, the norm of
   its gradient at the final linear layer; without either, ∞.
2. A class is visited if its expected distance is at most a factor times that of the nearest class.
3. On the way to the pixels, the norm of the gradient so far takes the place of the expected norm,
   and classes that are too far by a factor are dropped. The factor falls from layer to layer.
4. Classes are visited after all if the nearest one was not the one expected.
5. The factors are so large that no class of a sample would have been dropped wrongly, and exceed
   3 standard deviations of the sample's norms.
6. Of two images, the nearest classes are visited at all steps. If these rules would have missed the
   nearest one, the attack is repeated without pruning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.utils.boundary import Boundary, Norm
from attacks.utils.tape import Cut

AUDITED_IMAGES = 2
_SAMPLED_IMAGES = 10
_SAMPLED_SHARE = 20  # at most one image of so many
_COMPLETE_CLASSES = 20
_DEVIATIONS = 3
_LARGEST_EXPONENT = 50
_ON_THE_WAY = 0.5  # exponent of the factor at the logits
_MISSED = 1.001  # a nearest class that is farther by this factor than another one is wrong

Observed = dict[Cut | None, Tensor]
"""Norms (L, m) of gradients so far at each cut; None: at the final layer. NaN: unknown."""


@dataclass(frozen=True)
class Factors:
    """How many times farther than the nearest class a class may seem to be.

    ``logits``: by its norm at the final layer, or after one more; ``way``: by its norm at the last
    step. On the way, the factor is ``way`` ^ √u with the share u of layers ahead.
    """

    logits: float
    way: float

    @classmethod
    def of(cls, prune: float) -> Factors:
        """The smallest factors for the option ``prune``."""
        return cls(max(1.0, prune), max(1.0, prune) ** _ON_THE_WAY)

    def at(self, cut: Cut) -> float:
        """The factor at a cut."""
        ahead = cut.layers_ahead
        return self.logits if ahead == 1 else float(self.way ** (ahead**0.5))


def sample(labels: Tensor) -> Tensor:
    """Choose images from as many classes as possible: bool (L,)."""
    size = max(AUDITED_IMAGES, min(_SAMPLED_IMAGES, len(labels) // _SAMPLED_SHARE))
    size = min(size, len(labels))
    ordered, by_class = labels.sort(stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    rows = by_class[(~first).argsort(stable=True)]  # the first of each class, then all others
    spread = torch.linspace(0, max(int(first.sum()), size) - 1, size, device=labels.device)
    sampled = torch.zeros_like(labels, dtype=torch.bool)
    sampled[rows[spread.round().long()]] = True
    return sampled


def wanted(boundary: Boundary, rows: Tensor, factor: float | None) -> Tensor:
    """Whether each rival of the points in ``rows`` still has to be visited: bool (B, m).

    ``factor``: for expected distances; None: no class is skipped.
    """
    is_open = boundary.active[rows, None] & ~boundary.visited[rows]
    if factor is None:
        return is_open
    expected = boundary.expected[rows]
    near = expected <= factor * _reference(expected, boundary.distances[rows], is_open)
    in_any_case = torch.arange(near.shape[1], device=rows.device) < _COMPLETE_CLASSES
    return is_open & (near | (boundary.complete[rows, None] & in_any_case))


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


class Race:
    """Pairs (P,) of a point and a rival on their way from the logits to the pixels."""

    def __init__(
        self,
        boundary: Boundary,
        rows: Tensor,
        columns: Tensor,
        factors: Factors | None,
        observed: Observed | None,
    ) -> None:
        self.boundary, self.rows, self.columns = boundary, rows, columns
        self.factors, self.observed = factors, observed
        self.gaps = boundary.gaps[rows, columns]
        self.seemed = torch.zeros_like(self.gaps)
        self.work = torch.ones_like(self.gaps)

    def goes_on(self, pairs: Tensor, norms: Tensor, cut: Cut) -> Tensor:
        """Whether each of ``pairs``, whose gradients have ``norms`` so far, goes on: bool (P,)."""
        if self.factors is None:
            return torch.ones_like(pairs, dtype=torch.bool)
        rows, running = self.rows[pairs], self.seemed[pairs] == 0
        if self.observed is not None:
            unknown = torch.full_like(self.boundary.gaps, torch.nan)
            self.observed.setdefault(cut, unknown)[rows, self.columns[pairs]] = norms
        distance = self.gaps[pairs] / norms
        nearest = torch.full_like(self.boundary.gaps[:, 0], torch.inf)
        among = torch.where(running, distance, torch.inf)
        seems = distance / nearest.scatter_reduce(0, rows, among, "amin")[rows]
        lost = running & (seems > self.factors.at(cut))
        self.seemed[pairs[lost]] = seems[lost]
        stops = lost & ~self.boundary.complete[rows]
        self.work[pairs[stops]] = 1 - cut.work_ahead
        return ~stops

    def finish(self, arrived: Tensor, gradients: Tensor, norm: Norm) -> None:
        """Enter the gradients (P', C, H, W) of the pairs that have ``arrived`` at the pixels."""
        self.boundary.visited[self.rows, self.columns] = True
        self.boundary.seemed[self.rows, self.columns] = self.seemed
        self.boundary.backwards.index_add_(0, self.rows, self.work)
        self.boundary.enter(self.rows[arrived], self.columns[arrived], gradients, norm)


def sufficient(boundary: Boundary, observed: Observed, least: Factors) -> Factors:
    """Factors with which the norms ``observed`` of complete points would not have misled.

    The error of a norm is the logarithm of its ratio to that at the pixels, relative to the nearest
    class, and divided by √u.
    """
    norms = [(cut.layers_ahead if cut else 1.0, norms) for cut, norms in observed.items()]
    at_logits = [(1.0, norms) for ahead, norms in norms if ahead == 1]
    on_the_way = [(ahead**0.5, norms) for ahead, norms in norms if ahead < 1]
    return Factors(
        _sufficient(boundary, at_logits, least.logits), _sufficient(boundary, on_the_way, least.way)
    )


def _sufficient(boundary: Boundary, observed: list[tuple[float, Tensor]], least: float) -> float:
    """The factor for norms (L, m) observed at one or more √u."""
    final = boundary.gaps / boundary.distances
    nearest = boundary.distances.argmin(1, keepdim=True)
    errors, needed = [], [math.log(least)]
    for root, norms in observed:
        error = (norms / final).log() / root
        error -= error.gather(1, nearest)
        usable = torch.isfinite(error)
        errors.append(error[usable.scatter(1, nearest, False)])
        seems = torch.where(usable, boundary.gaps / norms, torch.inf)
        needed_here = (seems.gather(1, nearest).squeeze(1) / seems.amin(1)).log() / root
        needed += needed_here[torch.isfinite(needed_here)].tolist()
    if any(len(error) for error in errors):
        needed.append(_DEVIATIONS * float(torch.cat(errors).square().mean().sqrt()))
    return math.exp(min(max(needed), _LARGEST_EXPONENT))


def audit(boundary: Boundary, factor: float) -> None:
    """Enter whether the rules would have ``missed`` the nearest boundary of complete points.

    ``factor``: for expected distances.
    """
    expected, distances = boundary.expected, boundary.distances
    unknown, every = torch.full_like(distances, torch.inf), torch.ones_like(boundary.visited)
    started = expected <= factor * _reference(expected, unknown, every)
    first = torch.where(started, distances, torch.inf)
    started |= expected <= factor * _reference(expected, first, ~started)
    kept = started & (boundary.seemed == 0)
    found = torch.where(kept, distances, torch.inf).amin(1)
    boundary.missed = boundary.complete & boundary.active & (found > _MISSED * boundary.distance)
