"""Checks of a model, and of an attack on it, each of which a known defect sets off.

A *fail* means that the numbers of that model, or of that attack on it, say nothing of its
robustness: gradients that are masked, answers that are random, an attack too weak.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attacks import margins_of
from attacks.draws import image_streams
from attacks.model import Model, attack_mode
from attacks.prepare import prepare
from robust_ham.analysis.statistics import Values, per_image_ratios
from robust_ham.judging import ACCURACY_TOLERANCE, logits_of

NUM_IMAGES = 32
"""Images that a model, or an attack on it, is checked on."""

MOST_SURVIVORS, MANY_STEPS = 0.01, 1000

Rows = NDArray[np.int64]
Severity = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What one check has measured, its limit, and in one line why it trips; empty: it does not."""

    check: str
    severity: Severity
    value: float
    limit: float
    reason: str


def _finding(
    check: str, value: float, limit: float, reason: str, severity: Severity = "fail"
) -> Finding:
    """Passes up to the limit; a value that is not a number trips."""
    passed = value <= limit
    return Finding(check, "pass" if passed else severity, value, limit, "" if passed else reason)


# --- the model alone -------------------------------------------------------------------------


def check_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> Finding:
    """The margin's gradient is zero or not finite on an image that is classified right."""
    with attack_mode(model), torch.enable_grad():
        inputs = images.clone().requires_grad_(True)
        margins = margins_of(model(inputs), labels)
        try:
            (gradient,) = torch.autograd.grad(margins.sum(), inputs, allow_unused=True)
        except RuntimeError:  # nothing between input and logits has a gradient
            gradient = None
    right = margins.detach() > 0
    if gradient is None:
        gradient = torch.zeros_like(images)
    size = gradient.flatten(1).norm(dim=1)
    lost = int((right & ~(torch.isfinite(size) & (size > 0))).sum())
    reason = f"no usable gradient on {lost} of {int(right.sum())} images that are right"
    return _finding("gradient", lost, 0, reason)


def check_determinism(model: nn.Module, images: Tensor, device: torch.device) -> Finding:
    """Five passes on one batch give other logits."""
    passes = torch.stack([logits_of(model, images, device) for _ in range(5)])
    spread = (passes - passes[0]).abs().max() / passes[0].abs().max().clamp_min(1e-30)
    reason = f"logits of one batch differ by {spread:.1g} of the largest from pass to pass"
    return _finding("determinism", float(spread), 1e-4, reason)


def check_logits(model: nn.Module, images: Tensor, device: torch.device) -> Finding:
    """The outputs look like probabilities: a softmax hides the margin from the attack."""
    logits = logits_of(model, images, device)
    inside = bool(((logits >= 0) & (logits <= 1)).all())
    sums = bool(((logits.sum(1) - 1).abs() <= 1e-5).all())
    reason = "outputs lie in [0, 1] and sum to 1: probabilities, not logits"
    return _finding("logits", float(inside and sums), 0, reason)


def check_accuracy(found: float, card: float) -> Finding:
    """Accuracy over the whole test split is not what the card says."""
    reason = f"test accuracy {found:.4f}, the card says {card:.4f}"
    return _finding("accuracy", abs(found - card), ACCURACY_TOLERANCE, reason)


# --- an attack on the model ------------------------------------------------------------------


def check_survivors(samples: pd.DataFrame, persist: Callable[[Rows], int]) -> Finding:
    """An attack without a bound does not fool: its gradients lead nowhere, or it lacks steps.

    ``samples`` are the rows of an attack that walks until it fools. Where too many images survive,
    up to 32 of them are attacked again: ``persist`` is given their rows and says how many survive
    the same attack with 1,000 steps. Fails if their share of all is too large still, else warns.
    """
    right = samples["clean_prediction"] == samples["label"]
    survived = np.flatnonzero(right & (samples["status"] != "fooled"))
    share = len(survived) / max(right.sum(), 1)
    reason = f"{share:.1%} of the images that are right survive an attack without a bound"
    if share <= MOST_SURVIVORS:
        return _finding("survivors", share, MOST_SURVIVORS, reason)
    tried = survived[:NUM_IMAGES]
    lasting = share * persist(tried) / len(tried)
    if lasting <= MOST_SURVIVORS:
        return _finding("survivors", share, MOST_SURVIVORS, f"{reason}: raise steps", "warn")
    reason += f", {lasting:.1%} with {MANY_STEPS:,} steps"
    return _finding("survivors", share, MOST_SURVIVORS, reason)


