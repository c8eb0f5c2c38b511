"""Functions of a user's own, named by a configuration: the only code that it can run."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
from typing import Any

from robust_ham.config import RequestError


def import_function(name: str, key: str) -> Any:  # noqa: ANN401
    """The function ``module:function``; modules of the working directory come last.

    ``key`` is what the message calls it.

    Raises:
        RequestError: no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        function: Any = importlib.import_module(module_name)
    except Exception as error:  # it is the user's code: whatever it raises, one line says so
        reason = " ".join(str(error).split())
        raise RequestError(f"{key} {name}: {type(error).__name__}: {reason}") from None
    for part in function_name.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        raise RequestError(f"{key} {name}: no such function")
    return function


def source_hash(function: Any) -> str:  # noqa: ANN401
    """SHA-256 of the file that a function is written in: its results are another's when it changes.

    Empty where there is no such file.
    """
    try:
        source = inspect.getsource(inspect.getmodule(function) or function)
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(source.encode()).hexdigest()
