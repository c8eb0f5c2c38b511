"""Figures of possible explanations: other axes, learned kernels, spectra, bands, transfer."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from robust_ham.analysis.metrics import METRICS, headline_metric
from robust_ham.analysis.run import Run
from robust_ham.analysis.statistics import rank_correlation
from robust_ham.report.figures.labels import attack_titles, metric_label, window_label
from robust_ham.report.figures.lines import AXES, MANY_POINTS, draw_arms
from robust_ham.report.figures.robustness import primary_panels
from robust_ham.report.figures.style import (
    WINDOW_STYLES,
    figure_style,
    legend_below,
    new_figure,
    panel_grid,
    panel_matrix,
    window_colour,
    window_marker,
)

KERNELS = {
    "effective_width_learned": "effective width, learned",
    "effective_taps": "effective taps",
    "side_lobe_energy": "side-lobe energy (share)",
    "bandwidth": "bandwidth (share)",
    "edge_energy": "edge energy (share)",
}


def axes_figure(run: Run, curves: pd.DataFrame) -> Figure:
    """Draw the primary measures against every quantity that grows with k.

    A row per measure, a column per axis; small points are seeds, numbers beside markers are k.
    """
    rows = primary_panels(run, curves)
    columns = [name for name in AXES if curves[name].notna().any()]
    with figure_style():
        figure, panels, firsts = panel_matrix(len(rows), len(columns), 2.6, 2.1)
        for line, (attack_id, metric, title) in zip(panels, rows, strict=True):
            part = curves[(curves["attack"] == attack_id) & (curves["metric"] == metric)]
            for axes, name in zip(line, columns, strict=True):
                draw_arms(axes, part, name, size=4)
            label = f"{title}: {metric_label(run, attack_id, metric)}"
            for first in firsts:
                line[first].set_ylabel(textwrap.fill(label, 26), fontsize=8)
            if METRICS[metric].unit == "share":
                line[0].yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        for axes, name in zip(panels[-1], columns, strict=True):
            axes.set_xlabel(AXES[name])
        legend_below(figure)
    return figure


def kernels_figure(run: Run, table: pd.DataFrame) -> Figure | None:
    """Draw robustness against properties of the learned kernels; ρ: rank correlation."""
    measures = [name for name in KERNELS if table[name].notna().any()]
    attacks = [a for a in _headline_attacks(run) if (table["attack"] == a).any()]
    if not measures or not attacks or table["model_id"].nunique() < 3:
        return None
    titles = attack_titles(run)
    with figure_style():
        figure, panels, firsts = panel_matrix(len(attacks), len(measures), 2.5, 2.2)
        for line, attack_id in zip(panels, attacks, strict=True):
            attack_rows = table[table["attack"] == attack_id]
            metric = headline_metric(run.attacks[attack_id]).id
            label = f"{titles[attack_id]}: {metric_label(run, attack_id, metric)}"
            for first in firsts:
                line[first].set_ylabel(textwrap.fill(label, 26), fontsize=8)
            for axes, name in zip(line, measures, strict=True):
                for window, arm in attack_rows.groupby("window", sort=False):
                    axes.scatter(
                        arm[name],
                        arm["robustness"],
                        s=6 + 3 * arm["kernel_size"],
                        color=window_colour(str(window)),
                        marker=window_marker(str(window)),
                        alpha=0.75,
                        linewidths=0,
                        rasterized=len(attack_rows) > MANY_POINTS,
                        label=window_label(str(window)),
                    )
                pairs = attack_rows[[name, "robustness"]].to_numpy(dtype=float).T
                rho = rank_correlation(*pairs).estimate
                if np.isfinite(rho):
                    axes.set_title(f"ρ = {rho:+.2f}".replace("-", "−"), fontsize=8.5)
        for axes, name in zip(panels[-1], measures, strict=True):
            axes.set_xlabel(KERNELS[name])
        legend_below(figure)
    return figure


def _headline_attacks(run: Run) -> list[str]:
    """Return all attacks, with "best" in place of the minimum-norm attacks that it combines."""
    evaluated = {attack_id for _, attack_id in run.samples}
    members = run.members_of_best
    hidden = {a for best, ids in members.items() if best in evaluated for a in ids}
    return [a for a, c in run.attacks.items() if a not in hidden and not c.in_band]


def spectra_figure(table: pd.DataFrame) -> Figure:
    """Draw the spectra of an attack's perturbations: a panel per window, a colour per k."""
    several = table["family"].nunique() > 1
    panels = list(table.groupby(["family", "window"], sort=False))
    sizes = sorted(table["kernel_size"].unique())
    shades = dict(zip(sizes, sns.color_palette("viridis", len(sizes)), strict=True))
    with figure_style():
        figure, grid = panel_grid(len(panels), 4, 3.2, 2.7, sharex=True, sharey=True)
        for ((family, window), part), axes in zip(panels, grid, strict=True):
            axes.axhline(1, color="0.8", linewidth=0.8)
            for size, arm in part.groupby("kernel_size"):
                axes.plot(
                    arm["frequency"],
                    arm["density"],
                    color=shades[size],
                    label=f"k = {size}",
                    lw=1.4,
                )
            axes.set_yscale("log")
            name = window_label(str(window))
            axes.set_title(f"{name}\n{family}" if several else name)
            axes.set_xlabel("frequency (cycles per pixel)")
            axes.set_ylabel("energy per bin, white = 1")
        legend_below(figure)
    return figure


