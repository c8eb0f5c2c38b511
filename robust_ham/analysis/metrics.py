"""All metrics in one table, ``METRICS``: what each measures, how it is averaged and judged.

To add a metric, write its function and its row; tables, figures and the report page follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robust_ham.analysis.bootstrap import Statistic, crossed_bootstrap, means_of, medians_of
from robust_ham.analysis.run import Run
from robust_ham.analysis.statistics import (
    Interval,
    Values,
    crossed_interval,
    in_range,
    median_interval,
    wilson,
)
from robust_ham.analysis.verdicts import Margins
from robust_ham.config.attacks import NORM_SYMBOLS
from robust_ham.config.datasets import accuracy_margin
from robust_ham.config.experiment import AttackConfig
from robust_ham.config.models import ModelGroup

_ULP = 2.0**-24
"""Spacing of float32 numbers just below 1, the largest value of a pixel."""

Range = tuple[float, float]
Attacks = Literal["all", "with budget", "without budget"]
Scale = Literal["difference", "ratio", "median ratio"]
Unit = Literal["share", "distance", "L2", "L∞", "cosine", "nats", "pixels", "passes", ""]
TableName = Literal["summary", "curves", "contrasts"]


def _above_zero(_: AttackConfig | None) -> Range:
    return 0.0, np.inf


def _share_range(_: AttackConfig | None) -> Range:
    return 0.0, 1.0


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A mean or median over images that describes a network, by itself or under an attack."""

    id: str
    """Its name in tables, configurations and ``claims.yaml``."""
    label: str
    """Its name on axes and in lists of choices."""
    label_detail: str = ""
    """Follows the label under an attack with a budget; may use ``{norm} {budget} {largest}``."""
    label_without_budget: str = ""
    """Replaces the label under an attack without a budget."""
    heading: str = ""
    """Its column in the page's table of models; empty: no column."""
    unit: Unit = ""
    tables: tuple[TableName, ...] = ("summary", "curves", "contrasts")
    """Where it appears: ``summary.csv``, curves against k (and the page), ``contrasts.csv``."""

    attacks: Attacks = "all"
    """Attacks under which it is defined."""
    values: Callable[[pd.DataFrame, AttackConfig], Values] | None = None
    """Value of each image, (n,), from the rows of one model and attack; NaN: not counted."""
    values_at: Callable[[pd.DataFrame, AttackConfig, float | Values], Values] | None = None
    """The same at a given budget; ``values`` then serves attacks without a budget."""
    model_values: Callable[[Run, ModelGroup], Values | None] | None = None
    """Values of a model without any attack: (n,) over the test split, or (1,)."""
    per_image: bool = True
    """False: one number per model."""

    average: Literal["mean", "median"] = "mean"
    range: Callable[[AttackConfig | None], Range] = _above_zero
    """Lowest and highest value of an image."""
    interval_in_summary: bool = False
    """Whether ``summary.csv`` has ``_low`` and ``_high``: for shares and medians."""
    bootstrap: bool = False
    """Interval of an arm: crossed bootstrap, for medians and where images have no value."""

    higher_is_better: bool = True
    scale: Scale = "difference"
    """How two arms are compared."""
    margins: Callable[[str], Margins] | None = None
    """Data set to the effects that count as equivalent; None: no agreed margin."""
    endpoint: bool = False
    """Whether it may be a primary endpoint."""

    def applies_to(self, attack: AttackConfig) -> bool:
        """Return whether the metric is defined under this attack."""
        if self.values is None or self.attacks == "all":
            return self.values is not None
        return attack.has_budget == (self.attacks == "with budget")

    def image_values(
        self, samples: pd.DataFrame, attack: AttackConfig, budget: float | Values | None = None
    ) -> Values:
        """Return the value of each image, (n,), at ``budget`` or else the attack's main one.

        Several budgets (b, 1) give values (b, n).
        """
        if self.values_at is not None and (budget is not None or attack.has_budget):
            budget = attack.main_budget if budget is None else budget
            values = self.values_at(samples, attack, budget)
            return np.broadcast_to(values, np.broadcast_shapes(np.shape(budget), values.shape))
        assert self.values is not None, f"{self.id} is not measured under an attack"
        return self.values(samples, attack)

    def of_one_model(self, values: Values) -> Interval:
        """Average one model's values, (n,), with an interval over images (NaN: not shown)."""
        present = values[~np.isnan(values)]
        if self.average == "median":
            return median_interval(present)
        if self.interval_in_summary and self.unit == "share":
            return wilson(int(present.sum()), len(present))
        return Interval(float(present.mean()) if len(present) else np.nan, np.nan, np.nan)

    @property
    def statistic(self) -> Callable[[Values], Statistic]:
        """The average as a function of resampled images."""
        return medians_of if self.average == "median" else means_of

    def of_arm(self, values: Values, attack: AttackConfig | None) -> Interval:
        """Average an arm's values, (S, n), with a 95 % interval over seeds and images."""
        lowest, highest = self.range(attack)
        if not self.bootstrap:
            return in_range(crossed_interval(values), values.shape[1], lowest, highest)
        estimate, low, high = crossed_bootstrap(self.statistic(values), values.shape[1]).interval()
        if (~np.isnan(values)).any(axis=0).sum() == 1:  # no spread is known from one image
            return Interval(estimate, lowest, highest)
        return Interval(estimate, max(low, lowest), min(high, highest))

    @property
    def summary_columns(self) -> list[str]:
        """Its columns in ``summary.csv``."""
        if "summary" not in self.tables:
            return []
        ends = ("", "_low", "_high") if self.interval_in_summary else ("",)
        return [self.id + end for end in ends]

    @property
    def no_effect(self) -> float:
        """The effect of equal arms: 0 for a difference, 1 for a ratio."""
        return 0.0 if self.scale == "difference" else 1.0

    @property
    def compares_tables(self) -> bool:
        """Whether ``compare`` and ``compare_runs`` can use it."""
        shown = "contrasts" in self.tables and self.scale != "median ratio"
        return shown and self.values is not None

    def axis_label(self, attack: AttackConfig | None, budget: float | None = None) -> str:
        """Return the label with its norm and budget, by default the attack's main one."""
        if attack is None:
            return self.label
        if not attack.has_budget:
            return self.label_without_budget or self.label
        detail = self.label_detail.format(
            norm=NORM_SYMBOLS[attack.norm],
            budget=f"{budget or attack.main_budget:.3g}",
            largest=f"{attack.curve_budgets[-1]:.3g}",
        )
        return f"{self.label} {detail}".rstrip()


