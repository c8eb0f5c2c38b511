"""The responses of a Gabor filter truncated to 49×49, to 7×7, and to 7×7 with a Hamming window.

The filter is a wave of 0.2 cycles per pixel at 30° under a Gaussian of σ = 6 pixels. At the edge of
49×49 the Gaussian has fallen to 0.0003, at the edge of 7×7 only to 0.88. The response of the full
filter is a Gaussian of σ = 1/(2π·6) = 0.027 cycles per pixel around ±its frequency, with all but
0.01 % of its energy within 3 σ: the pass band. Source: arXiv 2101.10143, figure 1.
"""

from __future__ import annotations

import math

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from robust_ham.experiments.explain import Explained
from robust_ham.experiments.explain.panels import Filter, filters_figure
from robust_ham.models.kernel_spectra import frequency_response, response_at
from robust_ham.models.windows import hamming_main_lobe, window_2d
from robust_ham.report.figures.style import window_colour

FREQUENCY, ANGLE, SIGMA = 0.2, math.radians(30), 6.0
PASS_BAND = 3 / (2 * math.pi * SIGMA)
"""Radius of the pass band in cycles per pixel."""

VERSIONS = ((49, "none"), (7, "none"), (7, "hamming"))
_CENTRE = torch.tensor([FREQUENCY * math.sin(ANGLE), FREQUENCY * math.cos(ANGLE)])
_POINTS = 512


def gabor(size: int, window: str = "none") -> Tensor:
    """Return the filter truncated to (size, size), 1 in the middle, times a window."""
    steps = torch.arange(size).double() - size // 2
    y, x = steps[:, None], steps[None, :]
    wave = torch.cos(2 * math.pi * (_CENTRE[0] * y + _CENTRE[1] * x))
    return wave * torch.exp(-(y**2 + x**2) / (2 * SIGMA**2)) * window_2d(window, size, size)


def explain() -> Explained:
    """Compare the three versions."""
    taps = [gabor(size, window) for size, window in VERSIONS]
    table = pd.DataFrame([measure(one) for one in taps])
    table.insert(0, "window", [window for _, window in VERSIONS])
    table.insert(0, "size", [size for size, _ in VERSIONS])
    header = ["size", "window", "peak (cycles/pixel)", "half-power width", "outside pass band"]
    header += ["outside 7×7 main lobe", "highest side lobe (dB)"]
    rows = [
        [
            f"{row['size']}×{row['size']}",
            str(row["window"]),
            f"{math.hypot(row['peak_y'], row['peak_x']):.3f}",
            f"{row['half_power_width']:.3f}",
            f"{row['energy_outside_pass_band']:.1%}",
            f"{row['energy_outside_main_lobe']:.2%}",
            f"{row['peak_side_lobe_db']:.1f}",
        ]
        for row in table.to_dict(orient="records")
    ]
    return Explained(table, draw(taps), header, rows)


def measure(taps: Tensor) -> dict[str, float]:
    """Measure the response of a version (k, k).

    ``peak_y`` and ``peak_x``: frequency of the largest response, cycles per pixel.
    ``half_power_width``: width along the filter's direction, cycles per pixel.
    ``energy_outside_pass_band``: share of energy outside the pass band of the full filter.
    ``energy_outside_main_lobe`` and ``peak_side_lobe_db``: share of energy, and highest response
    (below the peak), outside the main lobe of the 7×7 Hamming window around ±the frequency of the
    full filter: the same region for all versions.
    """
    power = frequency_response(taps, _POINTS) ** 2
    steps = (torch.arange(_POINTS) - _POINTS // 2) / _POINTS  # frequencies along each axis
    y, x = steps[:, None].double(), steps[None, :].double()

    def distance(sign: int) -> tuple[Tensor, Tensor]:
        away = [(f - sign * c + 0.5) % 1 - 0.5 for f, c in zip((y, x), _CENTRE, strict=True)]
        return away[0].abs(), away[1].abs()

    lobe = hamming_main_lobe(VERSIONS[1][0])
    passed = torch.zeros_like(power, dtype=torch.bool)
    main = passed.clone()
    for down, right in (distance(1), distance(-1)):
        passed |= torch.hypot(down, right) <= PASS_BAND
        main |= (down <= lobe) & (right <= lobe)
    half = x[0] >= 0  # one of the two peaks
    place = int((power * half).argmax())
    along = torch.linspace(0, 0.5, 5001, dtype=torch.float64)
    cut = response_at(taps, along[:, None] * _CENTRE.double() / _CENTRE.double().norm()) ** 2
    return {
        "peak_y": float(y[place // _POINTS, 0]),
        "peak_x": float(x[0, place % _POINTS]),
        "half_power_width": float((cut >= cut.max() / 2).sum() * (along[1] - along[0])),
        "energy_outside_pass_band": float(power[~passed].sum() / power.sum()),
        "energy_outside_main_lobe": float(power[~main].sum() / power.sum()),
        "peak_side_lobe_db": float(10 * torch.log10(power[~main].max() / power.max())),
    }


def draw(taps: list[Tensor]) -> Figure:
    """Draw the versions above their responses; the cut runs through the filter's frequency."""
    large, small, windowed = taps
    filters = [
        Filter("cut to 49×49", large, "0.25"),
        Filter("cut to 7×7", small, window_colour("none")),
        Filter("7×7, Hamming", windowed, window_colour("hamming"), "--"),
    ]
    return filters_figure(filters, (float(_CENTRE[0]), float(_CENTRE[1])))
