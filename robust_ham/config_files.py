"""Where configurations come from: files, shipped ones, overrides; and what their keys are.

A leaf like ``config``: no torch.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from robust_ham.config import (
    AttackConfig,
    Config,
    DatasetConfig,
    EvaluationConfig,
    RequestError,
    TrainingConfig,
)
from robust_ham.config_fields import first_error, number
from robust_ham.model_groups import ARCHITECTURES, ModelGroup, TableGroup, model_group

MAX_CONFIG_BYTES = 1_000_000
MAX_VALUES = 20_000
"""Keys and values of one YAML text, each alias counted as all that it stands for."""
MAX_DEPTH = 20
MAX_VALUE_LENGTH = 2_000
_PLAIN = {f"tag:yaml.org,2002:{name}" for name in "null bool int float str seq map merge".split()}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_NOT_YAML = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What PyYAML raises for texts that are none: not all of it is its own."""


class _RefusedError(yaml.MarkedYAMLError):
    """YAML, but not what a configuration may hold."""


class _Loader(yaml.SafeLoader):
    """Plain values only, few, short and not deep: a small text cannot stand for a large value."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.num_values = 0
        self.sizes: dict[int, int] = {}  # of finished nodes, by their id

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The next node, checked as soon as it is known."""
        is_alias = self.check_event(yaml.AliasEvent)
        self.depth += 1
        self.num_values += 1
        if self.depth > MAX_DEPTH or self.num_values > MAX_VALUES:
            what = f"{MAX_DEPTH} levels" if self.depth > MAX_DEPTH else f"{MAX_VALUES:,} values"
            raise _RefusedError(problem=f"more than {what}", problem_mark=self.get_mark())
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is None:
            return None
        if is_alias and id(node) not in self.sizes:
            raise _refused("a value that holds itself", node)
        if not is_alias:
            self.sizes[id(node)] = self._checked_size(node)
        if self.sizes[id(node)] > MAX_VALUES:
            raise _refused(f"aliases that stand for more than {MAX_VALUES:,} values", node)
        return node

    def _checked_size(self, node: yaml.Node) -> int:
        if node.tag not in _PLAIN:
            name = node.tag.removeprefix("tag:yaml.org,2002:")
            raise _refused(f"expected text, numbers, lists and mappings, got {name}", node)
        if isinstance(node, yaml.ScalarNode):
            if len(node.value) > MAX_VALUE_LENGTH:
                raise _refused(f"a value of more than {MAX_VALUE_LENGTH:,} characters", node)
            if _CONTROL.search(node.value):
                raise _refused("a control character", node)
            return 1
        pairs = isinstance(node, yaml.MappingNode)
        children = [n for pair in node.value for n in pair] if pairs else node.value
        return 1 + sum(self.sizes[id(child)] for child in children)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """A whole number of at most 64 bits."""
        value = int(super().construct_yaml_int(node))
        if not -(2**63) <= value < 2**63:
            raise _refused("a whole number of more than 64 bits", node)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _refused(problem: str, where: yaml.Node) -> _RefusedError:
    assert where.start_mark is None or isinstance(where.start_mark, yaml.Mark)
    return _RefusedError(problem=problem, problem_mark=where.start_mark)


