"""Pair the rows of two runs by image: by hash if both have hashes, else by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robust_ham.analysis.run import Run
from robust_ham.errors import RequestError


class OtherImagesError(ValueError):
    """Two tables have different images, though they share some."""


def pair_rows(
    first: tuple[Run, pd.DataFrame], other: tuple[Run, pd.DataFrame]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Align the rows of one network and attack in two runs by image.

    Both are in the order of the first and have its ``sample_id``.

    Raises:
        OtherImagesError: the numbers of images differ, or, without hashes, data sets or splits.
        RequestError: a ``sample_id`` is a different image in each run, its label differs, or the
            runs have no image in common; the message names the image.
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
    """Return the hash or name of each row's image; None: unknown for some."""
    known = run.images
    if known is None or kind not in known:
        return None
    identities = table["sample_id"].map(known[kind])
    return None if identities.isna().any() else identities.tolist()


def _order(
    tables: tuple[pd.DataFrame, pd.DataFrame], first: list[str], other: list[str], *, hashed: bool
) -> NDArray[np.int64]:
    """Return the rows of the second table in the order of the first's images, (n,)."""
    if first == other:
        return np.arange(len(other))
    ids, other_ids = (table["sample_id"].tolist() for table in tables)
    if not set(first) & set(other):
        name = ids[0] if hashed else first[0]
        raise RequestError(f"image {name} and all others are missing from the other run")
    places = {image: i for i, image in enumerate(_numbered(other))}
    order = [places[image] for image in _numbered(first) if image in places]
    if len(order) == len(first) == len(other):
        return np.array(order, dtype=np.int64)
    by_id = dict(zip(other_ids, other, strict=True))
    for sample_id, image in zip(ids, first, strict=True):
        if hashed and by_id.get(sample_id, image) != image:
            raise RequestError(f"image {sample_id} differs between the runs (SHA-256)")
    raise OtherImagesError("not the same images")


def _numbered(images: Iterable[str]) -> list[tuple[str, int]]:
    """Number the repeats of each image: a data set may contain an image twice."""
    repeats = Counter[str]()
    numbered = []
    for image in images:
        numbered.append((image, repeats[image]))
        repeats[image] += 1
    return numbered


def _check_data(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Refuse images of different data sets or splits."""
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
