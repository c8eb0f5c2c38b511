"""Intervals, tests and verdicts: shares, medians, means over crossed seeds × images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

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


@dataclass(frozen=True)
class Effect:
    """A mean over seeds × images, or over seeds alone, and what is known of its error.

    ``seed_variance``, ``image_variance`` and ``residual_variance`` are those of the model
    y[s, i] = effect + seed + image + residual; ``pooled_freedom`` is above 0 where the variance of
    seed means was pooled over several cells of a study.
    """

    estimate: float
    variance: float
    freedom: float
    num_seeds: int
    num_images: int
    seed_variance: float
    image_variance: float
    residual_variance: float
    pooled_freedom: float = 0.0

    def interval(self, confidence: float = 0.95) -> Interval:
        """Two-sided t interval."""
        if not np.isfinite(self.variance):
            return Interval(self.estimate, -np.inf, np.inf)
        half = float(stats.t.ppf((1 + confidence) / 2, self.freedom)) * float(
            np.sqrt(self.variance)
        )
        return Interval(self.estimate, self.estimate - half, self.estimate + half)

    def p_value(self, null: float = 0.0) -> float:
        """Two-sided p of the t test that the effect is ``null``; 1 where nothing is known."""
        distance = abs(self.estimate - null)
        if distance == 0 or not np.isfinite(self.variance):
            return 1.0
        if self.variance == 0:
            return 0.0
        return float(2 * stats.t.sf(distance / np.sqrt(self.variance), self.freedom))

    def with_size(self, num_seeds: int, num_images: int) -> Effect:
        """The error expected of the same effect with other numbers of seeds and images."""
        seeds, images = num_seeds, num_images
        ms_residual = self.residual_variance
        ms_seed = images * self.seed_variance + ms_residual
        ms_image = seeds * self.image_variance + ms_residual
        freedom = max(self.pooled_freedom, seeds - 1)
        total, spread = _crossed_variance(ms_seed, ms_image, ms_residual, seeds, images, freedom)
        return replace(
            self, variance=total, freedom=spread, num_seeds=num_seeds, num_images=num_images
        )


def _crossed_variance(
    ms_seed: float, ms_image: float, ms_residual: float, seeds: int, images: int, freedom: float
) -> tuple[float, float]:
    """Variance of the mean from mean squares, and Satterthwaite's degrees of freedom."""
    total = ms_seed + ms_image - ms_residual
    spread = (
        ms_seed**2 / freedom
        + ms_image**2 / (images - 1)
        + ms_residual**2 / ((seeds - 1) * (images - 1))
    )
    if total <= 0 or spread == 0:  # no variation to speak of
        total, spread = max(ms_seed, 0.0), max(ms_seed**2 / freedom, 1e-300)
    return total / (seeds * images), max(total**2 / spread, 1.0)


def crossed(values: Values, seeds_pooled: tuple[float, float] | None = None) -> Effect:
    """Mean over seeds × images, both random: the models of all seeds see the same images.

    The variance is s²(seed means)/S + s²(image means)/n − MS_residual/(S·n), with Satterthwaite's
    degrees of freedom. With one seed it speaks of that one model, over images only.

    Args:
        values: (S, n), value of seed s on image i; finite.
        seeds_pooled: variance of seed means and its degrees of freedom from several cells of a
            study, in place of this cell's own.
    """
    num_seeds, num_images = values.shape
    mean = float(values.mean())
    size = (num_seeds, num_images)
    if num_images < 2:
        return Effect(mean, np.inf, 1.0, *size, np.nan, np.nan, np.nan)
    if num_seeds == 1:
        spread = float(values.var(ddof=1))
        variance, freedom = spread / num_images, float(num_images - 1)
        return Effect(mean, variance, freedom, *size, np.nan, spread, np.nan)
    seed_means, image_means = values.mean(axis=1), values.mean(axis=0)
    residual = values - seed_means[:, None] - image_means + mean
    own = float(seed_means.var(ddof=1))
    among_seeds, seed_freedom = seeds_pooled or (own, num_seeds - 1)
    ms_seed = num_images * among_seeds
    ms_image = num_seeds * float(image_means.var(ddof=1))
    ms_residual = float((residual**2).sum() / ((num_seeds - 1) * (num_images - 1)))
    variance, freedom = _crossed_variance(ms_seed, ms_image, ms_residual, *size, seed_freedom)
    return Effect(
        mean,
        variance,
        freedom,
        *size,
        seed_variance=max(ms_seed - ms_residual, 0.0) / num_images,
        image_variance=max(ms_image - ms_residual, 0.0) / num_seeds,
        residual_variance=ms_residual,
        pooled_freedom=0.0 if seeds_pooled is None else seed_freedom,
    )


def crossed_interval(values: Values, confidence: float = 0.95) -> Interval:
    """The interval of ``crossed``; values (S, n), finite."""
    return crossed(values).interval(confidence)


def over_seeds(values: Values) -> Effect:
    """Mean of one value per seed, (S,); nothing is known of its error with one seed."""
    num_seeds = len(values)
    variance = float(values.var(ddof=1)) if num_seeds > 1 else np.inf
    freedom = float(max(num_seeds - 1, 1))
    mean = float(values.mean())
    return Effect(mean, variance / num_seeds, freedom, num_seeds, 0, variance, np.nan, np.nan)


