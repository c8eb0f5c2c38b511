"""One look for all figures, and files that come out byte for byte the same."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter
from matplotlib.transforms import Bbox

from robust_ham.errors import visible
from robust_ham.storage.files import write_bytes

WINDOW_LABELS = {
    "none": "baseline",
    "hamming": "Hamming",
    "hamming_sqrt": "√Hamming",
    "hann": "Hann",
    "blackman": "Blackman",
    "kaiser": "Kaiser",
    "hamming_shuffled": "shuffled Hamming",
}
_MARKERS = dict(zip(WINDOW_LABELS, "osDv^PX", strict=True))
_COLOURS = dict(zip(WINDOW_LABELS, (0, 1, 2, 4, 5, 7, 6), strict=True))
FAMILY_LINES = ("-", "--", ":", "-.")
_DPI = 160
FORMATS: dict[str, dict[str, str | None]] = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
    "png": {"Software": None},
}
"""Formats that figures are saved in, and what must not stand in them: it changes every time."""
_FILES: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched and edited, and files are small
    "pdf.fonttype": 42,  # publishers refuse matplotlib's own kind of font
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
}
_FONT_SIZES: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 8.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
}
_SMALLEST_TEXT = 0.7
"""Of the usual size, in figures that must be narrower than they would be."""
_width: ContextVar[float | None] = ContextVar("_width", default=None)


def size_label(size: int) -> str:
    """A kernel size as tables show it."""
    return str(size) if size else "–"


def window_colour(window: str) -> tuple[float, float, float]:
    """A window's colour, the same in every figure, safe for the colour-blind."""
    red, green, blue = sns.color_palette("colorblind", 10)[_COLOURS[window]]
    return red, green, blue


def window_marker(window: str) -> str:
    """A window's marker, so that colour is never the only difference."""
    return _MARKERS[window]


def legend_below(figure: Figure) -> None:
    """One legend for all panels, below them."""
    found: dict[str, Artist] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        found.update(zip(labels, handles, strict=True))
    if not found:  # no figure is known with an interval
        return
    longest = max(len(label) for label in found)  # characters of about 0.075 inches
    figure.legend(
        list(found.values()),
        list(found),
        loc="outside lower center",
        ncols=max(1, min(len(found), int(figure.get_figwidth() / (0.6 + 0.075 * longest)))),
        frameon=False,
    )


@contextmanager
def figure_width(inches: float | None) -> Iterator[None]:
    """Every figure begun inside has this width; None: the width that suits what it shows."""
    token = _width.set(inches)
    try:
        yield
    finally:
        _width.reset(token)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, or, inside ``figure_width``, of that width.

    One that must be narrower has smaller text, until ``figure_style`` ends.
    """
    asked = _width.get() or width
    scale = min(max(asked / width, _SMALLEST_TEXT), 1)
    mpl.rcParams.update({name: scale * size for name, size in _FONT_SIZES.items()})
    return Figure(figsize=(asked, height * scale), layout="constrained")


def columns_that_fit(most: int, width: float) -> int:
    """How many panels stand side by side: ``most``, or, inside ``figure_width``, fewer.

    As many as keep 60 % of their ``width``, in inches.
    """
    asked = _width.get()
    return most if asked is None else min(most, max(1, int(asked / (0.6 * width))))


def panel_grid(
    count: int,
    most_columns: int,
    width: float,
    height: float,
    *,
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels of that size in inches, in rows as equal as can be."""
    rows = -(-count // columns_that_fit(min(count, most_columns), width))
    columns = -(-count // rows)
    figure = _of_panels(rows, columns, width, height)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def panel_matrix(
    rows: int, columns: int, width: float, height: float
) -> tuple[Figure, list[list[Axes]], list[int]]:
    """A figure of panels that share y along a row and x along a column.

    Where the width does not suffice, the last columns stand below the first.

    Returns:
        The figure, its panels by row and column, and the columns that begin a line.
    """
    fitting = columns_that_fit(columns, width)
    figure = _of_panels(rows * -(-columns // fitting), fitting, width, height)
    places = figure.add_gridspec(rows * -(-columns // fitting), fitting)
    panels: list[list[Axes]] = [[] for _ in range(rows)]
    for row, line in enumerate(panels):
        for column in range(columns):
            place = places[column // fitting * rows + row, column % fitting]
            above, left = panels[0][column] if row else None, line[0] if column else None
            axes = figure.add_subplot(place, sharex=above, sharey=left)
            axes.tick_params(labelleft=column % fitting == 0, labelbottom=row == rows - 1)
            line.append(axes)
    return figure, panels, list(range(0, columns, fitting))


def _of_panels(rows: int, columns: int, width: float, height: float) -> Figure:
    """An empty figure for panels of that size, lower where they must be narrower."""
    asked = _width.get() or width * columns
    height *= min(1, asked / (columns * width))
    return Figure(figsize=(asked, height * rows + 0.6), layout="constrained")


@contextmanager
def _defaults_with(settings: dict[Any, Any]) -> Iterator[None]:
    """Matplotlib's defaults but for these settings, whatever the user has set for own figures."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(settings | _FILES)
        yield


@contextmanager
def figure_style() -> Iterator[None]:
    """Settings of all figures."""
    own: dict[Any, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.parse_math": False,  # seaborn measures text before ``render`` sees it
    }
    with _defaults_with(sns.axes_style("ticks") | own | _FONT_SIZES):
        yield


def render(figure: Figure, name: str, form: str) -> bytes:
    """A figure as a file of ``form``: pdf, png or svg; no dates, and ids fixed by the name."""
    content = io.BytesIO()
    with _defaults_with({"svg.hashsalt": name}):
        _take_text_as_it_is(figure)
        _lay_out(figure)
        figure.savefig(content, format=form, dpi=_DPI, metadata=FORMATS[form])
    if form == "svg":  # tick labels are set while they are drawn
        return visible(content.getvalue().decode()).encode()
    return content.getvalue()


def _take_text_as_it_is(figure: Figure) -> None:
    """Make all text ``visible``, and no formula but the powers on logarithmic axes.

    Names that others chose may hold dollar signs.
    """
    powers = set[Text]()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            # asking for the labels makes all those that have text of ours
            for group, labels in (
                (axis.major, axis.get_majorticklabels()),
                (axis.minor, axis.get_minorticklabels()),
            ):
                if isinstance(group.formatter, LogFormatter):
                    powers.update(labels)
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(text in powers)
        text.set_text(visible(text.get_text()))


def _lay_out(figure: Figure) -> None:
    """Give all axes their places, for all formats.

    Rounded, since the solver's last digits differ by machine, and ids in SVG files hash them.
    """
    if not isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        return
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position(Bbox(axes.get_position(original=True).get_points().round(6)))


def save_figure(
    figure: Figure, folder: Path, name: str, formats: Sequence[str] = ("png", "svg")
) -> list[Path]:
    """Write ``name.FORMAT`` for every format, whole; the files."""
    files = {form: folder / f"{name}.{form}" for form in formats}
    for form, path in files.items():
        write_bytes(path, render(figure, name, form))
    return list(files.values())
