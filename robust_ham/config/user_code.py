"""User code: functions that a configuration names, the only code that it can run."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from robust_ham.config.fields import number, shown
from robust_ham.config.sections import AttackConfig
from robust_ham.errors import RequestError

Parameter = inspect.Parameter

_KEYS = set(AttackConfig.model_fields) - {"attack"}

_MAX_REASON = 300


def import_function(name: str, key: str) -> Any:  # noqa: ANN401
    """Import the function ``module:function``; the working directory is searched last.

    ``key`` names the function's role in messages.

    Raises:
        RequestError: no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    with one_line_for(f"{key} {name}"):
        function: Any = importlib.import_module(module_name)
    for part in function_name.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        raise RequestError(f"{key} {name}: no such function")
    return function


@contextlib.contextmanager
def one_line_for(name: str) -> Iterator[None]:
    """Turn an exception of user code into one line with its place; ``name`` is the code's name.

    Raises:
        RequestError: for any exception except a lack of memory.
    """
    try:
        yield
    except (RequestError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if (
            type(error).__name__ == "OutOfMemoryError"
        ):  # torch's class; this package is free of torch
            raise
        reason = " ".join(str(error).split())[:_MAX_REASON]
        raise RequestError(f"{name}: {type(error).__name__}: {reason}{_place(error)}") from None


def _place(error: BaseException) -> str:
    """Function, file and line of the deepest frame that is neither torch's nor this package's."""
    specs = [importlib.util.find_spec(name) for name in ("torch", "importlib")]
    libraries = [Path(spec.origin).parent for spec in specs if spec and spec.origin]
    libraries.append(Path(__file__).parents[1])
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(Path(frame.filename).is_relative_to(folder) for folder in libraries)
        and not frame.filename.startswith("<")
    ]
    if not frames:
        return ""
    return f" (in {frames[-1].name}, {Path(frames[-1].filename).name}:{frames[-1].lineno})"


def source_hash(function: Any) -> str:  # noqa: ANN401
    """SHA-256 of the file that defines a function; part of its results' keys.

    Empty if there is no such file.
    """
    while isinstance(function, functools.partial):
        function = function.func
    if not (inspect.isroutine(function) or inspect.isclass(function)):
        function = type(function)  # an object with __call__
    try:
        source = inspect.getsource(inspect.getmodule(function) or function)
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(source.encode()).hexdigest()


def options_after(function: Callable[..., Any], name: str) -> dict[str, Parameter]:
    """Return the parameters of a custom attack after model, images and labels.

    Raises:
        RequestError: it does not take these three, or an option has the name of a key that every
            attack has.
    """
    try:
        try:
            signature = inspect.signature(function, eval_str=True)
        except Exception:  # annotations may use names imported only for type checkers
            signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise RequestError(f"attack {name}: expected a function written in Python") from None
    parameters = list(signature.parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 3 and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise RequestError(f"attack {name}: expected a function of model, images and labels")
    options = positional[3:] + [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]
    for parameter in options:
        if parameter.name in _KEYS:
            raise RequestError(
                f"attack {name}: its option {parameter.name} has the name of a key that "
                "every attack has; rename the option, for example to eps"
            )
    return {p.name: p for p in options if p.kind is not p.POSITIONAL_ONLY}


def like_default(value: Any, default: Any) -> Any:  # noqa: ANN401
    """Convert ``value`` to the type of the default of an option without annotation.

    Text such as 8/255 may be a number.

    Raises:
        ValueError: the value has another type than the default.
    """
    if isinstance(default, bool | str):
        if not isinstance(value, type(default)):
            expected = "text" if isinstance(default, str) else "true or false"
            raise ValueError(f"expected {expected}, got {shown(value)}")
        return value
    if isinstance(default, int | float):
        return _number_like(value, default)
    if isinstance(value, list | tuple):
        parts = default if isinstance(default, list | tuple) and default else (None,)
        kind = type(default) if isinstance(default, list | tuple) else type(value)
        return kind(like_default(part, parts[0]) for part in value)
    if isinstance(value, str) and re.search(
        "[/eE]", value
    ):  # other numbers are text only if quoted
        with contextlib.suppress(ValueError):
            return number(value)
    return value


def _number_like(value: object, default: float) -> float:
    parsed = number(value)
    if not isinstance(parsed, int | float):
        try:
            parsed = float(parsed)  # numpy's
        except (TypeError, ValueError):
            raise ValueError(f"expected a number, got {shown(value)}") from None
    if not math.isfinite(parsed):
        raise ValueError(f"expected a finite number, got {shown(value)}")
    whole = isinstance(default, int) and parsed == int(parsed)
    return int(parsed) if whole else float(parsed)
