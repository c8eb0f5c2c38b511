"""How DeepFool's result depends on its settings, on networks of the zoo.

Vary one setting at a time around ``DEFAULT``. The distance of an image that is never fooled counts
as infinite, so a median is infinite if at least half of the images are never fooled. The default is
200 steps, as in the quickstart, because the windowed 3×3 networks, in effect 1×1, need more than
the usual 50.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import nn

from attacks import deepfool
from attacks.deepfool import PRUNE
from robust_ham.analysis.statistics import median_interval
from robust_ham.config.experiment import DatasetConfig
from robust_ham.data.datasets import Dataset
from robust_ham.evaluation.evaluate import AttackedImages, attacked_images
from robust_ham.evaluation.scoring import judge
from robust_ham.experiments.explain import Explained
from robust_ham.experiments.explain.networks import zoo_networks
from robust_ham.report.figures.labels import window_label
from robust_ham.report.figures.style import (
    FAMILY_LINES,
    figure_style,
    legend_below,
    window_colour,
    window_marker,
)
from robust_ham.report.figures.ticks import log_ticks
from robust_ham.storage import signals

KERNEL_SIZES = (3, 7, 11)
NUM_IMAGES = 100
DEFAULT: dict[str, Any] = {
    "steps": 200,
    "overshoot": 0.02,
    "candidates": 10,
    "prune": PRUNE,
    "precision": "float32",
}
VALUES: dict[str, Sequence[Any]] = {
    "steps": (1, 2, 3, 5, 10, 20, 50, 100, 200),
    "overshoot": (1e-6, 1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1),
    "candidates": (2, 3, 5, 10),
    "prune": (1, 1.5, 2, 2.5, 4, None),
    "precision": ("float32", "float64"),
}
TABLE_COLUMNS = [
    *("window", "kernel_size", "setting", "value", "num_images", "fooled_rate"),
    *("median_l2", "mean_l2", "forwards", "backwards"),
]

LABELS = {
    "steps": "steps",
    "overshoot": "overshoot",
    "candidates": "candidate classes",
    "prune": "pruning factor",
    "precision": "precision",
}

_LOGARITHMIC = ("steps", "overshoot")
_WIDTHS = {"steps": 1.5, "overshoot": 1.5, "candidates": 1.0, "prune": 1.25, "precision": 0.7}
_SEED = 0
_CPU = torch.device("cpu")
_PRECISIONS = {"float32": torch.float32, "float64": torch.float64}


def explain(
    kernel_sizes: Sequence[int] = KERNEL_SIZES,
    num_images: int = NUM_IMAGES,
    values: Mapping[str, Sequence[Any]] = VALUES,
) -> Explained:
    """Attack the networks of seed 0 on the same class-balanced test images, on the CPU.

    Args:
        kernel_sizes: kernel sizes of the networks, baseline and windowed.
        num_images: attacked images; the table counts the correctly classified ones.
        values: the values of each setting, including the default.
    """
    test = Dataset(DatasetConfig(name="fashion_mnist")).test
    attacked = attacked_images(test, num_images, _SEED)
    rows = []
    for network in zoo_networks():
        spec = network.spec
        if spec.seed == _SEED and spec.kernel_size in kernel_sizes:
            labels = {"window": spec.window, "kernel_size": spec.kernel_size}
            rows += [labels | row for row in vary(network.load(), attacked, values)]
    table = pd.DataFrame(rows)[TABLE_COLUMNS]
    return Explained(table, draw(table), *short(table))


def vary(
    model: nn.Module, attacked: AttackedImages, values: Mapping[str, Sequence[Any]]
) -> list[dict[str, Any]]:
    """Return a row per setting and value, others at ``DEFAULT``; run equal options only once."""
    measured: dict[tuple[Any, ...], dict[str, float]] = {}
    rows = []
    for setting, tried in values.items():
        for value in tried:
            options = DEFAULT | {setting: value}
            key = tuple(options.values())
            if key not in measured:
                signals.check()
                measured[key] = measure(model, attacked, options)
            rows.append({"setting": setting, "value": _text(value)} | measured[key])
    return rows


def measure(
    model: nn.Module, attacked: AttackedImages, options: Mapping[str, Any]
) -> dict[str, float]:
    """Attack, and score independently in the same precision; ``model`` stays in it.

    Returns:
        Over the ``num_images`` correctly classified images: ``fooled_rate``, ``median_l2`` (never
        fooled: +∞), ``mean_l2`` of the fooled ones, and mean ``forwards`` and ``backwards``.
    """
    others = dict(options)
    dtype = _PRECISIONS[others.pop("precision")]
    model, images = model.to(dtype), attacked.images.to(dtype)
    outcome = deepfool(model, images, attacked.labels, norm="l2", **others)
    samples = judge(model, images, attacked.labels, outcome, _CPU)
    samples = samples[samples["status"] != "already_wrong"]
    fooled = samples["status"] == "fooled"
    return {
        "num_images": len(samples),
        "fooled_rate": fooled.mean(),
        "median_l2": median_interval(samples["l2"].to_numpy()).estimate,
        "mean_l2": samples.loc[fooled, "l2"].mean(),
        "forwards": samples["forwards"].mean(),
        "backwards": samples["backwards"].mean(),
    }


def _text(value: object) -> str:
    return "none" if value is None else str(value)


def short(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: median L2 of every network, and the share fooled if not all are."""
    networks = table[["window", "kernel_size"]].drop_duplicates().itertuples(index=False)
    header = ["setting", "value"]
    header += [f"{window_label(window)}, k = {size}" for window, size in networks]
    rows = []
    for (setting, value), part in table.groupby(["setting", "value"], sort=False):
        row = [LABELS[str(setting)], str(value)]
        for median, rate in zip(part["median_l2"], part["fooled_rate"], strict=True):
            row.append(f"{median:.4f}" + (f" ({rate:.0%})" if rate < 1 else ""))
        rows.append(row)
    return header, rows


