"""Stop a run at once on Ctrl-C, SIGTERM or SIGHUP, but never while it writes a file.

Only the first signal raises ``Stopped``, so that none interrupts the cleanup. A later one, seconds
after the first, ends a process that hangs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType

STOPPED = "Stopped. Finished jobs are kept; rerun the same command to resume."
"""Message of a stopped process."""
_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
SIGNALS = (*([_HANGUP] if _HANGUP else []), signal.SIGINT, signal.SIGTERM)
PATIENCE_SECONDS = 5.0
"""How long signals after the first are ignored; then one ends the process."""


class Stopped(BaseException):
    """Raised by a signal; carries the exit code: 130 for SIGINT, 143 for the others."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


_exit_code: int | None = None  # exit code of the signal that has arrived
_first_at = 0.0
_writing = 0  # how many files are being written
_can_raise = False


def hold() -> None:
    """Remember signals from now on; they take effect in ``listen``."""
    for number in SIGNALS:
        if number != _HANGUP or signal.getsignal(number) != signal.SIG_IGN:  # not under nohup
            signal.signal(number, _arrived)


def listen() -> None:
    """Let SIGINT, SIGTERM and SIGHUP raise ``Stopped``; so does a signal remembered before."""
    global _can_raise  # noqa: PLW0603 - a signal handler needs a global
    hold()
    sys.unraisablehook = _unraisable
    _can_raise = True
    check()


def end() -> None:
    """Ignore signals from now on: the process is ending."""
    global _can_raise  # noqa: PLW0603 - see above
    _can_raise = False
    for number in SIGNALS:
        if signal.getsignal(number) is _arrived:
            signal.signal(number, signal.SIG_IGN)


def exit_code() -> int | None:
    """Return the exit code of the first signal; None if none has arrived."""
    return _exit_code


def check() -> None:
    """Raise ``Stopped`` if a signal was held back, or was lost in a destructor."""
    global _can_raise  # noqa: PLW0603 - see above
    if _exit_code is not None and not _writing:
        _can_raise = False
        raise Stopped(_exit_code)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold signals back until the end of the block."""
    global _writing  # noqa: PLW0603 - see above
    _writing += 1
    try:
        yield
    finally:
        _writing -= 1
    check()


def _arrived(number: int, frame: FrameType | None) -> None:
    global _exit_code, _first_at, _can_raise  # noqa: PLW0603 - see above
    if _exit_code is None:
        _exit_code, _first_at = 130 if number == signal.SIGINT else 143, time.monotonic()
    elif time.monotonic() - _first_at > PATIENCE_SECONDS:
        with contextlib.suppress(OSError):
            os.write(2, f"robust-ham: {STOPPED}\n".encode())
        os._exit(_exit_code)
    if _can_raise and not _writing:
        _can_raise = False
        raise Stopped(_exit_code)


def _unraisable(lost: sys.UnraisableHookArgs) -> None:
    """Do not report a ``Stopped`` raised in a destructor: ``check`` raises it again."""
    if not isinstance(lost.exc_value, Stopped):
        sys.__unraisablehook__(lost)
