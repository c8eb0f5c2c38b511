"""Arguments and options that several verbs share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from robust_ham.cli.exit_codes import set_debug
from robust_ham.config.bounds import MAX_THREADS


def refuse_nan(value: float | None) -> float | None:
    """Refuse nan, which passes every range check."""
    if value is not None and math.isnan(value):
        raise typer.BadParameter("expected a number, got nan")
    return value


def _complete_config(incomplete: str) -> list[str]:
    """Complete the name of a shipped config in the shell."""
    from robust_ham.config.files import shipped_configs

    return [name for name in shipped_configs() if name.startswith(incomplete)]


Debug = Annotated[
    bool, typer.Option("--debug", callback=set_debug, help="Show tracebacks and debug messages.")
]
ConfigName = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="A YAML file, or the name of a shipped config.",
        autocompletion=_complete_config,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("-o", metavar="KEY=VALUE", help="Override a key: -o training.epochs=5."),
]
Device = Annotated[str, typer.Option(help="Device: auto, cpu, cuda or cuda:N.")]
Threads = Annotated[
    int | None, typer.Option(min=1, max=MAX_THREADS, help="Override evaluation.threads.")
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root", help="Folder with data sets; takes precedence over ROBUST_HAM_DATA."
    ),
]
