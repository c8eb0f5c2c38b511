"""What the pickle of a ``torch.save`` file would do, known before it is loaded.

torch's restricted unpickler calls only what is on its list, but that list holds functions that ask
for any amount of memory (``bytearray(3 * 10**9)``), and tensors may be larger than what is stored
of them. Here the pickle is walked through once, by its opcodes, on a stack of values that are never
built: every call and every tensor is held against the size of the file.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pickle import UnpicklingError
from typing import Any

import torch

from robust_ham.errors import shortened

MAX_PICKLE_BYTES = 100_000_000
"""Of all that a file holds beside the numbers of its tensors."""
_MAX_OPCODES = 2_000_000
"""Each may make an object of a hundred bytes."""
_STORAGE_BYTES = {
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Char", "Byte", "Bool", "QInt8", "QUInt8", "QUInt4x2", "QUInt2x4"), 1),
    **{"Untyped": 1, "ComplexDouble": 16},
}
"""Bytes per number of the storages that torch has: ``torch.FloatStorage``."""
_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_REBUILD = "torch._utils._rebuild_"
_TENSORS = {f"{_REBUILD}{name}" for name in ("tensor", "tensor_v2", "tensor_v3", "qtensor")}
_CALLED = {
    *_TENSORS,
    *("collections.OrderedDict", "collections.Counter", "builtins.set", "torch.Size"),
    *(f"{_REBUILD}{name}" for name in ("parameter", "parameter_with_state", "sparse_tensor")),
    f"{_REBUILD}meta_tensor_no_storage",
    *("torch.device", "torch.serialization._get_layout"),
    *("builtins.complex", "builtins.bytearray", "_codecs.encode"),
}
"""What may be called beside the stand-ins of the caller."""
_HASHED = {"collections.OrderedDict", "collections.Counter", "builtins.set"}
"""What makes keys of the values that it is called with."""
_BUILT = {"collections.OrderedDict", "collections.Counter"}
"""What may be given attributes beside the stand-ins."""


def _storage_of(name: str) -> int:
    """Bytes per number of a kind of storage; 0: it is none."""
    word = name.rpartition(".")[2]
    return _STORAGE_BYTES.get(word.removesuffix("Storage"), 0) if word.endswith("Storage") else 0


def _dtype_bytes(dtype: Any) -> int:  # noqa: ANN401
    """Bytes per number of a dtype that the pickle names."""
    found = getattr(torch, dtype.name.removeprefix("torch."))
    if not isinstance(found, torch.dtype):
        raise NotPickleError("a tensor without a dtype")
    return found.itemsize


class RefusedError(Exception):
    """The pickle does what no checkpoint needs; the message says what."""


class NotPickleError(Exception):
    """Not a pickle, or a damaged one."""


@dataclass
class _Named:
    """A class or function that the pickle names."""

    name: str


@dataclass
class _Made:
    """What a call of a class or function returns, and how many values were put into it since."""

    name: str
    length: int = 0
    all_keys: bool = True
    """Whether every value in it could be a key, see ``_is_key``."""
    begins_with_key: bool = False
    all_pairs: bool = True
    """Whether every value in it is a key and a value."""

    def put(self, values: list[Any]) -> None:
        """Put values into it."""
        for value in values:
            if self.length == 0:
                self.begins_with_key = _is_key(value)
            self.length += 1
            self.all_keys = self.all_keys and _is_key(value)
            self.all_pairs = self.all_pairs and _is_pair(value)


_MAX_KEY_LENGTH = 16


def _is_key(value: Any) -> bool:  # noqa: ANN401
    """Whether a value can be a key of a mapping, or in a set, and is quickly hashed.

    A tuple that holds the same tuple twice, and so on, is hashed in exponential time; integers of
    more than 64 bits can all have the same hash.
    """
    if isinstance(value, tuple):
        return len(value) <= _MAX_KEY_LENGTH and not any(
            isinstance(part, tuple | _Made) or not _is_key(part) for part in value
        )
    return not isinstance(value, int) or abs(value) < 1 << 63


def _is_hashed_fast(name: str, given: Any) -> bool:  # noqa: ANN401
    """Whether a mapping or a set that is made from a value has keys as in ``_is_key``.

    A mapping is made from pairs of keys and values, a set or a counter from keys.
    """
    from_pairs = name == "collections.OrderedDict"
    if isinstance(given, tuple):
        return all(map(_is_pair if from_pairs else _is_key, given))
    return not isinstance(given, _Made) or (given.all_pairs if from_pairs else given.all_keys)


def _is_pair(value: Any) -> bool:  # noqa: ANN401
    if isinstance(value, tuple):
        return len(value) == 2 and _is_key(value[0])
    return isinstance(value, _Made) and value.begins_with_key


@dataclass
class _Storage:
    """Numbers of a tensor, in the file."""

    num_bytes: int
    number_bytes: int


@dataclass
class PickleCheck:
    """The walk through the pickles of one file."""

    stand_ins: Collection[str]
    """Names for which the caller has put something harmless in place."""
    storage_bytes: Callable[[str], int]
    """By its key, the bytes that the file has of a storage; 0: there is none."""
    file_bytes: int
    num_opcodes: int = 0
    num_copied: int = 0
    storages: dict[str, int] = field(default_factory=dict)
    """Key of every storage to its bytes."""

    def walk(self, content: io.BytesIO) -> None:
        """Walk through the pickle that begins where ``content`` stands, and stop behind it.

        Raises:
            RefusedError: it names, calls or asks for what no checkpoint needs.
            UnpicklingError: it uses an opcode that torch does not read.
            NotPickleError: it is damaged.
        """
        stack: list[Any] = []
        marks: list[list[Any]] = []
        memo: dict[int | None, Any] = {}
        size = len(content.getbuffer())
        try:
            for opcode, argument, _ in pickletools.genops(content):
                self.num_opcodes += 1
                if self.num_opcodes > _MAX_OPCODES:
                    raise RefusedError(f"expected at most {_MAX_OPCODES:,} opcodes in its pickle")
                if opcode.name == "MARK":
                    marks.append(stack)
                    stack = []
                elif opcode.name in _ENDS:
                    items, stack = stack, marks.pop()
                    self._end(opcode.name, items, stack)
                elif opcode.name in ("BINPUT", "LONG_BINPUT"):
                    memo[argument] = stack[-1]
                elif opcode.name in ("BINGET", "LONG_BINGET"):
                    stack.append(memo[argument])
                elif opcode.name in _VALUES:
                    stack.append(argument)
                elif opcode.name in _EMPTY:
                    stack.append(_EMPTY[opcode.name]())
                elif opcode.name in _STEPS:
                    _STEPS[opcode.name](self, argument, stack, size)
                elif opcode.name not in ("PROTO", "STOP"):
                    raise UnpicklingError(f"opcode {opcode.name}")
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise NotPickleError(str(error)) from None

    def _end(self, name: str, items: list[Any], stack: list[Any]) -> None:
        """The values since the last mark become a tuple, or part of what is under them."""
        if name == "TUPLE":
            stack.append(tuple(items))
        elif isinstance(stack[-1], _Made):
            self._put(name == "SETITEMS", items, stack[-1])

    def _global(self, argument: str, stack: list[Any], size: int) -> None:
        module, _, name = argument.partition(" ")
        full = f"{_OLD_MODULES.get(module, module)}.{name}"
        is_torch = module == "torch" or module.startswith("torch.")
        plain = is_torch and (_storage_of(full) or full.rpartition(".")[0] == "torch")
        if full not in _CALLED and full not in self.stand_ins and not plain:
            raise RefusedError(f"it names {shortened(full)}, which no weights need")
        stack.append(_Named(full))

    def _tuple_of(self, count: int, stack: list[Any]) -> None:
        items = tuple(stack[-count:])
        if len(items) != count:
            raise NotPickleError("a tuple of nothing")
        del stack[-count:]
        stack.append(items)

    def _add(self, count: int, stack: list[Any]) -> None:
        """APPEND and SETITEM: some values go into what is under them."""
        items = stack[-count:]
        del stack[-count:]
        if isinstance(stack[-1], _Made):
            self._put(count == 2, items, stack[-1])

    def _put(self, is_mapping: bool, items: list[Any], made: _Made) -> None:
        if is_mapping:
            if not all(map(_is_key, items[::2])):
                raise RefusedError("it has a key that no checkpoint needs")
            made.length += len(items) // 2
        else:
            made.put(items)

    def _call(self, stack: list[Any], size: int) -> None:
        """REDUCE and NEWOBJ: a class or function is called with a tuple of values."""
        given, called = stack.pop(), stack.pop()
        if not isinstance(called, _Named) or not isinstance(given, tuple):
            raise UnpicklingError("a call of what is no function")
        name = called.name
        if name not in _CALLED and name not in self.stand_ins:
            raise RefusedError(f"it calls {shortened(name)}, which no weights need")
        self._count_copies(given, size)
        if name in _TENSORS:
            self._check_tensor(name, given)
        made = _Made(name)
        if name in _HASHED and not all(_is_hashed_fast(name, value) for value in given):
            raise RefusedError("it has a key that no checkpoint needs")
        if name in ("_codecs.encode", "builtins.bytearray") and given:
            text, encoding = given[0], given[1:]
            if isinstance(text, _Made) and (text.name, encoding) == ("_codecs.encode", ()):
                made.length = text.length
            elif isinstance(text, str) and encoding in _LATIN:
                made.length = len(text)
            else:
                raise RefusedError(f"it calls {name} with something else than text")
        stack.append(made)

    def _count_copies(self, given: tuple[Any, ...], size: int) -> None:
        """What calls copy is in the pickle: together it is no larger."""
        for value in given:
            if isinstance(value, str | bytes | tuple):
                self.num_copied += len(value)
            elif isinstance(value, _Made):
                self.num_copied += value.length
        if self.num_copied > 2 * size:
            raise RefusedError("its pickle copies the same values again and again")

    def _check_tensor(self, name: str, given: tuple[Any, ...]) -> None:
        """A tensor, made of a storage, a first number, a shape and strides, is within the storage.

        Of a quantized one, as many numbers are made as its shape says.
        """
        storage, first, shape, strides = given[:4]
        if not isinstance(storage, _Storage):
            raise NotPickleError("a tensor without a storage")
        numbers = (first, *shape, *strides)
        if any(type(n) is not int or n < 0 for n in numbers) or len(shape) != len(strides):
            raise NotPickleError("a tensor without a shape")
        number_bytes = storage.number_bytes
        if name.endswith("_v3"):
            number_bytes = _dtype_bytes(given[6])
        steps = zip(shape, strides, strict=True)
        last = first + sum((n - 1) * stride for n, stride in steps)
        needed = 0 if 0 in shape else (last + 1) * number_bytes
        if name.endswith("qtensor"):
            needed = max(needed, math.prod(shape) * number_bytes)
        if needed > storage.num_bytes:
            raise RefusedError("it has a tensor that is larger than what is stored of it")

    def _storage(self, stack: list[Any]) -> None:
        """BINPERSID: a storage by its kind, key, device and number of values, perhaps a part."""
        word, kind, key, _, count, *view = stack.pop()
        number_bytes = _storage_of(kind.name)
        if word != "storage" or not number_bytes or type(count) is not int or count < 0:
            raise NotPickleError("not a storage")
        num_bytes = count * number_bytes
        key = str(key)
        if num_bytes > min(self.storage_bytes(key), self.file_bytes):
            raise RefusedError(f"it asks for {num_bytes:,} bytes of storage that are not there")
        self.storages[key] = max(num_bytes, self.storages.get(key, 0))
        if view and view[0] is not None:
            _, offset, length = view[0]
            if type(offset) is not int or type(length) is not int or not 0 <= offset <= count:
                raise NotPickleError("not a part of a storage")
            if length < 0 or offset + length > count:
                raise NotPickleError("not a part of a storage")
            num_bytes = length * number_bytes
        stack.append(_Storage(num_bytes, number_bytes))

    def _build(self, stack: list[Any], size: int) -> None:
        """BUILD: an object gets its state."""
        state = stack.pop()
        made = stack[-1]
        if not isinstance(made, _Made) or not (made.name in _BUILT or made.name in self.stand_ins):
            raise RefusedError("it sets the state of what has none")
        self._count_copies((state,), size)


_LATIN = (("latin1",), ("latin-1",))
_ENDS = ("TUPLE", "APPENDS", "SETITEMS")
_VALUES = (
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINSTRING"),
)
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": lambda: _Made("list"),
    "EMPTY_DICT": lambda: _Made("dict"),
    "EMPTY_SET": lambda: _Made("set"),
}
_Step = Callable[[PickleCheck, Any, list[Any], int], None]
_STEPS: dict[str, _Step] = {
    "GLOBAL": PickleCheck._global,
    "TUPLE1": lambda check, _, stack, size: check._tuple_of(1, stack),
    "TUPLE2": lambda check, _, stack, size: check._tuple_of(2, stack),
    "TUPLE3": lambda check, _, stack, size: check._tuple_of(3, stack),
    "APPEND": lambda check, _, stack, size: check._add(1, stack),
    "SETITEM": lambda check, _, stack, size: check._add(2, stack),
    "REDUCE": lambda check, _, stack, size: check._call(stack, size),
    "NEWOBJ": lambda check, _, stack, size: check._call(stack, size),
    "BINPERSID": lambda check, _, stack, size: check._storage(stack),
    "BUILD": lambda check, _, stack, size: check._build(stack, size),
}
