"""Two or more runs side by side: what differs in their configurations, and in their results."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from robust_ham.analysis.paired import PairedComparison, compare
from robust_ham.analysis.run import Run
from robust_ham.config import AttackConfig, RequestError

RESULT_COLUMNS = (
    "run model_id attack metric budget first other scale effect low high num_images note"
).split()


def changed_keys(runs: list[Run]) -> pd.DataFrame:
    """``key`` and a column per run, as text: keys of the configurations that are not all equal."""
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
    """Names of the folders, told apart where they are the same."""
    names = [run.folder.root.resolve().name for run in runs]
    return [f"{n} ({i + 1})" if names.count(n) > 1 else n for i, n in enumerate(names)]


def _flat(value: Any, place: str = "") -> dict[str, str]:  # noqa: ANN401
    """Dotted keys to values as text."""
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
        items = {str(i): v for i, v in enumerate(value)}.items()
    else:
        return {place: json.dumps(value)}
    found = dict[str, str]()
    for key, inner in items:
        found |= _flat(inner, f"{place}.{key}" if place else str(key))
    return found


def compared_results(runs: list[Run]) -> pd.DataFrame:
    """A row per other run, network and attack that the first run has too, ``RESULT_COLUMNS``.

    The interval is of the paired effect over images, for these very networks: others, trained
    again, may differ more.

    Raises:
        RequestError: nothing in common.
    """
    first, names = runs[0], run_names(runs)
    rows: list[dict[str, Any]] = []
    for other, name in zip(runs[1:], names[1:], strict=True):
        seen = set[str]()
        for (model_id, attack_id), samples in first.samples.items():
            theirs = other.samples.get((model_id, attack_id))
            if theirs is None:
                continue
            attack = first.attacks[attack_id]
            about = {"run": name, "model_id": model_id, "attack": attack_id}
            metrics: list[tuple[Any, float | None]] = []
            if model_id not in seen:  # under every attack the same
                metrics.append(("clean_accuracy", None))
            seen.add(model_id)
            if attack.has_budget:
                metrics.append(("robust_area", attack.curve_budgets[-1]))
            metrics.append(("robust_accuracy", attack.main_budget if attack.has_budget else None))
            for metric, budget in metrics:
                row = about | {"metric": metric, "budget": budget}
                try:
                    _check_data(samples, theirs)
                    _check_norm(attack, other.attacks[attack_id])
                    found = compare(theirs, samples, metric, budget=budget, norm=attack.norm)
                except ValueError as error:
                    rows.append(row | {"note": str(error)})
                else:
                    rows.append(row | _in_a_row(found))
    if not rows:
        raise RequestError("the runs have no network and attack in common")
    return pd.DataFrame(rows, columns=RESULT_COLUMNS)


def _check_data(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Equal numbers of images of other data, or of another split, are not the same images."""
    for column in {"dataset", "split"} & set(one.columns) & set(other.columns):
        if set(one[column]) != set(other[column]):
            raise ValueError(f"another {column}")


def _check_norm(one: AttackConfig, other: AttackConfig) -> None:
    """Distances in another norm are no better or worse."""
    if (one.norm, one.has_budget) != (other.norm, other.has_budget):
        raise ValueError("another norm")


def _in_a_row(found: PairedComparison) -> dict[str, Any]:
    return {
        "first": found.baseline,
        "other": found.other,
        "scale": "ratio" if found.metric == "robust_area" else "difference",
        "effect": found.effect,
        "low": found.low,
        "high": found.high,
        "num_images": found.num_images,
        "note": found.note if np.isnan(found.effect) else "",
    }
