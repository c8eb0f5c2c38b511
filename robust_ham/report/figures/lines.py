"""Arms (all seeds of one network) against k, or against another number that they have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation, Transform

from robust_ham.analysis.statistics import Values
from robust_ham.report.figures.style import (
    FAMILY_LINES,
    WINDOW_LABELS,
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
"""Beyond which the points of a panel are one picture inside its SVG."""
_MOST_NUMBERS = 12
"""Beside markers: more would hide each other."""


def arm_label(window: str, family: str, families: list[str]) -> str:
    """How legends and tables call an arm; ``families``: all that stand beside it."""
    return WINDOW_LABELS[window] + (f" ({family})" if len(families) > 1 else "")


def draw_arm(axes: Axes, x: Values, arm: pd.DataFrame, families: list[str], size: float) -> None:
    """Estimates and intervals of the rows of one family and window, those that are finite, at x.

    Colour and marker tell the window, line and filling the family; ``size`` of the markers.
    """
    family, window = str(arm["family"].iloc[0]), str(arm["window"].iloc[0])
    values = arm[["estimate", "low", "high"]].to_numpy(dtype=np.float64)
    known = np.isfinite(values).all(axis=1) & np.isfinite(x)
    (y, low, high), place = values[known].T, families.index(family)
    axes.errorbar(
        x[known],
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
    """A small point per seed, where there are several; ``size`` of the markers beside them.

    ``many``: the points of a panel become one picture inside its SVG, below all else.
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
    """Whether a panel has more single seeds than points that an SVG should hold one by one."""
    return sum(map(len, per_seed)) > MANY_POINTS


def draw_arms(axes: Axes, part: pd.DataFrame, name: str, *, size: float = 5) -> None:
    """A line per family and window: mean with 95 % interval, and a small point per seed.

    ``part``: one metric of one attack; ``name``: of the axis. On other axes than k, the number
    beside a marker is k.
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
