"""Side lobes, bandwidth and edges of learned kernels per layer, baseline against windowed.

The measures are those of ``models.kernel_spectra``; for a run, they come from its ``kernels.csv``.
Energy outside the main lobe is leakage. But a kernel that has learned to use few taps passes a wide
band by design, which this number counts as well, so bandwidth is shown too. The energy on the
outermost taps shows how abrupt the truncation is.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from robust_ham.analysis.run import Run
from robust_ham.errors import RequestError
from robust_ham.experiments.explain import Explained
from robust_ham.experiments.explain.networks import zoo_networks
from robust_ham.models.checkpoints import read_card
from robust_ham.regular_files import is_regular
from robust_ham.report.figures.labels import arm_label, window_label
from robust_ham.report.figures.style import (
    FAMILY_LINES,
    figure_style,
    legend_below,
    window_colour,
    window_marker,
)
from robust_ham.runs.jobs.kernels import COLUMNS, kernel_rows
from robust_ham.storage.files import read_csv, reading
from robust_ham.storage.run_folder import RunFolder

LABELS = {
    "side_lobe_energy": "side-lobe energy",
    "bandwidth": "bandwidth",
    "edge_energy": "edge energy",
}
_MOST_NAMES = 6  # layers beyond which numbers replace names


def explain(run: Path | None = None) -> Explained:
    """Summarise the kernels of a run, or of the zoo.

    Raises:
        RequestError: not a run folder, or its ``kernels.csv`` is missing or damaged.
    """
    table, families = zoo_table() if run is None else run_table(run)
    arms = summarise(table, families)
    return Explained(table, draw(arms), *short(arms))


def zoo_table() -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the kernel measures of the zoo, and the family of each network."""
    zoo = zoo_networks()
    tables = [kernel_rows(n.spec, n.load(), read_card(n.card)["weights_sha256"]) for n in zoo]
    families = {network.spec.model_id: network.spec.family for network in zoo}
    return pd.concat(tables, ignore_index=True), families


def run_table(folder: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return ``kernels.csv`` of a run, and the family of each network."""
    run = Run(RunFolder(folder))
    run.folder.refuse_links()
    families = {spec.model_id: spec.family for spec in run.config.model_specs()}
    path = run.folder.kernels
    if not is_regular(path):
        raise RequestError(f"{path}: no such file; rerun the same `robust-ham run` to write it")
    with reading(path):
        table = read_csv(path, keep_default_na=False, na_values="")[COLUMNS]
        table = table[table["model_id"].isin(list(families))]
        table = table.astype({name: float for name in COLUMNS if name.startswith(tuple(LABELS))})
    if table.empty:
        raise RequestError(f"{path}: holds no kernels of this run's networks")
    return table, families


def summarise(table: pd.DataFrame, families: dict[str, str]) -> pd.DataFrame:
    """Average over seeds: a row per family, kernel size, window and layer, in the networks' order.

    Columns: ``family kernel_size window place layer`` (``place``: number of the layer, from 1), and
    median and quartiles of each measure.
    """
    placed = table.assign(
        family=table["model_id"].map(families),
        place=table.groupby("model_id", sort=False).cumcount() + 1,
    )
    keys = ["family", "kernel_size", "window", "place", "layer"]
    measures = [f"{name}{part}" for name in LABELS for part in ("", "_q25", "_q75")]
    arms = placed.groupby(keys, sort=False)[measures].mean().reset_index()
    return arms.sort_values("kernel_size", kind="stable")


def draw(arms: pd.DataFrame) -> Figure:
    """Draw a column per kernel size, a row per measure, layers along x; bars: quartiles."""
    sizes = list(arms["kernel_size"].unique())
    with figure_style():
        size = (max(1.75 * len(sizes), 3.2) + 0.9, 1.75 * len(LABELS) + 0.7)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(LABELS), len(sizes), squeeze=False, sharex="col", sharey="row")
        for column, kernel_size in enumerate(sizes):
            part = arms[arms["kernel_size"] == kernel_size]
            for axes, (measure, label) in zip(panels[:, column], LABELS.items(), strict=True):
                _draw_arms(axes, part, measure, list(arms["family"].unique()))
                if column == 0:
                    axes.set_ylabel(f"{label} (share)")
                if part[measure].isna().all():
                    note = "no side lobe:\nthe main lobe is\nthe whole plane"
                    axes.text(0.5, 0.5, note, transform=axes.transAxes, ha="center", va="center")
            _name_layers(panels[-1, column], part)
            panels[0, column].set_title(f"k = {kernel_size}")
        for line in panels:
            line[0].set_ylim(bottom=-0.02 * line[0].get_ylim()[1])
        legend_below(figure)
    return figure


def _draw_arms(axes: Axes, part: pd.DataFrame, measure: str, families: list[str]) -> None:
    """Draw a line per family and window: medians and quartiles of the kernels."""
    arms = list(part.groupby(["family", "window"], sort=False))
    few = part["place"].max() <= _MOST_NAMES
    for i, ((family, window), arm) in enumerate(arms):
        shown = arm[arm[measure].notna()]
        place = shown["place"] + (0.16 * (i - (len(arms) - 1) / 2) if few else 0)
        low, high = shown[f"{measure}_q25"], shown[f"{measure}_q75"]
        colour = window_colour(str(window))
        axes.plot(
            place,
            shown[measure],
            FAMILY_LINES[families.index(str(family)) % len(FAMILY_LINES)],
            color=colour,
            marker=window_marker(str(window)),
            markersize=4 if few else 2.5,
            linewidth=1.2,
            label=arm_label(str(window), str(family), families),
        )
        if few:
            spread = [shown[measure] - low, high - shown[measure]]
            axes.errorbar(place, shown[measure], spread, fmt="none", color=colour, capsize=2)
        else:
            axes.fill_between(place, low, high, color=colour, alpha=0.15, linewidth=0)


def _name_layers(axes: Axes, part: pd.DataFrame) -> None:
    """Label the layers by name if there are few, else by number."""
    count = int(part["place"].max())
    if count <= _MOST_NAMES and part["family"].nunique() == 1:
        named = part.drop_duplicates("place").sort_values("place")
        axes.set_xticks(named["place"], named["layer"])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("layer")
    axes.set_xlim(0.5, count + 0.5)


def short(arms: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: medians per kernel size and layer, with windows side by side.

    For networks of many layers, return the mean over layers.
    """
    windows = list(arms["window"].unique())
    header = ["network", "k", "layer"]
    header += [f"{label}, {window_label(w)}" for label in LABELS.values() for w in windows]
    if arms["place"].max() > _MOST_NAMES:
        keys = ["family", "kernel_size", "window"]
        arms = arms.groupby(keys, sort=False)[list(LABELS)].mean().reset_index()
        arms = arms.assign(place=0, layer="mean")
    rows = []
    for (family, size, _), part in arms.groupby(["family", "kernel_size", "place"], sort=False):
        row = [str(family), str(size), str(part["layer"].iloc[0])]
        for measure in LABELS:
            by_window = part.set_index("window")[measure]
            row += [_number(by_window.get(window)) for window in windows]
        rows.append(row)
    return header, rows


def _number(value: float | None) -> str:
    return "–" if value is None or pd.isna(value) else f"{value:.3f}"
