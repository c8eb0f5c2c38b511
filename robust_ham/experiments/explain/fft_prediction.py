"""Train one convolution to output the FFT magnitude of three sine waves, and measure its leakage.

The design is ours, after the description in arXiv 2101.10143. Each 20×20 image is the sum of three
2-D sine waves of random phase and amplitude at random integer frequencies, so its FFT magnitude is
six points (including negative frequencies). The network is one convolution without bias: a pair of
k×k filters for each of the 20×20 frequencies, whose outputs a and b are combined to √(a² + b²) and
averaged over positions. A filter of k < 20 taps is truncated, and passes other frequencies too.

The baseline and its windowed twin start from the same raw weights, see the same images, and are
trained by Adam on the squared error. A Hamming window has no zero, so both can represent the same
functions. They differ in what training finds, so a short and a long training are compared. (Under
plain SGD, the learning rate of the windowed network's outer taps is scaled by the window squared,
and they are far from converged after as many steps.)

Energy is the squared prediction on held-out images. ``leakage`` is its share outside the true
points, ``far_leakage`` its share outside the main lobes of the k×k Hamming window around them. The
region is the same for both networks, so the wider main lobe of the window does not count as far.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import PercentFormatter
from torch import Tensor, nn
from torch.nn import functional as F

from robust_ham.experiments.explain import Explained
from robust_ham.experiments.explain.panels import decibels
from robust_ham.models.build import initialise
from robust_ham.models.layers import WindowedConv2d
from robust_ham.models.windows import hamming_main_lobe
from robust_ham.report.figures.labels import window_label
from robust_ham.report.figures.style import (
    FAMILY_LINES,
    figure_style,
    legend_below,
    window_colour,
    window_marker,
)
from robust_ham.storage import signals

SIZE = 20
"""Pixels per side, and frequencies."""

STRIDES = {7: 3, 11: 2, 15: 2}
"""Kernel sizes, and the stride between the averaged positions."""

WINDOWS = ("none", "hamming")
SEEDS = (0, 1, 2)
TRAININGS = (100, 400)
"""Steps of the short and of the long training."""

BATCH_SIZE, LEARNING_RATE = 64, 3e-3
_NUM_HELD_OUT, _HELD_OUT_SEED = 256, 1_000_000
_WAVES = 3
_FLOOR = -30.0  # dB
_MEASURES = {"leakage": "outside the points", "far_leakage": "outside their main lobes"}


def explain(
    sizes: Sequence[int] = tuple(STRIDES),
    seeds: Sequence[int] = SEEDS,
    trainings: Sequence[int] = TRAININGS,
) -> Explained:
    """Train and measure baseline and windowed networks; the figure shows the first held-out image.

    Args:
        sizes: kernel sizes, keys of ``STRIDES``.
        seeds: one network each.
        trainings: numbers of steps; the figure shows predictions of the last.
    """
    images, magnitude = waves(_NUM_HELD_OUT, torch.Generator().manual_seed(_HELD_OUT_SEED))
    rows, shown = [], {}
    for kernel_size, window, steps, seed in itertools.product(sizes, WINDOWS, trainings, seeds):
        network = FftNetwork(kernel_size, window, seed)
        train(network, seed, steps)
        with torch.no_grad():
            predicted = network(images)
        labels = {"kernel_size": kernel_size, "window": window, "steps": steps, "seed": seed}
        rows.append(labels | measure(predicted, magnitude, kernel_size))
        if (steps, seed) == (trainings[-1], seeds[0]):
            shown[kernel_size, window] = predicted[0]
    table = pd.DataFrame(rows)
    figure = draw(table, images[0, 0], magnitude[0], shown)
    return Explained(table, figure, *short(table))


class FftNetwork(nn.Module):
    """One k×k convolution: images (N, 1, SIZE, SIZE) to magnitudes (N, SIZE, SIZE).

    Frequency 0 is in the middle, as after ``fftshift``.
    """

    def __init__(self, kernel_size: int, window: str, seed: int) -> None:
        super().__init__()
        shape = (1, 2 * SIZE * SIZE, kernel_size)
        stride = STRIDES[kernel_size]
        with torch.random.fork_rng(devices=[]):  # the constructor draws weights
            self.conv = (
                nn.Conv2d(*shape, stride=stride, bias=False)
                if window == "none"
                else WindowedConv2d(*shape, stride=stride, bias=False, window=window)
            )
        initialise(self, seed)

    def forward(self, images: Tensor) -> Tensor:
        """Predict the magnitudes."""
        pairs = self.conv(images).unflatten(1, (2, SIZE, SIZE)).flatten(4)  # (N, 2, S, S, places)
        magnitudes: Tensor = ((pairs**2).sum(1) + 1e-12).sqrt()  # finite gradient at 0
        return magnitudes.mean(3)


def waves(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw images (N, 1, SIZE, SIZE) and compute the magnitude of their FFT (N, SIZE, SIZE).

    The magnitude is scaled to the amplitudes of the waves, 0.5 to 1.5.
    """
    half = (SIZE - 1) // 2
    frequencies = torch.cartesian_prod(torch.arange(-half, half + 1), torch.arange(1, half + 1))
    drawn = torch.rand(count, len(frequencies), generator=generator).topk(_WAVES).indices
    y, x = (frequencies[drawn].float() / SIZE)[..., None, None].unbind(2)  # (N, 3, 1, 1)
    phase = 2 * math.pi * torch.rand(count, _WAVES, 1, 1, generator=generator)
    amplitude = 0.5 + torch.rand(count, _WAVES, 1, 1, generator=generator)
    pixels = torch.arange(SIZE)
    angle = 2 * math.pi * (y * pixels[:, None] + x * pixels) + phase  # (N, 3, S, S)
    images = (amplitude * angle.sin()).sum(1, keepdim=True)
    magnitude = torch.fft.fft2(images[:, 0]).abs() * 2 / SIZE**2
    return images, torch.fft.fftshift(magnitude, dim=(1, 2))