def headline_metric(attack: AttackConfig) -> Metric:
    """Return the metric shown if only one is: the first possible endpoint under the attack."""
    return next(
        metric
        for metric in METRICS.values()
        if metric.endpoint and metric.model_values is None and metric.applies_to(attack)
    )


# --- values of images -------------------------------------------------------------------------


def distances(samples: pd.DataFrame, attack: AttackConfig) -> Values:
    """Return distances in the attack's norm, (n,): 0 if misclassified at first, ∞ if survived."""
    return samples[attack.norm].to_numpy(dtype=np.float64)


def correctly_classified(samples: pd.DataFrame) -> NDArray[np.bool_]:
    """Return whether clean images are correctly classified, (n,); from ``status`` if unlabelled."""
    label, clean = (
        samples[name].to_numpy(dtype=np.float64) for name in ("label", "clean_prediction")
    )
    known = ~np.isnan(label) & ~np.isnan(clean)
    correct: NDArray[np.bool_] = np.where(
        known, clean == label, samples["status"].to_numpy() != "already_wrong"
    )
    return correct


def tolerance(budget: float | Values) -> Values:
    """Return how far rounding may put a distance beyond the budget that it was clipped to.

    Pixels in float32 are rounded by half an ulp of [0, 1], once when the perturbation is added and
    once when it is subtracted again: 4 ulp cover that. An L2 norm summed in float32, and a budget
    stored in float32, have a relative error; for an image of 3×224×224 random pixels it is up to
    30 ulp: 32. Together 3e-7 at 8/255 and 1.2e-6 at 0.5. A budget of 0 has no rounding error.
    """
    budget = np.asarray(budget)
    return np.where(budget > 0, _ULP * (4 + 32 * budget), 0.0)


def beyond_budget(distances: Values, budget: float | Values) -> NDArray[np.bool_]:
    """Return whether distances exceed a budget by more than rounding errors; both broadcast."""
    return np.asarray(distances > budget + tolerance(budget))


def robust_area(distances: Values, largest: float) -> float:
    """Average min(distance, largest budget): the area under the curve of robust accuracy."""
    return float(np.minimum(distances, largest).mean())


def _area_values(samples: pd.DataFrame, attack: AttackConfig) -> Values:
    return np.asarray(np.minimum(distances(samples, attack), attack.curve_budgets[-1]))


def _clean_values(samples: pd.DataFrame, _: AttackConfig) -> Values:
    return correctly_classified(samples).astype(np.float64)


def robust_within(samples: pd.DataFrame, attack: AttackConfig, budget: float | Values) -> Values:
    """Return 1.0 for images that stay correctly classified within ``budget``: (n,) or (b, n)."""
    return np.asarray(beyond_budget(distances(samples, attack), budget), dtype=np.float64)


def survived(samples: pd.DataFrame, _: AttackConfig) -> Values:
    """Return 1.0 for correctly classified images that were not fooled, (n,)."""
    held = samples["status"].isin(["survived", "invalid"])
    return np.asarray(held & correctly_classified(samples), dtype=np.float64)


def _fooled_values(samples: pd.DataFrame, _: AttackConfig) -> Values:
    fooled = (samples["status"] == "fooled").to_numpy(dtype=np.float64)
    return np.where(correctly_classified(samples), fooled, np.nan)


def _of_correct(column: str, samples: pd.DataFrame, _: AttackConfig) -> Values:
    """Return a column for correctly classified images, else NaN."""
    values = samples[column].to_numpy(dtype=np.float64)
    return np.where(correctly_classified(samples), values, np.nan)


