"""From per-image rows to the summary, the budget curves and the curves against kernel size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robust_ham.analysis.attackbench import with_optimality
from robust_ham.analysis.bootstrap import (
    Statistic,
    crossed_bootstrap,
    means_of,
    medians_of,
    per_seed,
)
from robust_ham.analysis.budgets import beyond_budget
from robust_ham.analysis.run import Run
from robust_ham.analysis.statistics import (
    Interval,
    Values,
    crossed_interval,
    in_range,
    median_interval,
    wilson,
)
from robust_ham.config.experiment import BEST, AttackConfig
from robust_ham.config.models import ModelGroup

SUMMARY_COLUMNS = (
    "model_id architecture window kernel_size effective_width effective_width_learned depth width "
    "seed params flops attack n clean_accuracy clean_accuracy_low clean_accuracy_high "
    "test_accuracy budget robust_accuracy robust_accuracy_low robust_accuracy_high robust_area "
    "fooled_rate median_l2 median_l2_low median_l2_high mean_l2 rho_adv median_linf forwards "
    "backwards normal_cosine optimality gate"
).split()
CURVE_COLUMNS = ["model_id", "attack", "budget", "robust_accuracy", "low", "high"]
_CURVE_POINTS = 40


def robust_accuracy(distances: Values, budget: float) -> float:
    """Share of images still right within ``budget``: distance > budget."""
    return float(beyond_budget(distances, budget).mean())


def robust_area(distances: Values, largest: float) -> float:
    """Mean of min(distance, largest budget): the area under the curve of robust accuracy."""
    return float(np.minimum(distances, largest).mean())


def distances(samples: pd.DataFrame, attack: AttackConfig) -> Values:
    """Distance of every image in the attack's norm: 0 wrong at first, ∞ survived; (n,)."""
    return samples[attack.norm].to_numpy(dtype=np.float64)


def right_without_attack(samples: pd.DataFrame) -> NDArray[np.bool_]:
    """Whether an image is right before the attack, (n,); by its status if no label is known."""
    label, clean = (
        samples[name].to_numpy(dtype=np.float64) for name in ("label", "clean_prediction")
    )
    known = ~np.isnan(label) & ~np.isnan(clean)
    right_at_first: NDArray[np.bool_] = np.where(
        known, clean == label, samples["status"].to_numpy() != "already_wrong"
    )
    return right_at_first


