"""Readable ticks for axes of large counts: parameters and FLOPs."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator


def readable(number: float) -> str:
    """Format a large number: 100 k, 2.5 M."""
    for unit, name in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.4g}{name}"
    return f"{number:.3g}"


def log_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round ticks for a logarithmic axis from ``low`` > 0 to ``high``."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            break
    if len(ticks) < 2:  # less than a decade
        even = MaxNLocator(most - 1).tick_values(low, high)
        ticks = [float(tick) for tick in even if low <= tick <= high]
    return ticks[:: max(1, -(-len(ticks) // most))]


def count_axis(axes: Axes) -> None:
    """Make the x axis logarithmic with readable counts; call after drawing."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if high < 1.2 * low:  # all networks have the same count
        axes.set_xlim(low / 1.5, high * 1.5)
    figure, place = axes.get_figure(root=True), axes.get_subplotspec()
    assert figure is not None
    assert place is not None
    inches = figure.get_figwidth() / place.get_gridspec().ncols
    most = min(max(int(inches / 0.55), 2), 5)
    axes.xaxis.set_major_locator(FixedLocator(log_ticks(*axes.get_xlim(), most)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: readable(number)))
    axes.xaxis.set_minor_locator(NullLocator())
