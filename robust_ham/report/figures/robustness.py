"""Figures of robustness against kernel size, robust accuracy against budget, and training."""

from __future__ import annotations

import textwrap

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from robust_ham.analysis.metrics import METRICS, headline_metric
from robust_ham.analysis.run import Run
from robust_ham.config.attacks import NORM_SYMBOLS
from robust_ham.report.figures.labels import attack_titles, metric_label, window_label
from robust_ham.report.figures.lines import AXES, draw_arms
from robust_ham.report.figures.rows import (
    compares_networks,
    draw_networks,
    network_places,
    networks_height,
)
from robust_ham.report.figures.style import (
    columns_that_fit,
    figure_style,
    legend_below,
    new_figure,
    panel_grid,
    window_colour,
)

_CLEAN = "clean images, whole test split"


def robustness_figure(run: Run, curves: pd.DataFrame) -> Figure:
    """Draw clean accuracy and the primary metric of each attack against kernel size."""
    return _panels(run, curves, primary_panels(run, curves))


def primary_panels(run: Run, curves: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return attack id ("": clean images), metric and title of the primary measures.

    Attacks in a frequency band have a separate figure.
    """
    panels, titles = [], attack_titles(run)
    if (curves["metric"] == "clean_accuracy").any():
        panels.append(("", "clean_accuracy", _CLEAN))
    for attack_id, attack in run.attacks.items():
        metrics = set(curves.loc[curves["attack"] == attack_id, "metric"])
        metric = headline_metric(attack).id
        if metric in metrics and not attack.in_band:
            panels.append((attack_id, metric, titles[attack_id]))
    return panels


def metrics_figure(run: Run, curves: pd.DataFrame, attack_id: str) -> Figure:
    """Draw all metrics of one attack against kernel size."""
    metrics = curves.loc[curves["attack"] == attack_id, "metric"].unique()
    return _panels(run, curves, [(attack_id, metric, "") for metric in metrics])


def metric_figure(run: Run, curves: pd.DataFrame, attack_id: str, metric: str) -> Figure:
    """Draw one metric of one attack ("": clean images) against kernel size."""
    title = attack_titles(run)[attack_id] if attack_id else _CLEAN
    return _panels(run, curves, [(attack_id, metric, title)])


def _panels(run: Run, curves: pd.DataFrame, panels: list[tuple[str, str, str]]) -> Figure:
    by_network, places = compares_networks(run), network_places(curves)
    with figure_style():
        height = max(2.8, networks_height(places)) if by_network else 2.8
        figure, grid = panel_grid(len(panels), 4, 3.1, height, sharey=by_network)
        for (attack_id, metric, title), axes in zip(panels, grid, strict=True):
            part = curves[(curves["attack"] == attack_id) & (curves["metric"] == metric)]
            label, share = metric_label(run, attack_id, metric), METRICS[metric].unit == "share"
            axes.set_title(textwrap.fill(title, 30))
            if by_network:
                draw_networks(axes, part, places)
                axes.set_xlabel(label)
            else:
                draw_arms(axes, part, "kernel_size")
                axes.set_xlabel(AXES["kernel_size"])
                axes.set_ylabel(label)
            if share:
                axis = axes.xaxis if by_network else axes.yaxis
                axis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        legend_below(figure)
    return figure


def budget_figure(run: Run, curves: pd.DataFrame, attack_id: str) -> Figure:
    """Draw robust accuracy against budget.

    A panel per window and a colour per kernel size; for runs that compare networks, a panel per
    family and kernel size and a colour per window. Lines: mean over seeds; bands: range over seeds.
    """
    specs = {spec.model_id: spec for spec in run.specs}
    part = curves[curves["attack"] == attack_id].copy()
    for key in ("window", "kernel_size", "family"):
        part[key] = [getattr(specs[model_id], key) for model_id in part["model_id"]]
    by_network, several = compares_networks(run), part["family"].nunique() > 1
    across, within = ("kernel_size", "window") if by_network else ("window", "kernel_size")
    panels = list(part.groupby(["family", across], sort=False))
    sizes = sorted(part["kernel_size"].unique())
    shades = dict(zip(sizes, sns.color_palette("viridis", len(sizes)), strict=True))
    with figure_style():
        figure, grid = panel_grid(len(panels), 3, 3.4, 2.8, sharex=True, sharey=True)
        for ((family, value), group), axes in zip(panels, grid, strict=True):
            for arm, line in group.groupby(within, sort=not by_network):
                colour = window_colour(str(arm)) if by_network else shades[arm]
                label = window_label(str(arm)) if by_network else f"k = {arm}"
                seeds = line.groupby("budget")["robust_accuracy"]
                mean = seeds.mean()
                axes.plot(mean.index, mean, color=colour, linewidth=1.4, label=label)
                axes.fill_between(
                    mean.index, seeds.min(), seeds.max(), color=colour, alpha=0.2, lw=0
                )
            name = f"k = {value}" if by_network else window_label(str(value))
            if by_network and not value:
                axes.set_title(str(family))
            else:
                axes.set_title(f"{name}\n{family}" if several else name)
            axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
            axes.set_ylim(0, 1)
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
            norm = NORM_SYMBOLS[run.attacks[attack_id].norm]
            axes.set_xlabel(f"{norm} budget")
            axes.set_ylabel("robust accuracy")
        legend_below(figure)
    return figure


def budgets_in_words(run: Run, curves: pd.DataFrame, attack_id: str) -> str:
    """Return every arm's mean robust accuracy at the attack's budgets, for screen readers."""
    arm_of = {spec.model_id: (spec.family, spec.kernel_size, spec.window) for spec in run.specs}
    budgets = run.attacks[attack_id].curve_budgets
    part = curves[(curves["attack"] == attack_id) & curves["budget"].isin(budgets)]
    sentences = []
    for (family, size, window), arm in part.groupby(part["model_id"].map(arm_of), sort=False):
        means = arm.groupby("budget")["robust_accuracy"].mean()
        values = [f"{100 * mean:.1f} % at {budget:.3g}" for budget, mean in means.items()]
        network = f"k = {size} ({family})" if size else family
        sentences.append(f"{window_label(window)}, {network}: {', '.join(values)}")
    return "; ".join(sentences) + "."


def training_figure(histories: pd.DataFrame) -> Figure:
    """Draw loss and accuracy against epoch, means over seeds, with all windows in one panel.

    A column per family and kernel size; training dashed, validation solid. ``histories`` has the
    columns ``family window kernel_size seed epoch`` and those of ``training.csv``.
    """
    networks = list(histories.groupby(["family", "kernel_size"], sort=False))
    several = histories["family"].nunique() > 1
    with figure_style():
        columns = columns_that_fit(min(len(networks), 5), 2.4)
        blocks = -(-len(networks) // columns)
        figure = new_figure(max(2.4 * columns, 3.2) + 0.6, 4.6 * blocks + 0.4)
        grid = figure.subplots(2 * blocks, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for i, ((family, kernel_size), network) in enumerate(networks):
            block, column = divmod(i, columns)
            pair = grid[2 * block : 2 * block + 2, column]
            if i > 0:
                pair[0].sharey(grid[0, 0])
                pair[1].sharey(grid[1, 0])
            for window, arm in network.groupby("window", sort=False):
                mean = arm.groupby("epoch").mean(numeric_only=True)
                for axes, metric in zip(pair, ("loss", "accuracy"), strict=True):
                    for split, line in (("train", "--"), ("validation", "-")):
                        axes.plot(
                            mean[f"{split}_{metric}"],
                            line,
                            color=window_colour(str(window)),
                            linewidth=1.4,
                            label=f"{window_label(str(window))}, {split}",
                        )
                    axes.set_axis_on()
                    axes.set_ylabel(metric)
            pair[0].set_title(f"k = {kernel_size}" + (f"\n{family}" if several else ""))
            pair[0].set_yscale("log")
            pair[1].set_xlabel("epoch")
            pair[1].yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        legend_below(figure)
    return figure
