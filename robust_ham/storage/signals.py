"""Ctrl-C, SIGTERM and SIGHUP stop a run at once, but never in the middle of writing a file.

However many signals arrive, ``Stopped`` is raised by the first alone, so that none can interrupt
what the first has begun to undo. One that arrives seconds later ends a process that hangs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType

STOPPED = "stopped; nothing finished is lost, the same command goes on"
"""The line that a stopped process prints."""
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
PATIENCE_SECONDS = 5.0
"""After the first signal, later ones are ignored for so long; then one ends the process."""


class Stopped(BaseException):
    """A signal asked to stop; carries the exit code: 130 for SIGINT, 143 for the others."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


_asked: int | None = None  # exit code of the signal that has arrived
_asked_at = 0.0
_writing = 0  # how many files are being written
_can_raise = False


def hold() -> None:
    """Note signals from now on; they take effect in ``listen``."""
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # not under nohup
            signal.signal(number, _arrived)


def listen() -> None:
    """Let SIGINT, SIGTERM and SIGHUP raise ``Stopped``, also one that has arrived before."""
    global _can_raise  # noqa: PLW0603 - a signal handler has no other way to tell
    hold()
    sys.unraisablehook = _unraisable
    _can_raise = True
    check()


def end() -> None:
    """Let no further signal interrupt the end of the process."""
    global _can_raise  # noqa: PLW0603 - see above
    _can_raise = False
    for number in SIGNALS:
        if signal.getsignal(number) is _arrived:
            signal.signal(number, signal.SIG_IGN)


def exit_code() -> int | None:
    """Exit code of the first signal that has arrived; None: none has."""
    return _asked


def check() -> None:
    """Stop here if a signal has arrived and was held back, or lost in a destructor."""
    global _can_raise  # noqa: PLW0603 - see above
    if _asked is not None and not _writing:
        _can_raise = False
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


def _arrived(number: int, frame: FrameType | None) -> None:
    global _asked, _asked_at, _can_raise  # noqa: PLW0603 - see above
    if _asked is None:
        _asked, _asked_at = 130 if number == signal.SIGINT else 143, time.monotonic()
    elif time.monotonic() - _asked_at > PATIENCE_SECONDS:  # what it has left half-written is hidden
        with contextlib.suppress(OSError):
            os.write(2, f"robust-ham: {STOPPED}\n".encode())
        os._exit(_asked)
    if _can_raise and not _writing:
        _can_raise = False
        raise Stopped(_asked)


def _unraisable(lost: sys.UnraisableHookArgs) -> None:
    """A ``Stopped`` that a destructor has swallowed is no error: ``check`` raises it again."""
    if not isinstance(lost.exc_value, Stopped):
        sys.__unraisablehook__(lost)
