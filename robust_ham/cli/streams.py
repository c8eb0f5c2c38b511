"""Standard streams that may be closed or full, and what Python itself writes to them."""

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
    """Redirect closed standard streams to the null device; escape what an encoding lacks.

    Otherwise the next file that is opened would get the descriptor of a closed stream.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            try:
                os.fstat(descriptor)
            except OSError:
                _redirect_to_null(descriptor)
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def make_python_output_printable() -> None:
    """Make logs, warnings and tracebacks that Python writes to standard error printable."""
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
    """Name the stream in the error if it cannot be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None


def flush_streams() -> bool:
    """Write what is still buffered; if that fails, drop it, so that Python exits silently.

    Returns:
        Whether standard output received everything that was printed.
    """
    whole = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _redirect_to_null(stream.fileno())
            whole &= stream is not sys.stdout
    return whole


def _redirect_to_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