def bands_figure(run: Run, curves: pd.DataFrame) -> Figure | None:
    """Draw robust area under DeepFool in one frequency band against k, a panel per band."""
    banded = {a: c for a, c in run.attacks.items() if c.in_band}
    shown = {
        attack_id: curves[(curves["attack"] == attack_id) & (curves["metric"] == "robust_area")]
        for attack_id in sorted(banded, key=lambda a: banded[a].band)
    }
    shown = {attack_id: part for attack_id, part in shown.items() if len(part)}
    if not shown:
        return None
    with figure_style():
        figure, panels = panel_grid(len(shown), len(shown), 2.6, 2.5)
        for axes, (attack_id, part) in zip(panels, shown.items(), strict=True):
            band, bands = banded[attack_id].band
            draw_arms(axes, part, "kernel_size")
            ends = {1: " (lowest)", bands: " (highest)"}
            axes.set_title(f"band {band} of {bands}{ends.get(band, '')}")
            axes.set_xlabel(AXES["kernel_size"])
            axes.set_ylabel(metric_label(run, attack_id, "robust_area"))
            axes.set_ylim(bottom=0)
        legend_below(figure)
    return figure


def transfer_figure(table: pd.DataFrame) -> Figure:
    """Draw the share of the source's (rows) images that fool the target (columns)."""
    both = [*table["source_family"], *table["target_family"]]
    families, windows = list(dict.fromkeys(both)), list(WINDOW_STYLES)

    def arms(role: str) -> list[tuple[int, int, int]]:
        """Return (family index, window index, kernel size) of each row, to sort by."""
        columns = (table[f"{role}_{key}"] for key in ("family", "window", "kernel_size"))
        return [
            (families.index(f), windows.index(w), int(k)) for f, w, k in zip(*columns, strict=True)
        ]

    def name(arm: tuple[int, int, int]) -> str:
        family = f" ({families[arm[0]]})" if len(families) > 1 else ""
        return f"{window_label(windows[arm[1]])} {arm[2]}{family}"

    order = [name(arm) for arm in sorted({*arms("source"), *arms("target")})]
    named = table.assign(
        source=[name(arm) for arm in arms("source")], target=[name(arm) for arm in arms("target")]
    )
    matrix = named.pivot_table(index="source", columns="target", values="fooled_rate", sort=False)
    matrix = matrix.reindex(index=order, columns=order)
    with figure_style():
        side = 0.5 * len(order) + 1.8
        figure = new_figure(side + 1, side)
        axes = figure.subplots()
        sns.heatmap(
            100 * matrix,
            ax=axes,
            annot=len(order) <= 20,
            fmt=".0f",
            annot_kws={"fontsize": 7.5},
            cmap="viridis",
            square=True,
            linewidths=0.5,
            cbar_kws={"label": "images that fool the target (%)", "shrink": 0.7},
        )
        axes.set_xlabel("target")
        axes.set_ylabel("made for")
        axes.tick_params(axis="x", rotation=60)
        axes.tick_params(axis="y", rotation=0)
    return figure
