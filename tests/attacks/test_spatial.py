"""Spatial attacks against brute force over all candidates."""

import time
import tracemalloc

import numpy as np
import pytest
import torch
from conftest import fashion_images, zoo_model
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import (
    margins_of,
    misclassified,
    spatial_grid,
    spatial_random,
    spatial_shift,
    transformation_grid,
)
from attacks.utils.search_order import search_order
from attacks.utils.warp import sampling_grids, shift, warp

SMALL = {"num_rotations": 7, "num_translations": 3}
ALL_ATTACKS = pytest.mark.parametrize("attack", [spatial_grid, spatial_random, spatial_shift])


def brute_force(model, x, y, transforms):
    """Margins (N, T), one candidate and one image at a time."""
    grids = sampling_grids(transforms, *x.shape[2:])
    rows = []
    for i in range(len(x)):
        warped = torch.cat([warp(x[i : i + 1], g[None], "zeros") for g in grids])
        rows.append(margins_of(model(warped), y[i : i + 1].repeat(len(grids))))
    return torch.stack(rows)


def test_the_grid_has_775_distinct_points_with_the_identity():
    grid = transformation_grid(30, 3, 31, 5)
    assert grid.shape == (775, 3)
    assert len({tuple(row) for row in grid.tolist()}) == 775
    assert (grid == 0).all(1).sum() == 1
    assert grid.abs().amax(0).tolist() == [30, 3, 3]


def test_even_counts_are_refused():
    with pytest.raises(ValueError, match="num_rotations: expected an odd number, got 30"):
        transformation_grid(30, 3, 30, 5)
    with pytest.raises(ValueError, match="num_translations: expected an odd number, got 4"):
        transformation_grid(30, 3, 31, 4)


def test_search_order_starts_with_the_largest_and_spreads():
    grid = transformation_grid(30, 3, 5, 3)
    order = search_order(grid)
    assert sorted(order.tolist()) == list(range(len(grid)))
    first, second = grid[order[:2]].tolist()
    assert first == [-30, -3, -3]  # ties: the lowest index
    assert second == [30, 3, 3]  # the opposite corner
    corners = {tuple(p) for p in grid[order[:22]].tolist() if abs(p[0]) == 30 and 0 not in p}
    assert len(corners) == 8


def plain_search_order(grid):
    """The definition, in quadratic time."""
    places = (grid / grid.abs().amax(0).clamp_min(1e-12) * torch.tensor([2.0, 1, 1])).numpy()
    size = (places**2).sum(1)
    order, distance = [int(size.argmax())], np.full(len(places), np.inf)
    for _ in range(len(places) - 1):
        distance = np.minimum(distance, ((places - places[order[-1]]) ** 2).sum(1))
        distance[order[-1]] = -1.0
        order.append(int((distance.round(9) + 1e-6 * size).argmax()))
    return order


COUNTS = st.integers(0, 15).map(lambda half: 2 * half + 1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.floats(0, 180), st.floats(0, 30), COUNTS, st.integers(0, 4).map(lambda h: 2 * h + 1))
@example(30.0, 3.0, 31, 5)  # of the studies
@example(30.0, 1.5, 31, 5)
@example(0.0, 3.0, 1, 7)
@example(0.0, 0.0, 3, 3)  # nothing but equal transforms
@example(30.0, 0.0, 2001, 1)  # size decides before distance
@example(5.0, 16.0, 1, 33)  # squared distances halfway between two roundings
def test_search_order_is_the_one_of_the_definition(rotation, translation, rotations, translations):
    grid = transformation_grid(rotation, translation, rotations, translations)
    assert search_order(grid).tolist() == plain_search_order(grid)


