"""Tables for papers and notes: LaTeX and Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable

from robust_ham.report.tables import Table


def markdown(table: Table) -> str:
    """A table in Markdown, under its caption."""
    rule = ["---:" if numeric else "---" for numeric in table.numeric]
    lines = [
        [re.sub(r"([|\\<>`*_])", r"\\\1", value) for value in line]
        for line in (table.header, *table.rows)
    ]
    body = "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))
    return f"{table.caption}\n\n{body}"


_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\u202f": r"\,",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
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
}


def latex(table: Table) -> str:
    """A table in LaTeX, for the package booktabs."""

    def line(values: list[str]) -> str:
        return " & ".join(map(_escaped, values)) + r" \\"

    columns = "".join("r" if numeric else "l" for numeric in table.numeric)
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escaped(table.caption)}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            line(table.header),
            r"\midrule",
            *map(line, table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


WRITERS: dict[str, tuple[str, Callable[[Table], str]]] = {
    "latex": ("tex", latex),
    "markdown": ("md", markdown),
}
"""Forms of a table: the ending of its file, and what writes it."""
