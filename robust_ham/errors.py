"""The error that a user can mend, and text that is safe to show on a terminal."""

from __future__ import annotations

import re

_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_LONGEST = 2_000


class RequestError(Exception):
    """The request is wrong; its message is one line that names the culprit. Exit code 2.

    Names in it may come from other people's files, so the message is shown through ``printable``.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(line: str) -> str:
    """The line with characters escaped that would break it or command a terminal, and cut."""
    line = _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], line)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
