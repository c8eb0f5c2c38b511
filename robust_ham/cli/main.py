"""The application: its verbs, and the entry point that turns errors into exit codes."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, NoReturn

import typer

from robust_ham import __version__
from robust_ham.cli import exit_codes
from robust_ham.cli.bench import bench
from robust_ham.cli.compare import compare
from robust_ham.cli.doctor import doctor
from robust_ham.cli.exit_codes import report_error
from robust_ham.cli.explain import HELP as EXPLAIN_HELP
from robust_ham.cli.explain import explain
from robust_ham.cli.import_ import import_
from robust_ham.cli.list import list_
from robust_ham.cli.output import complain, say
from robust_ham.cli.report import report
from robust_ham.cli.run import run
from robust_ham.cli.status import status
from robust_ham.cli.streams import flush_streams, make_python_output_printable, prepare_streams
from robust_ham.cli.verify import verify
from robust_ham.storage import signals

app = typer.Typer(
    name="robust-ham",
    help="Adversarial robustness of baseline and Hamming-windowed CNNs across kernel sizes.\n\n"
    "\b\n"
    "  robust-ham run quickstart               attack 30 trained networks, write a report page\n"
    "  robust-ham list configs                 list the shipped experiments and their duration\n"
    "  robust-ham run my.yaml --dry-run        check your own config, estimate its duration\n"
    "  robust-ham run my.yaml                  run it; repeat the command to resume\n"
    "  robust-ham status results/my            show its progress, from another terminal\n"
    "  robust-ham report results/my --export pdf   write figures for a paper\n\n"
    "Every command has its own --help.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (run, report, status, verify, compare, bench):
    app.command()(command)
app.command(help=EXPLAIN_HELP)(explain)
app.command("import")(import_)
app.command("list")(list_)
app.command()(doctor)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        say(f"robust-ham {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """Run a verb; turn an error into one line and an exit code."""
    os.environ["PYTHONSAFEPATH"] = "1"  # child processes import nothing from the current folder
    prepare_streams()
    logging.raiseExceptions = False  # a log that cannot be written causes no traceback
    make_python_output_printable()
    try:
        signals.listen()
        try:
            code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        except Exception as error:
            if signals.exit_code() is not None:  # a library has turned a signal into an error
                raise
            code = report_error(error)
    except BaseException as error:
        code = error.code if isinstance(error, signals.Stopped) else signals.exit_code()
        if code is None:
            raise
        signals.end()
        complain(signals.STOPPED)
    signals.end()
    code = code if isinstance(code, int) else 0
    if not flush_streams():
        code = code or exit_codes.ENVIRONMENT
    sys.exit(code)