def check_random_direction(
    model: nn.Module, images: Tensor, labels: Tensor, distances: Values, norm: str
) -> Finding:
    """A random direction of the same length fools as the attack does.

    ``distances`` (n,) in ``norm``; only images at a finite distance above 0 are tried.
    """
    tried = np.isfinite(distances) & (distances > 0)
    share = 0.0
    if tried.any():
        rows = torch.from_numpy(np.flatnonzero(tried)).to(images.device)
        part, length = images[rows], torch.from_numpy(distances[tried]).to(images)
        streams = image_streams(part.cpu(), "gate")
        draws = np.stack([stream.standard_normal(part.shape[1:]) for stream in streams])
        direction = torch.from_numpy(draws).to(images)
        if norm == "linf":
            direction = direction.sign()
        else:
            direction = direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        moved = (part + length.view(-1, 1, 1, 1) * direction).clamp(0, 1)
        with attack_mode(model), torch.no_grad():
            share = float((margins_of(model(moved), labels[rows]) < 0).double().mean())
    reason = f"a random direction of the same length fools {share:.0%} of what the attack fooled"
    return _finding("random direction", share, 0.1, reason)


def check_against_ddn(distances: Values, reference: Values, severity: Severity) -> Finding:
    """DDN (arXiv 1811.09600) comes nearer than the run's best minimum-norm attack, L2."""
    shortfall = 1 - _median_ratio(reference, distances)
    reason = f"DDN comes {shortfall:.1%} nearer in the median: the attack is too weak here"
    return _finding("stronger attack", shortfall, 0.05, reason, severity)


def check_doubled_steps(distances: Values, doubled: Values) -> Finding:
    """Twice the steps move the median."""
    moved = abs(_median_ratio(doubled, distances) - 1)
    reason = f"twice the steps move the median distance by {moved:.1%}"
    return _finding("doubled steps", moved, 0.01, reason, "warn")


def check_black_box(distances: Values, transferred: Values) -> Finding:
    """Other models' adversarial images, brought back to the boundary, lie nearer than the attack's.

    Both (n,); 0: wrong at first.
    """
    right = distances > 0
    nearer = transferred[right] < 0.95 * distances[right]
    share = float(nearer.mean()) if right.any() else 0.0
    reason = f"images made for other models are over 5 % nearer on {share:.0%} of the images"
    return _finding("black box", share, 0.05, reason, "warn")


def _median_ratio(one: Values, other: Values) -> float:
    """Median of one / other over images that both get right at first; 1 where there are none."""
    ratios = per_image_ratios(one, other)
    ratios = ratios[~np.isnan(ratios)]
    return float(np.median(ratios)) if len(ratios) else 1.0


def nearest_along(model: nn.Module, images: Tensor, labels: Tensor, ends: list[Tensor]) -> Values:
    """L2 distance to the nearest image that fools on the lines from images to ``ends``, (n,).

    Each line is scanned from a sixteenth to four times its length and the first crossing bisected;
    0: wrong at first, ∞: no line leads across. A prepared copy of the model answers.
    """
    found = np.full(len(images), np.inf)
    with attack_mode(model), torch.no_grad():
        fast = prepare(model, images)
        wrong = margins_of(fast(images), labels) <= 0
        for end in ends:
            found = np.minimum(found, _first_crossing(fast, images, labels, end))
    return np.where(wrong.cpu().numpy(), 0.0, found)


def _first_crossing(model: Model, images: Tensor, labels: Tensor, ends: Tensor) -> Values:
    """Along the line from each image to its end: L2 distance, (n,); ∞: the label stays."""
    ways = ends - images

    def moved(rows: Tensor, share: Tensor) -> Tensor:
        return (images[rows] + share.view(-1, 1, 1, 1) * ways[rows]).clamp(0, 1)

    def fools(rows: Tensor, share: Tensor) -> Tensor:
        return margins_of(model(moved(rows, share)), labels[rows]) < 0

    low = torch.zeros(len(images), device=images.device)
    high = torch.full_like(low, torch.inf)
    left = torch.arange(len(images), device=images.device)
    for share in np.geomspace(1 / 16, 4, 13):
        at = torch.full((len(left),), share, dtype=low.dtype, device=images.device)
        crossed = fools(left, at)
        high[left[crossed]] = share
        left = left[~crossed]
        low[left] = share
        if len(left) == 0:
            break
    reached = torch.isfinite(high).nonzero().squeeze(1)
    for _ in range(8 if len(reached) else 0):
        middle = (low[reached] + high[reached]) / 2
        crossed = fools(reached, middle)
        low[reached] = torch.where(crossed, low[reached], middle)
        high[reached] = torch.where(crossed, middle, high[reached])
    distance = np.full(len(images), np.inf)
    step = (moved(reached, high[reached]) - images[reached]).double().flatten(1)
    distance[reached.cpu().numpy()] = step.norm(dim=1).cpu().numpy()
    return distance
