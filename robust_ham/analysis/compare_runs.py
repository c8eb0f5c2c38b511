"""Two or more runs side by side: what differs in their configurations, and in their results."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from robust_ham.analysis.compare_tables import Metric, PairedComparison, compare
from robust_ham.analysis.run import Run
from robust_ham.analysis.same_images import OtherImagesError, paired_rows
from robust_ham.config.experiment import AttackConfig
from robust_ham.errors import RequestError, printable

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
    """Names of the folders, told apart where they are the same, or that of the column of keys."""
    names = [printable(run.folder.root.resolve().name) for run in runs]
    taken = [*names, "key"]
    return [f"{n} ({i + 1})" if taken.count(n) > 1 else n for i, n in enumerate(names)]


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
        RequestError: nothing in common, or what is called one image is two; model, attack and image
            are named.
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
    return paired_rows((first, first.samples[key]), (other, other.samples[key]))


def _metrics(attack: AttackConfig, *, with_clean: bool) -> list[tuple[Metric, float | None]]:
    """What is compared, and at which budget; the clean accuracy is the same under every attack."""
    metrics: list[tuple[Metric, float | None]] = [("clean_accuracy", None)] if with_clean else []
    if not attack.has_budget:
        return [*metrics, ("robust_accuracy", None)]
    largest = attack.curve_budgets[-1]
    return [*metrics, ("robust_area", largest), ("robust_accuracy", attack.main_budget)]


def _compared(
    first: Run,
    other: Run,
    attack_id: str,
    tables: tuple[pd.DataFrame, pd.DataFrame],
    metric: Metric,
    budget: float | None,
) -> dict[str, Any]:
    """The paired effect in the columns of a row, or a note that says why there is none."""
    attack = first.attacks[attack_id]
    try:
        _check_norm(attack, other.attacks[attack_id])
        found = compare(tables[1], tables[0], metric, budget=budget, norm=attack.norm)
    except ValueError as error:
        return {"note": str(error)}
    return _in_a_row(found)


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
