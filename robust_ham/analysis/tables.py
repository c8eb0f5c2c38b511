"""All tables that are made from others, in one go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from robust_ham.analysis.claims.answers import answer_claims
from robust_ham.analysis.compare_models import checkpoint_pairs
from robust_ham.analysis.contrasts import contrasts
from robust_ham.analysis.curves import budget_curves, kernel_size_curves, summarise
from robust_ham.analysis.mechanism import mechanisms
from robust_ham.analysis.run import Run
from robust_ham.errors import RequestError
from robust_ham.storage.checksums import record_files
from robust_ham.storage.files import write_csv
from robust_ham.storage.run_folder import RunFolder


@dataclass(frozen=True)
class Tables:
    """What a run's per-image rows and cards say."""

    run: Run
    summary: pd.DataFrame
    budgets: pd.DataFrame
    """Robust accuracy against budget."""
    curves: pd.DataFrame
    """Against kernel size; shown, not written."""
    contrasts: pd.DataFrame
    checkpoints: pd.DataFrame
    claims: pd.DataFrame
    mechanisms: pd.DataFrame

    def files(self) -> dict[Path, pd.DataFrame]:
        """Where each that is written belongs."""
        folder = self.run.folder
        return {
            folder.summary: self.summary,
            folder.curves: self.budgets,
            folder.contrasts: self.contrasts,
            folder.checkpoints: self.checkpoints,
            folder.claims: self.claims,
            folder.mechanisms: self.mechanisms,
        }


def make_tables(run: Run) -> Tables:
    """All tables of a run that are made from others.

    Raises:
        RequestError: not a run folder, a damaged table, or nothing to report yet.
    """
    summary = summarise(run)
    if summary.empty:
        raise RequestError(f"{run.folder.root}: no attack has been evaluated yet; run it first")
    return Tables(
        run,
        summary,
        budget_curves(run),
        kernel_size_curves(run),
        contrasts(run),
        checkpoint_pairs(run),
        answer_claims(run),
        mechanisms(run),
    )


def write_tables(folder: Path) -> Tables:
    """Write ``summary``, ``curves``, ``contrasts``, ``checkpoints``, ``claims`` and ``mechanisms``.

    Raises:
        RequestError: not a run folder, a damaged table, or nothing to report yet.
    """
    run = Run(RunFolder(folder))
    run.folder.refuse_links()
    tables = make_tables(run)
    for path, table in tables.files().items():
        write_csv(path, table)
    record_files(run.folder, [run.folder.config, *tables.files()])
    return tables
