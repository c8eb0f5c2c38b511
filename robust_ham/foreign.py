"""Checkpoints of others: read without running what they name, and searched for networks.

Known layouts: a bare state dict (torchvision, timm; ``.pth`` or ``.safetensors``); the script of
Tomen & van Gemert, which saves both networks in one file beside an ``argparse.Namespace`` and
NumPy arrays; PyTorch Lightning's checkpoints, and any file that holds state dicts in mappings
(``state_dict``, ``model``, ``model_ema``, …: RobustBench, MadryLab's robustness, timm).
"""

from __future__ import annotations

import argparse
import io
import math
import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from robust_ham.errors import RequestError, naming
from robust_ham.pickle_check import MAX_PICKLE_BYTES, PickleCheck, RefusedError
from robust_ham.regular_files import check_memory, open_regular
from robust_ham.renaming import listed

# --- what a file may name --------------------------------------------------------------------


class _LeftOut:
    """Stands for an object of a training program: takes anything, does and keeps nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class _Dtype:
    """Stands for a NumPy dtype; ``numpy.dtype`` itself would let a file place wild pointers."""

    def __init__(self, letters: object = "", *_: object) -> None:
        self.letters, self.order = letters, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def numbers(self, data: object) -> NDArray[Any] | None:
        """``data`` as numbers, shape (n,); None where the dtype is not one of plain numbers."""
        known = isinstance(self.letters, str) and re.fullmatch(r"b1|[iuf][1248]", self.letters)
        if not known or self.order not in ("<", ">", "|", "=") or not isinstance(data, bytes):
            return None
        return np.frombuffer(data, np.dtype(f"{self.order}{self.letters}"))


class _Array:
    """Stands for a NumPy array; ``numbers`` is None where it does not hold plain numbers."""

    def __init__(self, *_: object) -> None:
        self.numbers: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.numbers = state[2].numbers(state[4]) if isinstance(state[2], _Dtype) else None


def _scalar(*_: object) -> None:
    """Stands for a NumPy scalar, left out."""


_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
_STAND_INS: list[Any] = [
    # Tomen & van Gemert's script: its options, mere attributes; arrays of losses and accuracies.
    (argparse.Namespace, "argparse.Namespace"),
    (_Array, "numpy.core.multiarray._reconstruct"),
    (_Array, "numpy._core.multiarray._reconstruct"),  # the same, since NumPy 2
    (_Dtype, "numpy.dtype"),
    (_LeftOut, "numpy.ndarray"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    # Lightning before 1.5 keys the state of a callback by its class.
    (_LeftOut, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    # Options of training programs: folders, times, mappings with a default.
    *((_LeftOut, f"pathlib.{name}") for name in _PATHS),
    *((_LeftOut, f"pathlib._local.{name}") for name in _PATHS),  # Python 3.13
    *((_LeftOut, f"datetime.{name}") for name in ("datetime", "date", "time", "timedelta")),
    # torch 2.0 to 2.3 saves OneCycleLR with a function of its class, as getattr(class, name).
    (_LeftOut, "builtins.getattr"),
    (_LeftOut, "torch.optim.lr_scheduler.OneCycleLR"),
]
"""All that a file may name beside tensors, and what is put in its place: nothing but
``argparse.Namespace`` is what the file believes it is, so nothing that it names is ever run."""


_STAND_IN_NAMES = [name for _, name in _STAND_INS]
_OLD_PICKLES = 5
"""Of torch's older layout: a magic number, a version, sizes of types, the content, keys."""
_REMEDY = "where its origin is trusted, save the model's state_dict() by itself"


_MAX_GAIN = 20
"""By how much a packed ``.pth`` may grow; ``torch.save`` does not pack at all."""
_MAX_REPEATED_BYTES = 1_000_000
"""Of a tensor that repeats what is stored of it, beyond the size of the file."""
_MAX_HEADER_BYTES = 10_000_000
_MAX_KEYS = 1_000_000
"""Of all mappings in a file; one that stands in several places counts in each."""


def _load(path: Path) -> Any:  # noqa: ANN401
    """Content of a ``torch.save`` file, by torch's restricted unpickler.

    Raises:
        RequestError: no regular file, damaged, too large, or it names or does what is not on a
            list.
    """
    try:
        with open_regular(path, follow_links=True) as file:
            check_memory(str(path), _size_of(file), part=2)
            if zipfile.is_zipfile(file):
                _check_archive(path, file)
            else:
                _check_old_layout(file)
            file.seek(0)
            with warnings.catch_warnings(), torch.serialization.safe_globals(_STAND_INS):
                warnings.simplefilter("ignore")  # of old layouts, which are read all the same
                return torch.load(file, map_location="cpu", weights_only=True)
    except (RequestError, FileNotFoundError, PermissionError):
        raise
    except RefusedError as error:
        raise RequestError(f"{path}: refused, for {error}; {_REMEDY}") from None
    except UnpicklingError as error:
        raise RequestError(
            f"{path}: damaged, or not as torch.save writes it by default ({error}); {_REMEDY}"
        ) from None
    except Exception:  # zipfile and torch raise many kinds for a damaged file
        raise RequestError(f"{path}: damaged, or not a checkpoint of torch") from None


