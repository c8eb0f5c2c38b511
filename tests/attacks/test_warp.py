"""Signs, units and padding of rotations and translations, on arrays worked out by hand."""

import kornia
import pytest
import torch

from attacks.utils.warp import sampling_grids, shift, warp, warp_all


def image(height=6, width=6, channels=1, seed=0):
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(seed))


def transformed(images, angle=0.0, right=0.0, down=0.0, padding="zeros"):
    grids = sampling_grids(torch.tensor([[angle, right, down]]), *images.shape[2:])
    return warp(images, grids.expand(len(images), -1, -1, -1), padding)


@pytest.mark.parametrize("size", [(6, 6), (28, 28), (32, 64), (33, 17)])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_identity(size, padding):
    x = image(*size)
    assert (transformed(x, padding=padding) - x).abs().max() <= 3e-6


@pytest.mark.parametrize("size", [(28, 28), (32, 64)])
def test_a_shift_to_the_right_moves_by_whole_pixels(size):
    x = image(*size)
    expected = torch.zeros_like(x)
    expected[..., 3:] = x[..., :-3]
    assert (transformed(x, right=3) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("size", [(28, 28), (32, 64)])
def test_a_shift_down_moves_by_whole_pixels(size):
    x = image(*size)
    expected = torch.zeros_like(x)
    expected[..., 2:, :] = x[..., :-2, :]
    assert (transformed(x, down=2) - expected).abs().max() <= 1e-5


def test_a_half_pixel_shift_averages_neighbours():
    x = torch.tensor([[[[0.0, 1.0, 0.0, 0.4]]]]).expand(1, 1, 3, 4)
    expected = torch.tensor([0.0, 0.5, 0.5, 0.2])
    torch.testing.assert_close(transformed(x, right=0.5)[0, 0, 1], expected, atol=1e-5, rtol=0)


def test_positive_angles_turn_counter_clockwise_as_displayed():
    x = torch.zeros(1, 1, 3, 3)
    x[0, 0, 0, 1] = 1  # top centre
    expected = torch.zeros(1, 1, 3, 3)
    expected[0, 0, 1, 0] = 1  # left centre
    torch.testing.assert_close(transformed(x, angle=90), expected, atol=1e-5, rtol=0)


def test_rotation_equals_rot90_and_four_quarter_turns_are_the_identity():
    x = image(7, 7)
    quarter = transformed(x, angle=90)
    assert (quarter - torch.rot90(x, 1, (2, 3))).abs().max() <= 1e-5
    for _ in range(3):
        quarter = transformed(quarter, angle=90)
    assert (quarter - x).abs().max() <= 2e-5


def test_rotation_comes_before_translation():
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 0, 2] = 1  # top centre; a quarter turn takes it to the left centre, then one down
    moved = transformed(x, angle=90, down=1)
    assert moved[0, 0, 3, 0].item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("size", [(28, 28), (32, 48)])
def test_rotation_agrees_with_kornias_own(size):
    x = image(*size)
    angle = torch.tensor([17.0, 17.0])
    other = kornia.geometry.transform.rotate(x, angle, align_corners=True)
    assert (transformed(x, angle=17.0) - other).abs().max() <= 1e-4


@pytest.mark.parametrize("padding", ["reflection", "border"])
def test_a_constant_image_stays_constant(padding):
    x = torch.full((1, 3, 9, 14), 0.7)
    moved = transformed(x, angle=25, right=3, down=-2, padding=padding)
    assert (moved - 0.7).abs().max() <= 1e-6


def test_all_candidates_at_once_are_each_candidate_alone():
    x = image(9, 14, channels=3)
    transforms = torch.tensor([[0.0, 0, 0], [10, 1.5, -2], [-30, 0, 3]])
    grids = sampling_grids(transforms, 9, 14)
    together = warp_all(x, grids, "zeros")
    assert together.shape == (3, 2, 3, 9, 14)
    for i, (angle, right, down) in enumerate(transforms.tolist()):
        alone = transformed(x, angle, right, down)
        assert (together[i] - alone).abs().max() <= 1e-6


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("move", [(0, 0), (2, 0), (-1, 0), (0, 3), (-2, -3), (1, -1)])
def test_whole_pixel_shift_is_the_warp_without_rounding(move, padding):
    x = image(8, 11, channels=2)
    expected = transformed(x, 0, *move, padding=padding)
    assert (shift(x, *move, padding) - expected).abs().max() <= 1e-5


def test_whole_pixel_shift_copies_values_exactly():
    x = image(8, 11)
    assert torch.equal(shift(x, 2, -1, "zeros")[..., :-1, 2:], x[..., 1:, :-2])
