"""Convolutions by FFT are the direct ones, in attacks too."""

import pytest
import torch
from torch import nn

from attacks import deepfool
from attacks.utils import fourier
from attacks.utils.fourier import FourierConvolution
from attacks.utils.prepare import FastCopy, prepare


@pytest.mark.parametrize(
    ("kernel", "padding", "side"),
    [
        ((9, 9), (4, 4), (16, 16)),
        ((11, 9), (5, 4), (13, 18)),  # rectangular, odd sides
        ((9, 9), (0, 0), (16, 12)),  # only where the kernel fits
        ((9, 10), (8, 3), (12, 15)),  # more padding than needed, even kernels
        ((13, 13), (6, 6), (12, 12)),  # larger than the image
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradient_are_those_of_the_layer(kernel, padding, side, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 72, kernel, padding=padding, bias=bias).requires_grad_(False)
    by_fft = FourierConvolution(conv)
    images = torch.randn(16, 64, *side, requires_grad=True)
    assert by_fft.suits(*side)
    expected = conv(images)
    slope = torch.randn_like(expected)
    torch.testing.assert_close(by_fft.output(images), expected, rtol=0, atol=2e-5)
    (gradient,) = torch.autograd.grad(expected, images, slope)
    torch.testing.assert_close(by_fft.gradient(slope, *side), gradient, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "side"),
    [
        ({"stride": 2}, 16),
        ({"dilation": 2}, 16),
        ({"groups": 2}, 16),
        ({"dtype": torch.bfloat16}, 16),
        ({"dtype": torch.float64}, 16),
        ({"padding": "same"}, 16),
        ({"padding": 9}, 16),
        ({"kernel_size": 7}, 16),
        ({"in_channels": 32}, 16),
        ({}, 8),
        ({"kernel_size": 21, "padding": 1}, 16),  # larger than the padded image
        ({"in_channels": 512, "out_channels": 512}, 32),  # its spectrum takes 1.4 GB
    ],
)
def test_other_layers_and_sizes_are_left_alone(options, side):
    plain = {"in_channels": 64, "out_channels": 64, "kernel_size": 9, "padding": 4}
    conv = nn.Conv2d(**plain | options, device="meta").to_empty(device="cpu")
    assert FourierConvolution(nn.Conv2d(**plain)).suits(16, 16)
    assert not FourierConvolution(conv).suits(side, side)


class Wide(nn.Sequential):
    def __init__(self):
        super().__init__(
            *(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(64, 64, 9, padding=4, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 6)),
        )


def test_attacks_find_the_same_with_and_without(monkeypatch):
    torch.manual_seed(0)
    model = Wide().eval()
    images = torch.rand(40, 3, 16, 16)
    labels = model(images).argmax(1)
    fast = prepare(model.requires_grad_(False), images)
    assert isinstance(fast, FastCopy)
    assert fast.tape is not None
    calls = []
    monkeypatch.setattr(
        fourier, "filtered", lambda *args, call=fourier.filtered: calls.append(1) or call(*args)
    )
    found = deepfool(model, images, labels)
    assert calls
    monkeypatch.setattr(FourierConvolution, "suits", lambda *_: False)
    expected = deepfool(model, images, labels)
    assert found.fooled.equal(expected.fooled)
    near, far = ((x.images - images).flatten(1).norm(dim=1) for x in (found, expected))
    torch.testing.assert_close(near, far, rtol=1e-2, atol=0)  # ReLU may take the other side
    assert near.mean().item() == pytest.approx(far.mean().item(), rel=1e-4)


def test_black_regions_have_no_gradient(monkeypatch):
    """A direct convolution of zeros is exactly 0; ReLU then has no gradient."""
    torch.manual_seed(0)
    stem, conv = (nn.Conv2d(c, 64, k, padding=k // 2, bias=False) for c, k in ((1, 3), (64, 9)))
    head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 6))
    model = nn.Sequential(stem, conv, head).eval().requires_grad_(False)
    images = torch.zeros(20, 1, 28, 28)
    images[:, :, 2:8, 2:8] = torch.rand(20, 1, 6, 6)
    fast = prepare(model, images)
    assert isinstance(fast, FastCopy)
    found = fast.logits_and_gradient(images)[1]
    monkeypatch.setattr(FourierConvolution, "suits", lambda *_: False)
    expected = fast.logits_and_gradient(images)[1]
    error = (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert error.median() < 1e-3
    assert error.max() < 0.05
