"""From per-image rows to the summary, the budget curves and the curves against kernel size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robust_ham.analysis.run import Run
from robust_ham.analysis.statistics import (
    Interval,
    Values,
    crossed_bootstrap,
    crossed_interval,
    median_interval,
    wilson,
)
from robust_ham.config import AttackConfig, ModelGroup

SUMMARY_COLUMNS = (
    "model_id architecture window kernel_size effective_width effective_width_learned depth width "
    "seed params flops attack n clean_accuracy clean_accuracy_low clean_accuracy_high "
    "test_accuracy budget robust_accuracy robust_accuracy_low robust_accuracy_high robust_area "
    "fooled_rate median_l2 median_l2_low median_l2_high mean_l2 rho_adv median_linf forwards "
    "backwards gate"
).split()
CURVE_COLUMNS = ["model_id", "attack", "budget", "robust_accuracy", "low", "high"]
_CURVE_POINTS = 40


def robust_accuracy(distances: Values, budget: float) -> float:
    """Share of images still right within ``budget``: distance > budget."""
    return float((distances > budget).mean())


def robust_area(distances: Values, largest: float) -> float:
    """Mean of min(distance, largest budget): the area under the curve of robust accuracy."""
    return float(np.minimum(distances, largest).mean())


def _right_at_first(samples: pd.DataFrame) -> NDArray[np.bool_]:
    return np.asarray(samples["clean_prediction"] == samples["label"])


def summary_row(samples: pd.DataFrame, attack: AttackConfig) -> dict[str, float]:
    """The figures of one model under one attack, from its per-image rows."""
    count = len(samples)
    right_at_first = _right_at_first(samples)
    fooled = (samples["status"] == "fooled").to_numpy()
    clean = wilson(int((samples["clean_prediction"] == samples["label"]).sum()), count)
    row: dict[str, float] = {
        "n": count,
        "clean_accuracy": clean.estimate,
        "clean_accuracy_low": clean.low,
        "clean_accuracy_high": clean.high,
        "fooled_rate": float(fooled.sum() / right_at_first.sum())
        if right_at_first.any()
        else np.nan,
        "forwards": float(samples["forwards"].mean()),
        "backwards": float(samples["backwards"].mean()),
    }
    if not attack.has_budget:
        still_right = right_at_first & ~fooled
    else:
        distances = samples[attack.norm].to_numpy(dtype=np.float64)
        still_right = distances > attack.main_budget
        l2 = samples["l2"].to_numpy(dtype=np.float64)
        linf = samples["linf"].to_numpy(dtype=np.float64)
        relative = samples["l2_relative"].to_numpy(dtype=np.float64)
        median = median_interval(l2[right_at_first])
        row |= {
            "budget": attack.main_budget,
            "robust_area": robust_area(distances, attack.curve_budgets[-1]),
            "median_l2": median.estimate,
            "median_l2_low": median.low,
            "median_l2_high": median.high,
            "mean_l2": float(l2[fooled].mean()) if fooled.any() else np.nan,
            "rho_adv": float(relative[fooled].mean()) if fooled.any() else np.nan,
            "median_linf": median_interval(linf[right_at_first]).estimate,
        }
    robust = wilson(int(still_right.sum()), count)
    row |= {
        "robust_accuracy": robust.estimate,
        "robust_accuracy_low": robust.low,
        "robust_accuracy_high": robust.high,
    }
    return row


def summarise(run: Run) -> pd.DataFrame:
    """``summary.csv``: one row per model and attack."""
    rows = []
    for spec in run.specs:
        card = run.cards[spec.model_id]
        known = {
            "model_id": spec.model_id,
            "architecture": card["model"]["architecture"],
            "window": spec.window,
            "kernel_size": spec.kernel_size,
            "depth": card["model"].get("depth"),
            "width": _width(card["model"]),
            "seed": spec.seed,
        }
        measured = (
            "effective_width",
            "effective_width_learned",
            "params",
            "flops",
            "test_accuracy",
        )
        known |= {name: card.get(name) for name in measured}
        for attack_id, attack in run.attacks.items():
            samples = run.samples.get((spec.model_id, attack_id))
            if samples is not None:
                about = {"attack": attack_id, "gate": run.badge(spec.model_id, attack_id)}
                rows.append(known | about | summary_row(samples, attack))
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


def _width(model: dict[str, Any]) -> str | None:
    widths = model.get("widths", model.get("width"))
    return "x".join(map(str, widths)) if isinstance(widths, list) else widths


def budget_curves(run: Run) -> pd.DataFrame:
    """``curves.csv``: robust accuracy of every model against budget, with Wilson intervals."""
    rows = []
    for (model_id, attack_id), samples in run.samples.items():
        attack = run.attacks[attack_id]
        if not attack.has_budget:
            continue
        distances = samples[attack.norm].to_numpy(dtype=np.float64)
        even = np.linspace(0, attack.curve_budgets[-1], _CURVE_POINTS + 1)
        for budget in np.unique(np.concatenate([even, attack.curve_budgets])):
            robust = wilson(int((distances > budget).sum()), len(distances))
            rows.append((model_id, attack_id, budget, *robust))
    return pd.DataFrame(rows, columns=CURVE_COLUMNS)


@dataclass(frozen=True)
class Metric:
    """A figure of one arm: its values per seed and image, and how they are averaged."""

    name: str
    label: str
    values: Callable[[pd.DataFrame, AttackConfig], Values]
    per_seed: Callable[[Values], Values]
    bootstrap: bool = False


def distances(samples: pd.DataFrame, attack: AttackConfig) -> Values:
    """Distance of every image in the attack's norm: 0 wrong at first, ∞ survived; (n,)."""
    return samples[attack.norm].to_numpy(dtype=np.float64)


