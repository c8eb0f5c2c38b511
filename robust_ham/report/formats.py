"""Tables of text, and their LaTeX and Markdown forms."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from robust_ham.errors import visible


@dataclass(frozen=True)
class Table:
    """A table of formatted text."""

    name: str
    caption: str
    header: list[str]
    rows: list[list[str]]

    @cached_property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers; names may consist of digits."""
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.header)
        return [
            heading.lower() not in _NAMES and all(map(_NUMBER.match, column))
            for heading, column in zip(self.header, columns, strict=True)
        ]


_NUMBER = re.compile(r"[×+−-]?([0-9?∞.]|inf$)|nan$|–$|$")
_NAMES = {"attack", "contestant", "layer", "library", "model", "network", "run", "window"}


def markdown(table: Table) -> str:
    """Return a table in Markdown, under its caption."""
    return f"{table.caption}\n\n{markdown_rows(table)}"


def markdown_rows(table: Table) -> str:
    """Return a table in Markdown, without its caption."""
    rule = ["---:" if numeric else "---" for numeric in table.numeric]
    lines = [[_in_markdown(value) for value in line] for line in (table.header, *table.rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))


def _in_markdown(text: str) -> str:
    """Escape text for a table cell: no line break, tag, emphasis, formula or link."""
    return re.sub(r"([|\\<>`*_$~]|&(?=[#\w])|\](?=[(\[:]))", r"\\\1", _in_one_line(text))


def _in_one_line(text: str) -> str:
    return visible(text).replace("\n", " ")


_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\u202f": r"\,",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "…": r"\dots{}",
    "−": r"\ensuremath{-}",
    "×": r"\ensuremath{\times}",
    "∞": r"\ensuremath{\infty}",
    "ρ": r"\ensuremath{\rho}",
    "√": r"\ensuremath{\surd}",
    "°": r"\ensuremath{^\circ}",
    "‖": r"\ensuremath{\Vert}",
    "₂": r"\ensuremath{_2}",
    "²": r"\ensuremath{^2}",
    "≤": r"\ensuremath{\leq}",
    "±": r"\ensuremath{\pm}",
    "α": r"\ensuremath{\alpha}",
}


_KNOWN_TO_LATEX = re.compile("[ -~¡-ſ“”„‘’‚•]")
"""Characters that every LaTeX compiler typesets; older compilers stop at others."""
_PROSE = 40
"""Length in characters from which a column of text is wrapped."""


def latex(table: Table) -> str:
    """Return a table in LaTeX; a table wider than the text is scaled down."""

    def line(values: list[str]) -> str:
        return " & ".join(map(_in_latex, values)) + r" \\"

    values = list(zip(*table.rows, strict=True)) or [()] * len(table.header)
    columns = "".join(map(_column, table.numeric, values))
    return "\n".join(
        [
            "% needs \\usepackage{array,booktabs,graphicx}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_in_latex(table.caption)}}}",
            rf"\label{{tab:{table.name}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(map(_heading, table.header, values)) + r" \\",
            r"\midrule",
            *map(line, table.rows),
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def _column(numeric: bool, values: tuple[str, ...]) -> str:
    """Return the column type of ``tabular``."""
    longest = max(map(len, values), default=0)
    if numeric or longest < _PROSE:
        return "r" if numeric else "l"
    return rf">{{\raggedright\arraybackslash}}p{{{6 if longest < 5 * _PROSE else 12}cm}}"


def _heading(text: str, values: tuple[str, ...]) -> str:
    """Return a heading, wrapped so that it is not wider than its column."""
    lines = textwrap.wrap(text, max([12, *map(len, values)]))
    stacked = r"\\".join(map(_in_latex, lines))
    return rf"\shortstack{{{stacked}}}" if len(lines) > 1 else stacked


def _in_latex(text: str) -> str:
    """Escape text for LaTeX.

    Braces before a leading ``[`` or ``*`` prevent LaTeX from reading it as an option of the
    ``\\\\`` that ends the row above.
    """
    escaped = "".join(map(_sign_in_latex, _in_one_line(text)))
    return "{}" * escaped.lstrip().startswith(("[", "*")) + escaped


def _sign_in_latex(sign: str) -> str:
    if sign in _LATEX or _KNOWN_TO_LATEX.match(sign):
        return _LATEX.get(sign, sign)
    return rf"\textbackslash{{}}{ascii(sign)[2:-1]}"


WRITERS: dict[str, tuple[str, Callable[[Table], str]]] = {
    "latex": ("tex", latex),
    "markdown": ("md", markdown),
}
"""File ending and writer of each table format."""
