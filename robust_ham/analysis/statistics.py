"""Intervals for shares, medians, and means over crossed seeds × images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

Values = NDArray[np.float64]
_BOOTSTRAP_DRAWS = 1000


class Interval(NamedTuple):
    """An estimate and its two-sided interval."""

    estimate: float
    low: float
    high: float


def wilson(count: int, total: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a share (Wilson 1927); all NaN for a total of 0."""
    if total == 0:
        return Interval(np.nan, np.nan, np.nan)
    low, high = proportion_confint(count, total, alpha=1 - confidence, method="wilson")
    return Interval(count / total, float(low), float(high))


def median_interval(values: Values, confidence: float = 0.95) -> Interval:
    """Median of one sample with the order-statistics interval; +∞ is a value like any other.

    The interval is exact and at least as wide as asked for; an end that the sample cannot give is
    −∞ or +∞. All NaN for an empty sample.
    """
    count = len(values)
    if count == 0:
        return Interval(np.nan, np.nan, np.nan)
    ordered = np.sort(values)
    middle = ordered[(count - 1) // 2], ordered[count // 2]
    median = middle[0] if middle[0] == middle[1] else (middle[0] + middle[1]) / 2
    rank = int(stats.binom.ppf((1 - confidence) / 2, count, 0.5))  # 0-based; below it: ≤ α/2
    if rank < 1:
        return Interval(float(median), -np.inf, np.inf)
    return Interval(float(median), float(ordered[rank - 1]), float(ordered[count - rank]))


def crossed_interval(values: Values, confidence: float = 0.95) -> Interval:
    """Mean over seeds × images with a t interval that respects both as random.

    All models see the same images, so seeds and images are crossed: the variance is
    s²(seed means)/S + s²(image means)/n − MS_residual/(S·n), with Satterthwaite's degrees of
    freedom. With one seed the interval speaks of that one model, over images only.

    Args:
        values: (S, n), value of seed s on image i; finite.
        confidence: of the two-sided interval.
    """
    num_seeds, num_images = values.shape
    mean = float(values.mean())
    if num_images < 2:
        return Interval(mean, -np.inf, np.inf)
    if num_seeds == 1:
        variance, freedom = float(values.var(ddof=1)) / num_images, float(num_images - 1)
    else:
        seed_means, image_means = values.mean(axis=1), values.mean(axis=0)
        residual = values - seed_means[:, None] - image_means + mean
        ms_seed = num_images * seed_means.var(ddof=1)
        ms_image = num_seeds * image_means.var(ddof=1)
        ms_residual = (residual**2).sum() / ((num_seeds - 1) * (num_images - 1))
        total = ms_seed + ms_image - ms_residual
        spread = (
            ms_seed**2 / (num_seeds - 1)
            + ms_image**2 / (num_images - 1)
            + ms_residual**2 / ((num_seeds - 1) * (num_images - 1))
        )
        if total <= 0 or spread == 0:  # no variation to speak of
            total, spread = max(ms_seed, 0.0), max(ms_seed**2 / (num_seeds - 1), 1e-300)
        variance, freedom = total / (num_seeds * num_images), max(total**2 / spread, 1.0)
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * float(np.sqrt(variance))
    return Interval(mean, mean - half, mean + half)


def crossed_bootstrap(
    values: Values,
    statistic: Callable[[NDArray[Any]], NDArray[Any]],
    *,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Mean over seeds of a statistic over images, resampling seeds and images crosswise.

    One draw of images is shared by all seeds. Approximate below 10 seeds.

    Args:
        values: (S, n); NaN marks images that do not count for a seed.
        statistic: (S, n) to (S,), over the last axis.
        seed: of the draws.
        confidence: of the two-sided percentile interval.
    """
    num_seeds, num_images = values.shape
    stream = np.random.default_rng(seed)
    estimate = float(np.mean(statistic(values)))
    draws = np.empty(_BOOTSTRAP_DRAWS)
    for b in range(_BOOTSTRAP_DRAWS):
        seeds = stream.integers(num_seeds, size=num_seeds)
        images = stream.integers(num_images, size=num_images)
        draws[b] = np.mean(statistic(values[seeds][:, images]))
    draws = draws[~np.isnan(draws)]
    if len(draws) == 0:
        return Interval(estimate, np.nan, np.nan)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(draws, tails, method="inverted_cdf")
    return Interval(estimate, float(low), float(high))
