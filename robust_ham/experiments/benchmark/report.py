"""The tables and the figure of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from robust_ham.config.experiment import OURS
from robust_ham.report.figures.style import figure_style, save_figure
from robust_ham.report.formats import Table, markdown
from robust_ham.storage.files import read_csv, write_text


@dataclass(frozen=True)
class Benchmark:
    """The path of the page, and the table to print."""

    page: Path
    table: Table


def build_benchmark(folder: Path, table: pd.DataFrame) -> Benchmark:
    """Write ``bench.md`` and ``figures/bench.*`` of a benchmark's ``table``."""
    save_figure(_figure(table), folder / "figures", "bench")
    page = folder / "bench.md"
    text = f"{markdown(summary_of(table))}\n{markdown(table_of(table))}"
    scaling = folder / "scaling.csv"
    if scaling.is_file():
        text += f"\n{markdown(scaling_of(read_csv(scaling)))}"
    write_text(page, text)
    return Benchmark(page, short_table_of(table))


def summary_of(table: pd.DataFrame) -> Table:
    """Return a row per attack and library: median, lowest and highest over networks.

    The extremes of times are over all rounds on all networks.
    """
    header = "attack|library|its time / ours|fooled|fooled by ours|mean L2 / ours|mean L∞ / ours"
    ours = table[table["library"] == OURS].set_index(["attack", "model_id"])
    others = table[table["library"] != OURS].set_index(["attack", "model_id"])
    rows = []
    for (attack, library), part in others.groupby(["attack", "library"], sort=False):
        reference = ours.loc[part.index]
        low, high = part["ratio_low"].min(), part["ratio_high"].max()
        rows.append(
            [
                str(attack),
                f"{library} {part['version'].iloc[0]}",
                f"{part['ratio'].median():.1f} ({low:.1f} … {high:.1f})",
                _range(part["fooled"], ".1%"),
                _range(reference["fooled"], ".1%"),
                _range(part["mean_l2"] / reference["mean_l2"], ".3f"),
                _range(part["mean_linf"] / reference["mean_linf"], ".3f"),
            ]
        )
    caption = "Every attack and library: median over networks, lowest and highest."
    return Table("summary", caption, header.split("|"), rows)


def scaling_of(table: pd.DataFrame) -> Table:
    """Return a row per number of images and of classes."""
    header = "growing|number|ms per image|ms per step|relative to the first|memory (MB)".split("|")
    rows = [
        [
            str(row["of"]),
            f"{row['count']:,}",
            f"{row['ms_per_image']:.2f}",
            f"{row['ms_per_step']:.2f}",
            f"{row['ratio']:.2f}",
            _number(row["peak_memory_mb"], ".0f"),
        ]
        for row in table.to_dict(orient="records")
    ]
    caption = (
        "Our DeepFool (L2) on the first network. Ratios are of the time per image, and for classes "
        "of the time per step."
    )
    return Table("scaling", caption, header, rows)


def _range(values: pd.Series, form: str) -> str:
    """Format lowest … highest, or one number if they are equal."""
    low, high = (_number(value, form) for value in (values.min(), values.max()))
    return low if low == high else f"{low} … {high}"


_SHORT = "network|attack|library|seconds|times ours|fooled|mean L2|mean L∞".split("|")


def table_of(table: pd.DataFrame) -> Table:
    """Return a row per network, attack and library."""
    header = (
        "network|attack|library|seconds|times ours|times floor|passes|times least"
        "|outside convolutions|forwards|backwards|fooled|same as ours|median L2|mean L2|mean L∞"
        "|memory (MB)"
    ).split("|")
    rows = []
    for row in table.to_dict(orient="records"):
        ratio = f"{row['ratio']:.1f} ({row['ratio_low']:.1f} … {row['ratio_high']:.1f})"
        rows.append(
            [
                str(row["model_id"]),
                str(row["attack"]),
                f"{row['library']} {row['version']}",
                _number(row["seconds"], ".2f"),
                "1" if row["library"] == OURS else ratio,
                _number(row["times_floor"], ".1f"),
                _number(row.get("whole_passes"), ".1f"),
                _number(row.get("times_least"), ".2f"),
                _number(row.get("outside_convolutions"), ".0%"),
                _number(row["forwards"], ".1f"),
                _number(row["backwards"], ".1f"),
                _number(row["fooled"], ".1%"),
                _number(row["same_fooled"], ".1%"),
                _number(row["median_l2"], ".4f"),
                _number(row["mean_l2"], ".4f"),
                _number(row["mean_linf"], ".5f"),
                _number(row["peak_memory_mb"], ".0f"),
            ]
        )
    filled = [i for i, name in enumerate(header) if name in _SHORT or any(row[i] for row in rows)]
    rows = [[row[i] for i in filled] for row in rows]
    header = [header[i] for i in filled]
    return Table("bench", "Every network, attack and library.", header, rows)


def short_table_of(table: pd.DataFrame) -> Table:
    """Return the columns that fit into a terminal."""
    whole = table_of(table)
    columns = [whole.header.index(name) for name in _SHORT]
    rows = [[row[i] for i in columns] for row in whole.rows]
    return Table(whole.name, whole.caption, _SHORT, rows)


def _number(value: Any, form: str) -> str:  # noqa: ANN401 - a cell of a table
    return "" if pd.isna(value) else format(value, form)


def _figure(table: pd.DataFrame) -> Figure:
    """Draw a panel per model and attack: each library's time in units of ours, with its range."""
    models, attacks = list(table["model_id"].unique()), list(table["attack"].unique())
    libraries = list(table["library"].unique())[::-1]  # first on top
    with figure_style():
        size = (2.3 * len(attacks) + 1.6, (0.25 * len(libraries) + 0.6) * len(models) + 0.5)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(models), len(attacks), squeeze=False, sharex=True, sharey=True)
        for line, model in zip(panels, models, strict=True):
            for panel, attack in zip(line, attacks, strict=True):
                part = table[(table["model_id"] == model) & (table["attack"] == attack)]
                _draw_panel(panel, part, libraries)
            line[0].annotate(model, (0, 1.03), xycoords="axes fraction", va="bottom", fontsize=7.5)
        for top, bottom, attack in zip(panels[0], panels[-1], attacks, strict=True):
            top.set_title(attack, pad=18)
            bottom.set_xlabel("time, in units of ours")
        axes = panels[0, 0]  # the others share its limits and ticks
        axes.set_xscale("log")
        axes.set_xlim(0.7 * min(1, table["ratio_low"].min()), 4 * table["ratio_high"].max())
        axes.xaxis.set_major_locator(FixedLocator([0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_yticks(range(len(libraries)), libraries)
        axes.set_ylim(-0.6, len(libraries) - 0.4)
    return figure


def _draw_panel(panel: Axes, table: pd.DataFrame, libraries: list[str]) -> None:
    """Draw one model under one attack: a row per library, with its seconds."""
    colours = sns.color_palette("colorblind")
    panel.axvline(1, color="0.8", linewidth=1, zorder=0)
    for row in table.to_dict(orient="records"):
        y, ratio = libraries.index(row["library"]), row["ratio"]
        spread = [[ratio - row["ratio_low"]], [row["ratio_high"] - ratio]]
        colour = colours[(len(libraries) - 1 - y) % len(colours)]
        panel.errorbar(ratio, y, xerr=spread, fmt="o", color=colour, capsize=2)
        panel.annotate(
            f"{row['seconds']:.3g} s",
            (row["ratio_high"], y),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
        )
