"""Read YAML strictly: plain values, each key once, nothing ambiguous. Free of torch."""

from __future__ import annotations

import re
from typing import Any

import yaml

from robust_ham.errors import shortened

MAX_VALUES = 20_000
"""Keys and values of one YAML text; an alias counts as all values that it stands for."""
MAX_DEPTH = 20
MAX_VALUE_LENGTH = 2_000
_SHOWN = 60
NOT_YAML = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""Exceptions that PyYAML raises for invalid texts."""

_TAG = "tag:yaml.org,2002:"
_PLAIN = {_TAG + name for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
_KEYS = {_TAG + "str", _TAG + "merge"}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")


class RefusedError(yaml.MarkedYAMLError):
    """Valid YAML that a configuration may not contain."""


class _Loader(yaml.SafeLoader):
    """Accept plain values only, with limits on their number, length and depth.

    Also refuse duplicate keys, of which YAML would keep the last, and numbers that YAML 1.1 reads
    in a base other than ten.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.num_values = 0
        self.sizes: dict[int, int] = {}  # of finished nodes, by id

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401
        """Compose and check the next node; ``index`` is the key of a value."""
        is_alias = self.check_event(yaml.AliasEvent)
        self.depth += 1
        self.num_values += 1
        if self.depth > MAX_DEPTH or self.num_values > MAX_VALUES:
            what = f"{MAX_DEPTH} levels" if self.depth > MAX_DEPTH else f"{MAX_VALUES:,} values"
            raise RefusedError(problem=f"more than {what}", problem_mark=self.get_mark())
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is None:
            return None
        key = f"{index.value}: " if isinstance(index, yaml.ScalarNode) else ""
        if is_alias and id(node) not in self.sizes:
            raise _refused(f"{key}a value that contains itself", node)
        if not is_alias:
            self.sizes[id(node)] = self._checked_size(node, key)
        if self.sizes[id(node)] > MAX_VALUES:
            raise _refused(f"{key}aliases that stand for more than {MAX_VALUES:,} values", node)
        return node

    def _checked_size(self, node: yaml.Node, key: str) -> int:
        if node.tag not in _PLAIN:
            name = node.tag.removeprefix(_TAG)
            remedy = "; write it in quotes" if name == "timestamp" else ""
            raise _refused(
                f"{key}expected text, numbers, lists and mappings, got {name}{remedy}", node
            )
        if isinstance(node, yaml.ScalarNode):
            _check_scalar(node, key)
            return 1
        children = node.value
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            children = [child for pair in node.value for child in pair]
        return 1 + sum(self.sizes[id(child)] for child in children)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """A whole number of at most 64 bits."""
        value = int(super().construct_yaml_int(node))
        if not -(2**63) <= value < 2**63:
            raise _refused("a whole number of more than 64 bits", node)
        return value


_Loader.add_constructor(_TAG + "int", _Loader.construct_yaml_int)


def _check_scalar(node: yaml.ScalarNode, key: str) -> None:
    text = node.value
    if len(text) > MAX_VALUE_LENGTH:
        raise _refused(f"{key}a value of more than {MAX_VALUE_LENGTH:,} characters", node)
    if _CONTROL.search(text):
        raise _refused(f"{key}a control character", node)
    if node.tag == _TAG + "str":
        return
    shown = shortened(text, _SHOWN)
    if node.tag == _TAG + "int" and _LEADING_ZERO.fullmatch(text):
        raise _refused(
            f"{key}{shown} may be octal or decimal: write it without leading zeros, or in quotes",
            node,
        )
    if ":" in text and node.tag in (_TAG + "int", _TAG + "float"):
        raise _refused(
            f"{key}{shown} would be a number in base 60: write it as a decimal, or in quotes", node
        )


def _check_keys(node: yaml.MappingNode) -> None:
    """Refuse keys that are not text, and duplicate keys; merged keys may be overridden."""
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag not in _KEYS:
            what = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            raise _refused(f"expected text as a key, got {what or 'nothing'}", key)
        if key.value in lines:
            raise _refused(f"{key.value}: given twice, first on line {lines[key.value]}", key)
        lines[key.value] = key.start_mark.line + 1


def _refused(problem: str, where: yaml.Node) -> RefusedError:
    assert where.start_mark is None or isinstance(where.start_mark, yaml.Mark)
    return RefusedError(problem=problem, problem_mark=where.start_mark)


def read_yaml(text: str) -> Any:  # noqa: ANN401
    """Parse a YAML text; each alias becomes an independent copy.

    Raises:
        one of ``NOT_YAML``: invalid YAML, or not allowed in a configuration.
    """
    loader = _Loader(text)
    try:
        return _copied(loader.get_single_data())
    finally:
        loader.dispose()


def _copied(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value


def why(error: Exception) -> str:
    """Describe one of ``NOT_YAML``, to be appended to the name of the text."""
    mark = getattr(error, "problem_mark", None)
    line = f" line {mark.line + 1}" if mark else ""
    return f"{line}: {error.problem if isinstance(error, RefusedError) else 'not valid YAML'}"
