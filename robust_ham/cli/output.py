"""Everything that the command line prints: lines, JSON and tables."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from typing import Any

from robust_ham.cli.streams import standard_output
from robust_ham.errors import printable


def say(*lines: str) -> None:
    """Print lines for people."""
    with standard_output():
        print("\n".join(map(printable, lines)), flush=True)


def say_json(content: dict[str, Any], indent: int | None = None) -> None:
    """Print an object for other programs; JSON escapes everything but printable ASCII."""
    with standard_output():
        print(json.dumps(content, indent=indent), flush=True)


def complain(line: str) -> None:
    """Print a line on standard error."""
    with contextlib.suppress(OSError):  # the exit code also reports the error
        print(f"robust-ham: {printable(line)}", file=sys.stderr, flush=True)


def print_table(header: list[str], rows: Sequence[list[str]]) -> None:
    """Print a table: text columns on the left, numbers on the right."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    from robust_ham.report.formats import Table

    def as_text(value: str) -> Text:  # in plain strings, rich interprets markup and emoji
        return Text(printable(value))

    table = RichTable(box=None, pad_edge=False, header_style="bold")
    for name, numeric in zip(header, Table("", "", header, [*rows]).numeric, strict=True):
        table.add_column(as_text(name), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*map(as_text, row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    with standard_output():
        console.print(table)