def vary_alike(cells: list[Values]) -> bool:
    """Whether seed means of cells (S, n) may have one variance: Bartlett's test at 1 %."""
    means = [values.mean(axis=1) for values in cells]
    if any(np.ptp(mean) == 0 for mean in means):
        return all(np.ptp(mean) == 0 for mean in means)
    return bool(stats.bartlett(*means).pvalue >= 0.01)


def pooled_seed_variance(cells: list[Values]) -> tuple[float, float]:
    """Mean variance of seed means over cells (S, n) of a study, and its degrees of freedom.

    For studies of fewer than five seeds, whose cells vary alike.
    """
    freedom = [len(values) - 1 for values in cells]
    variances = [values.mean(axis=1).var(ddof=1) for values in cells]
    return float(np.average(variances, weights=freedom)), float(sum(freedom))


def ratio(numerator: Values, denominator: Values) -> tuple[float, Values]:
    """Ratio of two means over the same seeds × images, and values whose mean error is its error.

    The delta method: (numerator − ratio · denominator) / mean(denominator), (S, n), of mean 0.
    """
    below = float(denominator.mean())
    if below == 0:
        return np.nan, np.full_like(numerator, np.nan)
    estimate = float(numerator.mean()) / below
    return estimate, (numerator - estimate * denominator) / below


def holm(p_values: list[float]) -> list[float]:
    """Holm's adjusted p values (1979); statsmodels' collects garbage at every call: 0.2 s."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    steps = (len(p) - np.arange(len(p))) * p[order]
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in adjusted]


Verdict = Literal["better", "worse", "equivalent", "undecided"]


def verdict(interval: Interval, null: float, margins: tuple[float, float] | None) -> Verdict:
    """What a simultaneous interval says of a figure of which more is better.

    Equivalent: inside the ``margins``; else better or worse: ``null`` is outside; else undecided.
    """
    _, low, high = interval
    if not np.isfinite([low, high]).all():
        return "undecided"
    if margins is not None and margins[0] <= low and high <= margins[1]:
        return "equivalent"
    if low > null:
        return "better"
    return "worse" if high < null else "undecided"


_MOST_SEEDS, _MOST_IMAGES = 1000, 10_000_000


def seeds_to_decide(
    effect: Effect, confidence: float, null: float, margins: tuple[float, float] | None
) -> int | None:
    """Fewest seeds, with the images at hand, that would decide if the estimate stayed as it is."""
    return _fewest(
        lambda seeds: effect.with_size(seeds, effect.num_images),
        _MOST_SEEDS,
        confidence,
        null,
        margins,
    )


def images_to_decide(
    effect: Effect, confidence: float, null: float, margins: tuple[float, float] | None
) -> int | None:
    """Fewest images, with the seeds at hand, that would decide if the estimate stayed as it is."""
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
    margins: tuple[float, float] | None,
) -> int | None:
    """Smallest size from 2 that decides; None: not even ``most`` does."""

    def decides(size: int) -> bool:
        return verdict(with_size(size).interval(confidence), null, margins) != "undecided"

    if not decides(most):
        return None
    low, high = 2, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle + 1, high)
    return low


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


@dataclass(frozen=True)
class Medians:
    """Mean over seeds of medians over images: the estimate and its crossed bootstrap draws."""

    estimate: float
    draws: Values

    def interval(self, confidence: float = 0.95) -> Interval:
        """Two-sided percentile interval; ends of draws that are made of survivors are ±∞."""
        tails = [(1 - confidence) / 2, (1 + confidence) / 2]
        low, high = np.quantile(self.draws, tails, method="inverted_cdf")
        return Interval(self.estimate, float(low), float(high))


def bootstrap_medians(
    values: Values, *, seed: int = 0, num_draws: int = _BOOTSTRAP_DRAWS
) -> Medians:
    """Crossed bootstrap of the mean over seeds of medians: one draw of images for all seeds.

    Approximate below 10 seeds. The median of an even number of values is the lower of the middle
    two, so that it exists where the upper one is +∞.

    Args:
        values: (S, n); NaN marks images that do not count for a seed; +∞ is a value.
        seed: of the draws.
        num_draws: number of draws.
    """
    num_seeds, num_images = values.shape
    stream = np.random.default_rng(seed)
    order = np.argsort(values, axis=1)  # NaN last
    ordered = np.take_along_axis(values, order, axis=1)
    ordered[np.isnan(ordered)] = np.inf
    counted = ~np.isnan(np.take_along_axis(values, order, axis=1))
    draws = np.empty(num_draws)
    for b in range(num_draws):
        weights = np.bincount(stream.integers(num_images, size=num_images), minlength=num_images)
        medians = _weighted_medians(ordered, weights[order] * counted)
        draws[b] = medians[stream.integers(num_seeds, size=num_seeds)].mean()
    whole = _weighted_medians(ordered, counted.astype(np.int64))
    return Medians(float(whole.mean()), draws)


def _weighted_medians(ordered: Values, weights: NDArray[np.int64]) -> Values:
    """Lower median of every row of ascending values that count as often as ``weights`` say."""
    reached = np.cumsum(weights, axis=1)
    middle = (reached[:, -1:] + 1) // 2
    places = (reached < middle).sum(axis=1)
    return np.take_along_axis(ordered, np.minimum(places, ordered.shape[1] - 1)[:, None], 1)[:, 0]
