"""Draw arms (networks that differ only in seed) against k or another quantity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation, Transform

from robust_ham.analysis.statistics import Values
from robust_ham.report.figures.labels import arm_label
from robust_ham.report.figures.style import (
    FAMILY_LINES,
    window_colour,
    window_marker,
)
from robust_ham.report.figures.ticks import count_axis

AXES = {
    "kernel_size": "kernel size k",
    "effective_width": "effective width of the window",
    "effective_width_learned": "effective width, learned",
    "params": "parameters",
    "flops": "FLOPs of one image",
}
_COUNTS = ("params", "flops")
_FILLS: tuple[Literal["full", "none", "left", "bottom", "right", "top"], ...] = (
    *("full", "none", "left", "bottom", "right", "top"),
)
MANY_POINTS = 300
"""Points beyond which a panel is rasterized inside its SVG."""
_MOST_NUMBERS = 12
"""Most numbers beside markers: more would overlap."""


def draw_arm(axes: Axes, x: Values, arm: pd.DataFrame, families: list[str], size: float) -> None:
    """Draw the finite estimates of one family and window, with their intervals, at ``x``.

    Colour and marker show the window, line and fill style the family; ``size``: marker size.
    """
    family, window = str(arm["family"].iloc[0]), str(arm["window"].iloc[0])
    values = arm[["estimate", "low", "high"]].to_numpy(dtype=np.float64)
    finite = np.isfinite(values).all(axis=1) & np.isfinite(x)
    (y, low, high), place = values[finite].T, families.index(family)
    axes.errorbar(
        x[finite],
        y,
        yerr=np.maximum([y - low, high - y], 0),
        color=window_colour(window),
        marker=window_marker(window),
        markersize=size,
        linewidth=0.28 * size,
        capsize=size / 2,
        linestyle=FAMILY_LINES[place % len(FAMILY_LINES)],
        fillstyle=_FILLS[place % len(_FILLS)],
        markerfacecoloralt="white",
        label=arm_label(window, family, families),
    )


def draw_seeds(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    window: str,
    size: float,
    transform: Transform | None = None,
    *,
    many: bool = False,
) -> None:
    """Draw a small point per seed if there are several; ``size``: size of the arm's markers.

    ``many``: rasterize the points inside the SVG, below everything else.
    """
    if len(x) > 1:
        axes.plot(
            x,
            y,
            "o",
            color=window_colour(window),
            markersize=0.55 * size,
            alpha=0.6,
            markeredgewidth=0,
            transform=transform or axes.transData,
            rasterized=many,
            zorder=1.9 if many else None,
        )


def are_many(per_seed: Iterable[Sequence[float]]) -> bool:
    """Whether a panel has too many points to store one by one in an SVG."""
    return sum(map(len, per_seed)) > MANY_POINTS


def draw_arms(axes: Axes, part: pd.DataFrame, name: str, *, size: float = 5) -> None:
    """Draw a line per family and window: mean with 95 % interval, and a small point per seed.

    ``part``: one metric of one attack; ``name``: the axis, a key of ``AXES``. On axes other than
    k, the number beside a marker is k.
    """
    families = list(dict.fromkeys(part["family"]))
    lines = list(part.groupby(["family", "window"], sort=False))
    by_size = name == "kernel_size"
    numbered = not by_size and part[name].notna().sum() <= _MOST_NUMBERS
    beside = axes.transData + ScaledTranslation(5 / 72, 0, axes.figure.dpi_scale_trans)
    apart = min(0.25, 1.2 / max(len(lines), 1)) if by_size else 0.0
    many = are_many(part["per_seed"])
    for i, ((_, window), unsorted) in enumerate(lines):
        arm = unsorted.sort_values("kernel_size")
        x = arm[name].to_numpy(dtype=float) + apart * (i - (len(lines) - 1) / 2)
        draw_arm(axes, x, arm, families, size)
        for across, seeds in zip(x, arm["per_seed"], strict=True):
            places = [across] * len(seeds)
            draw_seeds(axes, places, seeds, str(window), size, transform=beside, many=many)
        for k, across, up in zip(arm["kernel_size"], x, arm["estimate"], strict=True):
            if numbered and np.isfinite([across, up]).all():
                axes.annotate(
                    str(k),
                    (across, up),
                    xytext=(0.7 * size, 0.7 * size),
                    textcoords="offset points",
                    fontsize=7,
                )
    if name in _COUNTS and part[name].notna().any():
        count_axis(axes)
    if by_size:
        axes.set_xticks(sorted(part[name].unique()))
