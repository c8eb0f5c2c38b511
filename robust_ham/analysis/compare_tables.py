"""Two groups of networks attacked on the same images: which is harder to fool, and how surely."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import ValidationError

from robust_ham.analysis.contrasts import ACCURACY_MARGIN, RATIO_MARGINS, possible_effects
from robust_ham.analysis.curves import area_values, right_without_attack, still_right, survived
from robust_ham.analysis.statistics import Values, ratio
from robust_ham.analysis.verdicts import Margins, Verdict, judge_mean
from robust_ham.config.experiment import AttackConfig
from robust_ham.config.fields import first_error

_MARGINS: dict[str, Margins] = {
    "robust_area": RATIO_MARGINS,
    "robust_accuracy": (-ACCURACY_MARGIN, ACCURACY_MARGIN),
    "clean_accuracy": (-ACCURACY_MARGIN, ACCURACY_MARGIN),
}
Metric = Literal["robust_area", "robust_accuracy", "clean_accuracy"]


@dataclass(frozen=True)
class PairedComparison:
    """What ``compare`` finds; its text says it in words."""

    metric: str
    baseline: float
    other: float
    effect: float
    """robust_area: other over baseline; else other minus baseline."""
    low: float
    high: float
    """95 % interval over networks and images together; of one network each, over images only."""
    p: float
    verdict: Verdict
    num_networks: int
    num_images: int
    note: str

    def __str__(self) -> str:
        sign = "×" if self.metric == "robust_area" else ""
        note = f"; {self.note}" if self.note else ""
        return (
            f"{self.metric} {self.other:.4g} against {self.baseline:.4g}: {self.verdict} "
            f"({sign}{self.effect:.3g} [{self.low:.3g}, {self.high:.3g}], p = {self.p:.2g}, "
            f"{self.num_networks} networks each, {self.num_images} images{note})"
        )


def compare(
    other: pd.DataFrame,
    baseline: pd.DataFrame,
    metric: Metric = "robust_area",
    *,
    budget: float | None = None,
    norm: Literal["l2", "linf"] = "l2",
    margins: Margins | None = None,
) -> PairedComparison:
    """Whether the networks of one table are harder to fool than those of another.

    Args:
        other, baseline: rows as ``evaluate`` returns them. The first network of one is paired with
            the first of the other, and so on: give them in the order of their seeds.
        metric: ``robust_area``: mean of min(distance, budget), 0 where wrong without attack;
            ``robust_accuracy``: share right within the budget, or under an attack without a
            distance; ``clean_accuracy``: over the attacked images.
        budget: in the norm's units; None: the largest of a study's own, 0.5 in L2 and 4/255 in L∞
            (``robust_area``), or no distance at all (``robust_accuracy``: ``status`` decides).
        norm: whose distances count.
        margins: effects that count as none, around 1 for ``robust_area``, else around 0; None:
            5 % and one percentage point.

    Raises:
        ValueError: the tables have other images or numbers of networks, no such metric, or no
            distances where the metric needs them, or ``budget`` is not above 0 and finite.
    """
    if metric not in _MARGINS:
        raise ValueError(f"metric: expected one of {', '.join(_MARGINS)}, got {metric!r}")
    tables = [_by_network(rows) for rows in (other, baseline)]
    if len(tables[0]) != len(tables[1]):
        raise ValueError(f"expected as many networks, got {len(tables[0])} and {len(tables[1])}")
    images = tables[0][0]["sample_id"].tolist()
    if any(t["sample_id"].tolist() != images for table in tables for t in table):
        raise ValueError("not the same images")
    _check_images([*tables[0], *tables[1]])
    if metric == "robust_area" or (metric == "robust_accuracy" and budget is not None):
        _check_distances([*tables[0], *tables[1]], norm)
    given = {"norm": norm, "budget": budget, "budgets": None if budget is None else (budget,)}
    try:
        attack = AttackConfig.model_validate({"attack": "deepfool"} | given)
    except ValidationError as error:
        raise ValueError(first_error(error)) from None
    values = _values_of(metric, budget)
    one, two = (np.stack([values(t, attack) for t in table]) for table in tables)
    if metric == "robust_area":
        null, (effect, deviation) = 1.0, ratio(one, two)
        possible = possible_effects("ratio", attack.curve_budgets[-1], effect, two)
    else:
        null, effect, deviation = 0.0, float((one - two).mean()), one - two
        possible = possible_effects("difference", 1.0, effect, two)
    margins = margins or _MARGINS[metric]
    row = judge_mean(effect, deviation, 0.95, None, null, margins, possible=possible)
    numbers = {k: np.nan if row[k] is None else row[k] for k in ("effect", "low", "high", "p")}
    return PairedComparison(
        metric,
        float(two.mean()),
        float(one.mean()),
        **numbers,
        verdict=row["verdict"],
        num_networks=len(one),
        num_images=len(images),
        note=row["note"],
    )


def _check_images(tables: list[pd.DataFrame]) -> None:
    """Equal numbers are not the same image where hashes, or labels, differ."""
    for name in ("sha256", "label"):
        if not all(name in table for table in tables):
            continue
        first = tables[0][name]
        for table in tables[1:]:
            differ = (first.to_numpy() != table[name].to_numpy()) & first.notna().to_numpy()
            differ &= table[name].notna().to_numpy()
            if differ.any():
                i = int(differ.argmax())
                raise ValueError(
                    f"not the same images: the {name} of image {table['sample_id'].iloc[i]} differs"
                )


def _check_distances(tables: list[pd.DataFrame], norm: str) -> None:
    if any(table.loc[table["status"] == "fooled", norm].isna().any() for table in tables):
        raise ValueError(f"no {norm} distances: ask for robust_accuracy without a budget")


def _by_network(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each network, in the order in which they come."""
    if "model_id" not in rows:
        return [rows]
    return [table for _, table in rows.groupby("model_id", sort=False)]


def _values_of(
    metric: Metric, budget: float | None
) -> Callable[[pd.DataFrame, AttackConfig], Values]:
    """What every image adds to a metric, (n,)."""
    if metric == "clean_accuracy":
        return lambda rows, _: right_without_attack(rows).astype(np.float64)
    if metric == "robust_area":
        return area_values
    return survived if budget is None else partial(still_right, budget=budget)
