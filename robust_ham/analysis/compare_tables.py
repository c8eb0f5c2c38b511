"""Compare two groups of networks attacked on the same images: the public ``compare``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import ValidationError

from robust_ham.analysis.contrasts import possible_effects
from robust_ham.analysis.metrics import METRICS
from robust_ham.analysis.statistics import ratio
from robust_ham.analysis.verdicts import Margins, Verdict, judge_mean
from robust_ham.config.experiment import AttackConfig
from robust_ham.config.fields import first_error
from robust_ham.errors import plural


@dataclass(frozen=True)
class PairedComparison:
    """The result of ``compare``; ``str()`` gives it as a sentence."""

    metric: str
    baseline: float
    other: float
    effect: float
    """robust_area: other divided by baseline; else other minus baseline."""
    low: float
    high: float
    """95 % interval over networks and images; with one network each, over images only."""
    p: float
    verdict: Verdict
    num_networks: int
    num_images: int
    note: str

    def __str__(self) -> str:
        sign = "×" if METRICS[self.metric].scale == "ratio" else ""
        networks = plural(self.num_networks, "network")
        images = plural(self.num_images, "image")
        note = f"; {self.note}" if self.note else ""
        return (
            f"{self.metric} {self.other:.4g} against {self.baseline:.4g}: {self.verdict} "
            f"({sign}{self.effect:.3g} [{self.low:.3g}, {self.high:.3g}], p = {self.p:.2g}, "
            f"{networks} each, {images}{note})"
        )


def compare(
    other: pd.DataFrame,
    baseline: pd.DataFrame,
    metric: str = "robust_area",
    *,
    budget: float | None = None,
    norm: Literal["l2", "linf"] = "l2",
    margins: Margins | None = None,
) -> PairedComparison:
    """Compare the robustness of two groups of networks that were attacked on the same images.

    Args:
        other: a table that ``evaluate`` returned.
        baseline: a table of as many networks. The first network of ``other`` is paired with the
            first of ``baseline``, and so on: list both in the order of their seeds.
        metric: ``"robust_area"``, the mean over images of min(distance, budget), with distance 0
            for misclassified images; ``"robust_accuracy"``, the share of images that are correctly
            classified within the budget; or ``"clean_accuracy"``, without attack.
        budget: perturbation size above 0, in units of the norm. None: 0.5 (L2) or 4/255 (L∞) for
            ``robust_area``; for ``robust_accuracy``, any image that was fooled counts as fooled.
        norm: ``"l2"`` or ``"linf"``, the distance that is used.
        margins: lower and upper bound of effects that count as equivalent; ratios for
            ``robust_area``, else differences. None: 5 %, or one percentage point.

    Returns:
        The values of both groups, the effect with its 95 % interval and p-value, and the verdict
        (better, worse, equivalent or undecided). ``print`` shows them in one line.

    Raises:
        ValueError: the tables differ in images or number of networks, ``metric`` is unknown,
            distances are missing for the metric, or ``budget`` is not above 0 and finite.

    Example:
        >>> from robust_ham import compare, evaluate, load_images, load_model
        >>> images, labels = load_images("fashion_mnist", 10)
        >>> def attack(window):
        ...     ids = [f"cnn3-w16x32-k7-{window}-s{seed}" for seed in (0, 1)]
        ...     models = {model_id: load_model(f"zoo:fashion_mnist/{model_id}") for model_id in ids}
        ...     return evaluate(models, images, labels, "deepfool", steps=20, progress=False)
        >>> comparison = compare(attack("hamming"), attack("none"), budget=0.5)
        >>> comparison.num_networks, comparison.num_images
        (2, 10)
    """
    metrics = {m.id: m for m in METRICS.values() if m.compares_tables}
    if metric not in metrics:
        raise ValueError(f"metric: expected one of {', '.join(metrics)}, got {metric!r}")
    chosen = metrics[metric]
    tables = [_by_network(rows) for rows in (other, baseline)]
    if len(tables[0]) != len(tables[1]):
        raise ValueError(
            f"expected equal numbers of networks, got {len(tables[0])} and {len(tables[1])}"
        )
    images = tables[0][0]["sample_id"].tolist()
    if any(t["sample_id"].tolist() != images for table in tables for t in table):
        raise ValueError("not the same images")
    _check_images([*tables[0], *tables[1]])
    if chosen.attacks == "with budget" or (chosen.values_at is not None and budget is not None):
        _check_distances([*tables[0], *tables[1]], norm)
    given = {"norm": norm, "budget": budget, "budgets": None if budget is None else (budget,)}
    try:
        attack = AttackConfig.model_validate({"attack": "deepfool"} | given)
    except ValidationError as error:
        raise ValueError(first_error(error)) from None
    values = chosen.values if budget is None else partial(chosen.image_values, budget=budget)
    assert values is not None
    one, two = (np.stack([values(rows, attack) for rows in table]) for table in tables)
    lowest, highest = chosen.range(attack)
    if chosen.scale == "ratio":
        effect, deviation = ratio(one, two)
    else:
        effect, deviation = float((one - two).mean()), one - two
    possible = possible_effects(chosen.scale, highest - lowest, effect, two)
    if margins is None and chosen.margins is not None:
        margins = chosen.margins("")
    row = judge_mean(
        effect,
        deviation,
        0.95,
        None,
        chosen.no_effect,
        margins,
        possible=possible,
        lower_is_better=not chosen.higher_is_better,
    )
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
    """Refuse rows of the same number whose hashes or labels differ."""
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
        raise ValueError(f"no {norm} distances: use robust_accuracy without a budget")


def _by_network(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Split rows by network, in order of appearance."""
    if "model_id" not in rows:
        return [rows]
    return [table for _, table in rows.groupby("model_id", sort=False)]
