"""Checks of an attack on a model; each detects a known defect.

A *fail* means that the results of this attack say nothing about the model's robustness: the attack
is too weak, or it returns invalid images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attacks import margins_of
from attacks.utils.boundary import Norm
from attacks.utils.model import attack_mode, predict_logits
from attacks.utils.random_streams import image_streams
from robust_ham.analysis.statistics import Values, per_image_ratios
from robust_ham.errors import plural
from robust_ham.evaluation.scoring import describe_invalid, invalid_rows
from robust_ham.runs.jobs.black_box import QUERIES, random_search

NUM_IMAGES = 32
"""Number of images on which a model and its attacks are checked."""

MOST_SURVIVORS, MANY_STEPS = 0.01, 1000
_MOST_NEARER = 0.05
_MOST_NEARER_DEEPFOOL_LINF = 0.33
"""Largest share of images on which an attack without gradients may be closer than the run's."""
_MOST_WEAKER = 0.02

Rows = NDArray[np.int64]
Severity = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The measured value of a check, its limit, and why it trips (empty if it does not)."""

    check: str
    severity: Severity
    value: float
    limit: float
    reason: str


def finding(
    check: str, value: float, limit: float, reason: str, severity: Severity = "fail"
) -> Finding:
    """Make a finding that passes up to the limit; NaN trips."""
    passed = value <= limit
    return Finding(check, "pass" if passed else severity, value, limit, "" if passed else reason)


# --- any attack ------------------------------------------------------------------------------


def check_valid(samples: pd.DataFrame) -> Finding:
    """Trip if an attack returns invalid images, which would count as survived."""
    invalid = int(invalid_rows(samples).sum())
    return finding("valid images", invalid, 0, describe_invalid(samples))


# --- minimum-norm attacks --------------------------------------------------------------------


def check_survivors(
    samples: pd.DataFrame, persist: Callable[[Rows], int], at_chance: bool = False
) -> Finding:
    """Trip if many images survive an unbounded attack: useless gradients, or too few steps.

    ``samples`` are the rows of an attack that continues until it fools. If too many images survive,
    up to 32 of them are attacked again: ``persist`` takes their rows and returns how many survive
    1,000 steps. Fails if their share is still too large, else warns. A network ``at_chance`` is not
    attacked again.
    """
    right = samples["clean_prediction"] == samples["label"]
    survived = np.flatnonzero(right & (samples["status"] != "fooled"))
    share = len(survived) / max(right.sum(), 1)
    reason = f"{share:.1%} of the correctly classified images survive an unbounded attack"
    if share <= MOST_SURVIVORS:
        return finding("survivors", share, MOST_SURVIVORS, reason)
    if at_chance:
        reason += ": the network is at chance; train longer"
        return finding("survivors", share, MOST_SURVIVORS, reason, "warn")
    tried = survived[:NUM_IMAGES]
    lasting = share * persist(tried) / len(tried)
    if lasting <= MOST_SURVIVORS:
        return finding("survivors", share, MOST_SURVIVORS, f"{reason}: raise steps", "warn")
    reason += f", {lasting:.1%} with {MANY_STEPS:,} steps"
    return finding("survivors", share, MOST_SURVIVORS, reason)


def check_random_direction(
    model: nn.Module, images: Tensor, labels: Tensor, distances: Values, norm: str
) -> Finding:
    """Trip if random directions of the same length fool as well.

    ``distances`` (n,) in ``norm``; uses only images with a finite distance above 0.
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
            fooled = margins_of(predict_logits(model, moved), labels[rows]) < 0
            share = float(fooled.double().mean())
    reason = f"a random direction of the same length fools {share:.0%} of what the attack fooled"
    return finding("random direction", share, 0.1, reason)


def check_against_ddn(distances: Values, reference: Values, severity: Severity) -> Finding:
    """Trip if DDN (arXiv 1811.09600) finds smaller L2 distances than the run's best attack."""
    shortfall = 1 - _median_ratio(reference, distances)
    reason = f"DDN comes {shortfall:.1%} nearer in the median: the attack is too weak here"
    return finding("stronger attack", shortfall, 0.05, reason, severity)


def check_doubled_steps(distances: Values, doubled: Values) -> Finding:
    """Trip if twice the steps change the median distance."""
    moved = abs(_median_ratio(doubled, distances) - 1)
    reason = f"twice the steps move the median distance by {moved:.1%}"
    return finding("doubled steps", moved, 0.01, reason, "warn")


def check_black_box(distances: Values, transferred: Values) -> Finding:
    """Trip if other models' adversarial images, moved to the boundary, are closer.

    Both distances (n,); 0: misclassified without an attack.
    """
    right = distances > 0
    nearer = transferred[right] < 0.95 * distances[right]
    share = float(nearer.mean()) if right.any() else 0.0
    reason = (
        f"adversarial images of other models are more than 5% closer on {share:.0%} of "
        f"{plural(int(right.sum()), 'image')}"
    )
    return finding("black box", share, _MOST_NEARER, reason, "warn")


