"""Building blocks of the sections of a configuration: value types, and errors in one line."""

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
from robust_ham.config.suggestions import did_you_mean

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(?<!\.)")

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80


def shown(value: object) -> str:
    """A value shortened for an error message."""
    try:
        return _short.repr(value)
    except ValueError:  # Python prints at most 4,300 digits
        return "a number of thousands of digits"


def safe_name(value: str) -> str:
    """Return ``value`` if it is a valid file name on all systems.

    Raises:
        ValueError: not 1 to 100 letters, digits, ``.``, ``_``, ``-``, the first of them a letter
            or digit, the last not a dot.
    """
    if not _SAFE_NAME.fullmatch(value):
        raise ValueError(f"expected letters, digits, '.', '_' or '-', got {shown(value)}")
    return value


_DECIMAL = re.compile(r"[-+]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)


def number(value: Any) -> Any:  # noqa: ANN401
    """Parse numbers such as ``8/255`` or ``5e-4``, which YAML reads as text.

    Raises:
        ValueError: other text, a boolean, or a number that is not finite.
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
    """Return ``value`` if it is a possible path.

    Raises:
        ValueError: a part has more than 255 bytes, or contains the null character.
    """
    if "\0" in value or max(map(len, os.fsencode(value).split(os.fsencode(os.sep)))) > MAX_NAME:
        raise ValueError(f"expected a path with parts of at most {MAX_NAME} bytes")
    return value


def odd(value: int) -> int:
    """Return ``value`` if it is odd, so that a kernel of that size has a centre."""
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
    """Base of all sections: unknown keys are errors, and values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401
        """Refuse true where a number or text is expected: pydantic would read it as 1."""
        parts = value if isinstance(value, list | tuple) else (value,)
        boolean = next((part for part in parts if isinstance(part, bool)), None)
        if boolean is not None and not _may_be_boolean(cls, info.field_name or ""):
            raise ValueError(
                f"expected a number or text, got {str(boolean).lower()}; YAML reads yes, no, on "
                "and off as true and false unless they are in quotes"
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
    """Yield the values in nested lists, tuples and mappings."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list | tuple):
            waiting.extend(part)
        elif isinstance(part, dict):
            waiting.extend(part.values())
        else:
            yield part


def _parts(annotation: Any) -> set[Any]:  # noqa: ANN401
    """All types in a nested annotation."""
    return {annotation}.union(*map(_parts, get_args(annotation)))


@functools.cache
def _may_be_boolean(section: type[Section], name: str) -> bool:
    return bool in _parts(section.model_fields[name].annotation)


def _sections_of(annotation: Any) -> list[type[Section]]:  # noqa: ANN401
    classes = [part for part in _parts(annotation) if isinstance(part, type)]
    return [part for part in classes if issubclass(part, Section)]


def first_error(error: ValidationError, section: type[Section] | None = None) -> str:
    """Describe the first error as ``key.sub_key: problem``.

    With the ``section`` that refused the values, suggest a key for an unknown one, and ``sweep``
    for a list in place of a single value.
    """
    unknown = [fault for fault in error.errors() if fault["type"] == "extra_forbidden"]
    fault = (unknown or error.errors())[0]  # a misspelt key is also a missing one
    value, kind = fault["input"], fault["type"]
    parts = [str(part) for part in fault["loc"]]  # unions add the name of the type they tried
    where = ".".join(p for p in parts if not p.endswith("Group") and not p.startswith("function-"))
    message = str(fault["msg"]).removeprefix("Value error, ")
    message = re.sub("^Input should be (greater|less)", r"expected a number \1", message)
    message = re.sub("^Input should be a valid integer.*", "expected a whole number", message)
    message = re.sub("^Input should be a valid number.*", "expected a number", message)
    message = re.sub("^Input should be", "expected", message)
    if kind == "extra_forbidden":
        message = "unknown key" + _suggest_key(section, parts)
    elif isinstance(value, str | int | float | bool | None):
        if "got" not in message and kind != "missing":
            message += f", got {shown(value)}"
        if kind == "literal_error":
            message += did_you_mean(value, re.findall("'([^']+)'", fault["ctx"]["expected"]))
    elif isinstance(value, list) and kind != "value_error" and not kind.startswith("too_"):
        message += ", got a list" + _suggest_sweep(section, where, value)
    message = message[0].lower() + message[1:]
    if kind == "value_error" and where and re.match(r"[\w.]+: ", message):
        return f"{where}.{message}"  # the message continues the path
    return f"{where}: {message}" if where else message


def _suggest_sweep(section: type[Section] | None, where: str, values: list[Any]) -> str:
    """How to run a model for each of several values of a key, if the section can."""
    if section is None:
        return ""
    if not {"sweep", where} <= section.model_fields.keys():
        return "; only keys of models can take several values, with sweep:"
    return f"; to run one model for each value, use sweep: {{{where}: {shown(values)}}}"


def _suggest_key(section: type[Section] | None, parts: list[str]) -> str:
    """A suggestion for the unknown key at the end of a path: a key beside it, or one below."""
    sections = [section] if section is not None else []
    for part in parts[:-1]:
        fields = [cls.model_fields[part] for cls in sections if part in cls.model_fields]
        if fields:
            sections = _sections_of(fields[0].annotation)
    keys = [
        field.serialization_alias or name
        for cls in sections
        for name, field in cls.model_fields.items()
    ]
    below = [
        f"{name}.{parts[-1]}"
        for cls in sections
        for name, field in cls.model_fields.items()
        for sub in _sections_of(field.annotation)
        if parts[-1] in sub.model_fields and field.annotation is sub
    ]
    return did_you_mean(parts[-1], keys) or (f"; did you mean {below[0]}?" if below else "")
