"""Export the figures and tables of the page as files for papers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from robust_ham.analysis.tables import Tables
from robust_ham.errors import RequestError
from robust_ham.report.figures.catalogue import drawings
from robust_ham.report.figures.panels import panel_figure, panels
from robust_ham.report.figures.style import FORMATS, figure_width, save_figure
from robust_ham.report.formats import WRITERS
from robust_ham.report.tables import page_tables
from robust_ham.storage.checksums import record_files
from robust_ham.storage.files import write_text

NARROWEST, WIDEST = 2.0, 30.0
"""Widths of exported figures, in inches."""


def check_export(form: str | None, width: float | None) -> None:
    """Check the arguments of ``export``.

    Raises:
        RequestError: an unknown form, or a width that is out of range or not for figures.
    """
    known = [*FORMATS, *WRITERS]
    if form is None and width is not None:
        raise RequestError(
            f"--width: applies to exported figures: add --export {'|'.join(FORMATS)}"
        )
    if form is not None and form not in known:
        raise RequestError(f"--export: expected one of {', '.join(known)}, got {form!r}")
    if width is not None and form not in FORMATS:
        raise RequestError(f"--width: applies to figures ({', '.join(FORMATS)}), not to {form}")
    if width is not None and not NARROWEST <= width <= WIDEST:
        raise RequestError(f"--width: expected {NARROWEST:g} to {WIDEST:g} inches, got {width:g}")


def export(tables: Tables, form: str, width: float | None = None) -> list[Path]:
    """Write all figures or all tables as ``export/NAME.ENDING`` in the run, and return the files.

    Args:
        tables: the tables of the page.
        form: pdf, svg or png for figures; latex or markdown for tables.
        width: width of every figure in inches; None: each figure's default.
    """
    folder = tables.run.folder.root / "export"
    if form in WRITERS:
        files = list(_tables(tables, folder, form))
    else:
        files = list(_figures(tables, folder, form, width))
    record_files(tables.run.folder, files)
    return files


def _tables(tables: Tables, folder: Path, form: str) -> Iterator[Path]:
    ending, write = WRITERS[form]
    for table in page_tables(tables):
        if table.rows:
            path = folder / f"{table.name}.{ending}"
            write_text(path, write(table))
            yield path


def _figures(tables: Tables, folder: Path, form: str, width: float | None) -> Iterator[Path]:
    with figure_width(width):
        for drawing in drawings(tables):
            yield from save_figure(drawing.figure, folder, drawing.name, [form])
        for panel in panels(tables.run, tables.curves):
            figure = panel_figure(tables.run, tables.curves, panel, legend=True)
            yield from save_figure(figure, folder / "panels", panel.name, [form])
