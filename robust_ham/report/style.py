"""One look for all figures, and files that come out byte for byte the same."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from robust_ham.analysis.statistics import Values
from robust_ham.store import writing

WINDOW_LABELS = {
    "none": "baseline",
    "hamming": "Hamming",
    "hamming_sqrt": "√Hamming",
    "hann": "Hann",
    "blackman": "Blackman",
    "kaiser": "Kaiser",
    "hamming_shuffled": "shuffled Hamming",
}
_MARKERS = dict(zip(WINDOW_LABELS, "osDv^PX", strict=True))
_COLOURS = dict(zip(WINDOW_LABELS, (0, 1, 2, 4, 5, 7, 6), strict=True))
FAMILY_LINES = ("-", "--", ":", "-.")
FAMILY_FILLS: tuple[Literal["full", "none", "left", "bottom", "right", "top"], ...] = (
    *("full", "none", "left", "bottom", "right", "top"),
)
_DPI = 160


def size_label(size: int) -> str:
    """A kernel size as tables show it."""
    return str(size) if size else "–"


def network_label(family: str, size: int) -> str:
    """A family, and its kernel size where it is known."""
    return f"{family}, k = {size}" if size else family


def window_colour(window: str) -> tuple[float, float, float]:
    """A window's colour, the same in every figure, safe for the colour-blind."""
    red, green, blue = sns.color_palette("colorblind", 10)[_COLOURS[window]]
    return red, green, blue


def window_marker(window: str) -> str:
    """A window's marker, so that colour is never the only difference."""
    return _MARKERS[window]


def legend_below(figure: Figure) -> None:
    """One legend for all panels, below them."""
    found: dict[str, Artist] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        found.update(zip(labels, handles, strict=True))
    if not found:  # no figure is known with an interval
        return
    longest = max(len(label) for label in found)  # characters of about 0.075 inches
    figure.legend(
        list(found.values()),
        list(found),
        loc="outside lower center",
        ncols=max(1, min(len(found), int(figure.get_figwidth() / (0.6 + 0.075 * longest)))),
        frameon=False,
    )


def panel_grid(
    count: int,
    most_columns: int,
    width: float,
    height: float,
    *,
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels of that size in inches, in rows as equal as can be."""
    rows = -(-count // most_columns)
    columns = -(-count // rows)
    figure = Figure(figsize=(width * columns, height * rows + 0.5), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


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
        fillstyle=FAMILY_FILLS[place % len(FAMILY_FILLS)],
        markerfacecoloralt="white",
        label=WINDOW_LABELS[window] + (f" ({family})" if len(families) > 1 else ""),
    )


@contextmanager
def figure_style() -> Iterator[None]:
    """Settings of all figures."""
    own = {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.labelsize": 9,
        "legend.fontsize": 8.5,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(sns.axes_style("ticks") | own):
        yield


def save_figure(figure: Figure, folder: Path, name: str, *, svg: bool = True) -> None:
    """Write ``name``.png, and .svg, whole; without dates, and with ids fixed by the name."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # once is enough: it takes longer than to draw
    formats = {"png": {"Software": None}} | ({"svg": {"Date": None}} if svg else {})
    for suffix, metadata in formats.items():
        content = io.BytesIO()
        with mpl.rc_context({"svg.hashsalt": name}):
            figure.savefig(content, format=suffix, dpi=_DPI, metadata=metadata)
        with writing(folder / f"{name}.{suffix}") as temporary:
            temporary.write_bytes(content.getvalue())
