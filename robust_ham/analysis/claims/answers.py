"""How a run, or an experiment, answers what the reference works state: ``claims.csv``.

No answer without its evidence: every row has an effect with its interval, the number of seeds and
the scope, or says that the claim was not run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from robust_ham.analysis.claims.evidence import Answer, Evidence, evidence_of, of_all
from robust_ham.analysis.claims.experiment_evidence import evidence_in_table
from robust_ham.analysis.claims.schema import Claim, ColumnPart, ExponentPart, Part, claims
from robust_ham.analysis.run import Run

COLUMNS = (
    "claim statement source answer part part_answer expected effect low high scale num_seeds "
    "num_images scope note"
).split()


def answer_claims(run: Run) -> pd.DataFrame:
    """``claims.csv`` of a run: a row per piece of evidence, one for each claim not run."""

    def find(claim: Claim, part: Part) -> list[Evidence]:
        return evidence_of(run, part) if _applies(run, claim) else []

    return _table(claims(), find, _scope(run))


def answer_experiment(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """``claims.csv`` of an explanatory experiment: the claims that its table answers."""

    def find(claim: Claim, part: Part) -> list[Evidence]:
        if isinstance(part, ColumnPart | ExponentPart) and part.experiment == name:
            return evidence_in_table(table, part)
        return []

    asked = [c for c in claims() if any(getattr(p, "experiment", "") == name for p in c.parts)]
    return _table(asked, find, f"experiment {name}")


def _table(
    asked: list[Claim], find: Callable[[Claim, Part], list[Evidence]], scope: str
) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for claim in asked:
        found = [find(claim, part) for part in claim.parts]
        answers = [[evidence.part_answer for evidence in part] for part in found]
        about = {
            "claim": claim.id,
            "statement": claim.statement,
            "source": claim.source,
            "answer": _combined(answers),
        }
        told = [about | asdict(evidence) | {"scope": scope} for part in found for evidence in part]
        rows += told or [about]
    return pd.DataFrame(rows, columns=COLUMNS)


def _combined(parts: list[list[Answer]]) -> Answer:
    """A claim holds if all of it does; one contradiction is enough."""
    answers = [answer for part in parts for answer in part]
    if not answers:
        return "not run"
    together = of_all(answers)
    return "undecided" if together == "supported" and not all(parts) else together


def _applies(run: Run, claim: Claim) -> bool:
    """Whether the run is of the data that the claim speaks of."""
    data = run.config.dataset
    known = {"dataset": Path(data.name).name, "image_size": data.image_size}
    if claim.unless and all(known[key] == value for key, value in claim.unless.items()):
        return False
    return all(known[key] == value for key, value in claim.where.items())


def _scope(run: Run) -> str:
    """What a run can speak of: data, networks, training."""
    config = run.config
    size = f" at {config.dataset.image_size}" if config.dataset.image_size else ""
    families = ", ".join(dict.fromkeys(spec.family for spec in run.specs))
    trained = [c for c in run.cards.values() if "training" in c and "data" in c]
    recipes = {
        f"{c['data']['num_train']:,} training images, {c['training']['epochs']} epochs"
        for c in trained
    }
    training = f"; {' or '.join(sorted(recipes))}" if recipes else ""
    return f"{Path(config.dataset.name).name}{size}; {families}{training}"
