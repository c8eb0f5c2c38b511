"""Suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 100


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """End of an error message: ``; did you mean epochs?``, empty if no known name is similar.

    Case, ``-``, ``_`` and spaces make no difference.
    """
    if not isinstance(name, str) or len(name) > _LONGEST:
        return ""
    names = {_plain(candidate): candidate for candidate in known}
    matches = difflib.get_close_matches(_plain(name), names, n=1)
    return f"; did you mean {names[matches[0]]}?" if matches else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")
