"""The error that a user can mend, and text that is safe to show."""

from __future__ import annotations

import unicodedata

_LONGEST = 2_000


class RequestError(Exception):
    """The request is wrong; its message is one line that names the culprit. Exit code 2.

    Names in it may come from other people's files, so the message is shown through ``printable``.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(line: str) -> str:
    """The line for a terminal or a log: ``visible``, without line breaks, cut in its middle."""
    line = visible(line).replace("\n", "\\n")
    half = _LONGEST // 2
    return line if len(line) <= _LONGEST else f"{line[:half]}…{line[1 - half :]}"


def visible(text: str) -> str:
    """The text with every character escaped that shows nothing but changes what is shown.

    Those are control characters other than line feeds, invisible and bidirectional formatting
    characters, other line separators, and code points that are no characters.
    """
    if text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character == "\n" or character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return ascii(character)[1:-1]
