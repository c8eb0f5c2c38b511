"""Convert imported rows of text to values and outcomes; refuse contradictions."""

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
"""Columns of numbers that are optional in tables and required in a run's rows."""
_MAX_DISTANCE = 1e9
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")
_FLAGS = {"": math.nan, "true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}


def validate_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Convert rows of text to values and determine the outcome of each image.

    ``status``, ``l2`` and ``linf`` are as in a run's rows; ``norm`` is ``none`` without distances;
    ``sample``, ``sample_id`` and ``place`` are an image's name, number and position;
    ``best_distance`` is NaN if the attack has none.

    Raises:
        RequestError: a value is invalid or contradicts another; the message names the first.
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
    refuse(table, "sample_id", twice, "each image once per model and attack")
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
    _add_outcomes(table, rows)
    rows["best_distance"] = _best_distances(table, rows["status"].to_numpy())
    places, names = pd.factorize(rows["sample_id"])
    numbers = all(_WHOLE.fullmatch(name) for name in names)
    rows["sample"], rows["place"] = rows["sample_id"], places
    rows["sample_id"] = rows["sample_id"].astype(np.int64) if numbers else places
    return rows


def _add_outcomes(table: pd.DataFrame, rows: pd.DataFrame) -> None:
    """Add ``norm``, ``status``, ``crashed``, ``l2`` and ``linf`` to the rows.

    Raises:
        RequestError: values contradict each other; the message names the first row.
    """
    distances = {norm: _distances(table, norm) for norm in NORMS}
    fooled, correct, invalid, crashed = (
        _flags(table, name) for name in ("fooled", "correct", "invalid", "crashed")
    )

    def in_attack(values: Values) -> NDArray[np.bool_]:
        """Return whether any row of the same attack has a value, (n,)."""
        known = pd.Series(~np.isnan(values), index=table.index)
        return np.asarray(known.groupby(table["attack"]).transform("any"))

    has = {norm: in_attack(values) for norm, values in distances.items()}
    unmeasured = in_attack(fooled) & ~has["l2"] & ~has["linf"]
    refuse(table, "fooled", unmeasured & np.isnan(fooled), "true or false")
    refuse(table, "correct", unmeasured & np.isnan(correct), "true or false beside fooled")
    check_distances(table, distances)
    norm = _norms(table, has, unmeasured)
    distance, other_distance = (
        np.where((norm == "linf") ^ swapped, distances["linf"], distances["l2"])
        for swapped in (False, True)
    )
    has_other = np.where(norm == "linf", has["l2"], has["linf"])
    differs = ~unmeasured & has_other & (_kind(distance) != _kind(other_distance))
    for name in NORMS:
        refuse(table, name, differs & (norm != name), "0, a distance or inf as in the other norm")

    wrong = np.where(unmeasured, correct == 0, distance == 0)
    refuse(
        table,
        "correct",
        ~np.isnan(correct) & ((correct == 0) != wrong),
        "false if and only if the distance is 0",
    )
    is_invalid = ((invalid == 1) | (crashed == 1)) & ~wrong
    is_fooled = np.where(unmeasured, fooled == 1, np.isfinite(distance)) & ~wrong & ~is_invalid
    refuse(
        table,
        "fooled",
        ~np.isnan(fooled) & ~wrong & ~is_invalid & ((fooled == 1) != is_fooled),
        "true if and only if there is a distance",
    )
    label, clean = (rows[name].to_numpy() for name in KNOWN[:2])
    refuse(
        table,
        "clean_prediction",
        ~np.isnan(label) & ~np.isnan(clean) & ((label != clean) != wrong),
        "another class than the label if and only if the image is misclassified",
    )
    rows["norm"] = np.where(unmeasured, "none", norm)
    outcome = np.select(
        [wrong, is_invalid, is_fooled], ["already_wrong", "invalid", "fooled"], "survived"
    )
    check_outcomes(table, rows, outcome, fooled, correct, ~unmeasured)
    check_images(table, rows, np.where(wrong, 0.0, 1.0))
    rows["status"], rows["crashed"] = outcome, is_invalid & (crashed == 1)
    for name, values in distances.items():
        censored = np.where(wrong, 0.0, np.where(is_fooled, values, np.inf))
        rows[name] = np.where(~unmeasured & (has[name] | (norm == name)), censored, np.nan)


def _norms(
    table: pd.DataFrame, has: dict[str, NDArray[np.bool_]], unmeasured: NDArray[np.bool_]
) -> NDArray[np.str_]:
    """Return the norm of each row's attack, (n,)."""
    given = table["norm"].to_numpy()
    refuse(table, "norm", ~np.isin(given, ["", *NORMS]), "l2 or linf")
    only_linf = has["linf"].any() and not has["l2"].any()
    usual = np.where(has["l2"] | ~(has["linf"] | only_linf), "l2", "linf")
    norm = pd.Series(np.where(given == "", usual, given).astype(str), index=table.index)
    first = norm.groupby(table["attack"]).transform("first")
    refuse(table, "norm", norm != first, "one norm for all rows of the attack")
    measured = np.where(norm == "l2", has["l2"], has["linf"])
    nothing = ~measured & (has["l2"] | has["linf"]) & ~unmeasured
    refuse(table, "norm", nothing, "a norm in which the attack has distances")
    return norm.to_numpy(dtype=str)


def _best_distances(table: pd.DataFrame, status: NDArray[np.str_]) -> Values:
    """Return the least distances at which an attack passed a fooling image, (n,).

    As in AttackBench, 0 if the clean image is misclassified, ∞ if the attack failed or returned no
    image; NaN if the attack has none.
    """
    values = _distances(table, "best_distance")
    present = pd.Series(~np.isnan(values), index=table.index)
    known = present.groupby(table["attack"]).transform("any").to_numpy()
    refuse(table, "best_distance", known & np.isnan(values), "a distance in all rows of the attack")
    refuse(
        table, "best_distance", (status == "fooled") & (values == 0), "a distance above 0 if fooled"
    )
    ends = np.where(status == "already_wrong", 0.0, np.inf)
    return np.where(known, np.where(status == "fooled", values, ends), np.nan)


def _kind(distances: Values) -> NDArray[np.int64]:
    """Return 0 for misclassified clean images, 1 for fooled, 2 for survived."""
    return np.where(distances == 0, 0, np.where(np.isfinite(distances), 1, 2))


def _distances(table: pd.DataFrame, name: str) -> Values:
    """Parse a column of distances, (n,); NaN: empty."""
    expected = f"a distance from 0 to {_MAX_DISTANCE:g}, inf or empty"
    values = _numbers(table, name, 0, np.inf, expected)
    refuse(table, name, np.isfinite(values) & (values > _MAX_DISTANCE), expected)
    return values


def _whole(table: pd.DataFrame, name: str, low: int, high: int) -> Values:
    """Parse a column of whole numbers, (n,); NaN: empty."""
    expected = f"a whole number from {low} to {high}"
    values = _numbers(table, name, low, high, expected)
    refuse(table, name, ~np.isnan(values) & (values != np.floor(values)), expected)
    return values


def _numbers(table: pd.DataFrame, name: str, low: float, high: float, expected: str) -> Values:
    """Parse a column of numbers, (n,); NaN: empty."""
    parsed = [_number(text) for text in table[name]]
    values = np.array([math.nan if value is None else value for value in parsed])
    unread = np.array([value is None for value in parsed])
    refuse(table, name, unread | (values < low) | (values > high), expected)
    return values


def _number(text: str) -> float | None:
    """Parse a number; None: not a number."""
    try:
        number = float(text) if text else math.nan
    except ValueError:
        return None
    return None if text and math.isnan(number) else number


def _flags(table: pd.DataFrame, name: str) -> Values:
    """Parse a column of true (1.0) and false (0.0), (n,); NaN: empty."""
    texts = [text.lower() for text in table[name]]
    refuse(table, name, np.array([text not in _FLAGS for text in texts]), "true or false")
    return np.array([_FLAGS[text] for text in texts])
