"""``checkpoints.csv``: tests of one trained network against another.

They treat both networks as fixed. A verdict on windows needs several seeds (``contrasts``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from robust_ham.analysis.arms import arms_of, pair_by_seed
from robust_ham.analysis.metrics import METRICS, distances
from robust_ham.analysis.run import Run
from robust_ham.analysis.statistics import mcnemar, wilcoxon
from robust_ham.config.models import ModelGroup

COLUMNS = (
    "windowed_id baseline_id metric attack budget test num_images windowed_only baseline_only p "
    "note"
).split()
_NOTE = "these two networks, not windows as such"


def compare_checkpoints(run: Run) -> pd.DataFrame:
    """Test each windowed network against the baseline of its k and seed.

    McNemar's exact test on correctly classified images, clean and under attack (``windowed_only``:
    images that only the windowed network gets right); Wilcoxon's signed-rank test on the distances
    of images that both get right (``windowed_only``: images whose distance is larger for the
    windowed network). p is not adjusted.
    """
    rows: list[dict[str, Any]] = []
    arms = arms_of(run)
    for (family, size, window), arm in arms.items():
        paired = pair_by_seed(arm, arms.get((family, size, "none"), []))
        if window != "none" and paired is not None:
            for windowed, baseline in zip(*paired, strict=True):
                rows += list(_pair(run, windowed, baseline))
    return pd.DataFrame(rows, columns=COLUMNS)


def _pair(run: Run, windowed: ModelGroup, baseline: ModelGroup) -> Iterator[dict[str, Any]]:
    about = {"windowed_id": windowed.model_id, "baseline_id": baseline.model_id, "note": _NOTE}
    one, other = run.correct(windowed.model_id), run.correct(baseline.model_id)
    if one is not None and other is not None and len(one) == len(other):
        yield (
            about
            | {"metric": "clean_accuracy", "attack": ""}
            | _mcnemar_columns(one > 0, other > 0)
        )
    for attack_id, attack in run.attacks.items():
        tables = [run.samples.get((s.model_id, attack_id)) for s in (windowed, baseline)]
        if tables[0] is None or tables[1] is None:
            continue
        if not tables[0]["sample_id"].equals(tables[1]["sample_id"]):
            continue
        known = about | {"attack": attack_id}
        robust = METRICS["robust_accuracy"]
        right = [robust.image_values(t, attack) > 0 for t in tables if t is not None]
        budget = attack.main_budget if attack.has_budget else None
        yield known | {"metric": "robust_accuracy", "budget": budget} | _mcnemar_columns(*right)
        if attack.has_budget:
            one, other = (distances(t, attack) for t in tables if t is not None)
            both = (one > 0) & (other > 0)
            yield known | {
                "metric": "distance",
                "test": "Wilcoxon",
                "num_images": int(both.sum()),
                "windowed_only": int((one > other)[both].sum()),
                "baseline_only": int((one < other)[both].sum()),
                "p": wilcoxon(one[both], other[both]),
            }


def _mcnemar_columns(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> dict[str, Any]:
    first, second = int((one & ~other).sum()), int((other & ~one).sum())
    return {
        "test": "McNemar",
        "num_images": len(one),
        "windowed_only": first,
        "baseline_only": second,
        "p": mcnemar(first, second),
    }
