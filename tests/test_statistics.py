"""Intervals against published values, exact coverage and simulation."""

import numpy as np
import pytest
from scipy import stats

from robust_ham.analysis.statistics import (
    crossed_bootstrap,
    crossed_interval,
    median_interval,
    wilson,
)


@pytest.mark.parametrize(
    ("count", "low", "high"), [(0, 0, 0.0038), (500, 0.469, 0.531), (920, 0.902, 0.935)]
)
def test_wilson(count, low, high):
    interval = wilson(count, 1000)
    assert interval.estimate == count / 1000
    assert interval.low == pytest.approx(low, abs=5e-4)
    assert interval.high == pytest.approx(high, abs=5e-4)


def test_wilson_of_nothing_is_unknown():
    assert np.isnan(wilson(0, 0)).all()


def test_median_interval_is_made_of_order_statistics():
    values = np.arange(1.0, 101.0)
    interval = median_interval(values)
    assert interval.estimate == 50.5
    inside = stats.binom.cdf(int(interval.high) - 1, 100, 0.5) - stats.binom.cdf(
        int(interval.low) - 1, 100, 0.5
    )
    assert 0.95 <= inside <= 0.97
    assert (interval.low, interval.high) == (40, 61)  # Conover, Practical Nonparametric Statistics


def test_median_counts_survivors_as_infinite():
    assert median_interval(np.array([1.0, 2.0, np.inf])).estimate == 2
    assert median_interval(np.array([1.0, np.inf])).estimate == np.inf
    assert median_interval(np.array([1.0, np.inf, np.inf])).estimate == np.inf
    assert median_interval(np.array([np.inf, np.inf])).estimate == np.inf


def test_median_of_few_values_has_no_finite_interval():
    assert median_interval(np.array([1.0, 2.0, 3.0]))[1:] == (-np.inf, np.inf)
    assert np.isnan(median_interval(np.array([]))).all()


def test_crossed_interval_formula_on_a_hand_made_table():
    values = np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 7.0]])
    seed_means, image_means, mean = np.array([2.0, 4.0]), np.array([1.5, 2.5, 5.0]), 3.0
    residual = values - seed_means[:, None] - image_means + mean
    ms_residual = (residual**2).sum() / 2
    variance = seed_means.var(ddof=1) / 2 + image_means.var(ddof=1) / 3 - ms_residual / 6
    interval = crossed_interval(values)
    ms = 3 * seed_means.var(ddof=1), 2 * image_means.var(ddof=1), ms_residual
    freedom = (ms[0] + ms[1] - ms[2]) ** 2 / (ms[0] ** 2 / 1 + ms[1] ** 2 / 2 + ms[2] ** 2 / 2)
    half = stats.t.ppf(0.975, max(freedom, 1)) * variance**0.5
    assert interval == pytest.approx((3.0, 3.0 - half, 3.0 + half))


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
@pytest.mark.parametrize(("seed_sd", "image_sd"), [(0.3, 1.0), (0.1, 1.0), (0.0, 1.0), (0.3, 0.0)])
def test_crossed_interval_covers_the_truth(num_seeds, seed_sd, image_sd):
    stream = np.random.default_rng(num_seeds)
    hits, repeats, images = 0, 1500, 100
    for _ in range(repeats):
        values = (
            stream.normal(0, seed_sd, (num_seeds, 1))
            + stream.normal(0, image_sd, (1, images))
            + stream.normal(0, 0.5, (num_seeds, images))
        )
        interval = crossed_interval(values)
        hits += interval.low <= 0 <= interval.high
    assert 0.92 <= hits / repeats <= 0.97  # 93 to 95.5 % in long simulations


def test_one_seed_gives_the_interval_over_images():
    values = np.random.default_rng(0).normal(size=(1, 50))
    expected = stats.t.interval(0.95, 49, values.mean(), stats.sem(values[0]))
    assert crossed_interval(values)[1:] == pytest.approx(expected)


def test_no_variation_gives_an_interval_of_no_width():
    assert crossed_interval(np.full((3, 10), 0.25)) == pytest.approx((0.25, 0.25, 0.25))


def test_bootstrap_of_the_mean_is_near_the_t_interval():
    stream = np.random.default_rng(1)
    values = stream.normal(5, 1, (10, 1)) + stream.normal(0, 1, (1, 200))
    exact = crossed_interval(values)
    boot = crossed_bootstrap(values, lambda v: v.mean(axis=1))
    assert boot.estimate == exact.estimate
    assert boot.high - boot.low == pytest.approx(exact.high - exact.low, rel=0.25)
    assert crossed_bootstrap(values, lambda v: v.mean(axis=1)) == boot  # the same draws again
