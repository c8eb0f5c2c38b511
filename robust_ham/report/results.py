"""All tables that a report shows, made from a run's per-image rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from robust_ham.analysis.checkpoint_pairs import checkpoint_pairs
from robust_ham.analysis.claims import answer_claims
from robust_ham.analysis.contrasts import contrasts
from robust_ham.analysis.curves import budget_curves, kernel_size_curves, summarise
from robust_ham.analysis.mechanism import mechanisms
from robust_ham.analysis.run import Run
from robust_ham.config import RequestError
from robust_ham.run_folder import RunFolder
from robust_ham.store import write_csv


@dataclass(frozen=True)
class Results:
    """A run and what was made of it."""

    run: Run
    summary: pd.DataFrame
    """One row per model and attack."""
    budgets: pd.DataFrame
    """Robust accuracy against budget, per model."""
    curves: pd.DataFrame
    """Every measure of every arm."""
    effects: pd.DataFrame
    """Windowed against baseline."""
    answers: pd.DataFrame
    """What the reference works state."""
    causes: pd.DataFrame
    """Robustness beside learned kernels."""


def make_results(folder: Path) -> Results:
    """Write ``summary``, ``curves``, ``contrasts``, ``checkpoints``, ``claims`` and ``mechanisms``.

    Raises:
        RequestError: not a run folder, a damaged table, or nothing to report yet.
    """
    run = Run(RunFolder(folder))
    run.folder.refuse_links()
    summary = summarise(run)
    if summary.empty:
        raise RequestError(f"{folder}: no attack has been evaluated yet; run it first")
    made = Results(
        run,
        summary,
        budget_curves(run),
        kernel_size_curves(run),
        contrasts(run),
        answer_claims(run),
        mechanisms(run),
    )
    write_csv(run.folder.summary, made.summary)
    write_csv(run.folder.curves, made.budgets)
    write_csv(run.folder.contrasts, made.effects)
    write_csv(run.folder.checkpoints, checkpoint_pairs(run))
    write_csv(run.folder.claims, made.answers)
    write_csv(run.folder.mechanisms, made.causes)
    return made
