"""Read configurations from files, shipped files and overrides; list all keys. Free of torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from robust_ham.config.experiment import Config
from robust_ham.config.fields import first_error, number
from robust_ham.config.models import ARCHITECTURES, MatchConfig, ModelGroup, TableGroup, model_group
from robust_ham.config.sections import (
    AttackConfig,
    DatasetConfig,
    EndpointConfig,
    EvaluationConfig,
    TrainingConfig,
    TransferConfig,
)
from robust_ham.config.suggestions import did_you_mean
from robust_ham.config.yaml import NOT_YAML, RefusedError, read_yaml, why
from robust_ham.errors import RequestError, shortened
from robust_ham.regular_files import is_regular, read_text

MAX_CONFIG_BYTES = 1_000_000


def override(values: dict[str, Any], assignment: str) -> None:
    """Apply an override ``key.sub_key=value``, its value in YAML, to ``values`` in place.

    Raises:
        RequestError: there is no ``=``, or the path leads through something other than a mapping.
    """
    path, separator, text = assignment.partition("=")
    assignment = shortened(assignment)
    if not separator or not path:
        raise RequestError(f"-o {assignment}: expected key=value")
    node: Any = values
    *parents, last = path.strip().split(".")
    for depth, part in enumerate(parents):
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict | list):
            raise RequestError(f"-o {assignment}: {'.'.join(parents[: depth + 1])} has no keys")
    try:
        value = read_yaml(text)
    except NOT_YAML as error:
        problem = f": {error.problem}" if isinstance(error, RefusedError) else " is not valid YAML"
        raise RequestError(f"-o {assignment}: the value{problem}") from None
    if isinstance(node, list):
        if not last.isdigit() or int(last) >= len(node):
            raise RequestError(f"-o {assignment}: expected an index below {len(node)}, got {last}")
        node[int(last)] = value
    else:
        node[last] = value


def _check_overrides(assignments: list[str]) -> None:
    """Refuse an override that undoes an earlier one, such as the same key given twice."""
    paths = [assignment.partition("=")[0].strip() for assignment in assignments]
    for later, path in enumerate(paths):
        for earlier in paths[:later]:
            if f"{earlier}.".startswith(f"{path}."):
                undoing = shortened(assignments[later])
                raise RequestError(f"-o {undoing}: overrides the earlier -o {shortened(earlier)}=…")


def parse_config(text: str, overrides: list[str] | None = None, origin: str = "config") -> Config:
    """Parse and check a configuration given as YAML.

    Raises:
        RequestError: invalid YAML, an unknown key or an invalid value; the message names it.
    """
    try:
        values = read_yaml(text)
    except NOT_YAML as error:
        raise RequestError(f"{origin}{why(error)}") from None
    if not isinstance(values, dict):
        raise RequestError(f"{origin}: expected a mapping of keys")
    _check_overrides(overrides or [])
    for assignment in overrides or []:
        override(values, assignment)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise RequestError(f"{origin}: {first_error(error, Config)}") from None


def parse_section(option: str, text: str, key: str) -> dict[str, Any]:
    """Parse a section of a configuration given as a command-line option.

    A single word such as ``cnn`` means ``{architecture: cnn}`` if ``key`` is ``architecture``.

    Raises:
        RequestError: neither a word nor a mapping.
    """
    try:
        values = read_yaml(text)
    except NOT_YAML as error:
        problem = error.problem if isinstance(error, RefusedError) else f"not valid YAML: {text}"
        raise RequestError(f"{option}: {problem}") from None
    if isinstance(values, str):
        return {key: values}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise RequestError(f"{option}: expected a name or a mapping of keys, got {text}")
    return values


_NOT_IMPORTED = ("sweep", "source", "match", "training", "weights")


def parse_network(option: str, text: str) -> ModelGroup:
    """Parse one network, described like a group of ``models``.

    Raises:
        RequestError: not one network, an unknown key or an invalid value; the message names it.
    """
    values = parse_section(option, text, "architecture")
    for name in _NOT_IMPORTED:
        if name in values:
            raise RequestError(f"{option}: {name}: not allowed for a single trained network")
    try:
        spec = model_group(values)
    except ValueError as error:
        raise RequestError(f"{option}: {error}") from None
    assert isinstance(spec, ModelGroup)
    if isinstance(spec, TableGroup):
        raise RequestError(f"{option}: architecture: a table has no network")
    return spec


def parse_dataset(option: str, text: str) -> DatasetConfig:
    """Parse a data set, given by its name or described like the section ``dataset``.

    Raises:
        RequestError: an unknown key or an invalid value; the message names it.
    """
    try:
        return DatasetConfig.model_validate(parse_section(option, text, "name"))
    except ValidationError as error:
        raise RequestError(f"{option}: {first_error(error, DatasetConfig)}") from None


def parse_numbers(option: str, text: str) -> tuple[float, ...]:
    """Parse comma-separated numbers, such as ``0.485,0.456,0.406`` or ``125.3/255,…``.

    Raises:
        RequestError: anything else.
    """
    try:
        return tuple(float(number(part)) for part in text.split(","))
    except ValueError as error:
        raise RequestError(f"{option}: {error}") from None


def config_folder() -> Path:
    """Folder of the shipped configurations, inside the wheel or the checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def shipped_configs() -> dict[str, Path]:
    """Shipped configurations by name."""
    files = sorted(config_folder().rglob("*.yaml"), key=lambda path: path.stem)
    return {path.stem: path for path in files}


