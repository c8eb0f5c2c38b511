"""Which rows of two runs are the same image: hashes decide where both have them, else names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robust_ham.analysis.run import Run
from robust_ham.errors import RequestError


class OtherImagesError(ValueError):
    """Two tables are of other images, though they share some."""


def paired_rows(
    first: tuple[Run, pd.DataFrame], other: tuple[Run, pd.DataFrame]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of one network under one attack in two runs, so that equal places are one image.

    Both are in the order of the first and have its ``sample_id``.

    Raises:
        OtherImagesError: numbers of images differ; without hashes, data sets or splits differ.
        RequestError: a ``sample_id`` is another image in each run, its label differs, or the runs
            have no image in common; the image is named.
    """
    tables = first[1], other[1]
    hashes = [_identity(*side, "sha256") for side in (first, other)]
    if hashes[0] is not None and hashes[1] is not None:
        order = _order(tables, hashes[0], hashes[1], hashed=True)
    else:
        _check_data(*tables)
        names = [_identity(*side, "sample") for side in (first, other)]
        one, two = (
            table["sample_id"].astype(str).tolist() if name is None else name
            for table, name in zip(tables, names, strict=True)
        )
        order = _order(tables, one, two, hashed=False)
    ids = tables[0]["sample_id"].to_numpy()
    paired = tables[1].iloc[order].reset_index(drop=True).assign(sample_id=ids)
    _check_labels(tables[0], paired)
    return tables[0], paired


def _identity(run: Run, table: pd.DataFrame, kind: str) -> list[str] | None:
    """Hash or name of the image of every row; None: the run does not know it of all of them."""
    known = run.images
    if known is None or kind not in known:
        return None
    found = table["sample_id"].map(known[kind])
    return None if found.isna().any() else found.tolist()


def _order(
    tables: tuple[pd.DataFrame, pd.DataFrame], first: list[str], other: list[str], *, hashed: bool
) -> NDArray[np.int64]:
    """Rows of the second table in the order of the images of the first, (n,)."""
    if first == other:
        return np.arange(len(other))
    ids, other_ids = (table["sample_id"].tolist() for table in tables)
    if not set(first) & set(other):
        name = ids[0] if hashed else first[0]
        raise RequestError(f"image {name} and all others are not in the other run")
    places = {image: i for i, image in enumerate(_told_apart(other))}
    order = [places.get(image) for image in _told_apart(first)]
    found = [place for place in order if place is not None]
    if len(found) == len(first) == len(other):
        return np.array(found, dtype=np.int64)
    by_id = dict(zip(other_ids, other, strict=True))
    for sample_id, image in zip(ids, first, strict=True):
        if hashed and by_id.get(sample_id, image) != image:
            raise RequestError(f"image {sample_id} is another in the other run (SHA-256 differs)")
    raise OtherImagesError("not the same images")


def _told_apart(images: Iterable[str]) -> list[tuple[str, int]]:
    """Every image and how often it has come before: an image may be in a data set twice."""
    before = Counter[str]()
    found = []
    for image in images:
        found.append((image, before[image]))
        before[image] += 1
    return found


def _check_data(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Equal names of images of other data, or of another split, are not the same images."""
    for column in {"dataset", "split"} & set(one.columns) & set(other.columns):
        if set(one[column]) != set(other[column]):
            raise OtherImagesError(f"another {column}")


def _check_labels(one: pd.DataFrame, other: pd.DataFrame) -> None:
    labels = [table["label"].to_numpy(dtype=np.float64) for table in (one, other)]
    differ = ~np.isnan(labels[0]) & ~np.isnan(labels[1]) & (labels[0] != labels[1])
    if differ.any():
        i = int(differ.argmax())
        raise RequestError(
            f"image {one['sample_id'].iloc[i]}: expected one label, got {labels[0][i]:g} and "
            f"{labels[1][i]:g}"
        )
