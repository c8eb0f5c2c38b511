"""Refuse labels that cannot be right: out of range, incomplete, or cut from ordered classes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from robust_ham.config.datasets import DATASETS
from robust_ham.data.splits import MAX_CLASSES
from robust_ham.errors import RequestError, printable

log = logging.getLogger(__name__)


def check_labels(
    labels: NDArray[np.int64], data_set: str, where: Path, num_named: int | None = None
) -> int:
    """Check labels, and return the number of classes.

    This is the number of classes of a named data set; else ``num_named``, the number of class
    names in the files; else the largest label + 1.

    Raises:
        RequestError: labels are out of range, do not begin at 0, have one class only, or lack a
            class.
    """
    if not len(labels):
        return 0
    low, high = int(labels.min()), int(labels.max())
    known = DATASETS.get(data_set)
    num_classes = known.num_classes if known else num_named or high + 1
    if high >= MAX_CLASSES:
        raise RequestError(
            f"{where}: label out of range: expected below {MAX_CLASSES:,}, got {high:,}"
        )
    if low < 0 or high >= num_classes:
        hint = "; labels must begin at 0, not at 1" if low == 1 and high == num_classes else ""
        raise RequestError(
            f"{where}: label out of range: expected 0 … {num_classes - 1}, "
            f"got {low if low < 0 else high}{hint}"
        )
    if low == high and (known is None or len(labels) > 1):
        raise RequestError(f"{where}: expected labels of at least 2 classes, got only {low}")
    counts = np.bincount(labels, minlength=num_classes)
    missing = np.flatnonzero(counts == 0)
    if known is None and low > 0 and num_named is None:
        raise RequestError(f"{where}: labels begin at {low}: expected 0 … {high - low}")
    if len(missing) and (known is None or _is_unlikely(counts, np.ones(num_classes))):
        raise RequestError(
            f"{where}: no image of class {missing[0]}: expected images of all {num_classes} classes"
        )
    return num_classes


def check_cut(labels: Tensor, kept: slice, key: str, source: str) -> None:
    """Warn if the part of a split that ``dataset.<key>`` selects lacks classes.

    Raises:
        RequestError: it lacks them because the images are ordered by class.
    """
    stored = labels.numpy()
    counts, kept_counts = (
        np.bincount(k, minlength=stored.max() + 1) for k in (stored, stored[kept])
    )
    num_kept, num_classes = np.count_nonzero(kept_counts), np.count_nonzero(counts)
    if num_kept == num_classes:
        return
    line = f"dataset.{key}: {num_kept} of the {num_classes} classes of {source} occur in the "
    line += f"{len(stored[kept])} images used"
    if _is_unlikely(kept_counts, counts) or _is_ordered_by_class(stored):
        raise RequestError(
            f"{line}, as they are ordered by class; use all images, or shuffle them first"
        )
    log.warning("%s", printable(line))


_DRAWS = 200


def _is_unlikely(counts: NDArray[np.int64], weights: NDArray[Any]) -> bool:
    """Whether all of 200 random draws of as many images, by ``weights``, have more classes."""
    draws = np.random.default_rng(0).multinomial(counts.sum(), weights / weights.sum(), _DRAWS)
    return bool(np.count_nonzero(counts) < np.count_nonzero(draws, axis=1).min())


def _is_ordered_by_class(labels: NDArray[np.int64]) -> bool:
    """Whether neighbours share a class more often than halfway between chance and always."""
    shares = np.bincount(labels) / len(labels)
    chance = float((shares**2).sum())
    return bool((labels[1:] == labels[:-1]).mean() > (1 + chance) / 2)
