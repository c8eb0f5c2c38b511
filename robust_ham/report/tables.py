"""The tables of the page, in words and rounded numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from robust_ham.analysis.run import Run
from robust_ham.analysis.tables import Tables
from robust_ham.report.figures import robustness
from robust_ham.report.figures.style import WINDOW_LABELS, size_label
from robust_ham.report.formats import Table
from robust_ham.report.verdict_table import claim_table, verdict_matrix, verdict_table

_PERCENT = {"test_accuracy", "clean_accuracy", "robust_accuracy", "fooled_rate"}
_MODEL_COLUMNS = {
    "model_id": "model",
    "kernel_size": "k",
    "window": "window",
    "seed": "seed",
    "attack": "attack",
    "n": "n",
    "test_accuracy": "test accuracy",
    "clean_accuracy": "clean accuracy (n)",
    "budget": "budget",
    "robust_accuracy": "robust accuracy",
    "robust_area": "robust area",
    "fooled_rate": "fooled rate",
    "median_l2": "median L2",
    "rho_adv": "ρ_adv",
    "normal_cosine": "cosine to the normal",
    "optimality": "optimality",
    "local_optimality": "local optimality",
    "global_optimality": "global optimality",
    "effective_width": "effective width",
    "effective_width_learned": "learned width",
    "params": "parameters",
    "flops": "FLOPs",
    "forwards": "forwards",
    "backwards": "backwards",
    "gate": "gate",
}
CHOICES = ("k", "window", "seed", "attack", "gate")
"""Columns of the table of all models that a reader chooses rows by."""


def page_tables(tables: Tables) -> list[Table]:
    """All tables of the page."""
    return [
        headline_table(tables.run, tables.curves),
        answers_table(tables),
        _verdicts(tables),
        _claims(tables),
        models_table(tables),
        findings_table(tables.run),
    ]


def headline_table(run: Run, curves: pd.DataFrame) -> Table:
    """Kernel size and window by primary metric."""
    wanted = [
        (attack_id, metric) for attack_id, metric, _ in robustness.primary_panels(run, curves)
    ]
    header = ["network", "k", "window", "seeds"]
    for attack_id, metric in wanted:
        title = robustness.attack_title(run, attack_id) if attack_id else "clean images"
        header.append(f"{title}: {robustness.metric_label(run, attack_id, metric)}")
    rows = []
    arms = curves.groupby(["family", "kernel_size", "window"], sort=False)
    for (family, size, window), arm in arms:
        row = [
            str(family),
            size_label(int(str(size))),
            WINDOW_LABELS[str(window)],
            str(arm["num_seeds"].iloc[0]),
        ]
        for attack_id, metric in wanted:
            found = arm[(arm["attack"] == attack_id) & (arm["metric"] == metric)]
            row.append(_estimate(found.iloc[0], metric, int(row[3])) if len(found) else "–")
        rows.append(row)
    caption = "Estimates with 95 % intervals over seeds and images."
    return Table("headline", caption, header, rows)


def models_table(tables: Tables) -> Table:
    """A row per model and attack."""
    shown = {name: title for name, title in _MODEL_COLUMNS.items() if name in tables.summary}
    rows = [
        [_cell(row[name], name) for name in shown]
        for row in tables.summary.to_dict(orient="records")
    ]
    caption = "Every model under every attack."
    return Table("models", caption, list(shown.values()), rows)


def answers_table(tables: Tables) -> Table:
    """Window and kernel size by verdict."""
    matrix = verdict_matrix(verdict_table(tables.run, tables.contrasts))
    rows = [
        [
            window,
            size,
            *("–" if row is None else f"{row['verdict']}: {row['effect']}" for row in found),
        ]
        for window, size, found in matrix.lines
    ]
    caption = (
        "Windowed minus baseline networks of the same kernel size in percentage points, or "
        "windowed over baseline (×), with simultaneous 95 % intervals over seeds and images."
    )
    return Table("answers", caption, ["window", "k", *matrix.figures], rows)


def _verdicts(tables: Tables) -> Table:
    columns = {
        "window": "window",
        "size": "k",
        "figure": "figure",
        "effect": "windowed − baseline, or ×, with interval",
        "p": "p (Holm)",
        "verdict": "verdict",
        "decide": "would decide",
    }
    rows = [[row[key] for key in columns] for row in verdict_table(tables.run, tables.contrasts)]
    caption = (
        "Windowed against baseline networks of the same kernel size, paired by seed and image."
    )
    return Table("verdicts", caption, list(columns.values()), rows)


def _claims(tables: Tables) -> Table:
    rows = [
        [claim["statement"], claim["source"], claim["answer"], _evidence(claim["evidence"])]
        for claim in claim_table(tables.claims)
        if claim["answer"] != "not run"
    ]
    header = ["statement", "stated by", "answer", "evidence"]
    return Table("claims", "What is claimed, answered from this run alone.", header, rows)


def _evidence(lines: list[dict[str, str]]) -> str:
    return "; ".join(f"{line['part']}: {line['effect']} – {line['answer']}" for line in lines)


def findings_table(run: Run) -> Table:
    """What the gate has found that did not pass."""
    found = run.gate[run.gate["severity"] != "pass"]
    header = ["model", "attack", "finding", "reason"]
    rows = found[["model_id", "attack", "severity", "reason"]].astype(str).to_numpy().tolist()
    rows = [[model, attack or "–", finding, reason] for model, attack, finding, reason in rows]
    return Table("gate", "Checks of models and attacks that did not pass.", header, rows)


def _cell(value: Any, name: str) -> str:  # noqa: ANN401
    """A value as the page shows it."""
    unknown = value is None or (isinstance(value, float) and np.isnan(value))
    if unknown or (name == "kernel_size" and value == 0):
        return "–"
    if isinstance(value, str):
        return WINDOW_LABELS[value] if name == "window" else value
    if np.isinf(value):
        return "∞" if value > 0 else "−∞"
    if name in _PERCENT:
        return f"{100 * value:.1f} %"
    if float(value).is_integer():
        return f"{int(value):,}".replace(",", "\u202f")
    return f"{value:.3g}"


def _estimate(row: pd.Series[Any], metric: str, num_seeds: int) -> str:
    """Estimate and interval; of how many seeds, where not of ``num_seeds``."""
    own = int(row["num_seeds"])
    about = f" ({own} {'seed' if own == 1 else 'seeds'})" if own != num_seeds else ""
    return _interval(row, metric) + about


def _interval(row: pd.Series[Any], metric: str) -> str:
    if metric in _PERCENT:
        return f"{100 * row['estimate']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    return f"{row['estimate']:#.3g} [{row['low']:#.3g}, {row['high']:#.3g}]"
