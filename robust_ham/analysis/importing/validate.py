"""What rows of text say: values, and what came of every image; the first contradiction is named."""

from __future__ import annotations

import math
import re
from typing import get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robust_ham.analysis.importing.attackbench import NORMS
from robust_ham.analysis.importing.consistency import (
    MODEL,
    check_distances,
    check_images,
    check_outcomes,
    refuse,
)
from robust_ham.analysis.importing.readers import REQUIRED
from robust_ham.analysis.statistics import Values
from robust_ham.config.fields import Window

KNOWN = "label clean_prediction adversarial_prediction forwards backwards".split()
"""Columns of numbers that a table may have, and our own rows always have."""
_MAX_DISTANCE = 1e9
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")
_FLAGS = {"": math.nan, "true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}


def checked_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of text as rows of values, and what came of every image.

    ``status``, ``l2`` and ``linf`` are as in our own rows; ``norm``: none where there are no
    distances; ``sample``, ``sample_id``, ``place``: name, number and place in order of an image;
    ``best_distance``: as the table has it, NaN where the attack has none.

    Raises:
        RequestError: the first value that makes no sense, or contradicts another.
    """
    rows = table[["file", "row", *REQUIRED]].copy()
    for name in REQUIRED:
        refuse(table, name, rows[name] == "", "a name")
    rows["window"] = table["window"].replace("", "none")
    windows = get_args(Window)
    refuse(table, "window", ~rows["window"].isin(windows), f"one of {', '.join(windows)}")
    sizes = _whole(table, "kernel_size", 1, 99)
    refuse(table, "kernel_size", sizes % 2 == 0, "an odd number")
    rows["kernel_size"] = np.nan_to_num(sizes).astype(np.int64)
    rows["seed"] = np.nan_to_num(_whole(table, "seed", 0, 2**31 - 1)).astype(np.int64)
    twice = rows.duplicated([*MODEL, "attack", "sample_id"])
    refuse(table, "sample_id", twice, "an image once for a model and an attack")
    named = table["dataset"][table["dataset"] != ""]
    rows["dataset"] = named.iloc[0] if len(named) else "table"
    other = ~table["dataset"].isin(["", rows["dataset"].iloc[0]])
    refuse(table, "dataset", other, f"one data set, {rows['dataset'].iloc[0]!r:.60}")
    for name in KNOWN[:3]:
        rows[name] = _whole(table, name, 0 if name == "label" else -1, 2**53)
    for name in KNOWN[3:]:
        rows[name] = _numbers(table, name, 0, 2**53, "a number of passes")
    hashed = table["sha256"].str.fullmatch("[0-9a-f]{64}|")
    refuse(table, "sha256", ~hashed.to_numpy(dtype=bool), "64 hexadecimal digits")
    rows["sha256"] = table["sha256"]
    _judge(table, rows)
    rows["best_distance"] = _best_distances(table, rows["status"].to_numpy())
    places, names = pd.factorize(rows["sample_id"])
    numbers = all(_WHOLE.fullmatch(name) for name in names)
    rows["sample"], rows["place"] = rows["sample_id"], places
    rows["sample_id"] = rows["sample_id"].astype(np.int64) if numbers else places
    return rows


def _judge(table: pd.DataFrame, rows: pd.DataFrame) -> None:
    """Add ``norm``, ``status``, ``l2`` and ``linf`` to the rows.

    Raises:
        RequestError: the first row whose values contradict each other.
    """
    found = {norm: _distances(table, norm) for norm in NORMS}
    fooled, correct, invalid, crashed = (
        _flags(table, name) for name in ("fooled", "correct", "invalid", "crashed")
    )

    def in_attack(values: Values) -> NDArray[np.bool_]:
        """Whether any row of the same attack has a value, (n,)."""
        known = pd.Series(~np.isnan(values), index=table.index)
        return np.asarray(known.groupby(table["attack"]).transform("any"))

    has = {norm: in_attack(values) for norm, values in found.items()}
    moved = in_attack(fooled) & ~has["l2"] & ~has["linf"]  # in no measurable way
    refuse(table, "fooled", moved & np.isnan(fooled), "true or false")
    refuse(table, "correct", moved & np.isnan(correct), "true or false beside fooled")
    check_distances(table, found)
    norm = _norms(table, has, moved)
    own, other = (
        np.where((norm == "linf") ^ swapped, found["linf"], found["l2"])
        for swapped in (False, True)
    )
    has_other = np.where(norm == "linf", has["l2"], has["linf"])
    unlike = ~moved & has_other & (_kind(own) != _kind(other))
    for name in NORMS:
        refuse(table, name, unlike & (norm != name), "0, a distance or inf as in the other norm")

    wrong = np.where(moved, correct == 0, own == 0)
    refuse(
        table,
        "correct",
        ~np.isnan(correct) & ((correct == 0) != wrong),
        "false where the distance is 0, and only there",
    )
    is_invalid = ((invalid == 1) | (crashed == 1)) & ~wrong
    beaten = np.where(moved, fooled == 1, np.isfinite(own)) & ~wrong & ~is_invalid
    refuse(
        table,
        "fooled",
        ~np.isnan(fooled) & ~wrong & ~is_invalid & ((fooled == 1) != beaten),
        "true where there is a distance, and only there",
    )
    label, clean = (rows[name].to_numpy() for name in KNOWN[:2])
    refuse(
        table,
        "clean_prediction",
        ~np.isnan(label) & ~np.isnan(clean) & ((label != clean) != wrong),
        "another class than the label where the image is wrong without attack, and only there",
    )
    rows["norm"] = np.where(moved, "none", norm)
    outcome = np.select(
        [wrong, is_invalid, beaten], ["already_wrong", "invalid", "fooled"], "survived"
    )
    check_outcomes(table, rows, outcome, fooled, correct, ~moved)
    check_images(table, rows, np.where(wrong, 0.0, 1.0))
    rows["status"], rows["crashed"] = outcome, is_invalid & (crashed == 1)
    for name, values in found.items():
        censored = np.where(wrong, 0.0, np.where(beaten, values, np.inf))
        rows[name] = np.where(~moved & (has[name] | (norm == name)), censored, np.nan)


def _norms(
    table: pd.DataFrame, has: dict[str, NDArray[np.bool_]], moved: NDArray[np.bool_]
) -> NDArray[np.str_]:
    """The norm in which the distances of every row's attack count, (n,)."""
    asked = table["norm"].to_numpy()
    refuse(table, "norm", ~np.isin(asked, ["", *NORMS]), "l2 or linf")
    only_linf = has["linf"].any() and not has["l2"].any()
    usual = np.where(has["l2"] | ~(has["linf"] | only_linf), "l2", "linf")
    norm = pd.Series(np.where(asked == "", usual, asked).astype(str), index=table.index)
    first = norm.groupby(table["attack"]).transform("first")
    refuse(table, "norm", norm != first, "one norm for all rows of the attack")
    measured = np.where(norm == "l2", has["l2"], has["linf"])
    nothing = ~measured & (has["l2"] | has["linf"]) & ~moved
    refuse(table, "norm", nothing, "a norm in which the attack has distances")
    return norm.to_numpy(dtype=str)


def _best_distances(table: pd.DataFrame, status: NDArray[np.str_]) -> Values:
    """Least distances at which an attack passed a fooling image on its way, (n,).

    0 where the image is wrong without attack, ∞ where the attack failed or returned no image, as
    AttackBench counts them; NaN where the attack tells none.
    """
    found = _distances(table, "best_distance")
    told = pd.Series(~np.isnan(found), index=table.index)
    known = told.groupby(table["attack"]).transform("any").to_numpy()
    refuse(table, "best_distance", known & np.isnan(found), "a distance in all rows of the attack")
    refuse(
        table, "best_distance", (status == "fooled") & (found == 0), "a distance of an image fooled"
    )
    ends = np.where(status == "already_wrong", 0.0, np.inf)
    return np.where(known, np.where(status == "fooled", found, ends), np.nan)


def _kind(distances: Values) -> NDArray[np.int64]:
    """0: wrong without attack, 1: fooled, 2: survived."""
    return np.where(distances == 0, 0, np.where(np.isfinite(distances), 1, 2))


def _distances(table: pd.DataFrame, name: str) -> Values:
    """A column of distances, (n,); NaN where it says nothing."""
    expected = f"a distance of 0 to {_MAX_DISTANCE:g}, inf or nothing"
    values = _numbers(table, name, 0, np.inf, expected)
    refuse(table, name, np.isfinite(values) & (values > _MAX_DISTANCE), expected)
    return values


def _whole(table: pd.DataFrame, name: str, low: int, high: int) -> Values:
    """A column of whole numbers, (n,); NaN where it says nothing."""
    expected = f"a whole number of {low} to {high}"
    values = _numbers(table, name, low, high, expected)
    refuse(table, name, ~np.isnan(values) & (values != np.floor(values)), expected)
    return values


def _numbers(table: pd.DataFrame, name: str, low: float, high: float, expected: str) -> Values:
    """A column of numbers, (n,); NaN where it says nothing."""
    parsed = [_number(text) for text in table[name]]
    values = np.array([math.nan if value is None else value for value in parsed])
    unread = np.array([value is None for value in parsed])
    refuse(table, name, unread | (values < low) | (values > high), expected)
    return values


def _number(text: str) -> float | None:
    """None: no number."""
    try:
        number = float(text) if text else math.nan
    except ValueError:
        return None
    return None if text and math.isnan(number) else number


def _flags(table: pd.DataFrame, name: str) -> Values:
    """A column of true (1.0) and false (0.0), (n,); NaN where it says nothing."""
    texts = [text.lower() for text in table[name]]
    refuse(table, name, np.array([text not in _FLAGS for text in texts]), "true or false")
    return np.array([_FLAGS[text] for text in texts])
