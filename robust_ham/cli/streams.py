"""Standard streams and logs: never a traceback of their own, never a line that others forged."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from types import TracebackType

from robust_ham.errors import printable
from robust_ham.storage.run_logs import LineFormatter


def prepare_streams() -> None:
    """Lead closed standard streams nowhere, and show what an encoding lacks escaped.

    A closed descriptor would otherwise be given to the next file that is opened.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            try:
                os.fstat(descriptor)
            except OSError:
                _lead_nowhere(descriptor)
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def show_lines_of_others() -> None:
    """Make what Python itself writes to standard error printable: logs, warnings, tracebacks."""
    assert logging.lastResort is not None
    logging.lastResort.setFormatter(LineFormatter())
    warnings.formatwarning = lambda message, *_, **__: f"robust-ham: {printable(str(message))}\n"
    sys.excepthook = _show_traceback


def _show_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    for line in "".join(traceback.format_exception(kind, error, trace)).split("\n"):
        sys.stderr.write(f"{printable(line)}\n")


@contextlib.contextmanager
def standard_output() -> Iterator[None]:
    """Name the stream in the error where it cannot be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None


def flush_streams() -> bool:
    """Write what is still buffered; where that fails, drop it, so that Python's end is silent.

    Returns:
        Whether standard output has all that was printed.
    """
    whole = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _lead_nowhere(stream.fileno())
            whole &= stream is not sys.stdout
    return whole


def _lead_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
