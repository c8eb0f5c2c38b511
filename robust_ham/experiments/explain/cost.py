"""The cost of a convolution against its kernel size, and the additional cost of a window.

Three measurements, of time and of floating-point operations (torch's counter):

- ``convolution``: a k×k convolution (O(HWk²)) and its factorised relative, k×1 then 1×k (O(2HWk)),
  both 32 to 32 channels on 32×32 pixels, float32, without gradients; ratios are to k = 3.
- ``training step``: forward, backward and update of the paper's CNN (four convolutions of 16 and 32
  channels, 128 colour images of 32×32, in the precision that training uses) with a window, over the
  same without. The baseline is also timed against a copy of itself, which shows the noise.
- ``inference``: the float32 forward pass of the windowed network, as it is and folded, over that of
  the baseline.

A round times each contestant once, in the reverse order of the previous round; ratios are computed
within each round. A window adds one product of weights to each forward and backward pass; a folded
window adds nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from robust_ham.config.models import CnnGroup
from robust_ham.experiments.explain import Explained
from robust_ham.experiments.explain.panels import Colour
from robust_ham.models.build import build
from robust_ham.models.layers import conv2d
from robust_ham.models.size import FlopCounter, num_flops
from robust_ham.models.surgery import folded
from robust_ham.report.figures.style import figure_style, legend_below, window_colour
from robust_ham.storage import signals
from robust_ham.training.train import resolve_precision

SIZES = (3, 5, 7, 9, 11)
ROUNDS = 41
BAR = 0.03
"""Largest share that a window may add to the time of a training step."""

_CHANNELS, _SIDE, _BATCH = 32, 32, 128
_CPU = torch.device("cpu")
_CONVOLUTION_REPEATS = 5  # one takes less than a millisecond

Work = Callable[[], object]


def explain(sizes: Sequence[int] = SIZES, rounds: int = ROUNDS) -> Explained:
    """Measure on the CPU, with torch's number of threads."""
    rows = _convolutions(sizes, rounds)
    for size in sizes:
        rows += _training_steps(size, rounds)
        rows += _inference(size, rounds)
    table = pd.DataFrame(rows).assign(threads=torch.get_num_threads(), rounds=rounds)
    return Explained(table, draw(table), *short(table))


