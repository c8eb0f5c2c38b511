"""Exit codes, and how an error becomes one line and an exit code."""

from __future__ import annotations

import re

from robust_ham.cli.output import complain
from robust_ham.config.suggestions import did_you_mean
from robust_ham.errors import RequestError

ENVIRONMENT, REQUEST, JOBS, GATE = 1, 2, 3, 4

_debug = False


def set_debug(value: bool) -> None:
    """Turn tracebacks on for the rest of the process."""
    global _debug  # noqa: PLW0603 - one switch, set once while options are parsed
    _debug = _debug or value


def report_error(error: Exception) -> int:
    """Print one line for an error that the user can fix and return its exit code.

    Raises:
        Exception: the error itself, if it is of any other kind or under ``--debug``.
    """
    if isinstance(error, RequestError) and not _debug:
        complain(str(error))
        return REQUEST
    if isinstance(error, ModuleNotFoundError) and not _debug:
        complain(f"{error.name} is not installed: pip install {error.name}")
        return ENVIRONMENT
    if isinstance(error, OSError) and not _debug:
        prefix = f"{error.filename}: " if error.filename else ""
        complain(f"{prefix}{error.strerror or error}")
        return ENVIRONMENT
    usage_message = getattr(error, "format_message", None)  # an error in the arguments
    if usage_message is None:
        raise error
    complain(_with_suggestion(usage_message().replace("Value error, ", "")))
    return REQUEST


def _with_suggestion(message: str) -> str:
    """Suggest the closest choice for a value that an option does not allow."""
    unknown = re.search(r"'([^']*)' is not one of (.*?)\.?$", message)
    if unknown is None:
        return message
    return message.rstrip(".") + did_you_mean(unknown[1], re.findall("'([^']*)'", unknown[2]))
