"""Find the networks in a third-party checkpoint file, without running code from it.

Supported: a bare state dict (torchvision, timm; ``.pth`` or ``.safetensors``); files of the script
of Tomen & van Gemert, which saves a plain and a windowed network together; PyTorch Lightning
checkpoints; and any file with state dicts in nested mappings (``state_dict``, ``model``,
``model_ema``, …: RobustBench, MadryLab's robustness, timm).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robust_ham.errors import RequestError, list_names
from robust_ham.models.safe_load import REMEDY, NumPyArray, read_safetensors, read_torch_file

_MAX_REPEATED_BYTES = 1_000_000
"""By how much a tensor that repeats its storage may exceed the size of the file."""
_MAX_KEYS = 1_000_000
"""In all mappings of a file; a mapping that occurs several times counts each time."""


@dataclass(frozen=True)
class StoredNetwork:
    """One network of a third-party file, with the metadata of the file."""

    path: Path
    key: str
    """Key in the file, such as ``state_dict_win``; empty: the file is the state dict."""
    option: str
    """The option or configuration key by which a user chooses ``key``."""
    tensors: dict[str, Tensor]
    ordered: bool
    """Whether the tensors are in the order of the network; safetensors does not keep it."""
    windowed: bool | None
    """Whether the file declares a windowed network; None if it does not say."""
    accuracy: float | None
    """Test accuracy in 0 … 1, if the file states it."""
    hyper_parameters: dict[str, Any]


def read_network(path: Path, key: str | None = None, option: str = "--key") -> StoredNetwork:
    """Read the network under ``key`` of a file, or its only network.

    Args:
        path: a ``.safetensors`` file, or one that ``torch.save`` wrote; no code in it is run.
        key: names of nested mappings joined by dots, such as ``model_ema``, optionally followed by
            a module of the state dict: ``state_dict.ema_model``.
        option: the name of ``key`` in messages.

    Raises:
        RequestError: the file is missing, damaged or unsafe, or holds no network or several (the
            message lists them).
    """
    if not path.exists():
        raise RequestError(f"{path}: no such file")
    ordered = path.suffix.lower() != ".safetensors"
    content = read_torch_file(path) if ordered else read_safetensors(path)
    state_dicts = _find_state_dicts(path, content)
    if not state_dicts:
        raise RequestError(f"{path}: contains no state dict{_other_values(content)}")
    if key is None and len(state_dicts) > 1:
        names = list_names(name or "(the file itself)" for name in state_dicts)
        raise RequestError(f"{path}: contains several networks; choose one with {option}: {names}")
    key = next(iter(state_dicts)) if key is None else key
    tensors = _select_tensors(state_dicts, key)
    if not tensors:
        names = list_names(name for name in state_dicts if name) or "the file has no keys"
        raise RequestError(f"{path}: {option}: no state dict {key!r} ({names})")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise RequestError(f"{path}: {name}: expected a dense tensor, not quantized")
        if tensor.nbytes > path.stat().st_size + _MAX_REPEATED_BYTES:
            raise RequestError(
                f"{path}: {name}: has {tensor.nbytes:,} bytes, more than the file: it repeats its "
                "stored values"
            )
    content = content if isinstance(content, Mapping) else {}
    hyper_parameters = content.get("hyper_parameters")
    return StoredNetwork(
        path,
        key,
        option,
        tensors,
        ordered,
        _read_windowed(content, key),
        _read_accuracy(content, key),
        hyper_parameters if isinstance(hyper_parameters, dict) else {},
    )


def _select_tensors(state_dicts: Mapping[str, dict[str, Tensor]], key: str) -> dict[str, Tensor]:
    """Return the state dict ``key``, or the module ``key`` of one; empty if there is none."""
    if key in state_dicts:
        return state_dicts[key]
    for name, tensors in state_dicts.items():
        outer = f"{name}." if name else ""
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


def _find_state_dicts(path: Path, content: Any) -> dict[str, dict[str, Tensor]]:  # noqa: ANN401
    """Find mappings of tensors in ``content`` and its nested mappings, by their dotted keys.

    Mappings without a weight count only if no other has one.

    Raises:
        RequestError: the file has more keys than a checkpoint needs.
    """
    state_dicts: dict[str, dict[str, Tensor]] = {}
    num_keys = 0

    def search(mapping: Any, prefix: str, depth: int) -> None:  # noqa: ANN401
        nonlocal num_keys
        if not isinstance(mapping, Mapping):
            return
        num_keys += len(mapping)
        if num_keys > _MAX_KEYS:
            raise RequestError(f"{path}: expected at most {_MAX_KEYS:,} keys")
        if not all(isinstance(key, str) for key in mapping):
            return
        if mapping and all(isinstance(value, Tensor) for value in mapping.values()):
            state_dicts[prefix] = dict(mapping)
            return
        for key, value in mapping.items() if depth else ():
            search(value, f"{prefix}.{key}" if prefix else key, depth - 1)

    search(content, "", depth=3)
    with_weights = {k: tensors for k, tensors in state_dicts.items() if _has_weight(tensors)}
    return with_weights or state_dicts


def _has_weight(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there is a weight of two or more dimensions, possibly pruned or parametrized."""
    return any(tensor.ndim > 1 and "weight" in name for name, tensor in tensors.items())


def _other_values(content: Any, depth: int = 3) -> str:  # noqa: ANN401
    """Name the values in a would-be state dict that are not tensors."""
    if not isinstance(content, Mapping):
        return ""
    if any(isinstance(value, Tensor) and value.ndim > 1 for value in content.values()):
        others = (str(key) for key, value in content.items() if not isinstance(value, Tensor))
        return f": {list_names(others)} beside its tensors; {REMEDY}"
    inner = (_other_values(value, depth - 1) for value in content.values() if depth)
    return next(filter(None, inner), "")


_PAPER_SUFFIX = "_win"
"""Tomen & van Gemert's script appends it to the keys of the windowed network."""


def _read_windowed(content: Mapping[str, Any], key: str) -> bool | None:
    """Whether the file declares the network windowed; None if it does not say."""
    hyper_parameters = content.get("hyper_parameters")
    if isinstance(hyper_parameters, dict) and isinstance(hyper_parameters.get("hamming"), bool):
        return bool(hyper_parameters["hamming"])
    if key.removesuffix(_PAPER_SUFFIX) + _PAPER_SUFFIX in content:
        return key.endswith(_PAPER_SUFFIX)
    return None


def _read_accuracy(content: Mapping[str, Any], key: str) -> float | None:
    """Compute test accuracy from the per-class counts that Tomen & van Gemert's script saves."""
    suffix = _PAPER_SUFFIX if key.endswith(_PAPER_SUFFIX) else ""
    correct, seen = content.get(f"accuracy{suffix}"), content.get("class_counter")
    if not (isinstance(correct, NumPyArray) and isinstance(seen, NumPyArray)):
        return None
    if correct.numbers is None or seen.numbers is None or not seen.numbers.sum() > 0:
        return None
    share = float(correct.numbers.sum() / seen.numbers.sum())
    return share if math.isfinite(share) else None