def relative(table: pd.DataFrame) -> pd.Series:
    """Divide ``median_l2`` by that of the same network at the default."""
    at_default = table["value"] == table["setting"].map(lambda name: _text(DEFAULT[name]))
    networks = ["window", "kernel_size"]
    default = table[at_default].drop_duplicates(networks).set_index(networks)["median_l2"]
    reference = default.loc[pd.MultiIndex.from_frame(table[networks])].to_numpy()
    ratio: pd.Series = table["median_l2"] / reference
    return ratio


def draw(table: pd.DataFrame) -> Figure:
    """Draw a column per setting: median distance relative to the default, and passes per image.

    Steps have a separate scale of distances; infinite distances are drawn at the upper edge.
    """
    table = table.assign(ratio=relative(table), passes=table["forwards"] + table["backwards"])
    settings = list(table["setting"].unique())
    widths = [_WIDTHS[setting] for setting in settings]
    with figure_style():
        figure = Figure(figsize=(11.4, 4.9), layout="constrained")
        panels = figure.subplots(
            2, len(settings), squeeze=False, sharex="col", gridspec_kw={"width_ratios": widths}
        )
        for setting, (distance, cost) in zip(settings, panels.T, strict=True):
            part = _placed(table[table["setting"] == setting], setting)
            _draw_networks(distance, part, "ratio")
            _draw_networks(cost, part, "passes")
            _name_values(cost, part, setting)
            default = part.loc[part["value"] == _text(DEFAULT[setting]), "x"].iloc[0]
            for axes in (distance, cost):
                axes.axvline(default, color="0.9", linewidth=8, zorder=0, label="default")
            others = table.loc[(table["setting"] == "steps") == (setting == "steps")]
            _fit(distance, others["ratio"])
            cost.set_yscale("log")
            low, high = table["passes"].min() / 1.3, table["passes"].max() * 1.3
            cost.set_ylim(low, high)
            cost.set_yticks(log_ticks(low, high))
            cost.yaxis.set_major_formatter("{x:g}")
            cost.yaxis.set_minor_locator(NullLocator())
        if not np.isfinite(table["ratio"]).all():
            look = {"color": "0.4", "markerfacecolor": "white", "markersize": 5}
            panels[0, 0].plot([], [], "o", label="∞: at least half survive", **look)
        panels[0, 0].set_ylabel("median L2 / at the default")
        panels[1, 0].set_ylabel("passes per image")
        legend_below(figure)
    return figure


def _placed(part: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Add ``x``: the value on a logarithmic axis, else its position in the order tried."""
    if setting in _LOGARITHMIC:
        return part.assign(x=part["value"].astype(float))
    return part.assign(x=pd.factorize(part["value"])[0])


def _name_values(axes: Axes, part: pd.DataFrame, setting: str) -> None:
    axes.set_xlabel(LABELS[setting])
    if setting in _LOGARITHMIC:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        named = part.drop_duplicates("value")
        axes.set_xticks(named["x"], named["value"])
        axes.set_xlim(-0.5, len(named) - 0.5)


def _fit(axes: Axes, ratios: pd.Series) -> None:
    """Set limits that include the finite ratios, with room above for the infinite ones."""
    finite = ratios[ratios < math.inf]
    room = 0.08 * (finite.max() - finite.min()) + 1e-3
    top = 3 * room if len(finite) < len(ratios) else room
    axes.set_ylim(finite.min() - room, finite.max() + top)


def _draw_networks(axes: Axes, part: pd.DataFrame, column: str) -> None:
    """Draw a line per network; infinite values as hollow markers at the upper edge."""
    sizes, windows = list(part["kernel_size"].unique()), list(part["window"].unique())
    for (window, size), line in part.groupby(["window", "kernel_size"], sort=False):
        name = str(window)
        finite = line[column] < math.inf
        colour, marker = window_colour(name), window_marker(name)
        axes.plot(
            line.loc[finite, "x"],
            line.loc[finite, column],
            FAMILY_LINES[sizes.index(size) % len(FAMILY_LINES)],
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=1.2,
            label=f"{window_label(name)}, k = {size}",
        )
        if not finite.all():
            beyond = line.loc[~finite, "x"]
            axes.plot(
                beyond,
                np.full(len(beyond), 0.97 - 0.06 * windows.index(name)),
                marker,
                color=colour,
                markersize=5,
                markerfacecolor="white",
                transform=axes.get_xaxis_transform(),
            )
