"""The style of all figures, and byte-stable files."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

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


class WindowStyle(NamedTuple):
    """How figures and tables show a window."""

    label: str
    colour: int
    """Place in seaborn's palette "colorblind"."""
    marker: str


WINDOW_STYLES = {
    "none": WindowStyle("baseline", 0, "o"),
    "hamming": WindowStyle("Hamming", 1, "s"),
    "hamming_sqrt": WindowStyle("√Hamming", 2, "D"),
    "hann": WindowStyle("Hann", 4, "v"),
    "blackman": WindowStyle("Blackman", 5, "^"),
    "kaiser": WindowStyle("Kaiser", 7, "P"),
    "hamming_shuffled": WindowStyle("shuffled Hamming", 6, "X"),
}
"""One row per window of ``config.fields.Window``, in the order of figures."""
FAMILY_LINES = ("-", "--", ":", "-.")
_DPI = 160
FORMATS: dict[str, dict[str, str | None]] = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
    "png": {"Software": None},
}
"""Formats of figure files, and the metadata to leave out because it changes every time."""
_FILES: dict[Any, Any] = {
    "svg.fonttype": "none",  # keep text as text: searchable, editable, small files
    "pdf.fonttype": 42,  # publishers refuse matplotlib's default font type
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
"""Smallest scale of text in figures narrower than their default width."""
_width: ContextVar[float | None] = ContextVar("_width", default=None)


def window_colour(window: str) -> tuple[float, float, float]:
    """Return a window's colour: the same in every figure, and colour-blind safe."""
    red, green, blue = sns.color_palette("colorblind", 10)[WINDOW_STYLES[window].colour]
    return red, green, blue


def window_marker(window: str) -> str:
    """Return a window's marker, so that windows never differ in colour only."""
    return WINDOW_STYLES[window].marker


def legend_below(figure: Figure) -> None:
    """Add one legend for all panels, below them."""
    entries: dict[str, Artist] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        entries.update(zip(labels, handles, strict=True))
    if not entries:  # no estimate has a finite interval
        return
    longest = max(len(label) for label in entries)  # a character is about 0.075 inches wide
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=max(1, min(len(entries), int(figure.get_figwidth() / (0.6 + 0.075 * longest)))),
        frameon=False,
    )


@contextmanager
def figure_width(inches: float | None) -> Iterator[None]:
    """Give every figure created in this context a width; None: each figure's default."""
    token = _width.set(inches)
    try:
        yield
    finally:
        _width.reset(token)


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure of this size in inches, or of the width set by ``figure_width``.

    A figure narrower than ``width`` gets smaller text, until ``figure_style`` ends.
    """
    final_width = _width.get() or width
    scale = min(max(final_width / width, _SMALLEST_TEXT), 1)
    mpl.rcParams.update({name: scale * size for name, size in _FONT_SIZES.items()})
    return Figure(figsize=(final_width, height * scale), layout="constrained")


def columns_that_fit(most: int, width: float) -> int:
    """Return how many panels of ``width`` inches fit side by side, at most ``most``.

    With ``figure_width``, a panel may shrink to 60 % of its width.
    """
    set_width = _width.get()
    return most if set_width is None else min(most, max(1, int(set_width / (0.6 * width))))


def panel_grid(
    count: int,
    most_columns: int,
    width: float,
    height: float,
    *,
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Create a figure of ``count`` panels of this size in inches, in rows of similar length."""
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
    """Create a figure of panels that share y along a row and x along a column.

    Columns that do not fit into the width are placed below the first ones.

    Returns:
        The figure, its panels by row and column, and the columns at the left edge.
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
    """Create an empty figure for panels of this size; narrower panels are lower too."""
    final_width = _width.get() or width * columns
    height *= min(1, final_width / (columns * width))
    return Figure(figsize=(final_width, height * rows + 0.6), layout="constrained")


@contextmanager
def _defaults_with(settings: dict[Any, Any]) -> Iterator[None]:
    """Use matplotlib's defaults and these settings, regardless of the user's own settings."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(settings | _FILES)
        yield


@contextmanager
def figure_style() -> Iterator[None]:
    """Use the settings of all figures."""
    settings: dict[Any, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.parse_math": False,  # seaborn measures text before ``render`` runs
    }
    with _defaults_with(sns.axes_style("ticks") | settings | _FONT_SIZES):
        yield


def render(figure: Figure, name: str, form: str) -> bytes:
    """Render a figure as pdf, png or svg, without dates and with ids derived from the name."""
    content = io.BytesIO()
    with _defaults_with({"svg.hashsalt": name}):
        _disable_math(figure)
        _lay_out(figure)
        figure.savefig(content, format=form, dpi=_DPI, metadata=FORMATS[form])
    if form == "svg":  # drawing sets the tick labels
        return visible(content.getvalue().decode()).encode()
    return content.getvalue()


def _disable_math(figure: Figure) -> None:
    """Make all text ``visible``, and parse no formulas but the powers on logarithmic axes.

    Names chosen by users may contain dollar signs.
    """
    powers = set[Text]()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            # this call creates the labels that have text
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
    """Fix the positions of all axes for all formats.

    Round them: the solver's last digits differ by machine, and ids in SVG files hash them.
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
    """Write ``name.FORMAT`` for every format, atomically, and return the files."""
    files = {form: folder / f"{name}.{form}" for form in formats}
    for form, path in files.items():
        write_bytes(path, render(figure, name, form))
    return list(files.values())
