"""Checkpoints of others: read without running what they name, and searched for networks.

Known layouts: a bare state dict (torchvision, timm; ``.pth`` or ``.safetensors``); the script of
Tomen & van Gemert, which saves both networks in one file beside an ``argparse.Namespace`` and
NumPy arrays; PyTorch Lightning's checkpoints, and any file that holds state dicts in mappings
(``state_dict``, ``model``, ``model_ema``, …: RobustBench, MadryLab's robustness, timm).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robust_ham.errors import RequestError
from robust_ham.models.importing.names import listed
from robust_ham.models.safe_load import REMEDY, NumPyArray, read_safetensors, read_torch_file

_MAX_REPEATED_BYTES = 1_000_000
"""Of a tensor that repeats what is stored of it, beyond the size of the file."""
_MAX_KEYS = 1_000_000
"""Of all mappings in a file; one that stands in several places counts in each."""


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
    content = read_torch_file(path) if ordered else read_safetensors(path)
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
        return f": {listed(stray)} beside its tensors; {REMEDY}"
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
    if not (isinstance(right, NumPyArray) and isinstance(seen, NumPyArray)):
        return None
    if right.numbers is None or seen.numbers is None or not seen.numbers.sum() > 0:
        return None
    share = float(right.numbers.sum() / seen.numbers.sum())
    return share if math.isfinite(share) else None
