"""``claims.csv``: answers of a run or an experiment to the claims of the reference works.

Each row has an effect with its interval, the number of seeds and the scope, or the answer "not
run".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from robust_ham.analysis.claims.evidence import (
    Answer,
    Evidence,
    combine_answers,
    evidence_in_table,
    evidence_of,
)
from robust_ham.analysis.claims.schema import Claim, ColumnPart, ExponentPart, Part, claims
from robust_ham.analysis.run import Run

COLUMNS = (
    "claim statement source answer part part_answer expected effect low high scale num_seeds "
    "num_images scope note"
).split()


def answer_claims(run: Run) -> pd.DataFrame:
    """Answer all claims from a run: a row per piece of evidence, or one if not run."""

    def find_evidence(claim: Claim, part: Part) -> list[Evidence]:
        return evidence_of(run, part) if _applies(run, claim) else []

    return _table(claims(), find_evidence, _scope(run))


def answer_experiment(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """Answer the claims that refer to an explanatory experiment, from its table."""

    def find_evidence(_: Claim, part: Part) -> list[Evidence]:
        if isinstance(part, ColumnPart | ExponentPart) and part.experiment == name:
            return evidence_in_table(table, part)
        return []

    answered = [c for c in claims() if any(getattr(p, "experiment", "") == name for p in c.parts)]
    return _table(answered, find_evidence, f"experiment {name}")


def _table(
    answered: list[Claim],
    find_evidence: Callable[[Claim, Part], list[Evidence]],
    scope: str,
) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for claim in answered:
        parts = [find_evidence(claim, part) for part in claim.parts]
        answers = [[evidence.part_answer for evidence in part] for part in parts]
        about = {
            "claim": claim.id,
            "statement": claim.statement,
            "source": claim.source,
            "answer": _combined(answers),
        }
        with_evidence = [
            about | asdict(evidence) | {"scope": scope} for part in parts for evidence in part
        ]
        rows += with_evidence or [about]
    return pd.DataFrame(rows, columns=COLUMNS)


def _combined(parts: list[list[Answer]]) -> Answer:
    """Combine the answers of a claim's parts: all must be supported, one can contradict."""
    answers = [answer for part in parts for answer in part]
    if not answers:
        return "not run"
    combined = combine_answers(answers)
    return "undecided" if combined == "supported" and not all(parts) else combined


def _applies(run: Run, claim: Claim) -> bool:
    """Return whether the claim is about the run's data."""
    data = run.config.dataset
    known = {"dataset": Path(data.name).name, "image_size": data.image_size}
    if claim.unless and all(known[key] == value for key, value in claim.unless.items()):
        return False
    return all(known[key] == value for key, value in claim.where.items())


def _scope(run: Run) -> str:
    """Describe the run's data, networks and training."""
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
