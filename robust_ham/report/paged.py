"""What the page does differently for runs of many models, so that it stays small.

Long tables stand in the page as JSON, of which a script shows one page at a time; figures are
written in fewer bytes.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from robust_ham.errors import visible
from robust_ham.report.formats import Table

MANY_MODELS = 300
"""Beyond which tables are paged and figures shortened."""
MANY_ROWS = 1000
"""Of other tables than that of all models."""

_SVG = re.compile(r"<svg\b.*?</svg>", re.DOTALL)
_ID = re.compile(r"(?<=[\"#])[a-zA-Z][0-9a-f]{10}(?=[\")])")
_STYLE = re.compile(r' style="([^"]*)"')
_UNTURNED = re.compile(r' transform="rotate\(-?0 [^"]*\)"')


def rows_as_json(table: Table) -> Markup:
    """``{"columns": [{"values": …, "places": …}]}``, safe inside a ``<script>``.

    A column whose values repeat has each of them once, and their places row by row.
    """
    columns = [_column(list(map(visible, values))) for values in zip(*table.rows, strict=True)]
    content = {"columns": columns}
    return htmlsafe_json_dumps(content, ensure_ascii=False, separators=(",", ":"))


def _column(values: list[str]) -> dict[str, Any]:
    distinct = {value: place for place, value in enumerate(dict.fromkeys(values))}
    if 2 * len(distinct) > len(values):
        return {"values": values}
    return {"values": list(distinct), "places": [distinct[value] for value in values]}


def shorten_pictures(page: str) -> str:
    """The page with its inline SVGs in fewer bytes: the same styles, as classes, and short ids."""
    classes: dict[str, str] = {}
    numbers = itertools.count()

    def as_class(style: re.Match[str]) -> str:
        return f' class="{classes.setdefault(style[1], f"z{len(classes)}")}"'

    def short(picture: re.Match[str]) -> str:
        known: dict[str, str] = {}

        def short_id(name: re.Match[str]) -> str:
            if name[0] not in known:
                known[name[0]] = f"i{next(numbers)}"
            return known[name[0]]

        text = _ID.sub(short_id, _UNTURNED.sub("", picture[0]))
        return _STYLE.sub(as_class, text).replace("xlink:href", "href").replace("\n", " ")

    body = _SVG.sub(short, page)
    rules = "\n".join(f".{name} {{ {style} }}" for style, name in classes.items())
    return body.replace("</head>", f"<style>\n{rules}\n</style>\n</head>", 1)