def _size_of(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _check_archive(path: Path, file: BinaryIO) -> None:
    """Refuse an archive that is a program, unpacks to much more than its size, or reads two ways.

    Raises:
        RequestError, RefusedError, NotPickleError: it is, or its pickle is not one of weights.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if any(name.endswith("/constants.pkl") for name in names):
            raise RequestError(f"{path}: a TorchScript program, which is code; {_REMEDY}")
        unpacked = sum(member.file_size for member in members)
        if unpacked > _MAX_GAIN * _size_of(file):
            raise RequestError(
                f"{path}: refused, for it unpacks to {_MAX_GAIN} times its size or more"
            )
        check_memory(str(path), unpacked, part=2)
        is_plain = min(member.header_offset for member in members) == 0
        if not is_plain or len({name.lower() for name in names}) < len(names):
            raise RefusedError("it is an archive that programs read differently")
        folder = f"{names[0].partition('/')[0]}/"
        sizes = {member.filename: member.file_size for member in members}
        if sizes[f"{folder}data.pkl"] > MAX_PICKLE_BYTES:
            raise RefusedError(f"its pickle has more than {MAX_PICKLE_BYTES:,} bytes")
        content = archive.read(f"{folder}data.pkl")
    PickleCheck(_STAND_IN_NAMES, lambda key: sizes.get(f"{folder}data/{key}", 0), unpacked).walk(
        io.BytesIO(content)
    )


def _check_old_layout(file: BinaryIO) -> None:
    """Refuse what is not five pickles, the fourth of which is one of weights, and then numbers.

    Raises:
        RefusedError, NotPickleError: it is not.
    """
    size = _size_of(file)
    file.seek(0)
    content = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    check = PickleCheck(_STAND_IN_NAMES, lambda _: size, size)
    for _ in range(_OLD_PICKLES):
        check.walk(content)
    if sum(check.storages.values()) > size:
        raise RefusedError("it asks for more bytes of storage than there are")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` file.

    Raises:
        RequestError: damaged, or its header is too long.
    """
    with naming(path), open_regular(path, follow_links=True) as file:
        size = _size_of(file)
        check_memory(str(path), size, part=2)
        content = file.read(size)  # here, since safetensors does not tell why it cannot read
    header = int.from_bytes(content[:8], "little")
    if header > min(_MAX_HEADER_BYTES, size):
        raise RequestError(
            f"{path}: damaged or not a safetensors file: expected a header of at most "
            f"{_MAX_HEADER_BYTES:,} bytes, inside the file"
        )
    try:
        tensors: dict[str, Tensor] = load(content)
    except (SafetensorError, ValueError, LookupError, TypeError, RuntimeError):
        raise RequestError(f"{path}: damaged or not a safetensors file") from None
    return tensors


# --- networks in a file ----------------------------------------------------------------------


@dataclass(frozen=True)
class ForeignNetwork:
    """One network of a file, and what the file says of it."""

    path: Path
    key: str
    """Where in the file, such as ``state_dict_win``; empty: the file is the state dict."""
    option: str
    """By which the user names the key."""
    tensors: dict[str, Tensor]
    ordered: bool
    """Whether the order of the tensors is that of the network; safetensors keeps none."""
    windowed: bool | None
    accuracy: float | None
    hyper_parameters: dict[str, Any]


def read_network(path: Path, key: str | None = None, option: str = "--key") -> ForeignNetwork:
    """The network under ``key`` of a file, or the only one it holds.

    Args:
        path: ``.safetensors``, or whatever ``torch.save`` wrote, read without running code.
        key: names of mappings joined by dots, such as ``model_ema``; after them, the name of a
            module within the state dict: ``state_dict.ema_model``.
        option: what messages call the key.

    Raises:
        RequestError: not found, damaged, unsafe, no network or several; the message names them.
    """
    if not path.exists():
        raise RequestError(f"{path}: no such file")
    ordered = path.suffix.lower() != ".safetensors"
    content = _load(path) if ordered else read_safetensors(path)
    found = _state_dicts(path, content)
    if not found:
        raise RequestError(f"{path}: holds no state dict{_stray_values(content)}")
    if key is None and len(found) > 1:
        names = listed(name or "(the file itself)" for name in found)
        raise RequestError(f"{path}: holds several networks; choose by {option}: {names}")
    key = next(iter(found)) if key is None else key
    tensors = _tensors_under(found, key)
    if not tensors:
        names = listed(name for name in found if name) or "no names"
        raise RequestError(f"{path}: {option}: no state dict is called {key!r} ({names})")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise RequestError(f"{path}: {name} is not a plain tensor")
        if tensor.nbytes > path.stat().st_size + _MAX_REPEATED_BYTES:
            raise RequestError(
                f"{path}: {name}: expected at most the bytes of the file, got {tensor.nbytes:,}: "
                "it repeats what is stored"
            )
    content = content if isinstance(content, Mapping) else {}
    hyper_parameters = content.get("hyper_parameters")
    return ForeignNetwork(
        path,
        key,
        option,
        tensors,
        ordered,
        _windowed(content, key),
        _accuracy(content, key),
        hyper_parameters if isinstance(hyper_parameters, dict) else {},
    )


def _tensors_under(found: Mapping[str, dict[str, Tensor]], key: str) -> dict[str, Tensor]:
    """The state dict called ``key``, or the part of one that the module ``key`` names."""
    if key in found:
        return found[key]
    for place, tensors in found.items():
        outer = f"{place}." if place else ""
        if key.startswith(outer):
            module = key.removeprefix(outer) + "."
            part = {
                name.removeprefix(module): tensor
                for name, tensor in tensors.items()
                if name.startswith(module)
            }
            if part:
                return part
    return {}


def _state_dicts(path: Path, content: Any, depth: int = 3) -> dict[str, dict[str, Tensor]]:  # noqa: ANN401
    """State dicts in ``content`` and the mappings it holds, by their dotted keys.

    They are mappings of tensors with a weight among them; where there is none, any of tensors.

    Raises:
        RequestError: more keys than a checkpoint has.
    """
    found: dict[str, dict[str, Tensor]] = {}
    num_keys = 0

    def search(mapping: Any, place: str, depth: int) -> None:  # noqa: ANN401
        nonlocal num_keys
        if not isinstance(mapping, Mapping):
            return
        num_keys += len(mapping)
        if num_keys > _MAX_KEYS:
            raise RequestError(f"{path}: expected at most {_MAX_KEYS:,} keys")
        if not all(isinstance(key, str) for key in mapping):
            return
        if mapping and all(isinstance(value, Tensor) for value in mapping.values()):
            found[place] = dict(mapping)
            return
        for key, value in mapping.items() if depth else ():
            search(value, f"{place}.{key}" if place else key, depth - 1)

    search(content, "", depth)
    return {key: tensors for key, tensors in found.items() if _has_weight(tensors)} or found


def _has_weight(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a weight of two or more dimensions is there, also pruned or parametrized."""
    return any(tensor.ndim > 1 and "weight" in name for name, tensor in tensors.items())


def _stray_values(content: Any, depth: int = 3) -> str:  # noqa: ANN401
    """What stands among the tensors of a state dict and is none."""
    if not isinstance(content, Mapping):
        return ""
    if any(isinstance(value, Tensor) and value.ndim > 1 for value in content.values()):
        stray = (str(key) for key, value in content.items() if not isinstance(value, Tensor))
        return f": {listed(stray)} beside its tensors; {_REMEDY}"
    inner = (_stray_values(value, depth - 1) for value in content.values() if depth)
    return next(filter(None, inner), "")


_PAPER_SUFFIX = "_win"
"""Tomen & van Gemert's script adds it to the keys of the windowed network."""


def _windowed(content: Mapping[str, Any], key: str) -> bool | None:
    """Whether the file says that the network is windowed; None where it does not say."""
    hyper_parameters = content.get("hyper_parameters")
    if isinstance(hyper_parameters, dict) and isinstance(hyper_parameters.get("hamming"), bool):
        return bool(hyper_parameters["hamming"])
    if key.removesuffix(_PAPER_SUFFIX) + _PAPER_SUFFIX in content:
        return key.endswith(_PAPER_SUFFIX)
    return None


def _accuracy(content: Mapping[str, Any], key: str) -> float | None:
    """Test accuracy that Tomen & van Gemert's script wrote: images right and seen, per class."""
    suffix = _PAPER_SUFFIX if key.endswith(_PAPER_SUFFIX) else ""
    right, seen = content.get(f"accuracy{suffix}"), content.get("class_counter")
    if not (isinstance(right, _Array) and isinstance(seen, _Array)):
        return None
    if right.numbers is None or seen.numbers is None or not seen.numbers.sum() > 0:
        return None
    share = float(right.numbers.sum() / seen.numbers.sum())
    return share if math.isfinite(share) else None