def load_config(name_or_path: str, overrides: list[str] | None = None) -> Config:
    """Read a configuration by its path, or by its name if it is a shipped one.

    Raises:
        RequestError: not found, too large or invalid; the message names the culprit.
    """
    shipped = shipped_configs()
    path = Path(name_or_path)
    if name_or_path in shipped and not is_regular(path, follow_links=True):
        path = shipped[name_or_path]
    elif not path.exists():
        raise RequestError(
            f"{name_or_path}: no such file and no shipped config ({', '.join(shipped)})"
            + did_you_mean(name_or_path, shipped)
        )
    return parse_config(config_text(path), overrides, origin=str(name_or_path))


def config_text(path: Path) -> str:
    """Read the text of a configuration file.

    Raises:
        RequestError: not a regular file, too large, or not text.
    """
    try:
        return read_text(path, MAX_CONFIG_BYTES, follow_links=True)
    except UnicodeDecodeError:
        raise RequestError(f"{path}: not a text file") from None


class Key(NamedTuple):
    """A key of a configuration."""

    name: str
    default: str
    """As JSON, or ``required``."""
    allowed: str
    """Type and range of its values, as in the JSON schema."""
    description: str


def config_keys() -> list[Key]:
    """Every key of every section."""
    sections: list[tuple[str, type[BaseModel]]] = [
        ("", Config),
        ("dataset.", DatasetConfig),
        *((f"models[{name}].", group) for name, group in ARCHITECTURES.items()),
        ("models[cnn, resnet18_cifar].match.", MatchConfig),
        ("training.", TrainingConfig),
        ("attacks.<id>.", AttackConfig),
        ("evaluation.", EvaluationConfig),
        ("endpoints[].", EndpointConfig),
        ("transfer.", TransferConfig),
    ]
    return [
        Key(
            prefix + (field.serialization_alias or name),
            "required"
            if field.is_required()
            else json.dumps(field.get_default(call_default_factory=True)),
            _allowed(properties[field.serialization_alias or name]),
            field.description,
        )
        for prefix, section in sections
        for properties in [section.model_json_schema(by_alias=True)["properties"]]
        for name, field in section.model_fields.items()
        if field.description is not None
    ]


def _allowed(schema: dict[str, Any]) -> str:
    """Describe the values that a JSON schema allows: ``whole number, 1 to 1,024``."""
    if "anyOf" in schema:
        return " or ".join(map(_allowed, schema["anyOf"]))
    if "const" in schema or "enum" in schema:
        return ", ".join(map(str, schema.get("enum") or [schema["const"]]))
    kind = schema.get("type")
    if kind == "array":
        most = "" if "prefixItems" in schema else f", at most {schema['maxItems']:,}"
        parts = schema.get("prefixItems") or [schema["items"]]
        return f"list of {' and '.join(map(_allowed, parts))}{most}"
    if kind in ("integer", "number"):
        low = _spelled(schema, "minimum", "") or _spelled(schema, "exclusiveMinimum", "above ")
        high = _spelled(schema, "maximum", "") or _spelled(schema, "exclusiveMaximum", "below ")
        return f"{'whole number' if kind == 'integer' else 'number'}, {low} to {high}"
    words = {"boolean": "true or false", "string": "text", "null": "null"}
    return words.get(str(kind), "mapping")


def _spelled(schema: dict[str, Any], bound: str, word: str) -> str:
    return f"{word}{schema[bound]:,.12g}" if bound in schema else ""