def check_random_search(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    distances: Values,
    norm: Norm,
    largest: float,
    *,
    only_deepfool: bool = False,
) -> Finding:
    """Trip if a random search, without gradients, is over 5 % closer than the run's best attack.

    ``distances`` (n,) in ``norm``; images at 0 are skipped, and images that survived the attack are
    searched within ``largest``. DeepFool's L∞ step overestimates distances even on sound networks
    (on up to 24 % of the images of the zoo's 3×3 networks): if a run has no other L∞ attack, the
    check only warns up to 33 % of the images.
    """
    right = distances > 0
    rows = torch.from_numpy(np.flatnonzero(right)).to(images.device)
    epsilon = np.where(np.isfinite(distances), 0.95 * distances, largest)[right]
    is_closer = random_search(model, images[rows], labels[rows], epsilon, norm)
    share = float(is_closer.mean()) if len(is_closer) else 0.0
    reason = (
        f"a random search of {QUERIES} queries finds adversarial images more than 5% closer on "
        f"{share:.0%} of {plural(len(is_closer), 'image')}: "
        "the attack is too weak here, or the gradients are masked"
    )
    lenient = only_deepfool and norm == "linf" and share <= _MOST_NEARER_DEEPFOOL_LINF
    severity: Severity = "warn" if lenient else "fail"
    return finding("random search", share, _MOST_NEARER, reason, severity)


def _median_ratio(one: Values, other: Values) -> float:
    """Return the median of one / other over the images with both distances above 0; 1 if none."""
    ratios = per_image_ratios(one, other)
    ratios = ratios[~np.isnan(ratios)]
    return float(np.median(ratios)) if len(ratios) else 1.0


# --- attacks within a distance ---------------------------------------------------------------


def fooled_within(samples: pd.DataFrame, norm: str, epsilon: float) -> NDArray[np.bool_]:
    """Return which images an attack fools within ``epsilon``, up to rounding, (n,)."""
    near = samples[norm] <= epsilon * (1 + 1e-4) + 1e-6
    return (near & (samples["status"] == "fooled")).to_numpy()


def check_within_epsilon(samples: pd.DataFrame, norm: str, epsilon: float) -> Finding:
    """Trip if a bounded attack exceeds its bound."""
    fooled = (samples["status"] == "fooled").to_numpy()
    beyond = int((fooled & ~fooled_within(samples, norm, epsilon)).sum())
    farthest = samples.loc[fooled, norm].max()
    reason = f"{beyond} images are moved farther than epsilon = {epsilon:.4g}, up to {farthest:.4g}"
    return finding("within epsilon", beyond, 0, reason)


def check_weaker(
    samples: pd.DataFrame, rivals: Mapping[str, pd.DataFrame], norm: str, epsilon: float
) -> Finding:
    """Trip if another attack within the same distance fools more of the same images.

    ``rivals``: rows of other attacks, by name. The measure is the share of images that only the
    rival fools minus the share that only this attack fools; a single image never decides.
    """
    this = _fooled_by_id(samples, norm, epsilon)
    value, limit, reason = 0.0, _MOST_WEAKER, ""
    for name, rows in rivals.items():
        other = _fooled_by_id(rows, norm, epsilon)
        shared = this.index.intersection(other.index)
        count = max(len(shared), 1)
        share = (int(other[shared].sum()) - int(this[shared].sum())) / count
        if share > value:
            value, limit = share, max(_MOST_WEAKER, 1 / count)
            reason = (
                f"at epsilon = {epsilon:.4g}, {name} fools {other[shared].mean():.1%} of the "
                f"images, this attack {this[shared].mean():.1%}: too weak"
            )
    return finding("weaker", value, limit, reason)


def _fooled_by_id(samples: pd.DataFrame, norm: str, epsilon: float) -> pd.Series[bool]:
    return pd.Series(fooled_within(samples, norm, epsilon), index=samples["sample_id"])


def check_random_search_within(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    samples: pd.DataFrame,
    norm: Norm,
    epsilon: float,
) -> Finding:
    """Trip if a random search within the same distance fools images that the attack did not."""
    right = (samples["clean_prediction"] == samples["label"]).to_numpy()
    left = np.flatnonzero(right & (samples["status"] != "fooled").to_numpy())
    rows = torch.from_numpy(left).to(images.device)
    fooled = random_search(model, images[rows], labels[rows], np.full(len(left), epsilon), norm)
    share = float(fooled.sum()) / max(int(right.sum()), 1)
    reason = (
        f"a random search of {QUERIES} queries within epsilon fools {fooled.sum()} of the "
        f"{plural(int(right.sum()), 'correctly classified image')}, "
        "which this attack did not: it is too weak, or the gradients are masked"
    )
    return finding("random search", share, _MOST_NEARER, reason)
