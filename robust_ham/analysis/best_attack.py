"""The best of several minimum-norm attacks of one norm, chosen for each image."""

from __future__ import annotations

import numpy as np
import pandas as pd

from robust_ham.config.experiment import BEST, AttackConfig

Attacks = dict[str, AttackConfig]


def members_of_best(attacks: Attacks) -> dict[str, list[str]]:
    """Map the id of the best attack of a norm to the attacks it is chosen from, at least two.

    Attacks within a band of frequencies, or on some images or models only, do not take part.
    """
    members: dict[str, list[str]] = {}
    for attack_id, attack in attacks.items():
        if attack.competes:
            members.setdefault(BEST[attack.norm], []).append(attack_id)
    return {best: ids for best, ids in members.items() if len(ids) > 1}


def with_best(attacks: Attacks) -> Attacks:
    """Add the best attack of each norm, with the budgets of its first member."""
    extended = dict(attacks)
    for best, members in members_of_best(attacks).items():
        first = attacks[members[0]]
        extended[best] = AttackConfig(
            attack="best",
            budget=first.main_budget,
            budgets=first.curve_budgets,
            norm=first.norm,
        )
    return extended


def resolve_attack_id(attacks: Attacks, attack_id: str) -> str:
    """Return the attack of an endpoint: a norm's only minimum-norm attack is its own best."""
    if attack_id in with_best(attacks) or attack_id not in BEST.values():
        return attack_id
    return next(a for a, c in attacks.items() if c.competes and BEST[c.norm] == attack_id)


def best_samples(tables: list[pd.DataFrame], norm: str) -> pd.DataFrame | None:
    """Select for each image the row of the nearest attack; passes are summed over all attacks.

    None: the attacks were not run on the same images.
    """
    if len({tuple(table["sample_id"]) for table in tables}) != 1:
        return None
    distances = np.stack([table[norm].to_numpy(dtype=np.float64) for table in tables])
    nearest = distances.argmin(axis=0)
    rows = np.arange(len(nearest))
    together = pd.concat(tables, ignore_index=True)
    best: pd.DataFrame = together.iloc[nearest * len(rows) + rows].reset_index(drop=True)
    for column in ("forwards", "backwards"):
        best[column] = sum(table[column].to_numpy() for table in tables)
    return best
