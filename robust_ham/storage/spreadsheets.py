"""Text in the cells of a CSV file, so that no spreadsheet takes it for a formula.

A cell that a spreadsheet would compute gets an apostrophe in front. ``store.csv_text`` writes every
CSV file through ``guard_table``, and ``store.read_csv`` reads it back through ``restore_table``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pandas as pd

from robust_ham.errors import visible

_FORMULA = re.compile(r"['\s]*[=+\-@＝＋－＠]")  # full-width signs compute, too
_NEGATIVE = re.compile(r"-(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|inf)", re.ASCII)


def guard(text: str) -> str:
    """The text as a cell: ``visible``, and behind an apostrophe where it would be a formula.

    Negative numbers stay as they are. Text that looks guarded already is guarded again, so that
    ``restore`` always gives back the visible text.
    """
    text = visible(text)
    return f"'{text}" if _FORMULA.match(text) and not _NEGATIVE.fullmatch(text) else text


def restore(cell: str) -> str:
    """The text that ``guard`` made the cell from."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell, 1) else cell


def guard_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table with ``guard`` applied to all of its text, headings included."""
    return _with_texts(table, guard)


def restore_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table with ``restore`` applied to all of its text, headings included."""
    return _with_texts(table, restore)


def _with_texts(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """The table with all text changed; a column in which nothing changes keeps its type."""

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
