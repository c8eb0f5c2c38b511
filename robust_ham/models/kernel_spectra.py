"""Measure learned kernels in space and in frequency.

A kernel is one h×w slice of a layer's effective weight: the raw weight × its window.
Frequencies are in cycles per pixel, from −0.5 to 0.5 along each axis.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robust_ham.models.layers import WindowedConv2d, compute_weight, window_name
from robust_ham.models.windows import hamming_main_lobe

MEASURES = ("effective_taps", "bandwidth", "side_lobe_energy", "edge_energy")
TABLE_COLUMNS = [
    *("layer", "kernel_height", "kernel_width", "num_kernels", "layer_window"),
    *(f"{name}{part}" for name in MEASURES for part in ("", "_q25", "_q75")),
]
_POINTS = 32
_CHUNK_BYTES = 8_000_000  # of a power spectrum: about what a processor's cache holds


@torch.no_grad()
def effective_kernels(conv: nn.Conv2d) -> Tensor:
    """Return raw weight × window: (out_channels, in_channels / groups, h, w), float32, CPU."""
    weight = compute_weight(conv)
    if isinstance(conv, WindowedConv2d):
        weight = weight * conv.window
    return weight.detach().float().cpu()


def num_points(height: int, width: int) -> int:
    """Return the frequencies per axis: 32, or the power of two at which sums stay exact.

    The squared power spectrum of k taps has lags up to 2(k−1), so 2k−1 points or more sum to its
    integral.
    """
    needed = 2 * max(height, width) - 1
    return max(_POINTS, 1 << (needed - 1).bit_length())


def frequency_response(kernels: Tensor, points: int) -> Tensor:
    """Compute the magnitude response of kernels (..., h, w): (..., points, points).

    Frequencies are −0.5, −0.5 + 1 / points, …, along each axis; 0 is in the middle.
    """
    spectrum = torch.fft.fft2(kernels, s=(points, points))
    shifted: Tensor = torch.fft.fftshift(spectrum, dim=(-2, -1))
    return shifted.abs()


def measure_kernels(kernels: Tensor) -> pd.DataFrame:
    """Measure each kernel.

    Args:
        kernels: (N, h, w), float32.

    Returns:
        A row per kernel; a kernel of zeros has NaN throughout.

        - ``effective_taps``: (ΣE)²/ΣE² over the squared weights E; 1 … h·w. (Participation ratio.)
        - ``bandwidth``: (ΣP)²/(N·ΣP²) over the power spectrum P at N frequencies of the plane; the
          share of the plane that a flat spectrum of the same sums would fill; 1 for a single tap.
          (Statistical bandwidth, Bendat & Piersol, Random Data.)
        - ``side_lobe_energy``: share of ΣP farther from the peak frequency, and from its mirror
          image, than half the main lobe of the Hamming window of the same size, on either axis.
          The region is the same for every window, so a wider main lobe is no disadvantage. Equals
          r/(1 + r) for the integrated side-lobe ratio r. Accurate to about 0.02, because the
          region ends between frequencies. Does not distinguish side lobes from a wide pass band:
          read it beside ``bandwidth``. NaN if the region is the whole plane (no axis longer
          than 5).
        - ``edge_energy``: share of ΣE on the outermost taps, the ends of each axis longer than 1:
          how abrupt the truncation is.
        - ``peak_y``, ``peak_x``: the frequency of the largest P, in cycles per pixel; x ≥ 0.
    """
    height, width = kernels.shape[-2:]
    points = num_points(height, width)
    size = max(1, _CHUNK_BYTES // (4 * points * (points // 2 + 1)))
    real, imaginary = _half_plane_dft(height, width, points)
    parts = [_measure(part, real, imaginary, points) for part in kernels.split(size)]
    columns = [*MEASURES, "peak_y", "peak_x"]
    return pd.DataFrame(torch.cat(parts).double().numpy(), columns=columns)


def _half_plane_dft(height: int, width: int, points: int) -> tuple[Tensor, Tensor]:
    """Return real and imaginary part of the DFT as matrices (h·w, points · (points / 2 + 1)).

    Columns are the frequencies with x ≥ 0, y varying slowest; the others are mirror images.
    """
    rows = torch.outer(torch.arange(height), torch.arange(points))[:, None, :, None]
    columns = torch.outer(torch.arange(width), torch.arange(points // 2 + 1))[None, :, None, :]
    turns = ((rows + columns) % points).reshape(height * width, -1)  # in units of 1 / points
    circle = 2 * math.pi * torch.arange(points).double() / points
    return circle.cos().float()[turns], circle.sin().float()[turns]


def _measure(kernels: Tensor, real: Tensor, imaginary: Tensor, points: int) -> Tensor:
    """Measure kernels (n, h, w): (n, 6), the columns of ``measure_kernels``."""
    count, height, width = kernels.shape
    norm = kernels.flatten(1).norm(dim=1)
    taps = kernels.flatten(1) / norm[:, None]  # NaN for a kernel of zeros
    squares = taps**2
    half = points // 2 + 1
    mirrored = torch.full((half,), 2.0)  # each stands for two frequencies of the whole plane
    mirrored[[0, -1]] = 1
    power = (taps @ real) ** 2 + (taps @ imaginary) ** 2  # (n, points · half)
    total = power @ mirrored.repeat(points)
    bandwidth = total**2 / (points**2 * (power**2 @ mirrored.repeat(points)))
    peak = power.argmax(1)
    peak_y, peak_x = peak // half, peak % half
    inside = _energy_near(power.view(count, points, half) * mirrored, peak_y, peak_x, height, width)
    whole = min(hamming_main_lobe(height), hamming_main_lobe(width)) >= 0.5
    side = torch.full_like(total, math.nan) if whole else (1 - inside / total).clamp(0, 1)
    rows = slice(1, -1) if height > 1 else slice(None)
    columns = slice(1, -1) if width > 1 else slice(None)
    inner = squares.view(kernels.shape)[:, rows, columns].sum((1, 2))
    is_mirrored = (peak_x == 0) | (peak_x == points // 2)  # these contain their mirror images
    peak_y = torch.where(is_mirrored, torch.minimum(peak_y, points - peak_y), peak_y)
    frequencies = [torch.where(peak_y > points // 2, peak_y - points, peak_y), peak_x]
    is_valid = norm.isfinite() & (norm > 0)
    measures = [1 / (squares**2).sum(1), bandwidth, side, 1 - inner]
    measures += [torch.where(is_valid, f / points, math.nan) for f in frequencies]
    return torch.stack(measures, 1)


def _energy_near(power: Tensor, peak_y: Tensor, peak_x: Tensor, height: int, width: int) -> Tensor:
    """Sum ``power`` (n, points, half) inside the main lobes around the peak and its mirror."""
    points = power.shape[1]

    def near(peak: Tensor, length: int, count: int) -> Tensor:
        distance = (torch.arange(count) - peak[:, None]) % points  # (n, count)
        distance = torch.minimum(distance, points - distance)
        return (points * hamming_main_lobe(length) + 0.5 - distance).clamp(0, 1)  # share of a bin

    y, mirror_y = near(peak_y, height, points), near(-peak_y, height, points)
    x, mirror_x = near(peak_x, width, power.shape[2]), near(-peak_x, width, power.shape[2])
    across = power @ torch.stack([x, mirror_x, x * mirror_x], 2)  # (n, points, 3)
    along = torch.stack([y, mirror_y, -y * mirror_y], 2)  # the overlap counts once
    return (across * along).sum((1, 2))


def kernel_table(model: nn.Module) -> pd.DataFrame:
    """Measure a network's kernels: a row per convolution above 1×1, with ``TABLE_COLUMNS``.

    Of each measure of ``measure_kernels``: its median over all kernels of the layer, and its
    quartiles ``_q25`` and ``_q75``; kernels of zeros are left out of these.
    """
    rows = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d) or max(module.kernel_size) == 1:
            continue
        kernels = effective_kernels(module).flatten(0, 1)  # (N, h, w)
        height, width = kernels.shape[1:]
        described = (name, height, width, len(kernels), window_name(module))
        row = dict(zip(TABLE_COLUMNS, described, strict=False))
        measures = measure_kernels(kernels)
        for measure in MEASURES:
            values = measures[measure].dropna().to_numpy()
            quartiles = np.quantile(values, [0.5, 0.25, 0.75]) if len(values) else [math.nan] * 3
            names = (measure, f"{measure}_q25", f"{measure}_q75")
            row |= dict(zip(names, map(float, quartiles), strict=True))
        rows.append(row)
    return pd.DataFrame(rows, columns=TABLE_COLUMNS)


def response_at(kernel: Tensor, frequencies: Tensor) -> Tensor:
    """Compute the magnitude response of a kernel (h, w) at frequencies (M, 2) as (y, x): (M,)."""
    height, width = kernel.shape
    turns = frequencies.double()
    rows = torch.outer(turns[:, 0], torch.arange(height).double())[:, :, None]
    columns = torch.outer(turns[:, 1], torch.arange(width).double())[:, None, :]
    waves = torch.exp(-2j * math.pi * (rows + columns))  # (M, h, w)
    return (waves * kernel.double()).sum((1, 2)).abs()
