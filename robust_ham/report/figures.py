"""Figures of a run: robustness against kernel size, and robust accuracy against budget."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from robust_ham.analysis.curves import SHARES, Run
from robust_ham.report.style import (
    FAMILY_LINES,
    WINDOW_LABELS,
    figure_style,
    window_colour,
    window_marker,
)

_METRIC_LABELS = {
    "clean_accuracy": "accuracy",
    "robust_accuracy": "robust accuracy",
    "robust_area": "robust area",
    "median_l2": "median L2 distance",
    "rho_adv": "ρ_adv",
}
_PRIMARY = ("robust_area", "robust_accuracy")


def attack_title(run: Run, attack_id: str) -> str:
    """How figures call an attack."""
    attack = run.config.attacks[attack_id]
    norm = {"l2": " L2", "linf": " L∞"}[attack.norm] if attack.attack == "deepfool" else ""
    names = {
        "deepfool": "DeepFool",
        "superdeepfool": "SuperDeepFool L2",
        "stadv": "stAdv",
        "spatial_grid": "rotation + translation grid",
        "spatial_random": "random rotations + translations",
        "spatial_shift": "whole-pixel shifts",
    }
    return names.get(attack.attack, attack_id) + norm


def metric_label(run: Run, attack_id: str, metric: str) -> str:
    """Axis label with its unit or budget."""
    label = _METRIC_LABELS[metric]
    if not attack_id:
        return label
    attack = run.config.attacks[attack_id]
    unit = "L∞" if attack.norm == "linf" else "L2"
    if metric == "robust_area":
        return f"{label} ({unit} up to {attack.curve_budgets[-1]:.3g})"
    if metric == "robust_accuracy":
        if not attack.has_budget:
            return "accuracy under attack"
        return f"{label} ({unit} > {attack.main_budget:.3g})"
    return label


def robustness_figure(run: Run, curves: pd.DataFrame) -> Figure:
    """Clean accuracy, and the primary metric of each attack, against kernel size."""
    panels = [("", "clean_accuracy", "clean images, whole test split")]
    for attack_id in run.config.attacks:
        have = set(curves.loc[curves["attack"] == attack_id, "metric"])
        metric = next((m for m in _PRIMARY if m in have), None)
        if metric is not None:
            panels.append((attack_id, metric, attack_title(run, attack_id)))
    return _panels(run, curves, panels)


def metrics_figure(run: Run, curves: pd.DataFrame, attack_id: str) -> Figure:
    """All metrics of one attack against kernel size."""
    metrics = curves.loc[curves["attack"] == attack_id, "metric"].unique()
    return _panels(run, curves, [(attack_id, metric, "") for metric in metrics])


def _panels(run: Run, curves: pd.DataFrame, panels: list[tuple[str, str, str]]) -> Figure:
    with figure_style():
        columns = min(len(panels), 4)
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(3.1 * columns, 2.8 * rows + 0.5), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).flat
        for axes, (attack_id, metric, title) in zip(grid, panels, strict=False):
            part = curves[(curves["attack"] == attack_id) & (curves["metric"] == metric)]
            _against_kernel_size(axes, part)
            axes.set_title(title)
            axes.set_ylabel(metric_label(run, attack_id, metric))
            if metric in SHARES:
                axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        for axes in list(grid):
            axes.set_axis_off()
        _legend(figure)
    return figure


def _against_kernel_size(axes: Axes, part: pd.DataFrame) -> None:
    """One line per family and window: mean with 95 % interval, and a small point per seed."""
    families = list(dict.fromkeys(part["family"]))
    sizes = sorted(part["kernel_size"].unique())
    lines = list(part.groupby(["family", "window"], sort=False))
    for i, ((family, window), unsorted) in enumerate(lines):
        arm = unsorted.sort_values("kernel_size")
        offset = 0.25 * (i - (len(lines) - 1) / 2)
        x = arm["kernel_size"].to_numpy(dtype=float) + offset
        y = arm["estimate"].to_numpy(dtype=float)
        low, high = arm["low"].to_numpy(dtype=float), arm["high"].to_numpy(dtype=float)
        drawn = np.isfinite(y) & np.isfinite(low) & np.isfinite(high)
        colour = window_colour(str(window))
        label = WINDOW_LABELS[str(window)] + (f" ({family})" if len(families) > 1 else "")
        axes.errorbar(
            x[drawn],
            y[drawn],
            yerr=np.maximum([y[drawn] - low[drawn], high[drawn] - y[drawn]], 0),
            color=colour,
            marker=window_marker(str(window)),
            markersize=5,
            linewidth=1.4,
            capsize=2.5,
            linestyle=FAMILY_LINES[families.index(str(family)) % len(FAMILY_LINES)],
            label=label,
        )
        for position, seeds in zip(x, arm["per_seed"], strict=True):
            values = np.asarray(seeds, dtype=float)
            values = values[np.isfinite(values)]
            if len(seeds) > 1:
                axes.scatter(
                    np.full(len(values), position + 0.12),
                    values,
                    s=7,
                    color=colour,
                    alpha=0.55,
                    linewidths=0,
                )
    axes.set_xticks(sizes)
    axes.set_xlabel("kernel size k")


def budget_figure(run: Run, curves: pd.DataFrame, attack_id: str) -> Figure:
    """Robust accuracy against budget, a panel per window, a colour per kernel size.

    The line is the mean over seeds, the band spans the seeds.
    """
    specs = {spec.model_id: spec for spec in run.specs}
    part = curves[curves["attack"] == attack_id].copy()
    part["window"] = [specs[m].window for m in part["model_id"]]
    part["kernel_size"] = [specs[m].kernel_size for m in part["model_id"]]
    part["family"] = [specs[m].family for m in part["model_id"]]
    panels = list(part.groupby(["family", "window"], sort=False))
    sizes = sorted(part["kernel_size"].unique())
    colours = dict(zip(sizes, sns.color_palette("viridis", len(sizes)), strict=True))
    with figure_style():
        columns = min(len(panels), 3)
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(3.4 * columns, 2.8 * rows + 0.5), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
        several = part["family"].nunique() > 1
        for axes, ((family, window), group) in zip(grid, panels, strict=False):
            for size, line in group.groupby("kernel_size"):
                seeds = line.groupby("budget")["robust_accuracy"]
                mean = seeds.mean()
                axes.plot(mean.index, mean, color=colours[size], linewidth=1.4, label=f"k = {size}")
                axes.fill_between(
                    mean.index, seeds.min(), seeds.max(), color=colours[size], alpha=0.2, lw=0
                )
            axes.set_title(WINDOW_LABELS[str(window)] + (f" ({family})" if several else ""))
            axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
            axes.set_ylim(0, 1)
            norm = "L∞" if run.config.attacks[attack_id].norm == "linf" else "L2"
            axes.set_xlabel(f"{norm} budget")
            axes.set_ylabel("robust accuracy")
        for axes in list(grid):
            axes.set_axis_off()
        _legend(figure)
    return figure


def training_figure(histories: pd.DataFrame) -> Figure:
    """Training and validation loss against epoch; one line per arm, the mean over its seeds.

    ``histories`` has the columns ``family window kernel_size seed epoch train_loss
    validation_loss``.
    """
    sizes = sorted(histories["kernel_size"].unique())
    families = list(histories["family"].unique())
    several = len(families) > 1
    with figure_style():
        figure = Figure(figsize=(2.6 * len(sizes), 3.0), layout="constrained")
        grid = figure.subplots(1, len(sizes), squeeze=False, sharey=True).flat
        for axes, size in zip(grid, sizes, strict=True):
            part = histories[histories["kernel_size"] == size]
            for (family, window), arm in part.groupby(["family", "window"], sort=False):
                mean = arm.groupby("epoch")[["train_loss", "validation_loss"]].mean()
                colour, name = window_colour(str(window)), WINDOW_LABELS[str(window)]
                name += f" ({family})" if several else ""
                width = 1.4 + 1.4 * families.index(str(family))
                for column, line in (("train_loss", "--"), ("validation_loss", "-")):
                    label = f"{name}, {column.removesuffix('_loss')}"
                    axes.plot(mean[column], line, color=colour, linewidth=width, label=label)
            axes.set_title(f"k = {size}")
            axes.set_xlabel("epoch")
            axes.set_ylabel("loss")
            axes.set_yscale("log")
            axes.label_outer()
        _legend(figure)
    return figure


def _legend(figure: Figure) -> None:
    """One legend for all panels, below them."""
    found = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        found.update(dict(zip(labels, handles, strict=True)))
    figure.legend(
        list(found.values()),
        list(found),
        loc="outside lower center",
        ncols=min(len(found), 6),
        frameon=False,
    )
