"""Verdicts that hang on models whose robustness the gate's black-box check doubts."""

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
"""Models in the order of their pairs, and whether an effect grows or shrinks with their figure."""


def withhold_doubtful(
    run: Run,
    arms: list[SignedArm],
    attack_id: str,
    row: dict[str, Any],
    judge: Callable[[Kept], dict[str, Any]],
) -> dict[str, Any]:
    """A row of ``contrasts.csv``, its verdict withheld where it is gone without doubtful models.

    A black-box warning says that an attack makes a model look too robust. It can change a verdict
    only where that model's arm is found to be the better one, or as good as the other.

    Args:
        run: whose gate has been run.
        arms: the models that are compared, paired.
        attack_id: of the figure that is compared; empty: there is no attack.
        row: with the ``verdict`` over all pairs.
        judge: what the pairs that are kept say, with their ``verdict``.
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
    """Whether the black-box check warns of a model under an attack of the same norm.

    Runs whose gate is from before this rule, which had no finite differences, keep their verdicts.
    """
    found = run.gate_by_model.get(model_id, run.gate[:0])
    if "finite differences" not in set(found["check"]) or not attack.has_budget:
        return False
    warned = found.loc[(found["check"] == "black box") & (found["severity"] == "warn"), "attack"]
    return any(run.attacks[name].norm == attack.norm for name in warned if name in run.attacks)
