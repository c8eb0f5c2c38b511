"""The gallery figure: clean and attacked images with the predicted classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robust_ham.analysis.arms import arms_of
from robust_ham.analysis.read_tables import Arrays
from robust_ham.analysis.run import Run, load_gallery
from robust_ham.config.datasets import short_class_names
from robust_ham.report.figures.labels import window_label
from robust_ham.report.figures.style import (
    columns_that_fit,
    figure_style,
    new_figure,
)

_IMAGES_PER_ROW = 3


def gallery_figure(run: Run, attack_id: str) -> Figure | None:
    """Draw the first seed of each arm (rows) and its images (columns); None: no gallery.

    Each image is shown clean, then the perturbation magnified to full contrast (unless spatial),
    then attacked, with both predictions.
    """
    rows: list[tuple[str, Arrays]] = []
    for (_, size, window), arm in arms_of(run).items():
        arrays = load_gallery(run, arm[0].model_id, attack_id)
        if arrays is not None:
            rows.append((f"{window_label(window)}\nk = {size}", arrays))
    if not rows:
        return None
    per_image = 2 if is_spatial(rows[0][1]) else 3
    names = short_class_names(run.config.dataset.name)
    with figure_style():
        columns = columns_that_fit(_IMAGES_PER_ROW, 1.05 * per_image) * per_image
        figure = new_figure(1.05 * columns + 0.8, 1.35 * len(rows))
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for axes_row, (label, arrays) in zip(grid, rows, strict=True):
            for axes in axes_row:
                axes.set_xticks([])
                axes.set_yticks([])
                axes.spines[:].set_visible(False)
            axes_row[0].set_ylabel(label, rotation=0, ha="right", va="center")
            for i in range(min(columns // per_image, len(arrays["label"]))):
                _draw(axes_row[i * per_image : (i + 1) * per_image], arrays, i, names)
    return figure


def class_name(label: int, names: list[str] | None) -> str:
    """Return the name of a class, or its number if it has no name."""
    return names[label] if names and 0 <= label < len(names) else str(label)


def magnified(perturbation: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], str]:
    """Return a perturbation (C, H, W) around grey at full contrast, in [0, 1], and the factor."""
    change = perturbation.astype(np.float64)
    largest = np.abs(change).max()
    if not 0 < largest < np.inf:
        return np.full_like(change, 0.5), "none"
    return 0.5 + change / (2 * largest), f"× {0.5 / largest:.0f}"


def is_spatial(arrays: Arrays) -> bool:
    """Whether the attack is spatial: images were transformed, not perturbed."""
    return bool(np.isfinite(arrays["transform"]).any())


def how_far(arrays: Arrays, i: int) -> str:
    """Format the norm of a perturbation, or the angle and shift of a spatial attack."""
    angle, right, down = arrays["transform"][i]
    if is_spatial(arrays):
        return f"{angle:+.0f}°  {right:+g}, {down:+g} px".replace("-", "−")
    return f"L2 {arrays['l2'][i]:.2g}"


def _draw(axes: np.ndarray[Any, Any], arrays: Arrays, i: int, names: list[str] | None) -> None:
    _show(axes[0], arrays["clean"][i] / 255.0)
    axes[0].set_title(class_name(arrays["clean_prediction"][i], names), fontsize=7, pad=2)
    if len(axes) == 3:
        visible, factor = magnified(arrays["perturbation"][i])
        _show(axes[1], visible)
        axes[1].set_title(factor, fontsize=7, pad=2)
    axes[1].set_xlabel(how_far(arrays, i), fontsize=6.5, labelpad=1)
    _show(axes[-1], arrays["adversarial"][i].astype(np.float64))
    fooled = bool(arrays["fooled"][i])
    prediction = class_name(arrays["adversarial_prediction"][i], names)
    axes[-1].set_title(
        prediction if fooled else f"{prediction} (held)",
        fontsize=7,
        pad=2,
        color="#b03000" if fooled else "#222222",
    )


def _show(axes: Axes, image: np.ndarray[Any, Any]) -> None:
    """Draw (C, H, W) in [0, 1]."""
    pixels = np.clip(np.moveaxis(image, 0, -1), 0, 1)
    if pixels.shape[2] == 1:
        axes.imshow(pixels[:, :, 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        axes.imshow(pixels, interpolation="nearest")
