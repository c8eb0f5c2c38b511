"""Verdicts from intervals, and the seeds or images needed for one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from robust_ham.analysis.bootstrap import crossed_bootstrap, medians_of
from robust_ham.analysis.statistics import (
    Effect,
    Interval,
    Values,
    crossed,
    over_seeds,
    per_image_ratios,
)

FEW_SEEDS = 5
"""With fewer, one comparison's variance of seed means is too imprecise."""

ONE_SEED = "one seed: two networks, not two methods"
ONE_IMAGE = "one image says nothing of others"

Margins = tuple[float, float]
Verdict = Literal["better", "worse", "equivalent", "undecided"]


def verdict(interval: Interval, null: float, margins: Margins | None) -> Verdict:
    """Judge a simultaneous interval of an effect where higher is better.

    Equivalent: inside the ``margins``; else better or worse: excludes ``null``; else undecided.
    """
    _, low, high = interval
    if not np.isfinite([low, high]).all():
        return "undecided"
    if margins is not None and margins[0] <= low and high <= margins[1]:
        return "equivalent"
    if low > null:
        return "better"
    return "worse" if high < null else "undecided"


UNKNOWN: dict[str, Any] = dict.fromkeys(
    "effect low high simultaneous_low simultaneous_high p p_holm seeds_to_decide "
    "images_to_decide".split()
)
"""Judged columns without a value."""

_MOST_SEEDS, _MOST_IMAGES = 1000, 10_000_000


def seeds_to_decide(
    effect: Effect, confidence: float, null: float, margins: Margins | None
) -> int | None:
    """Return the fewest seeds for a verdict with the same estimate and images; None: too many."""
    return _fewest(
        lambda seeds: effect.with_size(seeds, effect.num_images),
        _MOST_SEEDS,
        confidence,
        null,
        margins,
    )


def images_to_decide(
    effect: Effect, confidence: float, null: float, margins: Margins | None
) -> int | None:
    """Return the fewest images for a verdict with the same estimate and seeds; None: too many."""
    return _fewest(
        lambda images: effect.with_size(effect.num_seeds, images),
        _MOST_IMAGES,
        confidence,
        null,
        margins,
    )


def _fewest(
    with_size: Callable[[int], Effect],
    most: int,
    confidence: float,
    null: float,
    margins: Margins | None,
) -> int | None:
    """Return the smallest size from 2 that gives a verdict; None: above ``most``."""

    def decides(size: int) -> bool:
        return verdict(with_size(size).interval(confidence), null, margins) != "undecided"

    if not decides(most):
        return None
    low, high = 2, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle + 1, high)
    return low


def judge_mean(
    estimate: float,
    deviation: Values,
    confidence: float,
    pooled: tuple[float, float] | None,
    null: float,
    margins: Margins | None,
    *,
    possible: Margins = (-np.inf, np.inf),
    lower_is_better: bool = False,
    per_image: bool = True,
) -> dict[str, Any]:
    """Return the columns of ``contrasts.csv`` that judge an effect.

    Args:
        estimate: the effect.
        deviation: values (S, n) whose mean has the effect's error.
        confidence: confidence of the simultaneous interval.
        pooled: variance of seed means over several comparisons, and its degrees of freedom.
        null: no effect: 0 for a difference, 1 for a ratio.
        margins: effects that count as equivalent.
        possible: smallest and largest possible effect, to which intervals are clipped.
        lower_is_better: direction of the metric.
        per_image: False: one value per seed, n = 1.
    """
    row: dict[str, Any] = UNKNOWN | {"verdict": "undecided", "note": ""}
    if margins is not None:
        row |= {"margin_low": margins[0], "margin_high": margins[1]}
    if not np.isfinite(deviation).all():
        return row | {"note": "the baseline's figure is 0"}
    if per_image and deviation.shape[1] == 1:
        return row | {"effect": estimate, "note": ONE_IMAGE}
    error = crossed(deviation, pooled) if per_image else over_seeds(deviation[:, 0])
    effect = replace(error, estimate=estimate, lowest=possible[0], highest=possible[1])
    simultaneous = effect.interval(confidence)
    row |= _intervals(effect.interval(), simultaneous) | {"p": effect.p_value(null)}
    if len(deviation) == 1:
        return row | {"note": ONE_SEED}
    if pooled is not None:
        row["note"] = "seed variance pooled over the comparisons"
    elif len(deviation) < FEW_SEEDS and per_image:
        row["note"] = f"{len(deviation)} seeds and nothing to pool them with: intervals are rough"
    upwards = _upwards(simultaneous) if lower_is_better else simultaneous
    row["verdict"] = verdict(upwards, null, margins)
    if row["verdict"] == "undecided" and per_image:
        row["seeds_to_decide"] = seeds_to_decide(effect, confidence, null, margins)
        row["images_to_decide"] = images_to_decide(effect, confidence, null, margins)
    return row


def judge_median_ratio(windowed: Values, baseline: Values, confidence: float) -> dict[str, Any]:
    """Judge the median ratio of windowed to baseline distance, over images that both get right."""
    row: dict[str, Any] = UNKNOWN | {"verdict": "undecided"}
    ratios = per_image_ratios(windowed, baseline)
    if np.isnan(ratios).all(axis=1).any():
        return row | {"note": "no image that both get right"}
    medians = crossed_bootstrap(medians_of(ratios), ratios.shape[1])
    simultaneous = medians.interval(confidence)
    row |= _intervals(medians.interval(), simultaneous)
    if len(windowed) == 1:
        return row | {"note": ONE_SEED}
    few = "bootstrap, approximate below 10 seeds" if len(windowed) < 10 else "bootstrap"
    return row | {"verdict": verdict(simultaneous, 1.0, None), "note": few}


def _intervals(nominal: Interval, simultaneous: Interval) -> dict[str, float | None]:
    return {
        "effect": _finite(nominal.estimate),
        "low": _finite(nominal.low),
        "high": _finite(nominal.high),
        "simultaneous_low": _finite(simultaneous.low),
        "simultaneous_high": _finite(simultaneous.high),
    }


def _upwards(interval: Interval) -> Interval:
    """Negate an interval, so that higher is better."""
    return Interval(-interval.estimate, -interval.high, -interval.low)


def _finite(value: float) -> float | None:
    """Replace an unknown end by None."""
    return value if np.isfinite(value) else None
