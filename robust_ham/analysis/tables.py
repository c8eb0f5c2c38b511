"""Compute and write all tables derived from a run's per-image rows and cards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from robust_ham.analysis.claims.answers import answer_claims
from robust_ham.analysis.compare_models import compare_checkpoints
from robust_ham.analysis.contrasts import contrasts
from robust_ham.analysis.curves import budget_curves, kernel_size_curves
from robust_ham.analysis.mechanism import mechanisms
from robust_ham.analysis.run import Run
from robust_ham.analysis.summary import summarise
from robust_ham.errors import RequestError
from robust_ham.storage.checksums import record_files
from robust_ham.storage.files import write_csv
from robust_ham.storage.run_folder import RunFolder


@dataclass(frozen=True)
class Tables:
    """The derived tables of a run."""

    run: Run
    summary: pd.DataFrame
    budgets: pd.DataFrame
    """Robust accuracy against budget."""
    curves: pd.DataFrame
    """Metrics against kernel size; not written."""
    contrasts: pd.DataFrame
    checkpoints: pd.DataFrame
    claims: pd.DataFrame
    mechanisms: pd.DataFrame

    def files(self) -> dict[Path, pd.DataFrame]:
        """Map each path to the table written there."""
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
    """Compute all derived tables.

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
        compare_checkpoints(run),
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
