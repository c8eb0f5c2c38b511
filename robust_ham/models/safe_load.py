"""Read ``torch.save`` and ``.safetensors`` files without running code from them."""

from __future__ import annotations

import argparse
import io
import re
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from robust_ham.errors import RequestError
from robust_ham.memory import check_memory, memory_share
from robust_ham.models.pickle_check import MAX_PICKLE_BYTES, PickleCheck, RefusedError
from robust_ham.regular_files import read_bytes


class _Discarded:
    """Replaces an object of a training program; accepts and discards everything."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class _Dtype:
    """Replaces ``numpy.dtype``, with which a file could create invalid pointers."""

    def __init__(self, letters: object = "", *_: object) -> None:
        self.letters, self.order = letters, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def numbers(self, data: object) -> NDArray[Any] | None:
        """Decode ``data`` as numbers (n,); None if the dtype is not a plain number."""
        is_plain = isinstance(self.letters, str) and re.fullmatch(r"b1|[iuf][1248]", self.letters)
        if not is_plain or self.order not in ("<", ">", "|", "=") or not isinstance(data, bytes):
            return None
        return np.frombuffer(data, np.dtype(f"{self.order}{self.letters}"))


class NumPyArray:
    """Replaces a NumPy array; ``numbers`` is None if it does not contain plain numbers."""

    def __init__(self, *_: object) -> None:
        self.numbers: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.numbers = state[2].numbers(state[4]) if isinstance(state[2], _Dtype) else None


def _scalar(*_: object) -> None:
    """Replaces a NumPy scalar; the value is discarded."""


_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
_STAND_INS: list[Any] = [
    # Tomen & van Gemert's script: its options, and arrays of losses and accuracies.
    (argparse.Namespace, "argparse.Namespace"),
    (NumPyArray, "numpy.core.multiarray._reconstruct"),
    (NumPyArray, "numpy._core.multiarray._reconstruct"),  # since NumPy 2
    (_Dtype, "numpy.dtype"),
    (_Discarded, "numpy.ndarray"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    # Lightning before 1.5 keys the state of a callback by its class.
    (_Discarded, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    # Options of training programs: folders and times.
    *((_Discarded, f"pathlib.{name}") for name in _PATHS),
    *((_Discarded, f"pathlib._local.{name}") for name in _PATHS),  # Python 3.13
    *((_Discarded, f"datetime.{name}") for name in ("datetime", "date", "time", "timedelta")),
    # torch 2.0 to 2.3 saves OneCycleLR with a function of its class, as getattr(class, name).
    (_Discarded, "builtins.getattr"),
    (_Discarded, "torch.optim.lr_scheduler.OneCycleLR"),
]
"""Replacements for everything that a file may name besides tensors. Only ``argparse.Namespace`` is
the real class, so nothing else that a file names is run."""

_STAND_IN_NAMES = [name for _, name in _STAND_INS]
_OLD_PICKLES = 5
"""Of torch's older layout: magic number, version, sizes of types, content, keys."""
REMEDY = "if you trust its origin, save only the model's state_dict()"
"""Instruction for a file that is refused."""

_MAX_GAIN = 20
"""Largest compression ratio of a ``.pth``; ``torch.save`` does not compress."""
_MAX_HEADER_BYTES = 10_000_000


def read_torch_file(path: Path) -> Any:  # noqa: ANN401
    """Read a ``torch.save`` file with torch's restricted unpickler.

    Raises:
        RequestError: the file is not regular, damaged or too large, or names or calls what is not
            on a list.
    """
    content = _read(path)
    try:
        if zipfile.is_zipfile(content):
            _check_archive(path, content)
        else:
            _check_old_layout(content)
        content.seek(0)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_STAND_INS):
            warnings.simplefilter("ignore")  # about old layouts, which are read as well
            return torch.load(content, map_location="cpu", weights_only=True)
    except RequestError:
        raise
    except RefusedError as error:
        raise RequestError(f"{path}: refused, because {error}; {REMEDY}") from None
    except UnpicklingError as error:
        raise RequestError(
            f"{path}: damaged, or not written by torch.save with its defaults ({error}); {REMEDY}"
        ) from None
    except Exception:  # zipfile and torch raise many types of errors for a damaged file
        raise RequestError(f"{path}: damaged, or not a torch checkpoint") from None


def _read(path: Path) -> io.BytesIO:
    """Read a file into memory, so that an ``OSError`` is not mistaken for a damaged file.

    Raises:
        RequestError: the file is not regular, or exceeds half of this machine's memory.
    """
    check_memory(str(path), path.stat().st_size, part=2)
    return io.BytesIO(read_bytes(path, memory_share(1 / 2), follow_links=True))


def _check_archive(path: Path, file: io.BytesIO) -> None:
    """Refuse an archive that is a program, is highly compressed, or is ambiguous.

    Raises:
        RequestError, RefusedError, NotPickleError: it is, or its pickle needs more than weights do.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if any(name.endswith("/constants.pkl") for name in names):
            raise RequestError(f"{path}: a TorchScript program, which contains code; {REMEDY}")
        unpacked = sum(member.file_size for member in members)
        if unpacked > _MAX_GAIN * len(file.getbuffer()):
            raise RequestError(
                f"{path}: refused, because it unpacks to more than {_MAX_GAIN} times its size"
            )
        check_memory(str(path), unpacked, part=2)
        is_plain = min(member.header_offset for member in members) == 0
        if not is_plain or len({name.lower() for name in names}) < len(names):
            raise RefusedError("it is an archive that programs may read differently")
        folder = f"{names[0].partition('/')[0]}/"
        sizes = {member.filename: member.file_size for member in members}
        if sizes[f"{folder}data.pkl"] > MAX_PICKLE_BYTES:
            raise RefusedError(f"its pickle has more than {MAX_PICKLE_BYTES:,} bytes")
        content = archive.read(f"{folder}data.pkl")
    PickleCheck(_STAND_IN_NAMES, lambda key: sizes.get(f"{folder}data/{key}", 0), unpacked).walk(
        io.BytesIO(content)
    )


def _check_old_layout(file: io.BytesIO) -> None:
    """Check torch's older layout: five pickles of weights, followed by numbers.

    Raises:
        RefusedError, NotPickleError: a pickle is damaged or needs more than weights do.
    """
    size = len(file.getbuffer())
    file.seek(0)
    content = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    check = PickleCheck(_STAND_IN_NAMES, lambda _: size, size)
    for _ in range(_OLD_PICKLES):
        check.walk(content)
    if sum(check.storages.values()) > size:
        raise RefusedError("it requests more bytes of storage than it contains")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a ``.safetensors`` file.

    Raises:
        RequestError: the file is damaged, or its header is too long.
    """
    content = _read(path).getvalue()
    header, size = int.from_bytes(content[:8], "little"), len(content)
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
