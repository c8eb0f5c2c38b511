"""Compare runs: differences of configurations and of results."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from robust_ham.analysis.compare_tables import PairedComparison, compare
from robust_ham.analysis.metrics import METRICS
from robust_ham.analysis.paired_images import OtherImagesError, pair_rows
from robust_ham.analysis.run import Run
from robust_ham.config.experiment import AttackConfig
from robust_ham.errors import RequestError, printable

RESULT_COLUMNS = (
    "run model_id attack metric budget first other scale effect low high num_images note"
).split()


def changed_keys(runs: list[Run]) -> pd.DataFrame:
    """Tabulate the configuration keys that differ, as text: ``key`` and a column per run."""
    names = run_names(runs)
    flat = [_flat(json.loads(run.config.model_dump_json(by_alias=True))) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = []
    for key in keys:
        values = [values.get(key, "") for values in flat]
        if key != "name" and len(set(values)) > 1:
            rows.append({"key": key} | dict(zip(names, values, strict=True)))
    return pd.DataFrame(rows, columns=["key", *names])


def run_names(runs: list[Run]) -> list[str]:
    """Return the folders' names; those that are not unique, or ``key``, get a number."""
    names = [printable(run.folder.root.resolve().name) for run in runs]
    taken = [*names, "key"]
    return [f"{n} ({i + 1})" if taken.count(n) > 1 else n for i, n in enumerate(names)]


def _flat(value: Any, place: str = "") -> dict[str, str]:  # noqa: ANN401
    """Map dotted keys to values as text."""
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
        items = {str(i): v for i, v in enumerate(value)}.items()
    else:
        return {place: json.dumps(value)}
    flat = dict[str, str]()
    for key, inner in items:
        flat |= _flat(inner, f"{place}.{key}" if place else str(key))
    return flat


def compare_results(runs: list[Run]) -> pd.DataFrame:
    """Compare each run with the first, by network and attack: ``RESULT_COLUMNS``.

    The interval is that of the paired effect over images, for these networks; networks trained
    again may differ more.

    Raises:
        RequestError: nothing in common, or two images under one name; the message names model,
            attack and image.
    """
    first, names = runs[0], run_names(runs)
    rows: list[dict[str, Any]] = []
    for other, name in zip(runs[1:], names[1:], strict=True):
        seen = set[str]()
        for model_id, attack_id in first.samples:
            if (model_id, attack_id) not in other.samples:
                continue
            about = {"run": name, "model_id": model_id, "attack": attack_id}
            metrics = _metrics(first.attacks[attack_id], with_clean=model_id not in seen)
            seen.add(model_id)
            try:
                tables = _paired(first, other, model_id, attack_id)
            except OtherImagesError as error:
                note = {"note": str(error)}
                rows += [about | {"metric": m, "budget": b} | note for m, b in metrics]
                continue
            except RequestError as error:
                place = f"compare: {name}: {model_id} under {attack_id}"
                raise RequestError(f"{place}: {error}") from None
            for metric, budget in metrics:
                row = about | {"metric": metric, "budget": budget}
                rows.append(row | _compared(first, other, attack_id, tables, metric, budget))
    if not rows:
        raise RequestError("the runs have no network and attack in common")
    return pd.DataFrame(rows, columns=RESULT_COLUMNS)


def _paired(
    first: Run, other: Run, model_id: str, attack_id: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    key = model_id, attack_id
    return pair_rows((first, first.samples[key]), (other, other.samples[key]))


def _metrics(attack: AttackConfig, *, with_clean: bool) -> list[tuple[str, float | None]]:
    """Metrics to compare and their budgets; clean accuracy is the same under every attack."""
    metrics: list[tuple[str, float | None]] = []
    for metric in METRICS.values():
        if not metric.compares_tables or not metric.applies_to(attack):
            continue
        if metric.model_values is not None and not with_clean:
            continue
        budget = None
        if metric.values_at is not None and attack.has_budget:
            budget = attack.main_budget
        elif metric.attacks == "with budget":
            budget = attack.curve_budgets[-1]
        metrics.append((metric.id, budget))
    return metrics


def _compared(
    first: Run,
    other: Run,
    attack_id: str,
    tables: tuple[pd.DataFrame, pd.DataFrame],
    metric: str,
    budget: float | None,
) -> dict[str, Any]:
    """Return the paired effect as columns, or a note why it is missing."""
    attack = first.attacks[attack_id]
    try:
        _check_norm(attack, other.attacks[attack_id])
        comparison = compare(tables[1], tables[0], metric, budget=budget, norm=attack.norm)
    except ValueError as error:
        return {"note": str(error)}
    return _result_columns(comparison)


def _check_norm(one: AttackConfig, other: AttackConfig) -> None:
    """Refuse to compare distances in different norms."""
    if (one.norm, one.has_budget) != (other.norm, other.has_budget):
        raise ValueError("another norm")


def _result_columns(comparison: PairedComparison) -> dict[str, Any]:
    return {
        "first": comparison.baseline,
        "other": comparison.other,
        "scale": METRICS[comparison.metric].scale,
        "effect": comparison.effect,
        "low": comparison.low,
        "high": comparison.high,
        "num_images": comparison.num_images,
        "note": comparison.note if np.isnan(comparison.effect) else "",
    }
