"""Check imported rows for contradictions about an image or its outcome.

Every message names the model, the attack and the image.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robust_ham.analysis.importing.attackbench import NORMS
from robust_ham.analysis.statistics import Values
from robust_ham.errors import RequestError

MODEL = ["model", "window", "kernel_size", "seed"]
"""Columns that identify a model."""
_ROUNDING = 1e-5
"""Relative tolerance of distances in float32."""
_SCALE = 255
_LIKE_SCALE = (128, 512)
"""Median ratios of one attack's distances on two models that only a scale of 255 explains."""
_LIKE_SCALE_OF_ATTACKS = (200, 320)
"""The same for two attacks on one model, whose distances may differ as much otherwise ..."""
_SPREAD = 1.5
"""... but by different factors: then fewer ratios are within this factor of the median."""
_FEW = 5
"""With fewer images the spread is unknown; all ratios must be 255 within 1 %."""


def refuse(
    table: pd.DataFrame, name: str, bad: NDArray[np.bool_] | pd.Series[bool], expected: str
) -> None:
    """Raise for the first bad row.

    Raises:
        RequestError: there is a bad row.
    """
    if np.any(bad):
        row = table.iloc[int(np.argmax(bad))]
        raise RequestError(
            f"{row['file']}: row {row['row']}: {name}: expected {expected}, got {row[name]!r:.60} "
            f"(model {row['model']!r:.60}, attack {row['attack']!r:.60}, "
            f"image {row['sample_id']!r:.60})"
        )


def check_distances(table: pd.DataFrame, distances: dict[str, Values]) -> None:
    """Refuse distances that are impossible for pixels in [0, 1].

    Args:
        table: rows of text.
        distances: norm to distances, (n,); NaN: not known.

    Raises:
        RequestError: L∞ above 1, L∞ above L2, or 0–255 beside 0–1.
    """
    l2, linf = (distances[norm] for norm in NORMS)
    finite = np.isfinite(l2) & np.isfinite(linf)
    with np.errstate(invalid="ignore"):
        longer = finite & (linf > l2 * (1 + _ROUNDING))
        outside = np.isfinite(linf) & (linf > 1 + _ROUNDING)
    refuse(table, "linf", outside, "at most 1, for pixels in [0, 1]")
    refuse(table, "linf", longer, "at most the l2 of the row")
    for norm in NORMS:
        _check_scale(table, norm, distances[norm])


def _check_scale(table: pd.DataFrame, norm: str, distances: Values) -> None:
    """Refuse a mixture of distances for pixels in 0–255 and in [0, 1].

    This compares one attack on two models, or two attacks on one model, on images fooled in both.
    Distances of valid attacks may differ as much (L∞ is near 1 for salt and pepper, 0.003 for DDN),
    so between attacks the ratio must also be similar for all images.
    """
    fooled = np.isfinite(distances) & (distances > 0)
    rows = table[fooled].assign(distance=distances[fooled])
    rows["network"] = rows.groupby(MODEL).ngroup()
    medians = rows.groupby(["network", "attack"])["distance"].median()
    if medians.empty or medians.max() < _LIKE_SCALE[0] * medians.min():
        return
    for fixed, varied in (("network", "attack"), ("attack", "network")):
        for _, group in rows.groupby(fixed, sort=False):
            wide = group.pivot(index="sample_id", columns=varied, values="distance")
            for one, other in combinations(wide.columns, 2):
                ratios = (wide[one] / wide[other]).dropna().to_numpy()
                for scaled, factors in ((one, ratios), (other, 1 / ratios)):
                    if _is_scale(factors, between_attacks=varied == "attack"):
                        bad = table.index.isin(group.index[group[varied] == scaled])
                        refuse(
                            table,
                            norm,
                            bad,
                            f"all distances for pixels in [0, 1]; these are "
                            f"{np.median(factors):.0f} times those of the same images elsewhere "
                            f"(÷ {_SCALE}?)",
                        )


def _is_scale(factors: Values, *, between_attacks: bool) -> bool:
    """Return whether ratios of distances, one per image, suggest a scale of 255."""
    if len(factors) == 0:
        return False
    low, median, high = np.quantile(factors, [0.1, 0.5, 0.9])
    if not between_attacks:
        return bool(_LIKE_SCALE[0] <= median <= _LIKE_SCALE[1])
    if len(factors) < _FEW:
        return bool(np.allclose(factors, _SCALE, rtol=0.01))
    is_narrow = median / _SPREAD <= low and high <= median * _SPREAD
    return bool(is_narrow and _LIKE_SCALE_OF_ATTACKS[0] <= median <= _LIKE_SCALE_OF_ATTACKS[1])


