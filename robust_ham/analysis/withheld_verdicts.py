"""Withhold verdicts that depend on models whose robustness the gate's black-box check doubts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from robust_ham.analysis.run import Run
from robust_ham.config.experiment import AttackConfig
from robust_ham.config.models import ModelGroup

UNDECIDED = {"verdict": "undecided", "seeds_to_decide": None, "images_to_decide": None}

Kept = NDArray[np.bool_]
SignedArm = tuple[list[ModelGroup], Literal[1, -1]]
"""Models in the order of their pairs; 1 if the effect grows with their metric, -1 if it shrinks."""


def withhold_doubtful(
    run: Run,
    arms: list[SignedArm],
    attack_id: str,
    row: dict[str, Any],
    judge: Callable[[Kept], dict[str, Any]],
) -> dict[str, Any]:
    """Withhold the verdict of a row of ``contrasts.csv`` if it depends on doubtful models.

    A black-box warning means that an attack makes a model look too robust. It matters only if that
    model's arm is judged better or equivalent.

    Args:
        run: run with the gate's findings.
        arms: the compared models, paired.
        attack_id: attack of the measure; empty: no attack.
        row: with the ``verdict`` over all pairs.
        judge: judges the pairs that are kept, (S,), and returns their ``verdict``.
    """
    if row["verdict"] == "undecided" or not attack_id:
        return row
    attack = run.attacks[attack_id]
    too_good = {"better": (1,), "worse": (-1,), "equivalent": (1, -1)}[row["verdict"]]
    attacked = [[s for s in arm if attack.attacks(s)] for arm, sign in arms if sign in too_good]
    doubtful = [[_is_doubtful(run, spec.model_id, attack) for spec in arm] for arm in attacked]
    kept: Kept = np.logical_not(np.any(np.array(doubtful, dtype=np.bool_), axis=0))
    if kept.all() or (kept.any() and judge(kept)["verdict"] == row["verdict"]):
        return row
    note = (
        f"withheld: images made for other models lie nearer than the attack's on "
        f"{(~kept).sum()} of {len(kept)} pairs, and the others alone do not say {row['verdict']}"
    )
    return row | UNDECIDED | {"note": note}


def _is_doubtful(run: Run, model_id: str, attack: AttackConfig) -> bool:
    """Return whether the black-box check warns of a model under an attack of the same norm.

    A gate without the check "finite differences" is older than this rule: verdicts are kept.
    """
    findings = run.gate_by_model.get(model_id, run.gate[:0])
    if "finite differences" not in set(findings["check"]) or not attack.has_budget:
        return False
    warnings = (findings["check"] == "black box") & (findings["severity"] == "warn")
    warned = findings.loc[warnings, "attack"]
    return any(run.attacks[name].norm == attack.norm for name in warned if name in run.attacks)
