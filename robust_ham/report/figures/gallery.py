"""The gallery: clean images, what the attack did to them, and what the model then said."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robust_ham.analysis.curves import arms_of
from robust_ham.analysis.run import Run
from robust_ham.regular_files import is_regular
from robust_ham.report.figures.style import (
    WINDOW_LABELS,
    columns_that_fit,
    figure_style,
    new_figure,
)
from robust_ham.storage.array_files import read_arrays
from robust_ham.storage.files import reading
from robust_ham.storage.receipts import check

CLASS_NAMES = {
    "fashion_mnist": "T-shirt trouser pullover dress coat sandal shirt sneaker bag boot".split(),
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck".split(),
}
_COLUMNS = 3
Arrays = dict[str, np.ndarray[Any, Any]]


def load_gallery(run: Run, model_id: str, attack_id: str) -> Arrays | None:
    """The stored images of one model and attack; None if none were kept."""
    path = run.folder.gallery(model_id, attack_id)
    if not is_regular(path) or not run.config.evaluation.gallery:
        return None
    check(run.folder, run.folder.samples(model_id, attack_id), path)
    with reading(path):
        return _checked(read_arrays(path, _MAX_BYTES))


_KINDS = {"label": "iu", "clean_prediction": "iu", "adversarial_prediction": "iu", "fooled": "b"}
_KINDS |= {"l2": "f", "transform": "f", "clean": "u", "adversarial": "f", "perturbation": "f"}
_MAX_IMAGES, _MAX_BYTES = 64, 1 << 30


def _checked(arrays: Arrays) -> Arrays:
    """The arrays, if they are those of a gallery.

    Raises:
        KeyError: one is missing.
        ValueError: one is of another shape or kind.
    """
    shape = arrays["clean"].shape
    if len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape or shape[0] > _MAX_IMAGES:
        raise ValueError("not images")
    shapes = dict.fromkeys(("clean", "adversarial", "perturbation"), shape)
    shapes["transform"] = (shape[0], 3)
    for name, kinds in _KINDS.items():
        array = arrays[name]
        if array.dtype.kind not in kinds or array.shape != shapes.get(name, shape[:1]):
            raise ValueError(f"{name}: of another kind or shape")
    return arrays


def gallery_figure(run: Run, attack_id: str) -> Figure | None:
    """Rows are models (the first seed of each arm), columns are images; None if none were kept.

    Each image stands clean, then, for perturbations, the perturbation magnified to full contrast,
    then attacked, with both predictions.
    """
    rows: list[tuple[str, Arrays]] = []
    for (_, size, window), arm in arms_of(run).items():
        arrays = load_gallery(run, arm[0].model_id, attack_id)
        if arrays is not None:
            rows.append((f"{WINDOW_LABELS[window]}\nk = {size}", arrays))
    if not rows:
        return None
    per_image = 2 if is_spatial(rows[0][1]) else 3
    names = CLASS_NAMES.get(run.config.dataset.name)
    with figure_style():
        columns = columns_that_fit(_COLUMNS, 1.05 * per_image) * per_image
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
    """What a class is called; its number where nobody knows."""
    return names[label] if names and 0 <= label < len(names) else str(label)


def magnified(perturbation: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], str]:
    """A perturbation (C, H, W) around grey at full contrast, in [0, 1], and by how much."""
    change = perturbation.astype(np.float64)
    largest = np.abs(change).max()
    if not 0 < largest < np.inf:
        return np.full_like(change, 0.5), "none"
    return 0.5 + change / (2 * largest), f"× {0.5 / largest:.0f}"


def is_spatial(arrays: Arrays) -> bool:
    """Whether images were moved, not perturbed."""
    return bool(np.isfinite(arrays["transform"]).any())


def how_far(arrays: Arrays, i: int) -> str:
    """Length of a perturbation; angle, pixels right and pixels down of a move."""
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
