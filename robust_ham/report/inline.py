"""Embed figures and files in the page."""

from __future__ import annotations

import base64
import re

from markupsafe import Markup

_NOT_SHOWN = re.compile(
    r"<metadata>.*?</metadata>|<!--.*?-->"
    r"| id=\"[A-Za-z0-9.]*[A-Za-z]_[0-9]+\""  # matplotlib's count of its artists
    r"| xmlns:xlink=\"[^\"]*\"",
    re.DOTALL,
)
_COORDINATES = re.compile(r" (?:d|x|y|transform|points)=\"[^\"]*\"")
_DECIMALS = re.compile(r"(\.[0-9]{2})[0-9]+")


def inline_svg(content: bytes) -> Markup:
    """Prepare the SVG of ``render`` for embedding in HTML, in the font of the page."""
    text = content.decode()
    text = _NOT_SHOWN.sub("", text[text.index("<svg") :])
    text = _COORDINATES.sub(lambda match: _DECIMALS.sub(r"\1", match[0]), text)
    text = re.sub(r">\s+<", "><", text).replace("'DejaVu Sans', sans-serif", "inherit")
    return Markup(text)


def data_uri(content: bytes, kind: str) -> str:
    """Encode a file as a data URI; ``kind``: its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
