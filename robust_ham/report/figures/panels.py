"""Small panels of one attack, measure and axis.

The page shows the panels that the reader selects, and all of them without JavaScript.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from robust_ham.analysis.metrics import METRICS
from robust_ham.analysis.run import Run
from robust_ham.report.figures.labels import arm_label, attack_titles, metric_label
from robust_ham.report.figures.lines import AXES, draw_arm, draw_arms
from robust_ham.report.figures.rows import (
    against,
    compares_networks,
    draw_networks,
    network_places,
    networks_height,
)
from robust_ham.report.figures.style import figure_style, legend_below, new_figure

_PLACE = (0.225, 0.17, 0.745, 0.79)
"""Left, bottom, width and height of a panel's axes, in shares of the figure."""


@dataclass(frozen=True)
class Panel:
    """One measure of one attack ("": clean images) against one axis."""

    attack: str
    metric: str
    axis: str
    caption: str
    description: str
    """The estimates in words, for screen readers."""

    @property
    def name(self) -> str:
        """Name of the panel's file."""
        return "-".join(filter(None, ["panel", self.attack, self.metric, self.axis]))


def panels(run: Run, curves: pd.DataFrame) -> Iterator[Panel]:
    """Yield all panels of a run: clean images first, then its attacks in their order."""
    axes = [name for name in AXES if curves[name].notna().any()]
    for attack_id, title in attack_titles(run).items():
        attack_rows = curves[curves["attack"] == attack_id]
        for metric in attack_rows["metric"].unique():
            part = attack_rows[attack_rows["metric"] == metric]
            label = metric_label(run, attack_id, metric)
            words = _panel_in_words(part, metric)
            for axis in axes:
                caption = f"{title}: {label} {against(run, axis)}"
                yield Panel(attack_id, metric, axis, caption, words)


def panel_figure(run: Run, curves: pd.DataFrame, panel: Panel, *, legend: bool) -> Figure:
    """Draw a panel: mean over seeds with its 95 % interval, and a small point per seed."""
    part = curves[(curves["attack"] == panel.attack) & (curves["metric"] == panel.metric)]
    label, across = metric_label(run, panel.attack, panel.metric), AXES[panel.axis]
    with figure_style():
        by_network, places = compares_networks(run, panel.axis), network_places(part)
        size = (5.2, networks_height(places)) if by_network else (3.6, 2.7)
        figure = new_figure(*size)
        axes = figure.subplots()
        axis: Axis = axes.yaxis
        if by_network:
            draw_networks(axes, part, places)
            label, across, axis = "", label, axes.xaxis
        else:
            draw_arms(axes, part, panel.axis)
            if not legend:  # a fixed layout is enough, and faster
                figure.set_layout_engine("none")
                axes.set_position(_PLACE)
        axes.set_xlabel(across)
        axes.set_ylabel(label)
        if METRICS[panel.metric].unit == "share":
            axis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        if legend:
            legend_below(figure)
    return figure


def _panel_in_words(part: pd.DataFrame, metric: str) -> str:
    """Return every arm's estimates in words, for screen readers."""
    families, lines = list(part["family"].unique()), []
    for (family, window), arm in part.groupby(["family", "window"], sort=False):
        values = [
            _number(row["estimate"], metric)
            + (f" at k = {row['kernel_size']}" if row["kernel_size"] else "")
            for row in arm.sort_values("kernel_size").to_dict(orient="records")
        ]
        lines.append(f"{arm_label(str(window), str(family), families)}: {', '.join(values)}")
    return "; ".join(lines)


def _number(value: float, metric: str) -> str:
    if not np.isfinite(value):
        return "unknown"
    return f"{100 * value:.1f} %" if METRICS[metric].unit == "share" else f"{value:.3g}"


def swatches(curves: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Yield each line's name and a figure of it, for the legend."""
    families = list(dict.fromkeys(curves["family"]))
    for (family, window), arm in curves.groupby(["family", "window"], sort=False):
        line = arm.iloc[:2].assign(estimate=0.0, low=0.0, high=0.0)
        with figure_style():
            figure = Figure(figsize=(0.45, 0.2))
            axes = figure.add_axes((0, 0, 1, 1))
            axes.set_axis_off()
            draw_arm(axes, np.array([-1.0, 1.0])[: len(line)], line, families, size=5)
            axes.set_xlim(-2, 2)
        yield arm_label(str(window), str(family), families), figure
