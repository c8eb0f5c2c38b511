"""Guard text in CSV files, so that no spreadsheet reads it as a formula.

A formula gets an apostrophe in front. ``files.csv_text`` writes every CSV file through
``guard_table``, and ``files.read_csv`` reads it back through ``restore_table``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pandas as pd

from robust_ham.errors import visible

_FORMULA = re.compile(r"['\s]*[=+\-@＝＋－＠]")  # spreadsheets accept full-width signs too
_NEGATIVE = re.compile(r"-(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|inf)", re.ASCII)


def guard(text: str) -> str:
    """Make a text ``visible`` and put an apostrophe in front if it would be a formula.

    Negative numbers do not change. Text that already looks guarded is guarded again, so that
    ``restore`` always returns the visible text.
    """
    text = visible(text)
    return f"'{text}" if _FORMULA.match(text) and not _NEGATIVE.fullmatch(text) else text


def restore(cell: str) -> str:
    """Undo ``guard``."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell, 1) else cell


def guard_table(table: pd.DataFrame) -> pd.DataFrame:
    """Apply ``guard`` to all text of a table, headings included."""
    return _with_texts(table, guard)


def restore_table(table: pd.DataFrame) -> pd.DataFrame:
    """Apply ``restore`` to all text of a table, headings included."""
    return _with_texts(table, restore)


def _with_texts(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """Change all text of a table; a column without changes keeps its type."""

    def changed(value: Any) -> Any:  # noqa: ANN401 - a cell of a table
        return change(value) if isinstance(value, str) else value

    columns = [changed(name) for name in table.columns]
    texts = {}
    for place, dtype in enumerate(table.dtypes):
        if dtype.kind == "O":
            column = table.iloc[:, place]
            values = [changed(value) for value in column]
            if any(new is not old and new != old for new, old in zip(values, column, strict=True)):
                texts[place] = pd.Series(values, index=table.index, dtype=dtype)
    if not texts and columns == list(table.columns):
        return table
    table = table.copy()
    for place, column in texts.items():
        table.isetitem(place, column)
    table.columns = pd.Index(columns)
    return table