def test_search_order_takes_little_more_for_many():
    grid = transformation_grid(0, 3, 1, 301)
    start = time.process_time()
    order = search_order(grid)
    assert time.process_time() - start < 10  # half a second; 150 s in quadratic time
    assert sorted(order.tolist()) == list(range(301**2))


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        (spatial_grid, {"num_rotations": 10**9 + 1}, "at most 3,000,000 candidates, got"),
        (spatial_grid, {"num_translations": 10**5 + 1}, "× 100,001² shifts = 310,006,200,031"),
        (spatial_grid, {"num_rotations": 1001, "num_translations": 101}, "= 10,211,201"),
        (spatial_grid, {"max_translation": 10**400}, "at most 4,096 pixels"),
        (spatial_shift, {"max_translation": 866}, "max_translation: expected at most 865, got 866"),
        (spatial_shift, {"max_translation": 10**12}, "at most 4,096 pixels"),
        (spatial_random, {"num_draws": 10**9}, "num_draws: .* at most 100,000, got 1000000000"),
    ],
)
def test_too_many_candidates_are_refused_before_they_are_made(attack, options, message):
    empty = torch.zeros(0, 1, 28, 28), torch.zeros(0, dtype=torch.int64)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message):
        attack(lambda x: x.flatten(1), *empty, **options)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


@pytest.mark.parametrize("window", ["none", "hamming"])
def test_finds_exactly_what_brute_force_finds(window):
    model = zoo_model(3, window)
    x, y = fashion_images(12)
    with torch.no_grad():
        margins = brute_force(model, x, y, transformation_grid(30, 3, 31, 5))
        right = model(x).argmax(1) == y
    full = spatial_grid(model, x, y)
    first = spatial_grid(model, x, y, stop="first")
    expected = (margins < 0).any(1) | ~right
    assert torch.equal(full.fooled, expected)
    assert torch.equal(first.fooled, expected)
    worst = transformation_grid(30, 3, 31, 5)[margins.argmin(1)].float()
    assert torch.equal(full.transform[right], worst[right])
    assert (full.margins[right] - margins[right]).abs().max() <= 1e-4
    survived = ~first.fooled
    assert torch.equal(first.transform[survived], worst[survived])
    assert torch.equal(first.fooled, misclassified(model(first.images), y))
    assert (first.forwards[survived] >= 775).all()


def test_images_are_the_named_transform():
    model = zoo_model(3, "none")
    x, y = fashion_images(12)
    for outcome in (spatial_grid(model, x, y, **SMALL), spatial_random(model, x, y)):
        grids = sampling_grids(outcome.transform, 28, 28)
        assert (warp(x, grids, "zeros") - outcome.images).abs().max() <= 3e-6
    outcome = spatial_shift(model, x, y)
    for image, shifted, (angle, right, down) in zip(
        x, outcome.images, outcome.transform.tolist(), strict=True
    ):
        assert angle == 0
        assert torch.equal(shift(image[None], int(right), int(down), "zeros")[0], shifted)


@ALL_ATTACKS
def test_nested_candidates_only_lower_the_worst_margin(attack):
    model = zoo_model(7, "none")
    x, y = fashion_images(16)
    small, large = {
        spatial_grid: ({"num_rotations": 7}, {"num_rotations": 13}),
        spatial_random: ({"num_draws": 5}, {"num_draws": 15}),
        spatial_shift: ({"max_translation": 1}, {"max_translation": 3}),
    }[attack]
    few, many = attack(model, x, y, **small), attack(model, x, y, **large)
    right = model(x).argmax(1) == y
    assert (many.margins[right].amin(1) <= few.margins[right].amin(1) + 1e-5).all()


def test_more_draws_continue_the_same_stream():
    model = zoo_model(3, "none")
    x, y = fashion_images(8)
    few, many = (spatial_random(model, x, y, num_draws=n).margins for n in (4, 9))
    torch.testing.assert_close(many[:, :4], few, equal_nan=True, atol=1e-4, rtol=0)
    other = spatial_random(model, x, y, num_draws=4, seed=1).margins
    assert not torch.allclose(other, few, equal_nan=True)


