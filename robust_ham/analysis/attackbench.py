"""AttackBench's optimality of attacks (arXiv 2404.19460), where tables have ``best_distance``."""

from __future__ import annotations

import numpy as np
import pandas as pd

from robust_ham.analysis.run import Run

COLUMNS = ["local_optimality", "global_optimality"]


def with_optimality(run: Run, summary: pd.DataFrame) -> pd.DataFrame:
    """The summary, with two more columns after ``optimality`` where AttackBench's results are.

    ``local_optimality``: (ρ·ε₀ - A) / (ρ·ε₀ - A*), where ρ is the clean accuracy, A the area under
    the curve of robust accuracy of the least distances that the attack passed, A* that of the best
    attack of its norm on each image, and ε₀ the largest distance of the best that is finite: 1 for
    the best attack, 0 for one that fools nothing within ε₀. ``global_optimality``: its mean over
    the models of the attack.
    """
    tables = {
        key: table
        for key, table in run.samples.items()
        if key[1] in run.config.attacks and "best_distance" in table
        if table["best_distance"].notna().all()
    }
    if not tables:
        return summary
    local = {}
    for (model_id, attack_id), table in tables.items():
        norm = run.attacks[attack_id].norm
        rivals = [
            other
            for (model, attack), other in tables.items()
            if model == model_id and run.attacks[attack].norm == norm
        ]
        local[model_id, attack_id] = local_optimality(table, rivals)
    places = list(zip(summary["model_id"], summary["attack"], strict=True))
    values = pd.Series([local.get(place, np.nan) for place in places], index=summary.index)
    means = values.groupby(summary["attack"]).transform("mean")
    found = summary.copy()
    for name, column in zip(COLUMNS[::-1], (means, values), strict=True):
        found.insert(list(found.columns).index("optimality") + 1, name, column)
    return found


def local_optimality(table: pd.DataFrame, rivals: list[pd.DataFrame]) -> float:
    """How near an attack comes to the best of several; NaN where none fools anything.

    Args:
        table: rows of the attack, with ``sample_id`` and ``best_distance``.
        rivals: those of all attacks on the same model, this one among them.
    """
    best = pd.concat(rivals).groupby("sample_id")["best_distance"].min()
    finite = best[np.isfinite(best)]
    if not (finite > 0).any():
        return np.nan
    largest = float(finite.max())
    reference = best.loc[table["sample_id"]].to_numpy(dtype=np.float64)
    passed = table["best_distance"].to_numpy(dtype=np.float64)
    whole = largest * float((reference > 0).mean())
    taken, most = (whole - float(np.minimum(d, largest).mean()) for d in (passed, reference))
    return taken / most if most > 1e-12 * largest else np.nan
