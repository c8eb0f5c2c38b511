"""Panels shared by several experiments: weights, frequency responses, and filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from torch import Tensor

from robust_ham.models.kernel_spectra import frequency_response, response_at
from robust_ham.report.figures.style import figure_style, legend_below

Array = NDArray[np.float64]
Colour = tuple[float, float, float] | str
FLOOR = -60.0
"""Lowest level shown, in dB below a response's peak."""

_POINTS = 256
_HALVES = ([-0.5, 0, 0.5], ["−0.5", "0", "0.5"])


@dataclass(frozen=True)
class Filter:
    """A filter of a figure: its taps (h, w), title, colour and line style."""

    title: str
    taps: Tensor
    colour: Colour
    line: str = "-"


def decibels(magnitude: Tensor, floor: float = FLOOR) -> Array:
    """Convert a magnitude to dB relative to its largest value, clipped at ``floor``."""
    share = (magnitude / magnitude.max()).clamp(min=10 ** (floor / 20))
    levels: Array = (20 * share.log10()).double().numpy()
    return levels


def show_taps(axes: Axes, taps: Tensor) -> None:
    """Show weights (h, w) in red and blue, white at 0; axes in pixels from the centre."""
    height, width = taps.shape
    limit = float(taps.abs().max()) or 1.0
    extent = (-width / 2, width / 2, height / 2, -height / 2)
    axes.imshow(taps.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, extent=extent)
    ticks = [-(width // 2), 0, width // 2]
    axes.set_xticks(ticks)
    axes.set_yticks([-(height // 2), 0, height // 2])
    axes.set_xlabel("pixels")


def show_response(axes: Axes, levels: Array, floor: float = FLOOR) -> AxesImage:
    """Show levels in dB on the frequency plane, 0 in the middle; axes in cycles per pixel."""
    image = axes.imshow(
        levels, cmap="magma", vmin=floor, vmax=0, extent=(-0.5, 0.5, 0.5, -0.5), aspect="equal"
    )
    axes.set_xticks(*_HALVES)
    axes.set_yticks(*_HALVES)
    axes.set_xlabel("cycles per pixel")
    return image


def filters_figure(
    filters: Sequence[Filter],
    direction: tuple[float, float],
    signs: tuple[Sequence[str], Sequence[str]] = ((), ()),
) -> Figure:
    """Draw filters above their frequency responses, and on the right a cut through each.

    Args:
        filters: the filters, left to right.
        direction: (y, x) of the cut through the responses; the cut through a filter is its middle
            row.
        signs: symbols between neighbouring filters, and between their responses.
    """
    count = len(filters)
    with figure_style():
        figure = Figure(figsize=(2.15 * count + 3.0, 5.0), layout="constrained")
        grid = figure.add_gridspec(2, count + 1, width_ratios=[1.0] * count + [1.3])
        profile, cut = (figure.add_subplot(grid[row, count]) for row in (0, 1))
        responses = []
        for column, one in enumerate(filters):
            top, bottom = (figure.add_subplot(grid[row, column]) for row in (0, 1))
            show_taps(top, one.taps)
            top.set_title(one.title)
            image = show_response(bottom, decibels(frequency_response(one.taps, _POINTS)))
            bottom.axline((0, 0), direction[::-1], color="white", linewidth=0.7, linestyle=":")
            responses.append(bottom)
            for axes, between in zip((top, bottom), signs, strict=True):
                if column < len(between):
                    _write_beside(axes, between[column])
            _draw_profile(profile, one)
            _draw_cut(cut, one, direction)
        figure.colorbar(
            image, ax=responses, label="response (dB)", location="bottom", aspect=50, shrink=0.8
        )
        profile.set_xlabel("pixels, row in the middle")
        profile.set_ylabel("weight / largest")
        profile.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        cut.set_xlabel("cycles per pixel, along the dotted line")
        cut.set_ylabel("response (dB)")
        cut.set_xlim(-0.5, 0.5)
        cut.set_xticks(*_HALVES)
        cut.set_ylim(FLOOR, 2)
        legend_below(figure)
    return figure


def _write_beside(axes: Axes, sign: str) -> None:
    """Write a sign between a panel and its right neighbour."""
    axes.annotate(
        sign,
        (1.16, 0.5),
        xycoords="axes fraction",
        fontsize=15,
        ha="center",
        va="center",
        annotation_clip=False,
    )


def _draw_profile(axes: Axes, one: Filter) -> None:
    """Draw the weights of the middle row."""
    width = one.taps.shape[1]
    x = np.arange(width) - width // 2
    axes.plot(
        x,
        one.taps[one.taps.shape[0] // 2].numpy(),
        one.line,
        color=one.colour,
        label=one.title,
        marker="o" if width <= 11 else None,
        markersize=3.5,
        linewidth=1.3,
    )


def _draw_cut(axes: Axes, one: Filter, direction: tuple[float, float]) -> None:
    """Draw the response along a line through frequency 0."""
    along = torch.linspace(-0.5, 0.5, 401, dtype=torch.float64)
    unit = torch.tensor(direction, dtype=torch.float64)
    levels = decibels(response_at(one.taps, along[:, None] * unit / unit.norm()), 2 * FLOOR)
    axes.plot(along.numpy(), levels, one.line, color=one.colour, linewidth=1.3)