def time_rounds(
    contestants: dict[Any, Work], rounds: int, repeats: int = 1
) -> dict[Any, list[float]]:
    """Return the seconds of each contestant in each round, after a warm-up round.

    A round calls each contestant ``repeats`` times; odd rounds use the reverse order.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in contestants}
    for number in range(-1, rounds):
        signals.check()
        order = list(contestants)
        for name in order if number % 2 == 0 else reversed(order):
            start = time.perf_counter()
            for _ in range(repeats):
                contestants[name]()
            if number >= 0:
                seconds[name].append((time.perf_counter() - start) / repeats)
    return seconds


def _rows(
    measurement: str,
    seconds: dict[Any, list[float]],
    reference: dict[Any, Any],
    flops: dict[Any, int],
) -> list[dict[str, Any]]:
    """Return a row per contestant (name, kernel size), with ratios to its reference."""
    rows = []
    for (name, size), times in seconds.items():
        reference_times = seconds[reference[name, size]]
        ratios = [a / b for a, b in zip(times, reference_times, strict=True)]
        rows.append(
            {
                "what": measurement,
                "contestant": name,
                "kernel_size": size,
                "flops": flops.get((name, size)),
                **_spread("seconds", times),
                **_spread("ratio", ratios),
            }
        )
    return rows


def _spread(name: str, values: list[float]) -> dict[str, float]:
    """Return median, quartiles, lowest and highest."""
    quartiles = np.quantile(values, [0.5, 0.25, 0.75, 0, 1]).tolist()
    parts = ("", "_q25", "_q75", "_low", "_high")
    return {f"{name}{part}": value for part, value in zip(parts, quartiles, strict=True)}


def _convolutions(sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Measure 2-D and factorised convolutions relative to the smallest kernel."""
    images = torch.rand(16, _CHANNELS, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    images = images.to(memory_format=torch.channels_last)
    work: dict[Any, Work] = {}
    flops = {}
    for size in sizes:
        for name, factorised in (("2-D", False), ("factorised", True)):
            layer = conv2d(_CHANNELS, _CHANNELS, size, factorised=factorised)
            layer = layer.to(memory_format=torch.channels_last)
            work[name, size] = _without_gradient(layer, images)
            flops[name, size] = num_flops(layer, (_CHANNELS, _SIDE, _SIDE)) * len(images)
    seconds = time_rounds(work, rounds, _CONVOLUTION_REPEATS)
    return _rows("convolution", seconds, {key: (key[0], sizes[0]) for key in work}, flops)


def _without_gradient(model: nn.Module, images: Tensor) -> Work:
    @torch.no_grad()
    def forward() -> Tensor:
        output: Tensor = model(images)
        return output

    return forward


def _network(size: int, window: str) -> nn.Module:
    """Build the paper's CNN in the memory format of training."""
    spec = CnnGroup(depth=4, widths=(16, 32), first_kernel="same", kernel_size=size, window=window)
    return build(spec, 3, 10).to(memory_format=torch.channels_last)


def _images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(_BATCH, 3, _SIDE, _SIDE, generator=generator)
    labels = torch.randint(10, (_BATCH,), generator=generator)
    return images.to(memory_format=torch.channels_last), labels


def training_step(model: nn.Module) -> Work:
    """Return one step of ``training.train`` on one batch, without data loading."""
    images, labels = _images()
    bf16 = resolve_precision("auto", _CPU) == "bf16"
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def _training_steps(size: int, rounds: int) -> list[dict[str, Any]]:
    models = {
        "baseline": _network(size, "none"),
        "baseline again": _network(size, "none"),
        "windowed": _network(size, "hamming"),
    }
    work: dict[Any, Work] = {(name, size): training_step(m) for name, m in models.items()}
    flops = {}
    for key, step in work.items():
        with FlopCounter() as counter:
            step()
        flops[key] = counter.get_total_flops()
    seconds = time_rounds(work, rounds)
    return _rows("training step", seconds, dict.fromkeys(work, ("baseline", size)), flops)


def _inference(size: int, rounds: int) -> list[dict[str, Any]]:
    images, _ = _images()
    windowed = _network(size, "hamming")
    models = {
        "baseline": _network(size, "none"),
        "baseline again": _network(size, "none"),
        "windowed": windowed,
        "folded": folded(windowed),
    }
    work: dict[Any, Work] = {
        (name, size): _without_gradient(model.eval(), images) for name, model in models.items()
    }
    flops = {(name, size): num_flops(m, (3, _SIDE, _SIDE)) * _BATCH for name, m in models.items()}
    seconds = time_rounds(work, rounds)
    return _rows("inference", seconds, dict.fromkeys(work, ("baseline", size)), flops)


def short(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: medians, with lowest and highest round in brackets."""
    header = ["measured", "contestant", "k", "MFLOPs", "time (ms)", "ratio"]
    rows = []
    for row in table.to_dict(orient="records"):
        ratio = f"{row['ratio']:.3f} ({row['ratio_low']:.3f} … {row['ratio_high']:.3f})"
        times = f"{1e3 * row['seconds']:.2f}"
        flops = f"{row['flops'] / 1e6:.1f}"
        measurement, name = str(row["what"]), str(row["contestant"])
        rows.append([measurement, name, str(row["kernel_size"]), flops, times, ratio])
    return header, rows


def draw(table: pd.DataFrame) -> Figure:
    """Draw time and operations relative to the smallest k, and the cost of a window.

    Markers: medians; bars: quartiles of the rounds.
    """
    with figure_style():
        figure = Figure(figsize=(9.6, 3.9), layout="constrained")
        growth, training, inference = figure.subplots(1, 3)
        _draw_growth(growth, table[table["what"] == "convolution"])
        windowed = {"windowed": (window_colour("hamming"), "s")}
        control: dict[str, tuple[Colour, str]] = {"baseline again": ("0.45", "o")}
        inlined = {"folded": (window_colour("none"), "D")}
        _draw_ratios(training, table[table["what"] == "training step"], windowed | control)
        bar = {"color": "0.3", "linewidth": 1, "linestyle": ":", "label": f"bar: {BAR:.0%}"}
        training.axhline(100 * BAR, **bar)
        training.set_title("one training step")
        passes = table[table["what"] == "inference"]
        _draw_ratios(inference, passes, windowed | control | inlined)
        inference.set_title("inference")
        legend_below(figure)
    return figure


def _draw_growth(axes: Axes, table: pd.DataFrame) -> None:
    """Draw the time of both convolutions relative to the smallest k, and the curves k² and 2k."""
    sizes = sorted(table["kernel_size"].unique())
    k = np.linspace(sizes[0], sizes[-1], 100)
    looks = (("2-D", window_colour("none"), "o", 2), ("factorised", "0.45", "^", 1))
    for name, colour, marker, power in looks:
        arm = table[table["contestant"] == name].sort_values("kernel_size")
        flops = (arm["flops"] / arm["flops"].iloc[0]).to_numpy()
        curve = "k²" if power == 2 else "2k"
        unit = f"{1e3 * arm['seconds'].iloc[0]:.2g} ms at k = {sizes[0]}"
        axes.plot(k, (k / sizes[0]) ** power, "--", color=colour, linewidth=1, label=f"∝ {curve}")
        axes.plot(arm["kernel_size"], flops, "x", color=colour, label=f"{name}, FLOPs")
        axes.errorbar(
            arm["kernel_size"],
            arm["ratio"],
            yerr=[arm["ratio"] - arm["ratio_q25"], arm["ratio_q75"] - arm["ratio"]],
            fmt=marker,
            color=colour,
            markersize=5,
            capsize=2,
            label=f"{name}, time ({unit})",
        )
    axes.set_xticks(sizes)
    axes.set_xlabel("kernel size k")
    axes.set_ylabel(f"in units of k = {sizes[0]}")
    axes.set_title("one convolution")


def _draw_ratios(axes: Axes, table: pd.DataFrame, looks: Mapping[str, tuple[Colour, str]]) -> None:
    """Draw the additional time relative to the baseline, in percent."""
    sizes = sorted(table["kernel_size"].unique())
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    for place, (name, (colour, marker)) in enumerate(looks.items()):
        arm = table[table["contestant"] == name].set_index("kernel_size").sort_index()
        arm = 100 * (arm[["ratio", "ratio_q25", "ratio_q75"]] - 1)
        ratio = arm["ratio"]
        axes.errorbar(
            ratio.index + 0.35 * (place - (len(looks) - 1) / 2),
            ratio,
            yerr=[ratio - arm["ratio_q25"], arm["ratio_q75"] - ratio],
            fmt=marker,
            color=colour,
            markersize=4.5,
            capsize=2,
            label=name,
        )
    axes.set_xticks(sizes)
    axes.set_xlabel("kernel size k")
    axes.set_ylabel("more time than the baseline (%)")