def _read_yaml(text: str) -> Any:  # noqa: ANN401
    """What a YAML text stands for.

    Raises:
        one of ``_NOT_YAML``: nothing, or more than a configuration needs.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _why(error: Exception) -> str:
    """What to say of one of ``_NOT_YAML``, after the name of the text."""
    mark = getattr(error, "problem_mark", None)
    line = f" line {mark.line + 1}" if mark else ""
    return f"{line}: {error.problem if isinstance(error, _RefusedError) else 'not valid YAML'}"


def override(values: dict[str, Any], assignment: str) -> None:
    """Apply one ``key.sub_key=value`` (the value in YAML) to ``values`` in place.

    Raises:
        RequestError: no ``=``, or a path through something that is no mapping.
    """
    path, separator, text = assignment.partition("=")
    if not separator or not path:
        raise RequestError(f"-o {assignment}: expected key=value")
    node: Any = values
    *parents, last = path.strip().split(".")
    for depth, part in enumerate(parents):
        node = (
            node[int(part)]
            if isinstance(node, list) and part.isdigit() and int(part) < len(node)
            else node.setdefault(part, {})
            if isinstance(node, dict)
            else None
        )
        if not isinstance(node, dict | list):
            raise RequestError(f"-o {assignment}: {'.'.join(parents[: depth + 1])} holds no keys")
    try:
        value = _read_yaml(text)
    except _NOT_YAML as error:
        problem = f": {error.problem}" if isinstance(error, _RefusedError) else " is not valid YAML"
        raise RequestError(f"-o {assignment}: the value{problem}") from None
    if isinstance(node, list):
        if not last.isdigit() or int(last) >= len(node):
            raise RequestError(f"-o {assignment}: expected an index below {len(node)}, got {last}")
        node[int(last)] = value
    else:
        node[last] = value


def parse_config(text: str, overrides: list[str] | None = None, origin: str = "config") -> Config:
    """Check a configuration given as YAML.

    Raises:
        RequestError: not YAML, an unknown key, a wrong value; the message names it.
    """
    try:
        values = _read_yaml(text)
    except _NOT_YAML as error:
        raise RequestError(f"{origin}{_why(error)}") from None
    if not isinstance(values, dict):
        raise RequestError(f"{origin}: expected a mapping of keys")
    for assignment in overrides or []:
        override(values, assignment)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise RequestError(f"{origin}: {first_error(error)}") from None


def parse_section(option: str, text: str, key: str) -> dict[str, Any]:
    """A section of a configuration given as an option of the command line.

    ``cnn`` means ``{architecture: cnn}`` where ``key`` is ``architecture``.

    Raises:
        RequestError: neither a word nor a mapping.
    """
    try:
        values = _read_yaml(text)
    except _NOT_YAML:
        raise RequestError(f"{option}: not valid YAML: {text}") from None
    if isinstance(values, str):
        return {key: values}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise RequestError(f"{option}: expected a name or a mapping of keys, got {text}")
    return values


_NOT_IMPORTED = ("sweep", "source", "match", "training", "weights")


def parse_network(option: str, text: str) -> ModelGroup:
    """One network, described as a group of ``models`` is.

    Raises:
        RequestError: not one network, an unknown key, a wrong value; the message names it.
    """
    values = parse_section(option, text, "architecture")
    for name in _NOT_IMPORTED:
        if name in values:
            raise RequestError(f"{option}: {name}: not for one network that is trained already")
    try:
        spec = model_group(values)
    except ValueError as error:
        raise RequestError(f"{option}: {error}") from None
    assert isinstance(spec, ModelGroup)
    if isinstance(spec, TableGroup):
        raise RequestError(f"{option}: architecture: a table has no network")
    return spec


def parse_dataset(option: str, text: str) -> DatasetConfig:
    """A data set, by its name or described as in ``dataset``.

    Raises:
        RequestError: an unknown key or a wrong value; the message names it.
    """
    try:
        return DatasetConfig.model_validate(parse_section(option, text, "name"))
    except ValidationError as error:
        raise RequestError(f"{option}: {first_error(error)}") from None


def parse_numbers(option: str, text: str) -> tuple[float, ...]:
    """Numbers between commas, such as ``0.485,0.456,0.406`` or ``125.3/255,…``.

    Raises:
        RequestError: anything else.
    """
    try:
        values = tuple(float(number(part)) for part in text.split(","))
    except ValueError as error:
        raise RequestError(f"{option}: {error}") from None
    if not all(math.isfinite(value) for value in values):
        raise RequestError(f"{option}: expected finite numbers, got {text}")
    return values


def config_folder() -> Path:
    """Folder of the shipped configurations: inside the wheel, else in the checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def shipped_configs() -> dict[str, Path]:
    """Name and file of every shipped configuration."""
    return {path.stem: path for path in sorted(config_folder().glob("*.yaml"))}


def load_config(name_or_path: str, overrides: list[str] | None = None) -> Config:
    """Read a configuration by path or by the name of a shipped one.

    Raises:
        RequestError: not found, too large, or wrong; the message names the culprit.
    """
    shipped = shipped_configs()
    path = Path(name_or_path)
    if not path.is_file():
        if name_or_path not in shipped:
            raise RequestError(
                f"{name_or_path}: no such file and no shipped config ({', '.join(shipped)})"
            )
        path = shipped[name_or_path]
    return parse_config(config_text(path), overrides, origin=str(name_or_path))


def config_text(path: Path) -> str:
    """The text of a configuration file.

    Raises:
        RequestError: too large, or no text.
    """
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise RequestError(f"{path}: expected a config below 1 MB")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RequestError(f"{path}: not a text file") from None


def config_keys() -> list[tuple[str, str, str]]:
    """Every key, its default and its line of documentation."""
    rows: list[tuple[str, str, str]] = []
    sections: list[tuple[str, type[BaseModel]]] = [
        ("", Config),
        ("dataset.", DatasetConfig),
        *((f"models[{name}].", group) for name, group in ARCHITECTURES.items()),
        ("training.", TrainingConfig),
        ("attacks.<id>.", AttackConfig),
        ("evaluation.", EvaluationConfig),
    ]
    for prefix, section in sections:
        for name, field in section.model_fields.items():
            if field.description is None:
                continue
            default = (
                "required"
                if field.is_required()
                else json.dumps(field.get_default(call_default_factory=True))
            )
            rows.append((prefix + (field.serialization_alias or name), default, field.description))
    return rows
