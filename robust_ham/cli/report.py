"""``robust-ham report``: figures, tables and the page from per-image tables."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robust_ham.cli.exit_codes import report_error
from robust_ham.cli.options import Debug
from robust_ham.cli.output import complain, print_table, say
from robust_ham.errors import RequestError

if TYPE_CHECKING:
    from robust_ham.analysis.tables import Tables


def report(
    run_dirs: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="Run folders, folders that contain run folders, or third-party per-image tables "
            "(.csv, .parquet, AttackBench's info.json), which are combined into one run folder.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Run folder for third-party tables (default: results/<name>)."),
    ] = None,
    export: Annotated[
        str | None,
        typer.Option(
            help="Also write every figure as pdf, svg or png, or every table as latex or "
            "markdown, into the run's export/ folder."
        ),
    ] = None,
    width: Annotated[
        float | None,
        typer.Option(help="Width of exported figures in inches (default: chosen per figure)."),
    ] = None,
    debug: Debug = False,
) -> int:
    """Rebuild tables, figures and report.html of a run.

    Summary, curves, figures and page are computed from the per-image tables. Needs no torch.
    """
    from robust_ham.analysis.importing.convert import folders_to_report
    from robust_ham.analysis.run import gate_failures
    from robust_ham.report.export import check_export
    from robust_ham.storage.run_folder import RunFolder, runs_below

    check_export(export, width)
    folders = folders_to_report(run_dirs, out)
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise RunFolder(missing[0]).not_a_run()
    code = 0
    for folder in folders:
        runs = runs_below(folder)
        if not runs and len(folders) > 1:
            complain(f"{folder}: skipped, contains no run with attack results")
            continue
        for run in runs or [folder]:  # a single folder without a run fails with the reason
            try:
                tables = write_report(run, export, width)
                for line in gate_failures(tables.run.gate):
                    complain(f"{run}: not to be trusted: {line}")
            except RequestError as error:
                code = report_error(error)
    return code


def write_report(folder: Path, form: str | None = None, width: float | None = None) -> Tables:
    """Write the tables, the page and the exports of a run; print its headline table."""
    from robust_ham.analysis.tables import write_tables
    from robust_ham.report.export import export
    from robust_ham.report.page import write_page
    from robust_ham.report.verdict_table import claim_table
    from robust_ham.storage.working_folder import working_in

    with working_in(folder), _rare_garbage_collection():
        tables = write_tables(folder)
        tables.run.folder.remove_leftovers()
        page = write_page(tables)
        exported = export(tables, form, width) if form is not None else []
    print_table(page.header, page.rows)
    answers = [[claim["answer"], claim["statement"]] for claim in claim_table(tables.claims)]
    if answered := [row for row in answers if row[0] != "not run"]:
        say("")
        print_table(["answer", "statement"], answered)
    say("", f"report: {page.page}")
    if form is not None:
        say(f"export: {len(exported)} files in {folder / 'export'}")
    return tables


@contextlib.contextmanager
def _rare_garbage_collection() -> Iterator[None]:
    """Collect garbage less often: a large run creates many objects that live until the end.

    Reports of 100 models and more take 5 to 15 % less time.
    """
    before = gc.get_threshold()
    gc.set_threshold(20_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
