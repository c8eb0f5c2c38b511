"""The error that a user can mend, the file that an error is of, and text that is safe to show."""

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

_LONGEST = 2_000


class RequestError(Exception):
    """The request is wrong; its message is one line that names the culprit. Exit code 2.

    Names in it may come from other people's files, so the message is shown through ``printable``.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


@contextlib.contextmanager
def naming(path: Path, also: Path | None = None) -> Iterator[None]:
    """Name the file in an error of the system that names none, as those of reading and writing.

    A name without its folder, as ``shutil.rmtree`` gives it, is none either. ``also``: the
    beginning of names that stand for ``path``, as of its temporary files.
    """
    try:
        yield
    except OSError as error:
        name = str(error.filename or "")
        if error.errno is None or (os.sep in name and not (also and name.startswith(str(also)))):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def ending_with(clean_up: Callable[[], object]) -> Iterator[None]:
    """Clean up after a block; an error of doing so does not hide the one that the block raised."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            clean_up()
        raise
    clean_up()


def shortened(text: str, length: int = 100) -> str:
    """The beginning of a text that a message repeats."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


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
