"""Windows against scipy and the published figures."""

import numpy as np
import pytest
import torch
from scipy import signal

from robust_ham.models.windows import (
    WINDOWS,
    effective_width,
    nominal_width,
    peak_side_lobe,
    window_1d,
    window_2d,
)

SCIPY = {"hamming": "hamming", "hann": "hann", "blackman": "blackman", "kaiser": ("kaiser", 14.0)}


@pytest.mark.parametrize("length", [1, 2, 3, 5, 7, 9, 11])
@pytest.mark.parametrize("name", SCIPY)
def test_equals_scipy_symmetric(name, length):
    expected = signal.windows.get_window(SCIPY[name], length, fftbins=False)
    np.testing.assert_allclose(window_1d(name, length), expected, atol=1e-15, rtol=0)


def test_blackman_ends_are_exactly_zero():
    assert window_1d("blackman", 7)[0] == 0
    assert window_1d("blackman", 7)[-1] == 0


@pytest.mark.parametrize("name", WINDOWS)
def test_one_tap_is_the_identity(name):
    assert window_1d(name, 1).tolist() == [1.0]


def test_hamming_formula_and_corners():
    assert window_1d("hamming", 7)[0] == pytest.approx(0.08)
    assert window_2d("hamming", 7, 7)[0, 0].item() == pytest.approx(0.0064)
    for k in (3, 5, 7, 9):
        assert window_2d("hamming_sqrt", k, k)[0, 0].item() == pytest.approx(0.08)


def test_hamming_sqrt_is_the_root_of_the_outer_product():
    root = window_2d("hamming_sqrt", 7, 5)
    np.testing.assert_allclose(root**2, window_2d("hamming", 7, 5), atol=1e-15)


def test_two_dimensional_window_is_the_outer_product_of_two_lengths():
    window = window_2d("hann", 5, 7).numpy()
    np.testing.assert_array_equal(window, np.outer(window_1d("hann", 5), window_1d("hann", 7)))


@pytest.mark.parametrize("name", ["hann", "blackman"])
def test_hann_and_blackman_of_three_taps_are_one_tap(name):
    np.testing.assert_allclose(window_1d(name, 3), [0, 1, 0], atol=1e-15)


@pytest.mark.parametrize(
    ("name", "length", "taps"),
    [
        ("hamming", 3, 1.33),
        ("hamming", 5, 3.14),
        ("hamming", 7, 4.61),
        ("hamming", 9, 6.08),
        ("hamming", 11, 7.55),
        ("hamming", 15, 10.5),
        ("hamming_sqrt", 7, 5.92),
        ("hann", 7, 4.00),
        ("blackman", 7, 3.48),
        ("kaiser", 7, 2.77),
        ("blackman", 9, 4.63),
        ("kaiser", 11, 4.63),
        ("none", 7, 7.00),
    ],
)
def test_effective_width(name, length, taps):
    assert effective_width(window_1d(name, length)) == pytest.approx(taps, abs=0.006 * taps / 3)


@pytest.mark.parametrize(
    ("name", "length", "decibels"),
    [
        ("none", 7, -12.65),
        ("hamming", 7, -32.36),
        ("hamming", 9, -34.77),
        ("hamming", 11, -36.67),
        ("hamming", 1024, -42.67),
        ("hamming", 3, -2.80),
        ("hamming", 5, -28.94),
    ],
)
def test_peak_side_lobe(name, length, decibels):
    assert peak_side_lobe(window_1d(name, length)) == pytest.approx(decibels, abs=0.05)


def test_bad_arguments_name_the_culprit():
    with pytest.raises(ValueError, match="window: expected one of .* got 'hamming2'"):
        window_1d("hamming2", 7)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        window_1d("hamming", 0)


def test_the_placebo_has_the_windows_values_at_other_places():
    window, placebo = window_2d("hamming", 7, 7), window_2d("hamming_shuffled", 7, 7)
    torch.testing.assert_close(placebo.flatten().sort().values, window.flatten().sort().values)
    assert not torch.equal(placebo, window)
    assert torch.equal(placebo, window_2d("hamming_shuffled", 7, 7))
    assert placebo.shape == (7, 7)
    assert window_2d("hamming_shuffled", 5, 1).shape == (5, 1)


@pytest.mark.parametrize("name", WINDOWS)
def test_nominal_width_is_that_of_the_one_dimensional_window(name):
    expected = effective_width(window_1d(name, 7))
    assert nominal_width(name, 7) == pytest.approx(expected, rel=1e-12)
    assert nominal_width("hamming_shuffled", 7) > nominal_width("hamming", 7)
