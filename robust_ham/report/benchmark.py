"""A benchmark's table and figure: seconds of each library beside ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from robust_ham.report.style import figure_style, save_figure
from robust_ham.store import write_text

OURS = "robust-ham"


@dataclass(frozen=True)
class Benchmark:
    """Where the page is, and the table to print."""

    page: Path
    header: list[str]
    rows: list[list[str]]


def build_benchmark(folder: Path, table: pd.DataFrame) -> Benchmark:
    """Write ``bench.md`` and ``figures/bench.*`` of a benchmark's ``table``."""
    save_figure(_figure(table), folder / "figures", "bench")
    page = folder / "bench.md"
    header, rows = table_of(table)
    write_text(page, markdown(header, rows))
    return Benchmark(page, *table_of(table, short=True))


_SHORT = (0, 1, 2, 3, 4, 8, 11, 12)


def table_of(table: pd.DataFrame, *, short: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and rows as people read them; ``short``: what a terminal has room for."""
    header = (
        "network|attack|library|seconds|times ours|times floor|forwards|backwards|fooled"
        "|same as ours|median L2|mean L2|mean L∞|memory (MB)"
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
    if short:
        return [header[i] for i in _SHORT], [[row[i] for i in _SHORT] for row in rows]
    return header, rows


def _number(value: Any, form: str) -> str:  # noqa: ANN401 - a cell of a table
    return "" if pd.isna(value) else format(value, form)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _figure(table: pd.DataFrame) -> Figure:
    """One panel per model and attack: seconds per library, from lowest to highest round."""
    models, attacks = table["model_id"].unique(), table["attack"].unique()
    libraries = list(table["library"].unique())
    colours = dict(zip(libraries, sns.color_palette("colorblind"), strict=False))
    with figure_style():
        size = (2.7 * len(attacks) + 1, (0.26 * len(libraries) + 0.7) * len(models))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(models), len(attacks), squeeze=False)
        for line, model in zip(panels, models, strict=True):
            for panel, attack in zip(line, attacks, strict=True):
                here = table[(table["model_id"] == model) & (table["attack"] == attack)]
                here = here.sort_values("seconds", ascending=False)
                middle = here["seconds"]
                spread = [middle - here["seconds_low"], here["seconds_high"] - middle]
                panel.barh(
                    here["library"],
                    middle,
                    xerr=spread,
                    color=[colours[name] for name in here["library"]],
                    error_kw={"elinewidth": 1, "capsize": 2},
                )
                panel.set_xscale("log")
                for y, (name, high, ratio) in enumerate(
                    zip(here["library"], here["seconds_high"], here["ratio"], strict=True)
                ):
                    if name != OURS:
                        panel.annotate(
                            f"{ratio:.1f}×",
                            (high, y),
                            xytext=(4, 0),
                            textcoords="offset points",
                            va="center",
                            fontsize=8,
                        )
                panel.margins(x=0.25)
                panel.set_title(attack if line is panels[0] else "")
                panel.set_xlabel("seconds" if line is panels[-1] else "")
            line[0].set_ylabel(model, fontsize=7.5)
    return figure
