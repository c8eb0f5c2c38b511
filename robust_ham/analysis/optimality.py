"""Optimality of attacks: how near they come to the best one (AttackBench, arXiv 2404.19460)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from robust_ham.analysis.metrics import correctly_classified, distances, robust_area
from robust_ham.analysis.run import Run
from robust_ham.config.experiment import AttackConfig

COLUMNS = ["local_optimality", "global_optimality"]


def optimality(samples: pd.DataFrame, best: pd.DataFrame, attack: AttackConfig) -> float:
    """Divide the area that this attack takes off the curve by that of the best attack.

    1: as near as the best on every image; 0: nothing is fooled within the budgets. Similar to
    AttackBench's local optimality. NaN where the best fools nothing.
    """
    largest = attack.curve_budgets[-1]
    clean = largest * float(correctly_classified(samples).mean())
    areas = [clean - robust_area(distances(table, attack), largest) for table in (samples, best)]
    return areas[0] / areas[1] if areas[1] > 0 else np.nan


def add_attackbench_optimality(run: Run, summary: pd.DataFrame) -> pd.DataFrame:
    """Add two columns after ``optimality`` where tables have AttackBench's ``best_distance``.

    ``local_optimality``: (ρ·ε₀ - A) / (ρ·ε₀ - A*), where ρ is the clean accuracy, A the area under
    the curve of robust accuracy of the least distances that the attack passed, A* that of the best
    attack of its norm on each image, and ε₀ the largest finite distance of the best: 1 for the best
    attack, 0 for one that fools nothing within ε₀. ``global_optimality``: its mean over models.
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
    extended = summary.copy()
    for name, column in zip(COLUMNS[::-1], (means, values), strict=True):
        extended.insert(list(extended.columns).index("optimality") + 1, name, column)
    return extended


def local_optimality(table: pd.DataFrame, rivals: list[pd.DataFrame]) -> float:
    """Return how near an attack comes to the best of several; NaN if none fools an image.

    Args:
        table: rows of the attack, with ``sample_id`` and ``best_distance``.
        rivals: rows of all attacks on the same model, including this one.
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
