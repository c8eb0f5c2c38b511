"""Two groups of networks attacked on the same images: which is harder to fool, and how surely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from robust_ham.analysis.statistics import Values, ratio
from robust_ham.analysis.verdicts import Margins, Verdict, judge_mean

_MARGINS: dict[str, Margins] = {
    "robust_area": (0.95, 1.05),
    "robust_accuracy": (-0.01, 0.01),
    "clean_accuracy": (-0.01, 0.01),
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
        budget: in the norm's units; None: the largest finite distance of the baseline
            (``robust_area``), or no distance at all (``robust_accuracy``: ``status`` decides).
        norm: whose distances count.
        margins: effects that count as none, around 1 for ``robust_area``, else around 0; None:
            5 % and one percentage point.

    Raises:
        ValueError: the tables have other images or numbers of networks, or no such metric.
    """
    if metric not in _MARGINS:
        raise ValueError(f"metric: expected one of {', '.join(_MARGINS)}, got {metric!r}")
    tables = [_by_network(rows) for rows in (other, baseline)]
    if len(tables[0]) != len(tables[1]):
        raise ValueError(f"expected as many networks, got {len(tables[0])} and {len(tables[1])}")
    images = tables[0][0]["sample_id"].tolist()
    if any(t["sample_id"].tolist() != images for table in tables for t in table):
        raise ValueError("expected the same images for all networks, in the same order")
    if metric == "robust_area" and budget is None:
        found = baseline[norm].to_numpy(np.float64)
        budget = float(found[np.isfinite(found)].max(initial=0.0))
    one, two = (np.stack([_values(t, metric, budget, norm) for t in table]) for table in tables)
    if metric == "robust_area":
        null, (effect, deviation) = 1.0, ratio(one, two)
    else:
        null, effect, deviation = 0.0, float((one - two).mean()), one - two
    row = judge_mean(effect, deviation, 0.95, None, null, margins or _MARGINS[metric])
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


def _by_network(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each network, in the order in which they come."""
    if "model_id" not in rows:
        return [rows]
    return [table for _, table in rows.groupby("model_id", sort=False)]


def _values(rows: pd.DataFrame, metric: Metric, budget: float | None, norm: str) -> Values:
    right = np.asarray(rows["clean_prediction"] == rows["label"])
    if metric == "clean_accuracy":
        return right.astype(np.float64)
    distances = rows[norm].to_numpy(np.float64)
    if metric == "robust_area" and budget is not None:
        return np.asarray(np.minimum(distances, budget))
    if budget is None:
        return np.asarray(right & (rows["status"] != "fooled"), dtype=np.float64)
    return np.asarray(distances > budget, dtype=np.float64)
