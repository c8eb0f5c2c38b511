"""The tables of the page, as formatted text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from robust_ham.analysis.metrics import METRICS
from robust_ham.analysis.run import Run
from robust_ham.analysis.tables import Tables
from robust_ham.errors import plural
from robust_ham.report.figures.labels import attack_titles, metric_label, size_label, window_label
from robust_ham.report.figures.robustness import primary_panels
from robust_ham.report.formats import Table
from robust_ham.report.verdict_table import claim_table, verdict_matrix, verdict_table

_MODEL_COLUMNS = {
    "model_id": "model",
    "kernel_size": "k",
    "window": "window",
    "seed": "seed",
    "attack": "attack",
    "n": "n",
    "test_accuracy": "test accuracy",
}
"""Before the metrics, which stand in the order of ``summary.csv``."""
_LATER_COLUMNS = {
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
"""Columns of the table of all models that a reader can filter by."""


def page_tables(tables: Tables) -> list[Table]:
    """Return all tables of the page."""
    return [
        headline_table(tables.run, tables.curves),
        answers_table(tables),
        _verdicts(tables),
        _claims(tables),
        models_table(tables),
        findings_table(tables.run),
    ]


def headline_table(run: Run, curves: pd.DataFrame) -> Table:
    """Return the primary metrics by network, kernel size and window."""
    panels = [(attack_id, metric) for attack_id, metric, _ in primary_panels(run, curves)]
    titles = attack_titles(run)
    header = ["network", "k", "window", "seeds"]
    for attack_id, metric in panels:
        header.append(f"{titles[attack_id]}: {metric_label(run, attack_id, metric)}")
    rows = []
    arms = curves.groupby(["family", "kernel_size", "window"], sort=False)
    for (family, size, window), arm in arms:
        row = [
            str(family),
            size_label(int(str(size))),
            window_label(str(window)),
            str(arm["num_seeds"].iloc[0]),
        ]
        for attack_id, metric in panels:
            part = arm[(arm["attack"] == attack_id) & (arm["metric"] == metric)]
            row.append(_estimate(part.iloc[0], metric, int(row[3])) if len(part) else "–")
        rows.append(row)
    caption = "Estimates with 95 % intervals over seeds and images."
    return Table("headline", caption, header, rows)


def models_table(tables: Tables) -> Table:
    """Return a row per model and attack."""
    headings = {m.id: m.heading for m in METRICS.values() if m.heading} | {"budget": "budget"}
    measured = {name: headings[name] for name in tables.summary if name in headings}
    columns = _MODEL_COLUMNS | measured | _LATER_COLUMNS
    shown = {name: title for name, title in columns.items() if name in tables.summary}
    rows = [
        [_cell(row[name], name) for name in shown]
        for row in tables.summary.to_dict(orient="records")
    ]
    caption = "All models under all attacks."
    return Table("models", caption, list(shown.values()), rows)


def answers_table(tables: Tables) -> Table:
    """Return the verdicts by window and kernel size."""
    matrix = verdict_matrix(verdict_table(tables.run, tables.contrasts))
    rows = [
        [
            window,
            size,
            *("–" if row is None else f"{row['verdict']}: {row['effect']}" for row in line),
        ]
        for window, size, line in matrix.lines
    ]
    caption = (
        "Windowed minus baseline networks of the same kernel size in percentage points, or "
        "windowed divided by baseline (×), with simultaneous 95 % intervals over seeds and images."
    )
    return Table("answers", caption, ["window", "k", *matrix.figures], rows)


def _verdicts(tables: Tables) -> Table:
    columns = {
        "window": "window",
        "size": "k",
        "figure": "measure",
        "effect": "windowed − baseline, or ratio (×)",
        "p": "p (Holm)",
        "verdict": "verdict",
        "decide": "needed for a verdict",
    }
    rows = [[row[key] for key in columns] for row in verdict_table(tables.run, tables.contrasts)]
    caption = (
        "Windowed compared with baseline networks of the same kernel size, paired by seed and "
        "image."
    )
    return Table("verdicts", caption, list(columns.values()), rows)


def _claims(tables: Tables) -> Table:
    rows = [
        [claim["statement"], claim["source"], claim["answer"], _evidence(claim["evidence"])]
        for claim in claim_table(tables.claims)
        if claim["answer"] != "not run"
    ]
    header = ["statement", "source", "answer", "evidence"]
    return Table("claims", "Claims, answered from this run alone.", header, rows)


def _evidence(lines: list[dict[str, str]]) -> str:
    return "; ".join(f"{line['part']}: {line['effect']} – {line['answer']}" for line in lines)


def findings_table(run: Run) -> Table:
    """Return the reliability checks that did not pass."""
    findings = run.gate[run.gate["severity"] != "pass"]
    header = ["model", "attack", "finding", "reason"]
    rows = findings[["model_id", "attack", "severity", "reason"]].astype(str).to_numpy().tolist()
    rows = [[model, attack or "–", finding, reason] for model, attack, finding, reason in rows]
    return Table("gate", "Reliability checks that did not pass.", header, rows)


def _cell(value: Any, name: str) -> str:  # noqa: ANN401
    """Format a value of ``summary.csv``."""
    unknown = value is None or (isinstance(value, float) and np.isnan(value))
    if unknown or (name == "kernel_size" and value == 0):
        return "–"
    if isinstance(value, str):
        return window_label(value) if name == "window" else value
    if np.isinf(value):
        return "∞" if value > 0 else "−∞"
    if name in METRICS and METRICS[name].unit == "share":
        return f"{100 * value:.1f} %"
    if float(value).is_integer():
        return f"{int(value):,}".replace(",", "\u202f")
    return f"{value:.3g}"


def _estimate(row: pd.Series[Any], metric: str, num_seeds: int) -> str:
    """Format estimate and interval, and the number of seeds if it is not ``num_seeds``."""
    row_seeds = int(row["num_seeds"])
    note = "" if row_seeds == num_seeds else f" ({plural(row_seeds, 'seed')})"
    return _interval(row, metric) + note


def _interval(row: pd.Series[Any], metric: str) -> str:
    if METRICS[metric].unit == "share":
        return f"{100 * row['estimate']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    return f"{row['estimate']:#.3g} [{row['low']:#.3g}, {row['high']:#.3g}]"
