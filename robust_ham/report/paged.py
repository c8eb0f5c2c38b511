"""Keep the page small for runs of many models.

Long tables are stored as JSON, and a script shows one page at a time; figures take fewer bytes.
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
"""Models beyond which tables are paged and figures shortened."""
MANY_ROWS = 1000
"""Rows beyond which any other table is paged."""

_SVG = re.compile(r"<svg\b.*?</svg>", re.DOTALL)
_ID = re.compile(r"(?<=[\"#])[a-zA-Z][0-9a-f]{10}(?=[\")])")
_STYLE = re.compile(r' style="([^"]*)"')
_UNTURNED = re.compile(r' transform="rotate\(-?0 [^"]*\)"')


def rows_as_json(table: Table) -> Markup:
    """Return ``{"columns": [{"values": …, "places": …}]}``, safe inside a ``<script>``.

    A column with repeated values stores each value once, and each row's index into the values.
    """
    columns = [_column(list(map(visible, values))) for values in zip(*table.rows, strict=True)]
    content = {"columns": columns}
    return htmlsafe_json_dumps(content, ensure_ascii=False, separators=(",", ":"))


def _column(values: list[str]) -> dict[str, Any]:
    distinct = {value: place for place, value in enumerate(dict.fromkeys(values))}
    if 2 * len(distinct) > len(values):
        return {"values": values}
    return {"values": list(distinct), "places": [distinct[value] for value in values]}


def shorten_svgs(page: str) -> str:
    """Shorten the inline SVGs of a page: the same styles as classes, and short ids."""
    classes: dict[str, str] = {}
    numbers = itertools.count()

    def as_class(style: re.Match[str]) -> str:
        return f' class="{classes.setdefault(style[1], f"z{len(classes)}")}"'

    def short(picture: re.Match[str]) -> str:
        short_ids: dict[str, str] = {}

        def short_id(name: re.Match[str]) -> str:
            if name[0] not in short_ids:
                short_ids[name[0]] = f"i{next(numbers)}"
            return short_ids[name[0]]

        text = _ID.sub(short_id, _UNTURNED.sub("", picture[0]))
        return _STYLE.sub(as_class, text).replace("xlink:href", "href").replace("\n", " ")

    body = _SVG.sub(short, page)
    rules = "\n".join(f".{name} {{ {style} }}" for style, name in classes.items())
    return body.replace("</head>", f"<style>\n{rules}\n</style>\n</head>", 1)
