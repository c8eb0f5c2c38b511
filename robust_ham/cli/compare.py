"""``robust-ham compare``: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robust_ham.cli.options import Debug
from robust_ham.cli.output import print_table, say


def compare(
    run_dirs: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR DIR...", help="Two or more run folders; the first is the reference."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Output folder (default: results/compare/<names>)."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Show what changed between runs.

    Compares the configurations, and every network that the runs share.
    """
    from robust_ham.report.comparison import write_comparison

    names = "_".join(folder.resolve().name for folder in run_dirs)
    comparison = write_comparison(run_dirs, out or Path("results") / "compare" / names)
    print_table(comparison.header, comparison.rows)
    say("", f"comparison: {comparison.page}")
