"""``robust-ham status``: which jobs of a run are done, running, failed or left."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from robust_ham.cli.options import Debug
from robust_ham.cli.output import say, say_json


def status(
    run_dir: Annotated[Path, typer.Argument(metavar="DIR", help="Run folder.")],
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Refresh until no process is working on this run."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Count finished, running, failed and remaining jobs of a run."""
    from robust_ham.runs.status import read_status

    last_lines: list[str] = []
    while True:
        current = read_status(run_dir)
        if as_json:
            say_json({"run": str(run_dir)} | current.as_dict())
        else:
            lines = list(current.lines(run_dir))
            if lines != last_lines:
                say(*lines)
            last_lines = lines
        if not watch or not current.num_processes:
            return
        time.sleep(2)
