"""Bootstrap over crossed seeds × images, for statistics other than plain means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robust_ham.analysis.statistics import Interval, Values

_BOOTSTRAP_DRAWS = 1000

Statistic = Callable[[NDArray[np.int64]], Values]
"""Maps counts of images in b draws, (b, n), to a value per draw and seed, (b, S)."""


def means_of(values: Values) -> Statistic:
    """Average the images of each seed, (S, n), ignoring NaN; NaN if no image has a value."""
    present = ~np.isnan(values)
    filled, known = np.where(present, values, 0.0).T, present.astype(np.float64).T

    def means(counts: NDArray[np.int64]) -> Values:
        weights = counts.astype(np.float64)
        with np.errstate(invalid="ignore"):
            return np.asarray((weights @ filled) / (weights @ known))

    return means


def medians_of(values: Values) -> Statistic:
    """Take the median over the images of each seed, (S, n), ignoring NaN; +∞ is a valid value.

    NaN if no image has a value.
    """
    order = np.argsort(values, axis=1)  # NaN last
    known = (~np.isnan(values)).sum(axis=1)
    ranked = [
        (row[chosen[:count]], chosen[:count])
        for row, chosen, count in zip(values, order, known, strict=True)
    ]

    def median(counts: NDArray[np.int64], ordered: Values, chosen: NDArray[np.int64]) -> Values:
        if len(chosen) == 0:
            return np.full(len(counts), np.nan)
        reached = np.cumsum(counts[:, chosen], axis=1)
        total = reached[:, -1]
        low, high = (
            ordered[np.minimum((reached < middle[:, None]).sum(axis=1), len(ordered) - 1)]
            for middle in ((total + 1) // 2, total // 2 + 1)
        )
        middles = np.where(low == high, low, (low + high) / 2)
        return np.where(total == 0, np.nan, middles)

    def medians(counts: NDArray[np.int64]) -> Values:
        return np.stack([median(counts, *seed) for seed in ranked], axis=1)

    return medians


def per_seed(statistic: Statistic, num_images: int) -> Values:
    """Compute the statistic of each seed, (S,), counting each image once."""
    values: Values = statistic(np.ones((1, num_images), dtype=np.int64))[0]
    return values


@dataclass(frozen=True)
class Bootstrap:
    """An estimate and its bootstrap draws, (b,)."""

    estimate: float
    draws: Values

    def interval(self, confidence: float = 0.95) -> Interval:
        """Return the two-sided percentile interval of the draws, ignoring NaN; NaN if all are."""
        draws = self.draws[~np.isnan(self.draws)]
        if len(draws) == 0:
            return Interval(self.estimate, np.nan, np.nan)
        tails = [(1 - confidence) / 2, (1 + confidence) / 2]
        low, high = np.quantile(draws, tails, method="inverted_cdf")
        return Interval(self.estimate, float(low), float(high))


def crossed_bootstrap(
    statistic: Statistic, num_images: int, *, seed: int = 0, num_draws: int = _BOOTSTRAP_DRAWS
) -> Bootstrap:
    """Average a statistic over seeds, resampling seeds and images independently.

    All seeds share a draw of images. The interval is approximate below 10 seeds.
    """
    whole = per_seed(statistic, num_images)
    seeds, counts = _resampled(len(whole), num_images, seed, num_draws)
    parts = [statistic(part) for part in np.array_split(counts, -(-num_draws // 50))]
    draws = np.take_along_axis(np.concatenate(parts), seeds, axis=1).mean(axis=1)
    return Bootstrap(float(whole.mean()), draws)


@lru_cache(maxsize=4)
def _resampled(
    num_seeds: int, num_images: int, seed: int, num_draws: int
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Draw seeds, (b, S), and counts of images, (b, n); cached, as all metrics share them."""
    stream = np.random.default_rng(seed)
    seeds = np.empty((num_draws, num_seeds), dtype=np.int64)
    counts = np.empty((num_draws, num_images), dtype=np.int32)
    for b in range(num_draws):
        seeds[b] = stream.integers(num_seeds, size=num_seeds)
        images = stream.integers(num_images, size=num_images)
        counts[b] = np.bincount(images, minlength=num_images)
    return seeds, counts
