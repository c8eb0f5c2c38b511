"""Check what the pickle of a ``torch.save`` file would do before it is loaded.

torch's restricted unpickler calls only functions on its list, but some of these allocate any amount
of memory (``bytearray(3 * 10**9)``), and tensors may be larger than their storage. This check
interprets the opcodes on a stack of descriptions, without building any value, and compares every
call and every tensor with the size of the file.
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
"""Limit for everything in a file besides the numbers of its tensors."""
_MAX_OPCODES = 2_000_000
"""Each may create an object of a hundred bytes."""
_STORAGE_BYTES = {
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Char", "Byte", "Bool", "QInt8", "QUInt8", "QUInt4x2", "QUInt2x4"), 1),
    **{"Untyped": 1, "ComplexDouble": 16},
}
"""Bytes per number of torch's storages, such as ``torch.FloatStorage``."""
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
"""Functions that may be called besides the caller's replacements."""
_HASHED = {"collections.OrderedDict", "collections.Counter", "builtins.set"}
"""Classes that hash the values they are called with."""
_BUILT = {"collections.OrderedDict", "collections.Counter"}
"""Classes that may get attributes besides the caller's replacements."""


def _storage_of(name: str) -> int:
    """Return the bytes per number of a storage class; 0 if it is none."""
    word = name.rpartition(".")[2]
    return _STORAGE_BYTES.get(word.removesuffix("Storage"), 0) if word.endswith("Storage") else 0


def _dtype_bytes(dtype: Any) -> int:  # noqa: ANN401
    """Return the bytes per number of a dtype that the pickle names."""
    torch_dtype = getattr(torch, dtype.name.removeprefix("torch."))
    if not isinstance(torch_dtype, torch.dtype):
        raise NotPickleError("a tensor without a dtype")
    return torch_dtype.itemsize


class RefusedError(Exception):
    """The pickle does something that checkpoints do not need; the message says what."""


class NotPickleError(Exception):
    """The data are not a pickle, or are damaged."""


@dataclass
class _Named:
    """A class or function that the pickle names."""

    name: str


@dataclass
class _Object:
    """The result of a call, and the number of values that were added to it since."""

    name: str
    length: int = 0
    all_keys: bool = True
    """Whether every value in it could be a key; see ``_is_key``."""
    begins_with_key: bool = False
    all_pairs: bool = True
    """Whether every value in it is a pair of key and value."""

    def put(self, values: list[Any]) -> None:
        """Add values."""
        for value in values:
            if self.length == 0:
                self.begins_with_key = _is_key(value)
            self.length += 1
            self.all_keys = self.all_keys and _is_key(value)
            self.all_pairs = self.all_pairs and _is_pair(value)


_MAX_KEY_LENGTH = 16


def _is_key(value: Any) -> bool:  # noqa: ANN401
    """Whether a value may be a key of a mapping, or in a set, and is hashed quickly.

    Hashing nested tuples that repeat each other takes exponential time, and integers of more than
    64 bits can all have the same hash.
    """
    if isinstance(value, tuple):
        return len(value) <= _MAX_KEY_LENGTH and not any(
            isinstance(part, tuple | _Object) or not _is_key(part) for part in value
        )
    return not isinstance(value, int) or abs(value) < 1 << 63


def _is_hashed_fast(name: str, argument: Any) -> bool:  # noqa: ANN401
    """Whether a mapping or set built from a value has keys that satisfy ``_is_key``.

    Mappings are built from pairs of key and value, sets and counters from keys.
    """
    from_pairs = name == "collections.OrderedDict"
    if isinstance(argument, tuple):
        return all(map(_is_pair if from_pairs else _is_key, argument))
    if not isinstance(argument, _Object):
        return True
    return argument.all_pairs if from_pairs else argument.all_keys


def _is_pair(value: Any) -> bool:  # noqa: ANN401
    if isinstance(value, tuple):
        return len(value) == 2 and _is_key(value[0])
    return isinstance(value, _Object) and value.begins_with_key


@dataclass
class _Storage:
    """The stored numbers of a tensor."""

    num_bytes: int
    number_bytes: int


