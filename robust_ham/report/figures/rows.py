"""Draw networks in rows, for runs where kernel size is not a useful axis."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from robust_ham.analysis.run import Run
from robust_ham.report.figures.labels import network_label, window_label
from robust_ham.report.figures.lines import AXES, are_many, draw_seeds
from robust_ham.report.figures.style import window_colour, window_marker

_MOST_ARMS = 4
"""Most arms side by side at one kernel size."""
_MARKER = 4.5

Places = dict[tuple[str, int, str], int]
"""Vertical position by family, kernel size and window."""


def compares_networks(run: Run, axis: str = "kernel_size") -> bool:
    """Whether figures show networks in rows instead of this axis.

    True if a kernel size is unknown; or if no arm has three kernel sizes, and there are several
    families or too many arms to fit side by side.
    """
    if axis != "kernel_size":
        return False
    sizes: dict[tuple[str, str], set[int]] = {}
    for spec in run.specs:
        sizes.setdefault((spec.family, spec.window), set()).add(spec.kernel_size)
    if any(0 in arm_sizes for arm_sizes in sizes.values()):
        return True
    many = len({family for family, _ in sizes}) > 1 or len(sizes) > _MOST_ARMS
    return many and max(len(arm_sizes) for arm_sizes in sizes.values()) < 3


def axis_name(run: Run, axis: str) -> str:
    """Return an axis' name for the choice of axes."""
    return "network" if compares_networks(run, axis) else AXES[axis]


def against(run: Run, axis: str) -> str:
    """Return an axis' name for captions."""
    return "per network" if compares_networks(run, axis) else f"against {AXES[axis]}"


def network_places(curves: pd.DataFrame) -> Places:
    """Place the first network on top, with 1 between windows and 2 between networks."""
    arms = curves[["family", "kernel_size", "window"]].drop_duplicates()
    windows: dict[tuple[str, int], list[str]] = {}
    for arm in arms.to_dict(orient="records"):
        windows.setdefault((arm["family"], arm["kernel_size"]), []).append(arm["window"])
    places: Places = {}
    top = 0
    for network, network_windows in windows.items():
        places |= {(*network, window): top - i for i, window in enumerate(network_windows)}
        top -= len(network_windows) + 1
    return places


def networks_height(places: Places) -> float:
    """Return the height in inches of a panel of ``draw_networks``."""
    return 0.8 + 0.11 * (2 - min(places.values()))


def draw_networks(axes: Axes, part: pd.DataFrame, places: Places) -> None:
    """Draw a marker with its 95 % interval per network and window, and a point per seed below."""
    many = are_many(part["per_seed"])
    for row in part.to_dict(orient="records"):
        window, seeds = row["window"], row["per_seed"]
        y = places[row["family"], row["kernel_size"], window]
        x, low, high = row["estimate"], row["low"], row["high"]
        if np.isfinite([x, low, high]).all():
            axes.errorbar(
                x,
                y,
                xerr=[[max(x - low, 0)], [max(high - x, 0)]],
                color=window_colour(window),
                marker=window_marker(window),
                markersize=_MARKER,
                capsize=2,
                linestyle="none",
                label=window_label(window),
            )
            draw_seeds(axes, seeds, [y - 0.4] * len(seeds), window, _MARKER, many=many)
    heights: dict[str, list[int]] = {}
    for (family, size, _), y in places.items():
        heights.setdefault(network_label(family, size), []).append(y)
    axes.set_yticks([sum(ys) / len(ys) for ys in heights.values()], list(heights))
    axes.set_ylim(min(places.values()) - 1, 1)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
