"""Windowed and factorised convolutions."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robust_ham.models.layers import WindowedConv2d, conv2d
from robust_ham.models.windows import window_2d

SHAPES = [
    {"kernel_size": 7, "padding": 3},
    {"kernel_size": 3, "stride": 2, "bias": False},
    {"kernel_size": (5, 3), "padding": (2, 1)},
    {"kernel_size": 3, "groups": 2, "dilation": 2},
    {"kernel_size": 5, "padding": 2, "padding_mode": "reflect"},
    {"kernel_size": 5, "padding": 2, "padding_mode": "circular", "groups": 4},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 1},
]


def input_images():
    return torch.randn(2, 4, 12, 10, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_a_plain_convolution_with_windowed_weights(shape):
    windowed = WindowedConv2d(4, 8, **shape, window="hamming")
    plain = nn.Conv2d(4, 8, **shape)
    plain.load_state_dict(windowed.state_dict())  # same names and shapes
    with torch.no_grad():
        plain.weight *= window_2d("hamming", *windowed.kernel_size).float()
    torch.testing.assert_close(windowed(input_images()), plain(input_images()))


@pytest.mark.parametrize("shape", SHAPES)
def test_fold_keeps_the_function(shape):
    windowed = WindowedConv2d(4, 8, **shape, window="hann")
    folded = windowed.fold()
    assert type(folded) is nn.Conv2d
    assert (folded(input_images()) - windowed(input_images())).abs().max() <= 1e-6


def test_fold_draws_no_global_random_numbers():
    windowed = WindowedConv2d(4, 8, 3)
    before = torch.get_rng_state()
    windowed.fold()
    assert torch.equal(torch.get_rng_state(), before)


def test_gradient_of_the_raw_weight_is_window_times_plain_gradient():
    windowed = WindowedConv2d(4, 8, 5)
    plain = windowed.fold()
    windowed(input_images()).square().sum().backward()
    plain(input_images()).square().sum().backward()
    expected = plain.weight.grad * window_2d("hamming", 5, 5).float()
    torch.testing.assert_close(windowed.weight.grad, expected)


def test_window_is_no_parameter_and_is_not_saved():
    windowed = WindowedConv2d(4, 8, 5)
    assert set(windowed.state_dict()) == {"weight", "bias"}
    assert sum(p.numel() for p in windowed.parameters()) == 4 * 8 * 25 + 8
    assert "window=hamming" in repr(windowed)


def test_window_follows_the_dtype():
    layer = WindowedConv2d(4, 8, 5).double()
    assert layer(input_images().double()).dtype == torch.float64


@pytest.mark.parametrize("window", ["none", "hamming"])
@pytest.mark.parametrize("stride", [1, 2])
def test_factorised_convolution_is_two_one_dimensional_ones(window, stride):
    layer = conv2d(4, 6, 5, window=window, factorised=True, stride=stride)
    first, second = layer
    column = first.weight * window_2d(window, 5, 1).float()
    row = second.weight * window_2d(window, 1, 5).float()
    expected = F.conv2d(input_images(), column, stride=(stride, 1), padding=(2, 0))
    expected = F.conv2d(expected, row, stride=(1, stride), padding=(0, 2))
    torch.testing.assert_close(layer(input_images()), expected)
    assert sum(p.numel() for p in layer.parameters()) == 4 * 6 * 5 + 6 * 6 * 5


def test_same_padding_keeps_the_size():
    for k in (1, 3, 7, 11):
        assert conv2d(4, 2, k)(input_images()).shape == (2, 2, 12, 10)


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match="kernel_size: expected an odd number, got 4"):
        conv2d(3, 8, 4)
