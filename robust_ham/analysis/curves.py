"""Curves: metrics against budget (``curves.csv``) and against kernel size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from robust_ham.analysis.arms import Arm, arms_of, stack
from robust_ham.analysis.bootstrap import per_seed
from robust_ham.analysis.metrics import METRICS, Metric
from robust_ham.analysis.run import Run
from robust_ham.analysis.statistics import Values

_CURVE_POINTS = 40
_NAMES_ON_DISK = {"robust_accuracy_low": "low", "robust_accuracy_high": "high"}
KERNEL_COLUMNS = (
    "attack metric family window kernel_size effective_width effective_width_learned params flops "
    "num_seeds estimate low high per_seed"
).split()


def curve_columns() -> list[str]:
    """Columns of ``curves.csv``."""
    names = [name for metric in _against_budget() for name in metric.summary_columns]
    return ["model_id", "attack", "budget", *(_NAMES_ON_DISK.get(name, name) for name in names)]


def _against_budget() -> list[Metric]:
    return [m for m in METRICS.values() if m.values_at is not None and "curves" in m.tables]


def budget_curves(run: Run) -> pd.DataFrame:
    """``curves.csv``: robust accuracy of each model against budget, with Wilson intervals."""
    rows, metrics = [], _against_budget()
    for (model_id, attack_id), samples in run.samples.items():
        attack = run.attacks[attack_id]
        if not attack.has_budget:
            continue
        even = np.linspace(0, attack.curve_budgets[-1], _CURVE_POINTS + 1)
        budgets = np.unique(np.concatenate([even, attack.curve_budgets]))
        values = [m.image_values(samples, attack, budgets[:, None]) for m in metrics]
        for i, budget in enumerate(budgets):
            row = [model_id, attack_id, budget]
            for metric, of_images in zip(metrics, values, strict=True):
                average = metric.of_one_model(of_images[i])
                row += average[: len(metric.summary_columns)]
            rows.append(row)
    return pd.DataFrame(rows, columns=curve_columns())


def kernel_size_curves(run: Run) -> pd.DataFrame:
    """Clean accuracy and robustness against k, one row per arm: estimate, 95 % interval, seeds.

    Means have the crossed t interval within the metric's range (``in_range``); medians and ρ_adv
    the crossed bootstrap. ``per_seed`` is a tuple. Clean accuracy is over the whole test split
    (``attack`` is empty).
    """
    metrics = [metric for metric in METRICS.values() if "curves" in metric.tables]
    rows = []
    for arm in arms_of(run).values():
        for metric in metrics:
            if metric.model_values is not None:
                values = stack([metric.model_values(run, spec) for spec in arm])
                if values is not None:
                    rows.append(_arm_row(run, arm, "", metric, values))
        for attack_id, attack in run.attacks.items():
            attacked = [spec for spec in arm if attack.attacks(spec)]
            tables = [run.samples.get((spec.model_id, attack_id)) for spec in attacked]
            done = [table for table in tables if table is not None]
            if len(done) < len(attacked):
                continue
            for metric in metrics:
                if metric.model_values is None and metric.applies_to(attack):
                    values = stack([metric.image_values(table, attack) for table in done])
                    if values is not None and not np.isnan(values).all():
                        rows.append(_arm_row(run, attacked, attack_id, metric, values))
    return pd.DataFrame(rows, columns=KERNEL_COLUMNS)


def _arm_row(run: Run, arm: Arm, attack_id: str, metric: Metric, values: Values) -> tuple[Any, ...]:
    """Average an arm's values, (S, n), beside its size."""
    spec, card = arm[0], run.cards[arm[0].model_id]
    learned = [run.cards[s.model_id].get("effective_width_learned") for s in arm]
    width = None if None in learned else float(np.mean(np.array(learned, dtype=np.float64)))
    about = (spec.family, spec.window, spec.kernel_size)
    size = (card.get("effective_width"), width, card.get("params"), card.get("flops"))
    interval = metric.of_arm(values, run.attacks[attack_id] if attack_id else None)
    seeds = per_seed(metric.statistic(values), values.shape[1])
    return (attack_id, metric.id, *about, *size, len(arm), *interval, tuple(seeds.tolist()))
