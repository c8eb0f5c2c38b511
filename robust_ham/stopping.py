"""Ctrl-C and SIGTERM stop a run at once, but never in the middle of writing a file."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Stopped(BaseException):
    """A signal asked to stop; carries the exit code: 130 for SIGINT, 143 for SIGTERM."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


_asked: int | None = None  # exit code of the signal that has arrived
_writing = 0  # how many files are being written


def listen() -> None:
    """Let SIGINT and SIGTERM raise ``Stopped``."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _arrived)


def _arrived(number: int, frame: FrameType | None) -> None:
    global _asked  # noqa: PLW0603 - a signal handler has no other way to tell
    _asked = 128 + number
    if not _writing:
        raise Stopped(_asked)


def check() -> None:
    """Stop here if a signal has arrived and was held back, or lost in a destructor."""
    if _asked is not None and not _writing:
        raise Stopped(_asked)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold a signal back until the block is left."""
    global _writing  # noqa: PLW0603 - see above
    _writing += 1
    try:
        yield
    finally:
        _writing -= 1
    check()