@ALL_ATTACKS
@pytest.mark.parametrize("stop", ["first", None])
def test_batch_invariance(attack, stop):
    model = zoo_model(7, "hamming")
    x, y = fashion_images(10)
    options = {"stop": stop} | (SMALL if attack is spatial_grid else {})
    together = attack(model, x, y, **options)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    shuffled = attack(model, x[order], y[order], **options)
    assert torch.equal(shuffled.transform[order.argsort()], together.transform)
    for i in range(len(x)):
        alone = attack(model, x[i : i + 1], y[i : i + 1], **options)
        assert torch.equal(alone.transform[0], together.transform[i])
        assert alone.fooled[0] == together.fooled[i]
        assert alone.forwards[0] == together.forwards[i]


@ALL_ATTACKS
def test_global_random_state_and_model_are_left_alone(attack):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.LazyLinear(3))
    model(torch.rand(2, 1, 10, 20))
    model.train()
    images = torch.rand(3, 1, 10, 20)
    before = torch.get_rng_state()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    attack(model, images, torch.zeros(3, dtype=torch.int64))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@ALL_ATTACKS
@pytest.mark.parametrize("stop", ["first", None])
def test_empty_nan_and_already_wrong(attack, stop):
    model = zoo_model(3, "none")
    empty = attack(model, torch.zeros(0, 1, 28, 28), torch.zeros(0).long(), stop=stop)
    assert empty.transform.shape == (0, 3)
    assert (empty.margins is None) == (stop == "first")
    x, y = fashion_images(6)
    predictions = model(x).argmax(1)
    y = predictions.clone()
    y[1] = (y[1] + 1) % 10
    x = x.clone()
    x[3, 0, 5, 5] = float("nan")
    outcome = attack(model, x, y, stop=stop)
    assert torch.equal(outcome.images[1], x[1])
    assert outcome.fooled[1]
    assert not outcome.fooled[3]
    assert outcome.images[[0, 2, 4, 5]].isfinite().all()


def test_translation_defaults_to_a_tenth_of_the_shorter_side():
    def reach(side):
        model = lambda x: x.flatten(1)[:, :2] * 0 + torch.tensor([1.0, 0.0])  # noqa: E731
        x, y = torch.rand(1, 1, side, side + 9), torch.zeros(1, dtype=torch.int64)
        grid = spatial_grid(model, x, y, num_rotations=1)
        return grid.margins.shape, spatial_shift(model, x, y).margins.shape

    assert reach(28) == ((1, 25), (1, 49))  # 3 px: 7 × 7 whole shifts
    assert reach(14) == ((1, 25), (1, 9))  # 1.5 px: 3 × 3 whole shifts


def test_no_rotation_needs_no_interpolation_between_equal_pixels():
    model = zoo_model(3, "none")
    x, y = fashion_images(10)
    by_grid = spatial_grid(model, x, y, num_rotations=1, num_translations=7, max_translation=3)
    by_shift = spatial_shift(model, x, y)
    right = model(x).argmax(1) == y
    assert (by_grid.margins[right] - by_shift.margins[right]).abs().max() <= 1e-3
    assert torch.equal(by_grid.fooled, by_shift.fooled)


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        (spatial_grid, {"stop": "last"}, "stop: expected first or null, got 'last'"),
        (spatial_grid, {"padding": "mirror"}, "padding: expected zeros, border, reflection"),
        (spatial_grid, {"max_rotation": 200}, "max_rotation: expected 0 … 180 degrees"),
        (spatial_grid, {"max_translation": -1}, "max_translation: expected at least 0"),
        (
            spatial_random,
            {"num_draws": 0},
            "num_draws: expected at least 1 and at most 100,000, got 0",
        ),
        (spatial_shift, {"max_translation": 1.5}, "max_translation: expected a whole number"),
    ],
)
def test_bad_options_are_refused(attack, options, message):
    with pytest.raises(ValueError, match=message):
        attack(lambda x: x.flatten(1), torch.zeros(0, 1, 4, 4), torch.zeros(0).long(), **options)
