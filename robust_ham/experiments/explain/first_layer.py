"""Learned first-layer kernels of baseline and windowed networks side by side, and their spectra.

Kernels are shown as applied: raw weight × window. Twins start from the same raw weights, so kernels
at the same position started equal. Kernels of three input channels are shown in colour. Each kernel
is scaled by its largest weight; its spectrum is the summed power of its channels, relative to its
peak.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor, nn

from robust_ham.errors import RequestError
from robust_ham.experiments.explain import Explained
from robust_ham.experiments.explain.networks import Network, networks
from robust_ham.experiments.explain.panels import Array, decibels
from robust_ham.models.kernel_spectra import (
    MEASURES,
    effective_kernels,
    frequency_response,
    measure_kernels,
)
from robust_ham.report.figures.labels import window_label
from robust_ham.report.figures.style import figure_style

_FLOOR = -30.0  # dB
_SHOWN = 16
_POINTS = 48
_DEFAULT_SIZE = 7  # of the zoo's networks


@dataclass(frozen=True)
class Layer:
    """The first convolution of a network: its name, and its kernels (out, in, h, w) as applied."""

    network: Network
    name: str
    kernels: Tensor


def explain(run: Path | None = None) -> Explained:
    """Compare a baseline with its windowed twin for each kernel size of a run, or the zoo's 7×7.

    Raises:
        RequestError: not a run folder, or it has no such pair.
    """
    candidates = networks(run)
    if run is None:
        candidates = [n for n in candidates if n.spec.kernel_size == _DEFAULT_SIZE]
    twins = pairs(candidates)
    if not twins:
        raise RequestError(
            f"{run}: no baseline and windowed network of the same kernel size and seed"
        )
    layers = [(first_layer(baseline), first_layer(windowed)) for baseline, windowed in twins]
    table = pd.concat([measure(layer) for pair in layers for layer in pair], ignore_index=True)
    header = ["network", "layer", "kernels", *(name.replace("_", " ") for name in MEASURES)]
    rows = [
        [str(model_id), str(part["layer"].iloc[0]), str(len(part))]
        + [f"{part[name].median():.3g}" for name in MEASURES]
        for model_id, part in table.groupby("model_id", sort=False)
    ]
    return Explained(table, draw(layers), header, rows)


def pairs(candidates: list[Network]) -> list[tuple[Network, Network]]:
    """Return a baseline and a windowed network per family and kernel size, of the lowest seed.

    If there are several windows, take Hamming, else the first.
    """
    chosen: dict[tuple[str, int], tuple[Network, Network]] = {}
    by_seed = sorted(candidates, key=lambda n: (n.spec.seed, n.spec.window != "hamming"))
    for baseline in (n for n in by_seed if n.spec.window == "none"):
        for other in (n for n in by_seed if n.spec.window != "none"):
            keys = [(n.spec.family, n.spec.kernel_size, n.spec.seed) for n in (baseline, other)]
            if keys[0] == keys[1]:
                chosen.setdefault(keys[0][:2], (baseline, other))
    return [chosen[key] for key in sorted(chosen)]


def first_layer(network: Network) -> Layer:
    """Return the first convolution larger than 1×1.

    Raises:
        RequestError: the network has none.
    """
    for name, module in network.load().named_modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            return Layer(network, name, effective_kernels(module))
    raise RequestError(f"{network.spec.model_id}: has no convolution larger than 1×1")


def measure(layer: Layer) -> pd.DataFrame:
    """Return a row per slice of the layer.

    Columns: ``model_id window kernel_size seed layer kernel channel``, those of
    ``measure_kernels``, and ``norm``, the root of the sum of squared weights.
    """
    num_kernels, channels = layer.kernels.shape[:2]
    slices = layer.kernels.flatten(0, 1)
    spec = layer.network.spec
    table = pd.DataFrame(
        {
            "model_id": spec.model_id,
            "window": spec.window,
            "kernel_size": spec.kernel_size,
            "seed": spec.seed,
            "layer": layer.name,
            "kernel": np.repeat(np.arange(num_kernels), channels),
            "channel": np.tile(np.arange(channels), num_kernels),
        }
    )
    norms = slices.flatten(1).norm(dim=1).double().numpy()
    return table.join(measure_kernels(slices)).assign(norm=norms)


def draw(layers: list[tuple[Layer, Layer]]) -> Figure:
    """Draw a row per pair: the kernels of the baseline and of its twin, and their spectra."""
    with figure_style():
        figure = Figure(figsize=(9.2, 2.45 * len(layers) + 0.6), layout="constrained")
        panels = figure.subplots(len(layers), 4, squeeze=False)
        families = {layer.network.spec.family for pair in layers for layer in pair}
        for line, pair in zip(panels, layers, strict=True):
            for column, layer in enumerate(pair):
                spec = layer.network.spec
                height, width = layer.kernels.shape[2:]
                show_kernels(line[column], layer.kernels[:_SHOWN])
                image = show_spectra(line[column + 2], layer.kernels[:_SHOWN])
                line[column].set_xlabel(f"{layer.name}: {height}×{width} pixels each")
                line[column + 2].set_xlabel("±0.5 cycles per pixel each")
                title = f"{window_label(spec.window)}, k = {spec.kernel_size}"
                line[column].set_title(title)
                line[column + 2].set_title(f"{title}: spectra")
            if len(families) > 1:
                line[0].set_ylabel(pair[0].network.spec.family)
        figure.colorbar(image, ax=panels[:, -1], label="power (dB)", shrink=0.8, aspect=18)
    return figure


def show_kernels(axes: Axes, kernels: Tensor) -> None:
    """Show kernels (N, channels, h, w) scaled by their largest weight; three channels: colour."""
    scaled = kernels / kernels.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-30)
    if kernels.shape[1] == 3:
        tiles = 0.5 + scaled.movedim(1, -1) / 2  # (N, h, w, 3), grey at 0
    else:  # the channels are not colours: show the strongest
        strongest = scaled.flatten(2).norm(dim=2).argmax(1)
        tiles = scaled[torch.arange(len(scaled)), strongest]  # (N, h, w)
    _hide_ticks(axes)
    enlarged = tiles.double().repeat_interleave(8, 1).repeat_interleave(8, 2).numpy()
    axes.imshow(mosaic(enlarged, gap=kernels.shape[-1]), cmap="RdBu_r", vmin=-1, vmax=1)


def show_spectra(axes: Axes, kernels: Tensor) -> AxesImage:
    """Show the power of kernels (N, channels, h, w) in dB below the peak, frequency 0 centred."""
    power = (frequency_response(kernels, _POINTS) ** 2).sum(1)
    levels = np.stack([decibels(one.sqrt(), _FLOOR) for one in power])
    _hide_ticks(axes)
    return axes.imshow(mosaic(levels, gap=_POINTS // 8), cmap="magma", vmin=_FLOOR, vmax=0)


def mosaic(tiles: Array, gap: int) -> Array:
    """Arrange tiles (N, h, w) or (N, h, w, 3) in a square; gaps are NaN, in colour 1."""
    num, height, width = tiles.shape[:3]
    columns = math.ceil(math.sqrt(num))
    rows = math.ceil(num / columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, *tiles.shape[3:])
    picture = np.full(shape, 1.0 if tiles.ndim == 4 else np.nan)
    for i, tile in enumerate(tiles):
        down, right = i // columns * (height + gap), i % columns * (width + gap)
        picture[down : down + height, right : right + width] = tile
    return picture


def _hide_ticks(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
