"""What all sections of a configuration are made of: checked values, and faults in one line."""

from __future__ import annotations

import functools
import math
import os
import re
import reprlib
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from robust_ham.config.bounds import MAX_DISTANCE, MAX_KERNEL, MAX_NAME, MAX_SEED

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(?<!\.)")

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80


def shown(value: object) -> str:
    """A value as an error message quotes it: short, also numbers of thousands of digits."""
    try:
        return _short.repr(value)
    except ValueError:  # Python writes no numbers of more than 4,300 digits
        return "a number of thousands of digits"


def safe_name(value: str) -> str:
    """``value`` if it can be a file name everywhere.

    Raises:
        ValueError: anything but 1–100 letters, digits, ``.``, ``_``, ``-``; it begins with a
            letter or a digit and does not end in a dot.
    """
    if not _SAFE_NAME.fullmatch(value):
        raise ValueError(f"expected letters, digits, '.', '_' or '-', got {shown(value)}")
    return value


_DECIMAL = re.compile(r"[-+]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)


def number(value: Any) -> Any:  # noqa: ANN401
    """Numbers written as ``8/255`` or ``5e-4`` (which YAML reads as text).

    Raises:
        ValueError: other text, true and false, or what is not finite.
    """
    if isinstance(value, bool):
        raise ValueError(f"expected a number, got {str(value).lower()}")
    if isinstance(value, float):
        return _finite(value, value)
    if not isinstance(value, str):
        return value
    numerator, slash, denominator = value.partition("/")
    parts = [numerator.strip(), denominator.strip() if slash else "1"]
    if value.lower().lstrip("+-.") in ("inf", "nan"):
        return _finite(math.inf, value)
    if not all(map(_DECIMAL.fullmatch, parts)) or float(parts[1]) == 0:
        raise ValueError(f"expected a number such as 0.5 or 8/255, got {shown(value)}")
    return _finite(float(parts[0]) / float(parts[1]), value)


def _finite(value: float, written: object) -> float:
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {shown(written)}")
    return value + 0.0  # -0 is 0


def path_text(value: str) -> str:
    """``value`` if a file can have that path.

    Raises:
        ValueError: a part of more than 255 bytes, or the character 0.
    """
    if "\0" in value or max(map(len, os.fsencode(value).split(os.fsencode(os.sep)))) > MAX_NAME:
        raise ValueError(f"expected a path with parts of at most {MAX_NAME} bytes")
    return value


def odd(value: int) -> int:
    """``value`` if a kernel of that size has a centre."""
    if value % 2 == 0:
        raise ValueError(f"expected an odd number, got {value}")
    return value


SafeName = Annotated[str, BeforeValidator(lambda v: safe_name(v) if isinstance(v, str) else v)]
Number = Annotated[float, BeforeValidator(number)]
PathText = Annotated[str, AfterValidator(path_text)]
Distance = Annotated[float, Field(gt=0, le=MAX_DISTANCE), BeforeValidator(number)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
OddSize = Annotated[int, Field(ge=1, le=MAX_KERNEL), AfterValidator(odd)]
Window = Literal[
    "none", "hamming", "hamming_sqrt", "hann", "blackman", "kaiser", "hamming_shuffled"
]


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values never change afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @field_validator("*", mode="before")
    @classmethod
    def _are_not_booleans(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401
        """Refuse true where a number or text is expected: pydantic would take it for 1."""
        parts = value if isinstance(value, list | tuple) else (value,)
        wrong = next((part for part in parts if isinstance(part, bool)), None)
        if wrong is not None and not _may_be_boolean(cls, info.field_name or ""):
            raise ValueError(
                f"expected a number or text, got {str(wrong).lower()}; YAML reads yes, no, on and "
                "off as true and false unless they are in quotes"
            )
        return value

    @model_validator(mode="after")
    def _fits_into_64_bits(self) -> Section:
        for name, value in self:
            for part in _scalars(value):
                if isinstance(part, int) and not -(2**63) <= part < 2**63:
                    raise ValueError(f"{name}: expected a number of at most 64 bits")
        return self


def _scalars(value: object) -> Iterator[object]:
    """All that lists, tuples and mappings hold, at any depth."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list | tuple):
            waiting.extend(part)
        elif isinstance(part, dict):
            waiting.extend(part.values())
        else:
            yield part


@functools.cache
def _may_be_boolean(section: type[Section], name: str) -> bool:
    def kinds(annotation: Any) -> set[Any]:  # noqa: ANN401
        return {annotation}.union(*map(kinds, get_args(annotation)))

    return bool in kinds(section.model_fields[name].annotation)


def first_error(error: ValidationError) -> str:
    """The first fault as ``key.sub_key: what is wrong``."""
    unknown = [fault for fault in error.errors() if fault["type"] == "extra_forbidden"]
    fault = (unknown or error.errors())[0]  # a misspelt key is also a missing one
    parts = [str(part) for part in fault["loc"]]  # unions add the name of the type they tried
    where = ".".join(p for p in parts if not p.endswith("Group") and not p.startswith("function-"))
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        message = "unknown key"
    scalar = isinstance(fault["input"], str | int | float | bool | None)
    if scalar and "got" not in message and fault["type"] not in {"extra_forbidden", "missing"}:
        message += f", got {shown(fault['input'])}"
    message = message[0].lower() + message[1:]
    if fault["type"] == "value_error" and where and re.match(r"[\w.]+: ", message):
        return f"{where}.{message}"  # the message goes on with the path
    return f"{where}: {message}" if where else message
