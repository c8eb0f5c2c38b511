"""``summary.csv``: one row per model and attack."""

from __future__ import annotations

from typing import Any

import pandas as pd

from robust_ham.analysis.metrics import METRICS
from robust_ham.analysis.optimality import add_attackbench_optimality, optimality
from robust_ham.analysis.run import Run
from robust_ham.config.experiment import BEST, AttackConfig

_COLUMNS = (
    "model_id architecture window kernel_size effective_width effective_width_learned depth width "
    "seed params flops attack n clean_accuracy clean_accuracy_low clean_accuracy_high "
    "test_accuracy budget robust_accuracy robust_accuracy_low robust_accuracy_high robust_area "
    "fooled_rate median_l2 median_l2_low median_l2_high mean_l2 rho_adv median_linf forwards "
    "backwards normal_cosine optimality gate"
).split()
"""Their order on disk is fixed."""


def summary_columns() -> list[str]:
    """All columns, those of later metrics before ``optimality``."""
    later = [c for m in METRICS.values() for c in m.summary_columns if c not in _COLUMNS]
    place = _COLUMNS.index("optimality")
    return [*_COLUMNS[:place], *later, *_COLUMNS[place:]]


def summary_row(samples: pd.DataFrame, attack: AttackConfig) -> dict[str, float]:
    """Measure one model under one attack, from its per-image rows."""
    row: dict[str, float] = {"n": len(samples)}
    if attack.has_budget:
        row["budget"] = attack.main_budget
    for metric in METRICS.values():
        if metric.summary_columns and metric.applies_to(attack):
            average = metric.of_one_model(metric.image_values(samples, attack))
            row |= dict(zip(metric.summary_columns, average, strict=False))
    return row


def summarise(run: Run) -> pd.DataFrame:
    """``summary.csv``: one row per model and attack."""
    rows = []
    for spec in run.specs:
        card = run.cards[spec.model_id]
        model = {
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
        model |= {name: card.get(name) for name in measured}
        for attack_id, attack in run.attacks.items():
            samples = run.samples.get((spec.model_id, attack_id))
            if samples is not None:
                badge = run.badge(spec.model_id, attack_id)
                about: dict[str, Any] = {"attack": attack_id, "gate": badge}
                best = run.samples.get((spec.model_id, BEST[attack.norm]))
                if attack.competes and best is not None:
                    about["optimality"] = optimality(samples, best, attack)
                rows.append(model | about | summary_row(samples, attack))
    return add_attackbench_optimality(run, pd.DataFrame(rows, columns=summary_columns()))


def _width(model: dict[str, Any]) -> str | None:
    widths = model.get("widths", model.get("width"))
    return "x".join(map(str, widths)) if isinstance(widths, list) else widths
