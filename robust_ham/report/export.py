"""Figures and tables of the page for papers, each as a file of its own."""

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
"""Inches."""


def check_export(form: str | None, width: float | None) -> None:
    """Refuse what ``export`` cannot make.

    Raises:
        RequestError: an unknown form, or a width that no figure can have.
    """
    known = [*FORMATS, *WRITERS]
    if form is None and width is not None:
        raise RequestError(f"--width: for exported figures: add --export {'|'.join(FORMATS)}")
    if form is not None and form not in known:
        raise RequestError(f"--export: expected one of {', '.join(known)}, got {form!r}")
    if width is not None and form not in FORMATS:
        raise RequestError(f"--width: for figures ({', '.join(FORMATS)}), not for {form}")
    if width is not None and not NARROWEST <= width <= WIDEST:
        raise RequestError(f"--width: expected {NARROWEST:g} to {WIDEST:g} inches, got {width:g}")


def export(tables: Tables, form: str, width: float | None = None) -> list[Path]:
    """Write every figure or every table as ``export/NAME.ENDING`` of the run; the files.

    Args:
        tables: what the page is made of.
        form: pdf, svg or png: figures; latex or markdown: tables.
        width: of every figure, in inches; None: the width that suits what it shows.
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
        for drawn in drawings(tables):
            yield from save_figure(drawn.figure, folder, drawn.name, [form])
        for panel in panels(tables.run, tables.curves):
            figure = panel_figure(tables.run, tables.curves, panel, legend=True)
            yield from save_figure(figure, folder / "panels", panel.name, [form])
