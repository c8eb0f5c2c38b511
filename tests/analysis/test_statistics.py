"""Intervals against published values, exact coverage and simulation."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from robust_ham.analysis.bootstrap import crossed_bootstrap, means_of, medians_of, per_seed
from robust_ham.analysis.statistics import (
    Interval,
    crossed,
    crossed_interval,
    holm,
    in_range,
    mcnemar,
    median_interval,
    over_seeds,
    per_image_ratios,
    pooled_seed_variance,
    rank_correlation,
    ratio,
    vary_alike,
    wilcoxon,
    wilson,
)
from robust_ham.analysis.verdicts import images_to_decide, judge_mean, seeds_to_decide, verdict


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


def test_equal_seed_means_are_no_certainty():
    """Each seed misclassifies a different image: the means are equal by chance."""
    values = np.zeros((3, 200))
    values[[0, 1, 2], [3, 50, 120]] = 1
    effect = crossed(values)
    assert effect.interval().low < 0 < effect.interval().high
    assert 0.01 < effect.p_value() < 1


def test_no_variation_gives_an_interval_of_no_width():
    assert crossed_interval(np.full((3, 10), 0.25)) == pytest.approx((0.25, 0.25, 0.25))


def test_bootstrap_of_the_mean_is_near_the_t_interval():
    stream = np.random.default_rng(1)
    values = stream.normal(5, 1, (10, 1)) + stream.normal(0, 1, (1, 200))
    exact = crossed_interval(values)
    boot = crossed_bootstrap(means_of(values), 200).interval()
    assert boot.estimate == pytest.approx(exact.estimate)
    assert boot.high - boot.low == pytest.approx(exact.high - exact.low, rel=0.25)
    assert crossed_bootstrap(means_of(values), 200).interval() == boot  # the same draws again


def drawn(stream, seeds, images, seed_sd, image_sd, residual_sd=0.5, effect=0.0):
    return (
        effect
        + stream.normal(0, seed_sd, (seeds, 1))
        + stream.normal(0, image_sd, (1, images))
        + stream.normal(0, residual_sd, (seeds, images))
    )


@pytest.mark.parametrize(("seed_sd", "image_sd"), [(0.3, 1.0), (0.1, 1.0), (0.3, 0.2)])
def test_a_null_is_rejected_five_times_in_a_hundred_and_an_effect_found(seed_sd, image_sd):
    stream = np.random.default_rng(0)
    repeats, rejected, found = 1500, 0, 0
    for _ in range(repeats):
        values = drawn(stream, 5, 100, seed_sd, image_sd)
        rejected += crossed(values).p_value() < 0.05
        found += crossed(values + 1.2).p_value() < 0.05
    assert 0.03 <= rejected / repeats <= 0.075
    assert found / repeats > 0.95


def test_p_and_interval_agree():
    values = drawn(np.random.default_rng(3), 4, 60, 0.2, 0.5, effect=0.3)
    effect = crossed(values)
    for confidence in (0.5, 0.9, 0.99):
        low, high = effect.interval(confidence)[1:]
        assert (effect.p_value() < 1 - confidence) == (not low <= 0 <= high)
    edge = effect.interval(0.95).low
    assert effect.p_value(edge) == pytest.approx(0.05)


def test_pooled_seed_variance_covers_comparisons_that_vary_alike():
    stream = np.random.default_rng(1)
    hits, repeats = 0, 1000
    for _ in range(repeats):
        cells = [drawn(stream, 3, 100, 0.3, 0.5) for _ in range(5)]
        variance, freedom = pooled = pooled_seed_variance(cells)
        assert freedom == 10
        low, high = crossed(cells[0], pooled).interval()[1:]
        hits += low <= 0 <= high
    assert 0.93 <= hits / repeats <= 0.97
    own = np.mean([cell.mean(axis=1).var(ddof=1) for cell in cells])
    assert variance == pytest.approx(own)


@pytest.mark.parametrize(("seeds", "pool"), [(3, True), (5, False)])
def test_simultaneous_intervals_cover_all_kernel_sizes_together(seeds, pool):
    """Long simulations: 94.5 to 95 % for 3 seeds pooled (84 to 94 % if not), 92.5 to 95 % for 5."""
    stream = np.random.default_rng(2)
    sizes, repeats, hits = 5, 600, 0
    for _ in range(repeats):
        cells = [drawn(stream, seeds, 80, 0.3, 0.5) for _ in range(sizes)]
        pooled = pooled_seed_variance(cells) if pool else None
        intervals = [crossed(cell, pooled).interval(1 - 0.05 / sizes) for cell in cells]
        hits += all(low <= 0 <= high for _, low, high in intervals)
    assert hits / repeats >= 0.91


def test_the_ratio_of_means_has_the_error_of_the_delta_method():
    stream = np.random.default_rng(4)
    hits, repeats = 0, 1000
    for _ in range(repeats):
        image = stream.gamma(4, 0.25, (1, 200))
        baseline = image * stream.normal(1, 0.02, (5, 1)) + stream.normal(0, 0.05, (5, 200))
        windowed = 0.8 * image * stream.normal(1, 0.02, (5, 1)) + stream.normal(0, 0.05, (5, 200))
        estimate, deviation = ratio(windowed, baseline)
        assert deviation.mean() == pytest.approx(0, abs=1e-12)
        assert estimate == pytest.approx(windowed.mean() / baseline.mean())
        low, high = crossed(deviation).interval()[1:]
        hits += low <= 0.8 - estimate <= high
    assert 0.93 <= hits / repeats <= 0.97


def test_over_seeds_is_the_paired_t_test():
    values = np.array([0.3, 0.5, 0.1, 0.2])
    effect = over_seeds(values)
    expected = stats.ttest_1samp(values, 0)
    assert effect.p_value() == pytest.approx(expected.pvalue)
    assert effect.interval()[1:] == pytest.approx(tuple(expected.confidence_interval()))
    assert over_seeds(np.array([0.3])).interval()[1:] == (-np.inf, np.inf)
    assert over_seeds(np.array([0.3])).p_value() == 1


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # Holm 1979
    assert holm([]) == []
    p = np.random.default_rng(0).random(9) ** 3
    assert holm(list(p)) == pytest.approx(multipletests(p, method="holm")[1].tolist())


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.004, 0.006, "equivalent"),
        (0.001, 0.009, "equivalent"),  # inside the margin goes first
        (0.001, 0.02, "better"),
        (-0.03, -0.001, "worse"),
        (-0.02, 0.005, "undecided"),
        (-np.inf, np.inf, "undecided"),
        (np.nan, np.nan, "undecided"),
    ],
)
def test_verdicts(low, high, expected):
    assert verdict(Interval(0.0, low, high), 0.0, (-0.01, 0.01)) == expected


def test_without_a_margin_nothing_is_equivalent():
    assert verdict(Interval(0.0, -0.001, 0.001), 0.0, None) == "undecided"
    assert verdict(Interval(1.2, 1.1, 1.3), 1.0, None) == "better"


def test_seeds_and_images_needed_for_a_verdict():
    values = drawn(np.random.default_rng(5), 3, 400, 0.3, 0.5, effect=0.0)
    values += 0.15 - values.mean()
    effect = crossed(values)
    margins = (-0.01, 0.01)
    assert verdict(effect.interval(), 0.0, margins) == "undecided"
    seeds = seeds_to_decide(effect, 0.95, 0.0, margins)
    assert seeds is not None
    decided, not_yet = (effect.with_size(n, 400).interval() for n in (seeds, seeds - 1))
    assert verdict(decided, 0.0, margins) == "better"
    assert verdict(not_yet, 0.0, margins) == "undecided"
    assert images_to_decide(effect, 0.95, 0.0, margins) is None  # the seeds are the limit
    same = effect.with_size(3, 400)
    assert same.variance == pytest.approx(effect.variance, rel=1e-6)
    assert same.freedom == pytest.approx(effect.freedom, rel=1e-6)


def naive_bootstrap(values, statistic, num_draws):
    """A second implementation that resamples the values themselves."""
    stream = np.random.default_rng(0)
    num_seeds, num_images = values.shape
    draws = []
    for _ in range(num_draws):
        seeds = stream.integers(num_seeds, size=num_seeds)
        images = stream.integers(num_images, size=num_images)
        draws.append(statistic(values[seeds][:, images]).mean())
    return np.quantile(draws, [(1 - 0.95) / 2, (1 + 0.95) / 2], method="inverted_cdf")


@pytest.mark.parametrize("count", [100, 101])
@pytest.mark.parametrize(
    ("made", "naive"),
    [
        (medians_of, lambda v: np.array([np.median(row[~np.isnan(row)]) for row in v])),
        (means_of, lambda v: np.nanmean(v, axis=1)),
    ],
)
def test_the_bootstrap_draws_what_it_says(made, naive, count):
    stream = np.random.default_rng(6)
    values = stream.gamma(2, 1, (4, count)) * stream.normal(1, 0.1, (4, 1))
    values[0, :7] = np.nan
    if made is medians_of:
        values[1, 90:] = np.inf
    found = crossed_bootstrap(made(values), count, num_draws=200)
    assert per_seed(made(values), count) == pytest.approx(naive(values))
    assert found.estimate == pytest.approx(naive(values).mean())
    assert found.interval()[1:] == pytest.approx(naive_bootstrap(values, naive, 200))


def test_medians_of_survivors_alone_are_infinite_and_of_nothing_unknown():
    survivors = crossed_bootstrap(medians_of(np.full((3, 10), np.inf)), 10, num_draws=20)
    assert survivors.interval() == (np.inf, np.inf, np.inf)
    nothing = crossed_bootstrap(medians_of(np.full((3, 10), np.nan)), 10, num_draws=20)
    assert np.isnan(nothing.interval()).all()
    assert medians_of(np.array([[1.0, np.inf]]))(np.ones((1, 2), np.int64)).tolist() == [[np.inf]]


def test_ratios_of_distances():
    inf = np.inf
    found = per_image_ratios(np.array([2.0, inf, inf, 0, 1]), np.array([1.0, inf, 1, 1, 0]))
    assert found[:3].tolist() == [2.0, 1.0, inf]
    assert np.isnan(found[3:]).all()


def test_comparisons_that_vary_alike_or_differently():
    stream = np.random.default_rng(7)
    alike = [drawn(stream, 3, 50, 0.3, 0.5) for _ in range(5)]
    assert vary_alike(alike)
    assert not vary_alike([*alike, 30 * alike[0]])
    still = np.ones((3, 50))
    assert vary_alike([still, 2 * still])
    assert not vary_alike([still, alike[0]])


def test_mcnemar_by_hand():
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(5, 5) == 1
    assert mcnemar(0, 0) == 1


def test_wilcoxon_by_hand_and_with_survivors():
    one = np.array([2.0, 3, 4, 5, 6])
    assert wilcoxon(one, one - np.arange(1, 6)) == pytest.approx(2 / 2**5)  # all on one side
    assert wilcoxon(one, one) == 1
    inf = np.full(5, np.inf)
    assert wilcoxon(inf, inf) == 1
    assert wilcoxon(inf, one) == pytest.approx(2 / 2**5, abs=0.02)
    stream = np.random.default_rng(0)
    x, y = stream.gamma(4, 1, (2, 200))
    assert wilcoxon(x, y) == pytest.approx(stats.wilcoxon(x, y).pvalue)
    p = [wilcoxon(*stream.gamma(4, 1, (2, 30))) for _ in range(400)]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.09


def test_rank_correlation_and_its_interval():
    x = np.array([1.0, 2, 3, np.nan])
    assert rank_correlation(x, np.array([10.0, 20, 300, 5])) == pytest.approx((1, -1, 1))
    assert rank_correlation(x, np.array([3.0, 2, 1, 5])).estimate == pytest.approx(-1)
    assert np.isnan(rank_correlation(x[:2], x[:2])).all()
    assert np.isnan(rank_correlation(x, np.ones(4))).all()
    stream = np.random.default_rng(0)
    one = stream.normal(size=50)
    other = one + stream.normal(size=50)
    found = rank_correlation(one, other)
    assert found.estimate == pytest.approx(stats.spearmanr(one, other).statistic)
    half = 1.959964 * np.sqrt((1 + found.estimate**2 / 2) / 47)
    centre = np.arctanh(found.estimate)
    assert found[1:] == pytest.approx((np.tanh(centre - half), np.tanh(centre + half)), abs=1e-6)


def test_rank_correlation_covers():
    stream, hits, truth = np.random.default_rng(0), 0, 6 / np.pi * np.arcsin(0.6 / 2)
    for _ in range(400):  # bivariate normal of correlation 0.6
        one = stream.normal(size=30)
        other = 0.6 * one + 0.8 * stream.normal(size=30)
        found = rank_correlation(one, other)
        hits += found.low <= truth <= found.high
    assert 0.92 <= hits / 400 <= 0.98


# --- means of bounded values -----------------------------------------------------------------


def test_none_or_all_of_n_give_the_interval_of_wilson():
    for count in (0, 20):
        values = np.full((1, 20), float(count > 0))
        found = in_range(crossed_interval(values), 20, 0.0, 1.0)
        assert found == pytest.approx(wilson(count, 20))
        assert found.high - found.low == pytest.approx(0.161, abs=1e-3)
    seeds = in_range(crossed_interval(np.zeros((3, 20))), 20, 0.0, 0.5)
    assert seeds == pytest.approx((0, 0, 0.5 * wilson(0, 20).high))


def test_a_mean_stays_in_the_range_of_its_values():
    values = np.array([[0.5, 0.5, 0.5, 0.1]])
    wide = crossed_interval(values)
    assert wide.high > 0.5
    assert in_range(wide, 4, 0.0, 0.5) == (0.4, max(wide.low, 0), 0.5)
    one = in_range(crossed_interval(np.array([[0.3]])), 1, 0.0, 0.5)
    assert one == (0.3, 0.0, 0.5)


def test_where_values_vary_the_t_interval_stays_as_it_is():
    values = np.random.default_rng(0).uniform(0, 1, (3, 200))
    assert in_range(crossed_interval(values), 200, 0.0, 1.0) == crossed_interval(values)


@pytest.mark.parametrize("num_images", [5, 20])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("kind", ["shares", "distances", "nearly all at the end"])
def test_means_of_bounded_values_are_covered(num_images, share, kind):
    """The clipped t interval covers 5 to 90 % of these if the share is small."""
    stream = np.random.default_rng(num_images)
    hits, repeats = 0, 300
    for _ in range(repeats):
        rare, noise = stream.random(num_images) < share, stream.random(num_images)
        values = {
            "shares": rare.astype(float),
            "distances": rare * noise,
            "nearly all at the end": np.where(rare, 1.0, 0.02 * noise),
        }[kind]
        truth = {"shares": share, "distances": share / 2}.get(kind, share + (1 - share) * 0.01)
        found = in_range(crossed_interval(values[None]), num_images, 0.0, 1.0)
        assert 0 <= found.low <= found.estimate <= found.high <= 1
        hits += found.low <= truth <= found.high
    assert hits / repeats >= 0.91


def test_an_effect_on_every_image_is_the_largest_but_not_certain():
    """Windowed right and baseline wrong on all of 20 images: not 100 points ± 0."""
    deviation = np.ones((2, 20))
    row = judge_mean(1.0, deviation, 0.95, None, 0.0, (-0.01, 0.01), possible=(-1.0, 1.0))
    unseen = wilson(0, 20).high
    assert (row["effect"], row["low"], row["high"]) == pytest.approx((1, 1 - 2 * unseen, 1))
    assert row["verdict"] == "better"
    edge = judge_mean(1.0, deviation, 1 - row["p"], None, 0.0, None, possible=(-1.0, 1.0))
    assert edge["simultaneous_low"] == pytest.approx(0, abs=1e-9)  # p and intervals agree
    three = judge_mean(1.0, np.ones((2, 3)), 0.95, None, 0.0, None, possible=(-1.0, 1.0))
    assert (three["verdict"], three["images_to_decide"]) == ("undecided", 4)


def test_no_interval_leaves_what_is_possible():
    deviation = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    row = judge_mean(2 / 3, deviation, 0.99, None, 0.0, None, possible=(-1.0, 1.0))
    assert (row["simultaneous_low"], row["simultaneous_high"]) == (-1, 1)
