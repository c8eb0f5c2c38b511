"""Window functions that taper a convolution kernel, and their properties.

All windows are symmetric (both ends equal), as in ``scipy.signal.windows`` with ``sym=True``.
``torch.hamming_window`` is periodic by default and is not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust_ham.config.suggestions import did_you_mean

Array = NDArray[np.float64]
KAISER_BETA = 14.0
_FFT_POINTS = 65_536


def _phase(length: int) -> Array:
    """Return 2πn/(k−1) for n = 0 … k−1, shape (length,)."""
    return 2 * np.pi * np.arange(length) / (length - 1)


def _none(length: int) -> Array:
    return np.ones(length)


def _hamming(length: int) -> Array:
    return np.asarray(0.54 - 0.46 * np.cos(_phase(length)))


def _hamming_sqrt(length: int) -> Array:
    return np.asarray(np.sqrt(_hamming(length)))


def _hann(length: int) -> Array:
    return np.asarray(0.5 - 0.5 * np.cos(_phase(length)))


def _blackman(length: int) -> Array:
    values = 0.42 - 0.5 * np.cos(_phase(length)) + 0.08 * np.cos(2 * _phase(length))
    values[[0, -1]] = 0.0  # exact, where rounding gives −1.4e-17
    return np.asarray(values)


def _kaiser(length: int) -> Array:
    return np.kaiser(length, KAISER_BETA)


WINDOWS: dict[str, Callable[[int], Array]] = {
    "none": _none,
    "hamming": _hamming,
    "hamming_sqrt": _hamming_sqrt,
    "hann": _hann,
    "blackman": _blackman,
    "kaiser": _kaiser,
}


def window_1d(name: str, length: int) -> Array:
    """Compute the symmetric window ``name`` of ``length`` taps, float64, shape (length,).

    A window of one tap is 1. ``hamming_sqrt`` is the square root of the Hamming window; in 2-D, it
    is √outer(hamming, hamming). ``kaiser`` has β = 14.

    Raises:
        ValueError: unknown name, or length below 1.
    """
    if name not in WINDOWS:
        raise ValueError(
            f"window: expected one of {', '.join(WINDOWS)}, got {name!r}"
            + did_you_mean(name, WINDOWS)
        )
    if length < 1:
        raise ValueError(f"window length: expected at least 1, got {length}")
    return np.ones(1) if length == 1 else WINDOWS[name](length)


PLACEBO = "hamming_shuffled"
"""The values of the 2-D Hamming window in a fixed random order: equal gain and learning rates, no
taper."""

WINDOWS_2D = (*WINDOWS, PLACEBO)


def window_2d(name: str, height: int, width: int) -> Tensor:
    """Compute the outer product of two 1-D windows, or the placebo; float64, (height, width).

    Source: Tomen & van Gemert, arXiv 2101.10143, section 3.

    Raises:
        ValueError: unknown name, or a length below 1.
    """
    if name == PLACEBO:
        values = np.outer(window_1d("hamming", height), window_1d("hamming", width))
        order = np.random.default_rng([height, width]).permutation(values.size)
        return torch.from_numpy(values.ravel()[order].reshape(height, width))
    if name not in WINDOWS:
        raise ValueError(
            f"window: expected one of {', '.join(WINDOWS_2D)}, got {name!r}"
            + did_you_mean(name, WINDOWS_2D)
        )
    return torch.from_numpy(np.outer(window_1d(name, height), window_1d(name, width)))


def nominal_width(name: str, length: int) -> float:
    """Compute the effective number of taps along one axis of a ``length`` × ``length`` window.

    (ΣE)²/ΣE² with E the root mean square over the other axis; for an outer product, this is the
    value of its 1-D window.
    """
    return effective_width((window_2d(name, length, length) ** 2).mean(1).sqrt().numpy())


def effective_width(weights: Array) -> float:
    """Compute the effective number of taps of a 1-D window, (Σw)²/Σw²; k for the rectangle."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def peak_side_lobe(weights: Array) -> float:
    """Compute the highest side lobe of a 1-D window, in dB relative to the main lobe.

    Uses an FFT of 65,536 points or more. The main lobe ends at the first minimum of the spectrum.
    If the spectrum has no minimum, returns its level at the Nyquist frequency.
    """
    magnitude = np.abs(np.fft.rfft(weights, max(_FFT_POINTS, 64 * len(weights))))
    rises = np.flatnonzero(np.diff(magnitude) > 0)
    highest = magnitude[rises[0] :].max() if len(rises) else magnitude[-1]
    return float(20 * np.log10(highest / magnitude[0]))


def hamming_main_lobe(length: int) -> float:
    """Return half the width of the Hamming window's main lobe, 2/(k−1) cycles per pixel.

    ∞ for one tap. From 0.5 (k ≤ 5), the main lobe fills the axis and there is no side lobe.
    Source: Oppenheim & Schafer, Discrete-Time Signal Processing, comparison of windows (8π/M with
    M = k−1 is the full width in radians).
    """
    return 2 / (length - 1) if length > 1 else math.inf
