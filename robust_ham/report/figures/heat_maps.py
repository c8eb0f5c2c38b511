"""Heat maps of spatial attacks: which rotations and shifts fool each network."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from robust_ham.analysis.mechanism import by_angle_and_shift, by_direction
from robust_ham.report.figures.labels import window_label
from robust_ham.report.figures.style import figure_style, panel_grid

_TICKS = 7


def turns(grids: pd.DataFrame) -> bool:
    """Whether the candidates include rotations."""
    return grids["angle"].nunique() > 1


def heat_map_figure(grids: pd.DataFrame) -> Figure:
    """Draw a panel per arm: share of images fooled by angle and length of the shift.

    Without rotations: by pixels right and down. ``grids``: the candidates of one attack.
    """
    arms = list(grids.groupby(["family", "kernel_size", "window"], sort=False))
    windows = grids[["family", "window"]].drop_duplicates().shape[0]
    several = grids["family"].nunique() > 1
    matrix = by_angle_and_shift if turns(grids) else by_direction
    across, up = ("angle (°)", "shift (px)") if turns(grids) else ("pixels right", "pixels down")
    highest = grids["fooled_rate"].max()
    with figure_style():
        figure, panels = panel_grid(len(arms), min(max(windows, 2), 4), 3.2, 2.1)
        for axes, ((family, size, window), grid) in zip(panels, arms, strict=True):
            table = matrix(grid)
            sns.heatmap(
                table, ax=axes, vmin=0, vmax=highest, cmap="viridis", cbar=False, rasterized=True
            )  # as paths, the squares would show seams
            axes.set_title(
                f"{window_label(str(window))}, k = {size}" + (f"\n{family}" if several else "")
            )
            axes.set_xlabel(across)
            axes.set_ylabel(up)
            _label(axes, table)
        bar = figure.colorbar(panels[0].collections[0], ax=figure.axes, shrink=0.8, aspect=30)
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        bar.set_label("images fooled")
    return figure


def grids_in_words(grids: pd.DataFrame) -> str:
    """Return every arm's worst transform in words, for screen readers."""
    sentences = []
    for (family, size, window), grid in grids.groupby(
        ["family", "kernel_size", "window"], sort=False
    ):
        worst = grid.sort_values("fooled_rate", na_position="first").to_dict(orient="records")[-1]
        sentences.append(
            f"{window_label(str(window))}, k = {size} ({family}): at most "
            f"{100 * worst['fooled_rate']:.1f} %, at {worst['angle']:g}°, {worst['dx']:g} px right "
            f"and {worst['dy']:g} px down"
        )
    return "; ".join(sentences) + "."


def _label(axes: Axes, table: pd.DataFrame) -> None:
    """Label at most seven ticks along each axis, including the ends and the middle."""
    for axis, values in ((axes.xaxis, table.columns), (axes.yaxis, table.index)):
        step = max(1, -(-(len(values) - 1) // (_TICKS - 1)))
        places = list(range(0, len(values), step))
        labels = [f"{values[i]:g}".replace("-", "−") for i in places]
        axis.set_ticks([place + 0.5 for place in places], labels)
        axis.set_tick_params(rotation=0)