def train(network: FftNetwork, seed: int, steps: int) -> None:
    """Train in place; the learning rate decays to 0 along a cosine."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        signals.check()
        images, magnitude = waves(BATCH_SIZE, generator)
        loss = F.mse_loss(network(images), magnitude) * SIZE**2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        scheduler.step()


def measure(predicted: Tensor, magnitude: Tensor, kernel_size: int) -> dict[str, float]:
    """Measure a prediction, as means over images; both arguments (N, SIZE, SIZE).

    ``error``: squared error over the energy of the truth. ``leakage`` and ``far_leakage``: shares
    of the predicted energy, as described above. ``far_share``: share of far frequencies, which is
    the far leakage of a flat prediction.
    """
    true = magnitude > 0.25  # the smallest amplitude is 0.5
    steps = torch.arange(SIZE)
    away = (steps[:, None] - steps).abs()
    away = torch.minimum(away, SIZE - away)
    near = (away <= SIZE * hamming_main_lobe(kernel_size)).float()
    far = near @ true.float() @ near == 0
    energy = predicted**2
    whole = energy.sum((1, 2))
    error = ((predicted - magnitude) ** 2).sum((1, 2)) / (magnitude**2).sum((1, 2))
    return {
        "error": float(error.mean()),
        "leakage": float(((energy * ~true).sum((1, 2)) / whole).mean()),
        "far_leakage": float(((energy * far).sum((1, 2)) / whole).mean()),
        "far_share": float(far.float().mean()),
    }


def short(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: means over seeds, with lowest and highest seed in brackets."""
    header = ["k", "window", "steps", "error", "leakage", "far leakage"]
    rows = []
    for (size, steps, window), arm in table.groupby(["kernel_size", "steps", "window"], sort=False):
        row = [str(size), window_label(str(window)), str(steps)]
        for name in ("error", "leakage", "far_leakage"):
            values = arm[name]
            row.append(f"{values.mean():.2%} ({values.min():.2%} … {values.max():.2%})")
        rows.append(row)
    return header, rows


def draw(
    table: pd.DataFrame,
    image: Tensor,
    magnitude: Tensor,
    shown: dict[tuple[int, str], Tensor],
) -> Figure:
    """Draw an image, its true FFT magnitude, the predictions, and leakage against kernel size."""
    sizes = list(table["kernel_size"].unique())
    with figure_style():
        figure = Figure(figsize=(1.5 * len(sizes) + 4.9, 4.6), layout="constrained")
        ratios = [1.0] * (len(sizes) + 1) + [1.6]
        panels = figure.subplots(2, len(ratios), width_ratios=ratios)
        limit = float(image.abs().max())
        panels[0, 0].imshow(image.numpy(), cmap="gray", vmin=-limit, vmax=limit)
        panels[0, 0].set_title("image")
        panels[0, 0].set_xticks([])
        panels[0, 0].set_yticks([])
        _show_magnitude(panels[1, 0], magnitude)
        panels[1, 0].set_title("true magnitude")
        for column, size in enumerate(sizes, start=1):
            for row, window in enumerate(WINDOWS):
                picture = _show_magnitude(panels[row, column], shown[size, window])
                panels[row, column].set_title(f"{window_label(window)}, k = {size}")
                panels[row, column].set_yticklabels([])
        for axes in panels[1, :-1]:
            axes.set_xlabel("cycles per pixel")
        bar = figure.colorbar(picture, ax=panels[:, :-1], location="bottom", aspect=50, shrink=0.6)
        bar.set_label("magnitude (dB below the largest)")
        for axes, (name, label) in zip(panels[:, -1], _MEASURES.items(), strict=True):
            _draw_leakage(axes, table, name)
            axes.set_title(f"energy {label}")
        panels[1, -1].set_xlabel("kernel size k")
        legend_below(figure)
    return figure


def _show_magnitude(axes: Axes, magnitude: Tensor) -> AxesImage:
    """Show a magnitude (SIZE, SIZE) in dB; axes in cycles per pixel."""
    edge = 0.5 + 0.5 / SIZE  # frequency −0.5 is the centre of the first pixel
    extent = (-edge, 1 - edge, 1 - edge, -edge)
    image = axes.imshow(
        decibels(magnitude, _FLOOR), cmap="magma", vmin=_FLOOR, vmax=0, extent=extent
    )
    axes.set_xticks([-0.5, 0], ["−0.5", "0"])
    axes.set_yticks([-0.5, 0], ["−0.5", "0"])
    return image


def _draw_leakage(axes: Axes, table: pd.DataFrame, name: str) -> None:
    """Draw the mean over seeds against kernel size, and single seeds as points."""
    trainings = sorted(table["steps"].unique(), reverse=True)
    for (steps, window), arm in table.groupby(["steps", "window"], sort=False):
        mean = arm.groupby("kernel_size")[name].mean()
        axes.plot(
            mean.index,
            mean,
            FAMILY_LINES[trainings.index(steps)],
            color=window_colour(str(window)),
            marker=window_marker(str(window)),
            markersize=4,
            linewidth=1.3,
            label=f"{window_label(str(window))}, {steps} steps",
        )
        axes.scatter(
            arm["kernel_size"], arm[name], s=6, color=window_colour(str(window)), linewidths=0
        )
    axes.set_xticks(sorted(table["kernel_size"].unique()))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
