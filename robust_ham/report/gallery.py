"""The gallery as the page shows it: small pictures inside the page, words beside them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from robust_ham.analysis.curves import arms_of
from robust_ham.analysis.run import Run
from robust_ham.report.figures.gallery import (
    CLASS_NAMES,
    Arrays,
    class_name,
    how_far,
    is_spatial,
    load_gallery,
    magnified,
)
from robust_ham.report.figures.robustness import attack_title
from robust_ham.report.figures.style import WINDOW_LABELS
from robust_ham.report.inline import data_uri

_PER_MODEL = 4
_EXACT = 64
"""Pixels: smaller images are shown as they are, larger ones compressed with a little loss."""
_LARGEST = 112


@dataclass(frozen=True)
class Picture:
    """One image of a card: an address that holds it, and what it is."""

    source: str
    alternative: str


@dataclass(frozen=True)
class Card:
    """One attacked image: clean, perturbation magnified (unless it was moved), attacked."""

    pictures: list[Picture]
    before: str
    after: str
    fooled: bool
    distance: str
    factor: str


@dataclass(frozen=True)
class Strip:
    """Cards of one model under one attack."""

    attack: str
    title: str
    network: str
    window: str
    cards: list[Card]


def strips(run: Run) -> Iterator[Strip]:
    """Every attack's images on the first seed of every arm, where a gallery was kept."""
    names = CLASS_NAMES.get(run.config.dataset.name)
    several = len({family for family, _, _ in arms_of(run)}) > 1
    for attack_id in run.config.attacks:
        for (family, size, window), arm in arms_of(run).items():
            arrays = load_gallery(run, arm[0].model_id, attack_id)
            if arrays is not None and len(arrays["label"]):
                count = min(_PER_MODEL, len(arrays["label"]))
                yield Strip(
                    attack_id,
                    attack_title(run, attack_id),
                    f"{family}, k = {size}" if several else f"k = {size}",
                    WINDOW_LABELS[window],
                    [_card(arrays, i, names) for i in range(count)],
                )


def _card(arrays: Arrays, i: int, names: list[str] | None) -> Card:
    before = class_name(int(arrays["clean_prediction"][i]), names)
    after = class_name(int(arrays["adversarial_prediction"][i]), names)
    pictures = [Picture(_address(arrays["clean"][i] / 255.0), f"clean image, seen as {before}")]
    factor = ""
    if not is_spatial(arrays):
        visible, factor = magnified(arrays["perturbation"][i])
        pictures.append(Picture(_address(visible), f"perturbation, {factor}"))
    attacked = arrays["adversarial"][i].astype(np.float64)
    pictures.append(Picture(_address(attacked), f"attacked image, seen as {after}"))
    fooled = bool(arrays["fooled"][i])
    return Card(pictures, before, after, fooled, how_far(arrays, i), factor)


def _address(image: np.ndarray[Any, Any]) -> str:
    """(C, H, W) in [0, 1] as a data address: PNG, or JPEG where it is large."""
    pixels = np.nan_to_num(np.clip(np.moveaxis(image, 0, -1), 0, 1))
    picture = Image.fromarray(
        np.rint(255 * pixels).astype(np.uint8).squeeze(-1)
        if pixels.shape[2] == 1
        else np.rint(255 * pixels).astype(np.uint8)
    )
    content, exact = io.BytesIO(), max(picture.size) <= _EXACT
    picture.thumbnail((_LARGEST, _LARGEST))
    if exact:
        picture.save(content, "PNG", optimize=True)
    else:
        picture.save(content, "JPEG", quality=80)
    return data_uri(content.getvalue(), "image/png" if exact else "image/jpeg")
