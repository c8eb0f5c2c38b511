"""Arms of a run: networks that differ only in seed."""

from __future__ import annotations

import numpy as np

from robust_ham.analysis.run import Run
from robust_ham.analysis.statistics import Values
from robust_ham.config.models import ModelGroup

Arm = list[ModelGroup]


def arms_of(run: Run) -> dict[tuple[str, int, str], Arm]:
    """Group the models of all seeds by family, kernel size and window."""
    arms: dict[tuple[str, int, str], Arm] = {}
    for spec in run.specs:
        arms.setdefault((spec.family, spec.kernel_size, spec.window), []).append(spec)
    return arms


def pair_by_seed(one: Arm, other: Arm) -> tuple[Arm, Arm] | None:
    """Select the models of the seeds that both arms have, in the order of the seeds."""
    first, second = ({spec.seed: spec for spec in arm} for arm in (one, other))
    seeds = sorted(first.keys() & second.keys())
    return ([first[s] for s in seeds], [second[s] for s in seeds]) if seeds else None


def stack(values: list[Values | None]) -> Values | None:
    """Stack values per seed, (n,), to (S, n).

    None: no model, one without values, or different numbers of images.
    """
    present = [v for v in values if v is not None]
    if len(present) < len(values) or len({len(v) for v in present}) != 1:
        return None
    return np.stack(present)
