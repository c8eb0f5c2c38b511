"""``robust-ham explain``: the explanatory experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robust_ham.cli.options import Debug
from robust_ham.cli.output import print_table, say
from robust_ham.cli.preparation import check_attacks_package
from robust_ham.config.bounds import MAX_THREADS
from robust_ham.experiments.explain import EXPERIMENTS

_EXPERIMENT_LINES = "\n".join(f"  {name:<17}{e.about}" for name, e in EXPERIMENTS.items())
HELP = (
    "Run an explanatory experiment: one figure and one table.\n\n"
    f"NAME is one of:\n\n\b\n{_EXPERIMENT_LINES}"
)


def explain(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the experiment.")],
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Use the networks of a run, not the zoo's (kernels, leakage)."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Output folder (default: results/explain/<name>).")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=MAX_THREADS, help="CPU threads.")] = 2,
    debug: Debug = False,
) -> None:
    """Run one experiment, print its table and where its figure is."""
    from robust_ham.experiments.explain import check
    from robust_ham.experiments.explain import explain as run_experiment

    check(name, run)
    check_attacks_package()
    import torch

    torch.set_num_threads(threads)
    folder = out or Path("results") / "explain" / name
    explained = run_experiment(name, folder, run)
    print_table(explained.header, explained.rows)
    say("", f"table and figure: {folder / name}.csv, .svg, .png")
