"""The error for requests that a user can correct, and helpers for error messages."""

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_MAX_LENGTH = 2_000
_MAX_LISTED = 4


class RequestError(Exception):
    """The request is wrong; its message is one line that names the culprit. Exit code 2.

    The message may contain names from untrusted files, so ``str`` makes it ``printable``.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


@contextlib.contextmanager
def naming(path: Path, also: Path | None = None) -> Iterator[None]:
    """Add the file's name to an ``OSError`` that lacks it, as errors of reading and writing do.

    A name without its folder (as in errors of ``shutil.rmtree``) is replaced, and so is a name that
    begins with ``also``, such as that of a temporary file.
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
    """Clean up after a block; an error of the block hides an ``OSError`` of the clean-up."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            clean_up()
        raise
    clean_up()


def list_names(names: Iterable[str]) -> str:
    """Join the first few names, and count the others."""
    everything = list(names)
    num_others = len(everything) - _MAX_LISTED
    others = f" and {num_others} more" if num_others > 0 else ""
    return ", ".join(everything[:_MAX_LISTED]) + others


def plural(number: int, noun: str) -> str:
    """Return a count with its noun: "1 model", "2 models"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}".replace(",", "\u202f")


def shortened(text: str, length: int = 100) -> str:
    """Cut a text for use in a message."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def printable(line: str) -> str:
    """Make a line safe for a terminal or log: ``visible``, no line breaks, long text cut."""
    line = visible(line).replace("\n", "\\n")
    half = _MAX_LENGTH // 2
    return line if len(line) <= _MAX_LENGTH else f"{line[:half]}…{line[1 - half :]}"


def visible(text: str) -> str:
    """Escape invisible characters that can change what a terminal shows.

    These are control characters other than line feeds, invisible and bidirectional formatting
    characters, other line separators, and unassigned code points.
    """
    if text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character == "\n" or character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return ascii(character)[1:-1]
