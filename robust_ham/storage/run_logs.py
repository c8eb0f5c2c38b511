"""Logs of a run, written line by line: ``run.log``, ``timings.csv`` and ``failures.jsonl``.

A process that is killed, or finds the disk full, may leave an incomplete line. The next writer
begins a new line, and readers skip the incomplete one.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from robust_ham.errors import ending_with, naming, printable
from robust_ham.regular_files import open_descriptor, open_to_append, read_bytes
from robust_ham.storage.files import MAX_CSV_BYTES
from robust_ham.storage.locks import locked
from robust_ham.storage.run_folder import RunFolder
from robust_ham.storage.working_folder import check_unmoved

_COLUMNS = ["cell", "seconds"]
_CUT = "?"
"""Ends an incomplete line, so that its beginning is not read as a number."""


def note_timing(run: RunFolder, name: str, seconds: float) -> None:
    """Add a job's seconds to ``timings.csv``; if a job has several lines, the last counts."""
    _append(run, run.timings, f"{name},{round(seconds, 3)}", heading=",".join(_COLUMNS))


def note_failure(run: RunFolder, name: str, error: str, reason: str) -> None:
    """Add a line to ``failures.jsonl``."""
    line = json.dumps({"cell": name, "error": error, "reason": reason})
    _append(run, run.failures, line)


def read_timings(run: RunFolder) -> dict[str, str]:
    """Return name of a job to its seconds, as text.

    Raises:
        FileNotFoundError: no job has been timed.
        ValueError: a line is not a job and its seconds.
        RequestError: not a regular file, or too large.
    """
    content = read_bytes(run.timings, MAX_CSV_BYTES).decode(errors="replace")
    *lines, _ = content.split("\n")  # the last is empty or incomplete
    try:
        rows = list(csv.reader(line for line in lines if not line.endswith(_CUT)))
    except csv.Error as error:
        raise ValueError(f"{run.timings}: {error}") from None
    if not rows or rows[0] != _COLUMNS or any(len(row) != len(_COLUMNS) for row in rows):
        raise ValueError(f"{run.timings}: expected the columns {', '.join(_COLUMNS)}")
    return {name: seconds for name, seconds in rows[1:]}


def _append(run: RunFolder, path: Path, line: str, heading: str = "") -> None:
    """Append a line in one write; ``heading``: the first line of the file.

    Raises:
        RequestError: not a regular file.
        OSError: the file cannot be written.
    """
    check_unmoved(path)
    with locked(run.lock(path.stem)), naming(path):
        descriptor = open_descriptor(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            size = os.fstat(descriptor).st_size
            if size <= len(heading):  # empty, or an incomplete heading
                os.ftruncate(descriptor, 0)
                line = f"{heading}\n{line}" if heading else line
            else:
                os.lseek(descriptor, size - 1, os.SEEK_SET)
                if os.read(descriptor, 1) != b"\n":
                    line = f"{_CUT}\n{line}"
            content = f"{line}\n".encode()
            while content:  # one write, unless the disk is full
                content = content[os.write(descriptor, content) :]
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Append the log records of both packages to a file of a run folder."""
    handler = _LogFile(path)
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = logging.getLogger("robust_ham"), logging.getLogger("attacks")
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
    try:
        with ending_with(handler.close):
            yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
            logger.propagate = True


class _LogFile(logging.Handler):
    """Appends lines to a log; a log that cannot be written ends the run."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.file = path, open_to_append(path)

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{self.format(record)}\n".encode(errors="backslashreplace")
        with naming(self.path):
            while line:
                line = line[self.file.write(line) :]

    def close(self) -> None:
        with naming(self.path):
            self.file.close()
        super().close()


class LineFormatter(logging.Formatter):
    """Formats each record as one printable line; indents the lines of a traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Format a record as one line."""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(  # noqa: N802
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        """Format a traceback as indented lines."""
        return "\n".join(
            f"    {printable(line)}" for line in super().formatException(ei).split("\n")
        )