def _of_fooled(column: str, samples: pd.DataFrame, _: AttackConfig) -> Values:
    """Return a column for fooled images, else NaN."""
    fooled = (samples["status"] == "fooled").to_numpy()
    return np.where(fooled, samples[column].to_numpy(dtype=np.float64), np.nan)


def _column(column: str, samples: pd.DataFrame, _: AttackConfig) -> Values:
    """Return a column for all images; NaN if the table lacks it."""
    if column not in samples:
        return np.full(len(samples), np.nan)
    return samples[column].to_numpy(dtype=np.float64)


def _predicted_correctly(run: Run, spec: ModelGroup) -> Values | None:
    return run.correct(spec.model_id)


def _from_card(key: str, run: Run, spec: ModelGroup) -> Values | None:
    value = run.cards[spec.model_id].get(key)
    return None if value is None else np.array([float(value)])


def _accuracy_margins(dataset: str) -> Margins:
    margin = accuracy_margin(dataset)
    return -margin, margin


# --- the table --------------------------------------------------------------------------------

METRICS: dict[str, Metric] = {
    metric.id: metric
    for metric in (
        Metric(
            id="clean_accuracy",
            label="accuracy",
            heading="clean accuracy (n)",
            unit="share",
            values=_clean_values,
            model_values=_predicted_correctly,
            range=_share_range,
            interval_in_summary=True,
            margins=_accuracy_margins,
            endpoint=True,
        ),
        Metric(
            id="train_loss",
            label="training loss",
            unit="nats",
            tables=("contrasts",),
            model_values=partial(_from_card, "train_loss"),
            per_image=False,
            higher_is_better=False,
        ),
        Metric(
            id="validation_loss",
            label="validation loss",
            unit="nats",
            tables=("contrasts",),
            model_values=partial(_from_card, "validation_loss"),
            per_image=False,
            higher_is_better=False,
        ),
        Metric(
            id="validation_accuracy",
            label="validation accuracy",
            unit="share",
            tables=(),
            model_values=partial(_from_card, "validation_accuracy"),
            per_image=False,
        ),
        Metric(
            id="test_accuracy",
            label="test accuracy",
            unit="share",
            tables=(),
            model_values=partial(_from_card, "test_accuracy"),
            per_image=False,
        ),
        Metric(
            id="effective_width_learned",
            label="effective width, learned",
            unit="pixels",
            tables=(),
            model_values=partial(_from_card, "effective_width_learned"),
            per_image=False,
        ),
        Metric(
            id="robust_area",
            label="robust area",
            label_detail="({norm} up to {largest})",
            heading="robust area",
            unit="distance",
            attacks="with budget",
            values=_area_values,
            range=lambda attack: (0.0, attack.curve_budgets[-1] if attack else np.inf),
            scale="ratio",
            margins=lambda _: (0.95, 1.05),
            endpoint=True,
        ),
        Metric(
            id="robust_accuracy",
            label="robust accuracy",
            label_detail="({norm} > {budget})",
            label_without_budget="accuracy under attack",
            heading="robust accuracy",
            unit="share",
            values=survived,
            values_at=robust_within,
            range=_share_range,
            interval_in_summary=True,
            margins=_accuracy_margins,
            endpoint=True,
        ),
        Metric(
            id="distance",
            label="distance",
            unit="distance",
            tables=("contrasts",),
            attacks="with budget",
            values=distances,
            scale="median ratio",
        ),
        Metric(
            id="fooled_rate",
            label="fooled rate",
            heading="fooled rate",
            unit="share",
            tables=("summary",),
            values=_fooled_values,
            range=_share_range,
            higher_is_better=False,
        ),
        Metric(
            id="median_l2",
            label="median L2 distance",
            heading="median L2",
            unit="L2",
            tables=("summary", "curves"),
            attacks="with budget",
            values=partial(_of_correct, "l2"),
            average="median",
            interval_in_summary=True,
            bootstrap=True,
        ),
        Metric(
            id="mean_l2",
            label="mean L2 distance",
            unit="L2",
            tables=("summary",),
            attacks="with budget",
            values=partial(_of_fooled, "l2"),
        ),
        Metric(
            id="rho_adv",
            label="ρ_adv",
            heading="ρ_adv",
            tables=("summary", "curves"),
            attacks="with budget",
            values=partial(_of_fooled, "l2_relative"),
            bootstrap=True,
        ),
        Metric(
            id="median_linf",
            label="median L∞ distance",
            unit="L∞",
            tables=("summary",),
            attacks="with budget",
            values=partial(_of_correct, "linf"),
            average="median",
        ),
        Metric(
            id="forwards",
            label="forward passes per image",
            unit="passes",
            tables=("summary",),
            values=partial(_column, "forwards"),
        ),
        Metric(
            id="backwards",
            label="backward passes per image",
            unit="passes",
            tables=("summary",),
            values=partial(_column, "backwards"),
        ),
        Metric(
            id="normal_cosine",
            label="cosine to the normal",
            heading="cosine to the normal",
            unit="cosine",
            tables=("summary", "curves"),
            attacks="with budget",
            values=partial(_column, "normal_cosine"),
            range=lambda _: (-1.0, 1.0),
            bootstrap=True,
        ),
    )
}