def check_images(table: pd.DataFrame, rows: pd.DataFrame, correct: Values) -> None:
    """Refuse rows that disagree about an image.

    Args:
        table: rows of text.
        rows: their values; ``label`` and ``clean_prediction`` are NaN if not known.
        correct: whether the clean image is correctly classified, (n,).

    Raises:
        RequestError: rows of an image differ in label or hash, or rows of a model and image in the
            clean prediction or in whether it is correct.
    """
    label = rows["label"].to_numpy(dtype=np.float64)
    clean = rows["clean_prediction"].to_numpy(dtype=np.float64)
    hashes = table["sha256"].to_numpy(dtype=object)
    hashes = np.where(hashes == "", np.nan, hashes)
    image, model_and_image = ["sample_id"], [*MODEL, "sample_id"]
    _check_same(table, rows, image, "label", label, "the label")
    _check_same(table, rows, image, "sha256", hashes, "the hash")
    _check_same(table, rows, model_and_image, "clean_prediction", clean, "the clean prediction")
    first = (
        pd.Series(correct, index=rows.index)
        .groupby([rows[k] for k in model_and_image])
        .transform("first")
    )
    name = "correct" if (table["correct"] != "").any() else _first_norm(table)
    refuse(
        table,
        name,
        (first != correct).to_numpy(),
        "the clean image correctly classified, or misclassified, as under this model's other "
        "attacks (a distance of 0: misclassified; a failed attack: inf)",
    )


def _first_norm(table: pd.DataFrame) -> str:
    return next((norm for norm in NORMS if (table[norm] != "").any()), "correct")


def _check_same(
    table: pd.DataFrame,
    rows: pd.DataFrame,
    keys: list[str],
    name: str,
    values: NDArray[np.generic],
    description: str,
) -> None:
    """Refuse a row whose value differs from the first known value of the same keys."""
    known = pd.Series(values, index=rows.index)
    first = known.groupby([rows[key] for key in keys]).transform("first")
    bad = (known.notna() & (known != first)).to_numpy()
    if bad.any():
        value = first.iloc[int(np.argmax(bad))]
        shown = f"{value:g}" if isinstance(value, float) else value
        refuse(table, name, bad, f"{description} of this image in other rows, {shown}")


def check_outcomes(
    table: pd.DataFrame,
    rows: pd.DataFrame,
    outcome: NDArray[np.str_],
    fooled: Values,
    correct: Values,
    has_distance: NDArray[np.bool_],
) -> None:
    """Refuse rows whose predictions contradict the outcome.

    Args:
        table: rows of text.
        rows: their values.
        outcome: ``status`` of each row.
        fooled: column ``fooled``; NaN: empty.
        correct: column ``correct``; NaN: empty.
        has_distance: whether the row's attack has distances.

    Raises:
        RequestError: a failed attack looks like a misclassified clean image, or the adversarial
            prediction contradicts the outcome.
    """
    label, clean, after = (
        rows[name].to_numpy(dtype=np.float64)
        for name in ("label", "clean_prediction", "adversarial_prediction")
    )
    wrong = outcome == "already_wrong"
    truth = np.where(~np.isnan(label), label, np.where(wrong, math.nan, clean))
    is_misclassified = (correct == 0) | (~np.isnan(label) & ~np.isnan(clean) & (label != clean))
    unproven = wrong & has_distance & ~is_misclassified
    failed = "inf for a failed attack; a distance of 0 means that the clean image is misclassified"
    norm = np.where(table["linf"] == "", "l2", "linf")
    for name in NORMS:
        here = unproven & (norm == name)
        refuse(table, name, here & ((after == truth) | (fooled == 0)), failed)
    known = ~np.isnan(truth) & ~np.isnan(after)
    refuse(
        table,
        "adversarial_prediction",
        known & (outcome == "fooled") & (after == truth),
        "another class than the label",
    )
    refuse(
        table,
        "adversarial_prediction",
        known & (outcome == "survived") & (after != truth),
        "the label, as the image survived",
    )