def area_values(samples: pd.DataFrame, attack: AttackConfig) -> Values:
    """What every image adds to the robust area: min(distance, largest budget), (n,)."""
    return np.asarray(np.minimum(distances(samples, attack), attack.curve_budgets[-1]))


def _median_values(samples: pd.DataFrame, attack: AttackConfig) -> Values:
    return np.where(_right_at_first(samples), samples["l2"].to_numpy(dtype=np.float64), np.nan)


def _rho_values(samples: pd.DataFrame, attack: AttackConfig) -> Values:
    fooled = (samples["status"] == "fooled").to_numpy()
    return np.where(fooled, samples["l2_relative"].to_numpy(dtype=np.float64), np.nan)


def _within_budget(samples: pd.DataFrame, attack: AttackConfig) -> Values:
    return np.asarray(samples[attack.norm] > attack.main_budget, dtype=np.float64)


def survived(samples: pd.DataFrame, attack: AttackConfig) -> Values:
    """1.0 where an image was right at first and still is, (n,)."""
    held = samples["status"].isin(["survived", "invalid"])
    return np.asarray(held & _right_at_first(samples), dtype=np.float64)


def _mean(values: Values) -> Values:
    return np.asarray(values.mean(axis=1))


def _nanmean(values: Values) -> Values:
    """Mean per row without NaN; NaN for a row that has nothing else."""
    present = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(present, values, 0.0).sum(axis=1) / present.sum(axis=1))


def _nanmedian(values: Values) -> Values:
    """Median per row without NaN, NaN for a row that has nothing else; +∞ is a value."""
    rows = [row[~np.isnan(row)] for row in values]
    return np.array([np.median(row) if len(row) else np.nan for row in rows])


SHARES = {"clean_accuracy", "robust_accuracy"}
DISTANCE_METRICS = (
    Metric("robust_area", "robust area", area_values, _mean),
    Metric("robust_accuracy", "robust accuracy", _within_budget, _mean),
    Metric("median_l2", "median L2 distance", _median_values, _nanmedian, bootstrap=True),
    Metric("rho_adv", "ρ_adv", _rho_values, _nanmean, bootstrap=True),
)
SURVIVAL_METRICS = (Metric("robust_accuracy", "accuracy under attack", survived, _mean),)
KERNEL_COLUMNS = (
    "attack metric family window kernel_size effective_width params flops num_seeds estimate low "
    "high per_seed"
).split()


def kernel_size_curves(run: Run) -> pd.DataFrame:
    """Clean accuracy and robustness against k, one row per arm: estimate, 95 % interval, seeds.

    An arm is all seeds of one family, kernel size and window. Means have the crossed t interval;
    medians and ρ_adv the crossed bootstrap. ``per_seed`` is a tuple. Clean accuracy is over the
    whole test split (attack is empty).
    """
    rows = []
    for arm in _arms(run):
        correct = [run.correct(spec.model_id) for spec in arm]
        if all(values is not None for values in correct):
            values = np.stack([v for v in correct if v is not None])
            rows.append(
                _arm_row(run, arm, "", "clean_accuracy", crossed_interval(values), _mean(values))
            )
        for attack_id, attack in run.attacks.items():
            tables = [run.samples.get((spec.model_id, attack_id)) for spec in arm]
            done = [table for table in tables if table is not None]
            if len(done) < len(arm):
                continue
            for metric in DISTANCE_METRICS if attack.has_budget else SURVIVAL_METRICS:
                values = np.stack([metric.values(table, attack) for table in done])
                interval = (
                    crossed_bootstrap(values, metric.per_seed)
                    if metric.bootstrap
                    else crossed_interval(values)
                )
                per_seed = metric.per_seed(values)
                rows.append(_arm_row(run, arm, attack_id, metric.name, interval, per_seed))
    return pd.DataFrame(rows, columns=KERNEL_COLUMNS)


def _arms(run: Run) -> Iterator[list[ModelGroup]]:
    arms: dict[tuple[str, int, str], list[ModelGroup]] = {}
    for spec in run.specs:
        arms.setdefault((spec.family, spec.kernel_size, spec.window), []).append(spec)
    yield from arms.values()


def _arm_row(
    run: Run,
    arm: list[ModelGroup],
    attack_id: str,
    metric: str,
    interval: Interval,
    per_seed: Values,
) -> tuple[Any, ...]:
    spec, card = arm[0], run.cards[arm[0].model_id]
    lowest, highest = 0.0, 1.0 if metric in SHARES else np.inf
    interval = Interval(
        interval.estimate, max(interval.low, lowest), min(interval.high, highest)
    )  # the t interval knows nothing of the range
    about = (spec.family, spec.window, spec.kernel_size)
    size = (card.get("effective_width"), card.get("params"), card.get("flops"))
    return (attack_id, metric, *about, *size, len(arm), *interval, tuple(per_seed.tolist()))
