"""Networks below each other, where kernel size is no axis for them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from robust_ham.analysis.run import Run
from robust_ham.report.figures.lines import AXES, are_many, draw_seeds
from robust_ham.report.figures.style import WINDOW_LABELS, window_colour, window_marker

_MOST_ARMS = 4
"""Side by side at one kernel size."""
_MARKER = 4.5

Places = dict[tuple[str, int, str], int]
"""How high a window of a network stands: by family, kernel size and window."""


def compares_networks(run: Run, axis: str = "kernel_size") -> bool:
    """Whether networks stand below each other in place of that axis.

    They do for kernel sizes that are not known, or of which no arm (window of a family) has three
    while there are several families, or more arms than can stand side by side.
    """
    if axis != "kernel_size":
        return False
    sizes: dict[tuple[str, str], set[int]] = {}
    for spec in run.specs:
        sizes.setdefault((spec.family, spec.window), set()).add(spec.kernel_size)
    if any(0 in found for found in sizes.values()):
        return True
    many = len({family for family, _ in sizes}) > 1 or len(sizes) > _MOST_ARMS
    return many and max(len(found) for found in sizes.values()) < 3


def axis_name(run: Run, axis: str) -> str:
    """How a choice of axes calls one."""
    return "network" if compares_networks(run, axis) else AXES[axis]


def against(run: Run, axis: str) -> str:
    """How captions call an axis."""
    return "per network" if compares_networks(run, axis) else f"against {AXES[axis]}"


def network_label(family: str, size: int) -> str:
    """A family, and its kernel size where it is known."""
    return f"{family}, k = {size}" if size else family


def network_places(curves: pd.DataFrame) -> Places:
    """The first network on top, its windows 1 apart; 2 between networks."""
    arms = curves[["family", "kernel_size", "window"]].drop_duplicates()
    windows: dict[tuple[str, int], list[str]] = {}
    for arm in arms.to_dict(orient="records"):
        windows.setdefault((arm["family"], arm["kernel_size"]), []).append(arm["window"])
    places: Places = {}
    top = 0
    for network, own in windows.items():
        places |= {(*network, window): top - i for i, window in enumerate(own)}
        top -= len(own) + 1
    return places


def networks_height(places: Places) -> float:
    """Inches of a panel of ``draw_networks``."""
    return 0.8 + 0.11 * (2 - min(places.values()))


def draw_networks(axes: Axes, part: pd.DataFrame, places: Places) -> None:
    """A marker per network and window with its 95 % interval, below it a small point per seed."""
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
                label=WINDOW_LABELS[window],
            )
            draw_seeds(axes, seeds, [y - 0.4] * len(seeds), window, _MARKER, many=many)
    heights: dict[str, list[int]] = {}
    for (family, size, _), y in places.items():
        heights.setdefault(network_label(family, size), []).append(y)
    axes.set_yticks([sum(ys) / len(ys) for ys in heights.values()], list(heights))
    axes.set_ylim(min(places.values()) - 1, 1)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