@dataclass
class PickleCheck:
    """Checks the pickles of one file."""

    stand_ins: Collection[str]
    """Names that the caller replaces by harmless objects."""
    storage_bytes: Callable[[str], int]
    """Returns the bytes in the file for the key of a storage; 0 if there are none."""
    file_bytes: int
    num_opcodes: int = 0
    num_copied: int = 0
    storages: dict[str, int] = field(default_factory=dict)
    """Bytes of each storage by its key."""

    def walk(self, content: io.BytesIO) -> None:
        """Check the pickle at the current position of ``content``, and stop after it.

        Raises:
            RefusedError: it names, calls or requests something that checkpoints do not need.
            UnpicklingError: it uses an opcode that torch does not support.
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
                    raise RefusedError(f"its pickle has more than {_MAX_OPCODES:,} opcodes")
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
        """Turn the values since the last mark into a tuple, or add them to the object below."""
        if name == "TUPLE":
            stack.append(tuple(items))
        elif isinstance(stack[-1], _Object):
            self._put(name == "SETITEMS", items, stack[-1])

    def _global(self, argument: str, stack: list[Any], size: int) -> None:
        module, _, name = argument.partition(" ")
        full = f"{_OLD_MODULES.get(module, module)}.{name}"
        is_torch = module == "torch" or module.startswith("torch.")
        plain = is_torch and (_storage_of(full) or full.rpartition(".")[0] == "torch")
        if full not in _CALLED and full not in self.stand_ins and not plain:
            raise RefusedError(f"it names {shortened(full)}, which weights do not need")
        stack.append(_Named(full))

    def _tuple_of(self, count: int, stack: list[Any]) -> None:
        items = tuple(stack[-count:])
        if len(items) != count:
            raise NotPickleError("a tuple without values")
        del stack[-count:]
        stack.append(items)

    def _add(self, count: int, stack: list[Any]) -> None:
        """APPEND and SETITEM: add values to the object below them."""
        items = stack[-count:]
        del stack[-count:]
        if isinstance(stack[-1], _Object):
            self._put(count == 2, items, stack[-1])

    def _put(self, is_mapping: bool, items: list[Any], target: _Object) -> None:
        if is_mapping:
            if not all(map(_is_key, items[::2])):
                raise RefusedError("it has a key that checkpoints do not need")
            target.length += len(items) // 2
        else:
            target.put(items)

    def _call(self, stack: list[Any], size: int) -> None:
        """REDUCE and NEWOBJ: call a class or function with a tuple of values."""
        arguments, called = stack.pop(), stack.pop()
        if not isinstance(called, _Named) or not isinstance(arguments, tuple):
            raise UnpicklingError("a call of something that is not a function")
        name = called.name
        if name not in _CALLED and name not in self.stand_ins:
            raise RefusedError(f"it calls {shortened(name)}, which weights do not need")
        self._count_copies(arguments, size)
        if name in _TENSORS:
            self._check_tensor(name, arguments)
        result = _Object(name)
        if name in _HASHED and not all(_is_hashed_fast(name, value) for value in arguments):
            raise RefusedError("it has a key that checkpoints do not need")
        if name in ("_codecs.encode", "builtins.bytearray") and arguments:
            text, encoding = arguments[0], arguments[1:]
            if isinstance(text, _Object) and (text.name, encoding) == ("_codecs.encode", ()):
                result.length = text.length
            elif isinstance(text, str) and encoding in _LATIN:
                result.length = len(text)
            else:
                raise RefusedError(f"it calls {name} with an argument that is not text")
        stack.append(result)

    def _count_copies(self, values: tuple[Any, ...], size: int) -> None:
        """Refuse calls that together copy more values than the pickle has bytes."""
        for value in values:
            if isinstance(value, str | bytes | tuple):
                self.num_copied += len(value)
            elif isinstance(value, _Object):
                self.num_copied += value.length
        if self.num_copied > 2 * size:
            raise RefusedError("its pickle copies the same values repeatedly")

    def _check_tensor(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Refuse a tensor (storage, offset, shape, strides) that exceeds its storage.

        A quantized tensor allocates as many numbers as its shape has.
        """
        storage, first, shape, strides = arguments[:4]
        if not isinstance(storage, _Storage):
            raise NotPickleError("a tensor without a storage")
        numbers = (first, *shape, *strides)
        if any(type(n) is not int or n < 0 for n in numbers) or len(shape) != len(strides):
            raise NotPickleError("a tensor without a shape")
        number_bytes = storage.number_bytes
        if name.endswith("_v3"):
            number_bytes = _dtype_bytes(arguments[6])
        steps = zip(shape, strides, strict=True)
        last = first + sum((n - 1) * stride for n, stride in steps)
        needed = 0 if 0 in shape else (last + 1) * number_bytes
        if name.endswith("qtensor"):
            needed = max(needed, math.prod(shape) * number_bytes)
        if needed > storage.num_bytes:
            raise RefusedError("it has a tensor that is larger than its storage")

    def _storage(self, stack: list[Any]) -> None:
        """BINPERSID: push a storage, given by type, key, device and number of values, or a view."""
        word, kind, key, _, count, *view = stack.pop()
        number_bytes = _storage_of(kind.name)
        if word != "storage" or not number_bytes or type(count) is not int or count < 0:
            raise NotPickleError("not a storage")
        num_bytes = count * number_bytes
        key = str(key)
        if num_bytes > min(self.storage_bytes(key), self.file_bytes):
            raise RefusedError(f"it requests {num_bytes:,} bytes of storage, more than it contains")
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
        """BUILD: set the state of an object."""
        state = stack.pop()
        target = stack[-1]
        if not isinstance(target, _Object) or target.name not in {*_BUILT, *self.stand_ins}:
            raise RefusedError("it sets the state of an object that has none")
        self._count_copies((state,), size)


_LATIN = (("latin1",), ("latin-1",))
_ENDS = ("TUPLE", "APPENDS", "SETITEMS")
_VALUES = (
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINSTRING"),
)
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": lambda: _Object("list"),
    "EMPTY_DICT": lambda: _Object("dict"),
    "EMPTY_SET": lambda: _Object("set"),
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
