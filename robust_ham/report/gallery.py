"""The gallery of the page: attacked images as cards, embedded in the page."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from robust_ham.analysis.arms import arms_of
from robust_ham.analysis.read_tables import Arrays
from robust_ham.analysis.run import Run, load_gallery
from robust_ham.config.datasets import short_class_names
from robust_ham.report.figures.gallery import (
    class_name,
    how_far,
    is_spatial,
    magnified,
)
from robust_ham.report.figures.labels import attack_titles, window_label
from robust_ham.report.inline import data_uri

_PER_MODEL = 4
_EXACT = 64
"""Pixels per side up to which images are embedded without loss; larger ones become JPEG."""
_LARGEST = 112


@dataclass(frozen=True)
class CardImage:
    """One image of a card: its data URI and its alternative text."""

    source: str
    alternative: str


@dataclass(frozen=True)
class Card:
    """One attacked image: clean, perturbation (unless spatial) magnified, attacked."""

    images: list[CardImage]
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
    """Yield the stored images of each attack on the first seed of each arm."""
    names = short_class_names(run.config.dataset.name)
    several = len({family for family, _, _ in arms_of(run)}) > 1
    titles = attack_titles(run)
    for attack_id in run.config.attacks:
        for (family, size, window), arm in arms_of(run).items():
            arrays = load_gallery(run, arm[0].model_id, attack_id)
            if arrays is not None and len(arrays["label"]):
                count = min(_PER_MODEL, len(arrays["label"]))
                yield Strip(
                    attack_id,
                    titles[attack_id],
                    f"{family}, k = {size}" if several else f"k = {size}",
                    window_label(window),
                    [_card(arrays, i, names) for i in range(count)],
                )


def _card(arrays: Arrays, i: int, names: list[str] | None) -> Card:
    before = class_name(int(arrays["clean_prediction"][i]), names)
    after = class_name(int(arrays["adversarial_prediction"][i]), names)
    clean = _data_uri(arrays["clean"][i] / 255.0)
    images = [CardImage(clean, f"clean image, classified as {before}")]
    factor = ""
    if not is_spatial(arrays):
        visible, factor = magnified(arrays["perturbation"][i])
        images.append(CardImage(_data_uri(visible), f"perturbation, {factor}"))
    attacked = arrays["adversarial"][i].astype(np.float64)
    images.append(CardImage(_data_uri(attacked), f"attacked image, classified as {after}"))
    fooled = bool(arrays["fooled"][i])
    return Card(images, before, after, fooled, how_far(arrays, i), factor)


def _data_uri(image: np.ndarray[Any, Any]) -> str:
    """Encode (C, H, W) in [0, 1] as a data URI: PNG, or JPEG if it is large."""
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