def summary_row(samples: pd.DataFrame, attack: AttackConfig) -> dict[str, float]:
    """The figures of one model under one attack, from its per-image rows."""
    count = len(samples)
    right_at_first = right_without_attack(samples)
    fooled = (samples["status"] == "fooled").to_numpy()
    clean = wilson(int(right_at_first.sum()), count)
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
        robust = right_at_first & ~fooled
    else:
        found = distances(samples, attack)
        robust = beyond_budget(found, attack.main_budget)
        l2 = samples["l2"].to_numpy(dtype=np.float64)
        linf = samples["linf"].to_numpy(dtype=np.float64)
        relative = samples["l2_relative"].to_numpy(dtype=np.float64)
        median = median_interval(l2[right_at_first])
        row |= {
            "budget": attack.main_budget,
            "robust_area": robust_area(found, attack.curve_budgets[-1]),
            "median_l2": median.estimate,
            "median_l2_low": median.low,
            "median_l2_high": median.high,
            "mean_l2": float(l2[fooled].mean()) if fooled.any() else np.nan,
            "rho_adv": float(relative[fooled].mean()) if fooled.any() else np.nan,
            "median_linf": median_interval(linf[right_at_first]).estimate,
            "normal_cosine": _mean_present(_cosines(samples)),
        }
    share = wilson(int(robust.sum()), count)
    row |= {
        "robust_accuracy": share.estimate,
        "robust_accuracy_low": share.low,
        "robust_accuracy_high": share.high,
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
                badge = run.badge(spec.model_id, attack_id)
                about: dict[str, Any] = {"attack": attack_id, "gate": badge}
                best = run.samples.get((spec.model_id, BEST[attack.norm]))
                if attack.competes and best is not None:
                    about["optimality"] = optimality(samples, best, attack)
                rows.append(known | about | summary_row(samples, attack))
    return with_optimality(run, pd.DataFrame(rows, columns=SUMMARY_COLUMNS))


def optimality(samples: pd.DataFrame, best: pd.DataFrame, attack: AttackConfig) -> float:
    """How much of what the best attack takes off the area under the curve this attack takes off.

    1: as near as the best on every image; 0: nothing is fooled within the budgets. In the manner of
    AttackBench's local optimality (arXiv 2404.19460). NaN where the best fools nothing.
    """
    largest = attack.curve_budgets[-1]
    clean = largest * float(right_without_attack(samples).mean())
    areas = [clean - robust_area(distances(table, attack), largest) for table in (samples, best)]
    return areas[0] / areas[1] if areas[1] > 0 else np.nan


def _cosines(samples: pd.DataFrame) -> Values:
    """Cosine to the boundary's normal, (n,); NaN: not fooled, or a table made elsewhere."""
    if "normal_cosine" not in samples:
        return np.full(len(samples), np.nan)
    return samples["normal_cosine"].to_numpy(dtype=np.float64)


def _mean_present(values: Values) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else np.nan


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
        found = distances(samples, attack)
        even = np.linspace(0, attack.curve_budgets[-1], _CURVE_POINTS + 1)
        for budget in np.unique(np.concatenate([even, attack.curve_budgets])):
            robust = wilson(int(beyond_budget(found, budget).sum()), len(found))
            rows.append((model_id, attack_id, budget, *robust))
    return pd.DataFrame(rows, columns=CURVE_COLUMNS)


Range = tuple[float, float]


@dataclass(frozen=True)
class Metric:
    """A figure of one arm: its values per seed and image, their range, and how they are averaged.

    Without ``bootstrap`` it is a mean of finite values, whose interval is the crossed t interval.
    """

    name: str
    values: Callable[[pd.DataFrame, AttackConfig], Values]
    range: Callable[[AttackConfig], Range]
    statistic: Callable[[Values], Statistic] = means_of
    bootstrap: bool = False

    def interval(self, values: Values, attack: AttackConfig) -> Interval:
        """95 % interval of values (S, n), NaN where an image has none; inside the range."""
        lowest, highest = self.range(attack)
        if not self.bootstrap:
            return in_range(crossed_interval(values), values.shape[1], lowest, highest)
        estimate, low, high = crossed_bootstrap(self.statistic(values), values.shape[1]).interval()
        if (~np.isnan(values)).any(axis=0).sum() == 1:  # one image says nothing of others
            return Interval(estimate, lowest, highest)
        return Interval(estimate, max(low, lowest), min(high, highest))


def area_values(samples: pd.DataFrame, attack: AttackConfig) -> Values:
    """What every image adds to the robust area: min(distance, largest budget), (n,)."""
    return np.asarray(np.minimum(distances(samples, attack), attack.curve_budgets[-1]))


def _median_values(samples: pd.DataFrame, attack: AttackConfig) -> Values:
    return np.where(right_without_attack(samples), samples["l2"].to_numpy(dtype=np.float64), np.nan)


def _rho_values(samples: pd.DataFrame, attack: AttackConfig) -> Values:
    fooled = (samples["status"] == "fooled").to_numpy()
    return np.where(fooled, samples["l2_relative"].to_numpy(dtype=np.float64), np.nan)


def still_right(samples: pd.DataFrame, attack: AttackConfig, budget: float | None = None) -> Values:
    """1.0 where an image is right within ``budget``, the attack's own where it is None; (n,)."""
    limit = attack.main_budget if budget is None else budget
    return np.asarray(beyond_budget(distances(samples, attack), limit), dtype=np.float64)


def survived(samples: pd.DataFrame, attack: AttackConfig) -> Values:
    """1.0 where an image was right at first and still is, (n,)."""
    held = samples["status"].isin(["survived", "invalid"])
    return np.asarray(held & right_without_attack(samples), dtype=np.float64)


SHARES = {"clean_accuracy", "robust_accuracy"}
DISTANCE_METRICS = (
    Metric("robust_area", area_values, lambda attack: (0.0, attack.curve_budgets[-1])),
    Metric("robust_accuracy", still_right, lambda _: (0.0, 1.0)),
    Metric("median_l2", _median_values, lambda _: (0.0, np.inf), medians_of, bootstrap=True),
    Metric("rho_adv", _rho_values, lambda _: (0.0, np.inf), bootstrap=True),
    Metric("normal_cosine", lambda rows, _: _cosines(rows), lambda _: (-1.0, 1.0), bootstrap=True),
)
SURVIVAL_METRICS = (Metric("robust_accuracy", survived, lambda _: (0.0, 1.0)),)
KERNEL_COLUMNS = (
    "attack metric family window kernel_size effective_width effective_width_learned params flops "
    "num_seeds estimate low high per_seed"
).split()


def kernel_size_curves(run: Run) -> pd.DataFrame:
    """Clean accuracy and robustness against k, one row per arm: estimate, 95 % interval, seeds.

    An arm is all seeds of one family, kernel size and window. Means have the crossed t interval,
    inside the range of what is averaged (``in_range``); medians and ρ_adv the crossed bootstrap.
    ``per_seed`` is a tuple. Clean accuracy is over the whole test split (attack is empty).
    """
    rows = []
    for arm in arms_of(run).values():
        correct = stacked([run.correct(spec.model_id) for spec in arm])
        if correct is not None:
            interval = in_range(crossed_interval(correct), correct.shape[1], 0.0, 1.0)
            seeds = correct.mean(axis=1)
            rows.append(_arm_row(run, arm, "", "clean_accuracy", interval, seeds))
        for attack_id, attack in run.attacks.items():
            attacked = [spec for spec in arm if attack.attacks(spec)]
            tables = [run.samples.get((spec.model_id, attack_id)) for spec in attacked]
            done = [table for table in tables if table is not None]
            for metric in DISTANCE_METRICS if attack.has_budget else SURVIVAL_METRICS:
                values = stacked([metric.values(table, attack) for table in done])
                if values is None or len(done) < len(attacked) or np.isnan(values).all():
                    continue
                interval = metric.interval(values, attack)
                seeds = per_seed(metric.statistic(values), values.shape[1])
                rows.append(_arm_row(run, attacked, attack_id, metric.name, interval, seeds))
    return pd.DataFrame(rows, columns=KERNEL_COLUMNS)


def stacked(values: list[Values | None]) -> Values | None:
    """(S, n); None: no model, one without values, or models of other numbers of images."""
    present = [v for v in values if v is not None]
    if len(present) < len(values) or len({len(v) for v in present}) != 1:
        return None
    return np.stack(present)


def arms_of(run: Run) -> dict[tuple[str, int, str], list[ModelGroup]]:
    """Family, kernel size and window to the models of all seeds."""
    arms: dict[tuple[str, int, str], list[ModelGroup]] = {}
    for spec in run.specs:
        arms.setdefault((spec.family, spec.kernel_size, spec.window), []).append(spec)
    return arms


def _arm_row(
    run: Run,
    arm: list[ModelGroup],
    attack_id: str,
    metric: str,
    interval: Interval,
    seeds: Values,
) -> tuple[Any, ...]:
    spec, card = arm[0], run.cards[arm[0].model_id]
    learned = [run.cards[s.model_id].get("effective_width_learned") for s in arm]
    width = None if None in learned else float(np.mean(np.array(learned, dtype=np.float64)))
    about = (spec.family, spec.window, spec.kernel_size)
    size = (card.get("effective_width"), width, card.get("params"), card.get("flops"))
    return (attack_id, metric, *about, *size, len(arm), *interval, tuple(seeds.tolist()))
