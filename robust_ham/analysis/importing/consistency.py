"""Rows that contradict each other: what one image is, and what came of it, told in two ways.

Every refusal names the model, the attack and the image.
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
"""What tells models apart."""
_ROUNDING = 1e-5
"""Share by which distances in float32 may contradict each other."""
_SCALE = 255
_LIKE_SCALE = (128, 512)
"""Ratios of one attack's distances on two models, median, that only a scale explains."""
_LIKE_SCALE_OF_ATTACKS = (200, 320)
"""The same for two attacks on one model, whose distances may differ as much for good reasons ..."""
_SPREAD = 1.5
"""... but then by a factor that differs between images: most ratios are not this close to it."""
_FEW = 5
"""Fewer images say nothing of the spread; their ratios have to be 255 within a percent."""


def refuse(
    table: pd.DataFrame, name: str, bad: NDArray[np.bool_] | pd.Series[bool], expected: str
) -> None:
    """Name the first bad row, if there is one.

    Raises:
        RequestError: there is.
    """
    if np.any(bad):
        row = table.iloc[int(np.argmax(bad))]
        raise RequestError(
            f"{row['file']}: row {row['row']}: {name}: expected {expected}, got {row[name]!r:.60} "
            f"(model {row['model']!r:.60}, attack {row['attack']!r:.60}, "
            f"image {row['sample_id']!r:.60})"
        )


def check_distances(table: pd.DataFrame, found: dict[str, Values]) -> None:
    """Refuse distances that no perturbation of pixels in [0, 1] has.

    Args:
        table: rows of text.
        found: norm to distances, (n,); NaN where a row does not tell.

    Raises:
        RequestError: L∞ above 1, L∞ above L2, or 0–255 beside 0–1.
    """
    l2, linf = (found[norm] for norm in NORMS)
    finite = np.isfinite(l2) & np.isfinite(linf)
    with np.errstate(invalid="ignore"):
        longer = finite & (linf > l2 * (1 + _ROUNDING))
        outside = np.isfinite(linf) & (linf > 1 + _ROUNDING)
    refuse(table, "linf", outside, "at most 1, for pixels in [0, 1]")
    refuse(table, "linf", longer, "at most the l2 of the row")
    for norm in NORMS:
        _check_scale(table, norm, found[norm])


def _check_scale(table: pd.DataFrame, norm: str, distances: Values) -> None:
    """Refuse distances of pixels in 0–255 beside those of pixels in [0, 1].

    One attack on two models, or two attacks on one model, compared on the images that are fooled in
    both. Sound attacks may lie far apart (salt and pepper has an L∞ near 1, DDN one of 0.003), so
    that between attacks the ratio also has to be much the same for all images.
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
    """Whether ratios of distances, one per image, look like 0–255 beside 0–1."""
    if len(factors) == 0:
        return False
    low, median, high = np.quantile(factors, [0.1, 0.5, 0.9])
    if not between_attacks:
        return bool(_LIKE_SCALE[0] <= median <= _LIKE_SCALE[1])
    if len(factors) < _FEW:
        return bool(np.allclose(factors, _SCALE, rtol=0.01))
    is_alike = median / _SPREAD <= low and high <= median * _SPREAD
    return bool(is_alike and _LIKE_SCALE_OF_ATTACKS[0] <= median <= _LIKE_SCALE_OF_ATTACKS[1])


def check_images(table: pd.DataFrame, rows: pd.DataFrame, right: Values) -> None:
    """Refuse rows that tell one image in two ways.

    Args:
        table: rows of text.
        rows: their values; ``label`` and ``clean_prediction`` NaN where a row does not tell.
        right: whether the image is right without attack, (n,).

    Raises:
        RequestError: a label or hash differs between rows of an image, or the prediction without
            attack, or whether it is right, between rows of a model and image.
    """
    label = rows["label"].to_numpy(dtype=np.float64)
    clean = rows["clean_prediction"].to_numpy(dtype=np.float64)
    hashes = table["sha256"].to_numpy(dtype=object)
    hashes = np.where(hashes == "", np.nan, hashes)
    image, seen = ["sample_id"], [*MODEL, "sample_id"]
    _check_same(table, rows, image, "label", label, "the label")
    _check_same(table, rows, image, "sha256", hashes, "the hash")
    _check_same(table, rows, seen, "clean_prediction", clean, "the prediction without attack")
    first = pd.Series(right, index=rows.index).groupby([rows[k] for k in seen]).transform("first")
    name = "correct" if (table["correct"] != "").any() else _shown_norm(table)
    refuse(
        table,
        name,
        (first != right).to_numpy(),
        "the image right, or wrong, without attack as under this model's other attacks "
        "(a distance of 0: wrong without attack; an attack that fails: inf)",
    )


def _shown_norm(table: pd.DataFrame) -> str:
    return next((norm for norm in NORMS if (table[norm] != "").any()), "correct")


def _check_same(
    table: pd.DataFrame,
    rows: pd.DataFrame,
    keys: list[str],
    name: str,
    values: NDArray[np.generic],
    what: str,
) -> None:
    """Refuse a row whose value is not that of the first row of the same keys that has one."""
    known = pd.Series(values, index=rows.index)
    first = known.groupby([rows[key] for key in keys]).transform("first")
    bad = (known.notna() & (known != first)).to_numpy()
    if bad.any():
        told = first.iloc[int(np.argmax(bad))]
        shown = f"{told:g}" if isinstance(told, float) else told
        refuse(table, name, bad, f"{what} of this image in other rows, {shown}")


def check_outcomes(
    table: pd.DataFrame,
    rows: pd.DataFrame,
    outcome: NDArray[np.str_],
    fooled: Values,
    correct: Values,
    has_distance: NDArray[np.bool_],
) -> None:
    """Refuse rows whose predictions contradict what came of the image.

    Args:
        table, rows: as above.
        outcome: ``status`` of every row.
        fooled, correct: what the row says in these columns; NaN: nothing.
        has_distance: rows of attacks that have distances.

    Raises:
        RequestError: a failed attack that looks like an image that is wrong without attack, or a
            class seen after the attack that does not go with the outcome.
    """
    label, clean, after = (
        rows[name].to_numpy(dtype=np.float64)
        for name in ("label", "clean_prediction", "adversarial_prediction")
    )
    wrong = outcome == "already_wrong"
    truth = np.where(~np.isnan(label), label, np.where(wrong, math.nan, clean))
    told_wrong = (correct == 0) | (~np.isnan(label) & ~np.isnan(clean) & (label != clean))
    unproven = wrong & has_distance & ~told_wrong
    failed = "inf where the attack fails; a distance of 0 means wrong without attack"
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
