"""Tapering: multiply a k×k slice by the k×k window, and compare the frequency responses.

The slice is learned: it is the slice of median side-lobe energy in the first layer of the zoo's 7×7
baseline with seed 0. Tapering after training shows the effect of the window on a given filter; a
windowed network learns other filters (``robust-ham explain kernels``).
"""

from __future__ import annotations

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from robust_ham.experiments.explain import Explained
from robust_ham.experiments.explain.networks import zoo_networks
from robust_ham.experiments.explain.panels import Filter, filters_figure
from robust_ham.models.kernel_spectra import MEASURES, effective_kernels, measure_kernels
from robust_ham.models.windows import window_2d
from robust_ham.report.figures.style import window_colour

KERNEL_SIZE = 7


def explain() -> Explained:
    """Compare a learned slice, the Hamming window and their product."""
    taps = tapered(learned_slice())
    table = measure(taps)
    header = ["filter", "effective taps", "bandwidth", "side-lobe energy", "edge energy"]
    rows = [
        [str(row["filter"]), f"{row['effective_taps']:.1f}"]
        + [f"{row[name]:.3f}" for name in MEASURES[1:]]
        for row in table.to_dict(orient="records")
    ]
    return Explained(table, draw(taps, table), header, rows)


def learned_slice() -> Tensor:
    """Load the slice (7, 7) described above."""
    by_spec = {(n.spec.kernel_size, n.spec.window, n.spec.seed): n for n in zoo_networks()}
    network = by_spec[KERNEL_SIZE, "none", 0]
    first = next(m for m in network.load().modules() if isinstance(m, torch.nn.Conv2d))
    kernels = effective_kernels(first).flatten(0, 1)  # (N, 7, 7)
    order = measure_kernels(kernels)["side_lobe_energy"].argsort()
    return kernels[int(order[len(order) // 2])]


def tapered(kernel: Tensor) -> Tensor:
    """Stack the slice (h, w), its Hamming window and their product: (3, h, w)."""
    window = window_2d("hamming", *kernel.shape).float()
    return torch.stack([kernel, window, kernel * window])


def measure(taps: Tensor) -> pd.DataFrame:
    """Return a row per filter: ``filter``, the columns of ``measure_kernels``, and ``energy``.

    ``energy``: sum of squared weights relative to the slice.
    """
    table = measure_kernels(taps)
    table.insert(0, "filter", ["slice", "window", "tapered slice"])
    energy = (taps.double() ** 2).sum((1, 2))
    return table.assign(energy=(energy / energy[0]).numpy())


def draw(taps: Tensor, table: pd.DataFrame) -> Figure:
    """Draw slice × window = tapered slice, and the responses below; ∗ is a convolution."""
    kernel, window, product = taps / taps.abs().amax((1, 2), keepdim=True)
    filters = [
        Filter("learned slice", kernel, window_colour("none")),
        Filter("window", window, "0.45", ":"),
        Filter("tapered slice", product, window_colour("hamming"), "--"),
    ]
    peak = table.iloc[0]
    direction = (float(peak["peak_y"]), float(peak["peak_x"]))
    if direction == (0.0, 0.0):
        direction = (0.0, 1.0)
    return filters_figure(filters, direction, (("×", "="), ("∗", "=")))
