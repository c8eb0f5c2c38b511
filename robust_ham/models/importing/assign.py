"""Assign the tensors of a third-party file to a network: all of them by name, or refuse the file.

Factories' ``weights:`` and ``robust-ham import`` both load here. Besides the weights, a file
may contain the constants of a normalisation (``mu`` and ``sigma``, ``normalizer.new_mean``, …),
windows, BatchNorm counters and equal copies of the network. Any other tensor is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from robust_ham.errors import RequestError, list_names
from robust_ham.models.applied_window import OTHER_WINDOW, applied_window
from robust_ham.models.importing.match_names import (
    Names,
    describe_differences,
    find_ambiguous_layers,
    find_holders,
    group_by_layer,
    holder_name,
    pair_by_order,
    pair_by_renaming,
    without_common_prefix,
    without_wrappers,
)
from robust_ham.models.importing.normalisation import find_constants, is_equal, match_constants
from robust_ham.models.importing.state_dicts import StoredNetwork
from robust_ham.models.windows import WINDOWS_2D, window_2d

Tensors = dict[str, Tensor]

_COUNTERS = {"num_batches_tracked", "n_averaged"}
"""Counters of BatchNorm (absent in old files) and AveragedModel; they do not affect logits."""
_WINDOW_BUFFER = re.compile(r"hamming|hann|blackman|kaiser|window", re.IGNORECASE)
_NUMBERS = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8),
}


@dataclass(frozen=True)
class Assignment:
    """How the tensors of a file were assigned to a network."""

    has_windows: bool
    """Whether the file contains windows; they are those of the network."""
    ambiguous_layers: str | None
    """Two layers of equal shapes that were told apart by order alone: check the accuracy."""


def assign_tensors(
    stored: StoredNetwork, model: nn.Module, data_name: str = "the network"
) -> Assignment:
    """Load the tensors of a file into ``model``.

    ``data_name`` is the data set that sets channels and classes; messages mention it.

    Raises:
        RequestError: the file is of another network, has other shapes or windows, tensors that the
            network lacks, a normalisation that the network lacks, or values that are not finite.
    """
    path = stored.path
    model_tensors, tied = _model_tensors(path, model)
    model_constants, file_constants = find_constants(model_tensors), find_constants(stored.tensors)
    expected = {n: t for n, t in model_tensors.items() if not _is_auxiliary(n, model_constants)}
    leaves = {name.rpartition(".")[2] for name in model_tensors}
    weights: Tensors = {}
    windows: Tensors = {}
    counters: Tensors = {}
    for name, tensor in stored.tensors.items():
        module, _, leaf = name.rpartition(".")
        if _WINDOW_BUFFER.search(leaf) and leaf not in leaves:
            windows[module] = tensor
        elif leaf in _COUNTERS:
            counters[name] = tensor
        elif not _is_auxiliary(name, file_constants):
            weights[name] = tensor
    pairs, ambiguous_layers = _pair_names(stored, weights, expected, tied)
    modules = {_module(file_name): _module(name) for name, file_name in pairs.items()}
    constants = match_constants(stored, model_tensors)
    assigned = {name: weights[file_name] for name, file_name in pairs.items()}
    _check_shapes(path, expected, assigned, pairs, data_name)
    _check_tied(path, assigned, tied)
    _check_windows(path, model, windows, modules)
    assigned_counters: Tensors = {}
    for file_name, counter in counters.items():
        if _module(file_name) in modules:
            name = f"{modules[_module(file_name)]}.{file_name.rpartition('.')[2]}".lstrip(".")
            if name in model_tensors:
                assigned_counters[name] = _convert_counter(counter, model_tensors[name])
    load_tensors(model, model_tensors | assigned | constants | assigned_counters, path)
    return Assignment(bool(windows), ambiguous_layers)


def _model_tensors(path: Path, model: nn.Module) -> tuple[Tensors, dict[str, set[str]]]:
    """Return the tensors of a network, and for each name all names of the same tensor."""
    lazy = [n for n, p in model.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise RequestError(
            f"{path}: the network's {list_names(lazy)} has no shape yet: let the factory run one "
            "batch through the network before it returns it"
        )
    tensors = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    names_of: dict[object, set[str]] = {}
    for name, tensor in tensors.items():
        memory = (
            (tensor.data_ptr(), tuple(tensor.shape), tensor.stride()) if tensor.numel() else name
        )
        names_of.setdefault(memory, set()).add(name)
    return tensors, {name: names for names in names_of.values() for name in names}


def _is_auxiliary(name: str, constants: Mapping[str, tuple[str, str]]) -> bool:
    """Whether a tensor is a counter or a constant of a normalisation."""
    is_constant = any(name in pair for pair in constants.values())
    return is_constant or name.rpartition(".")[2] in _COUNTERS


def _convert_counter(counter: Tensor, model_counter: Tensor) -> Tensor:
    """Convert a file's counter to the network's dtype; keep the network's if it is not finite.

    Files of averaged weights contain averaged counters, which need not be whole numbers.
    """
    if counter.dtype not in _NUMBERS or counter.numel() != model_counter.numel():
        return model_counter
    if not bool(torch.isfinite(counter).all()):
        return model_counter
    return counter.reshape(model_counter.shape).to(model_counter.dtype)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


# --- which tensor is which -------------------------------------------------------------------


def _pair_names(
    stored: StoredNetwork, weights: Tensors, expected: Tensors, tied: Mapping[str, set[str]]
) -> tuple[Names, str | None]:
    """Map the network's names to the file's; also name layers that only order told apart.

    Raises:
        RequestError: the file holds another network, or several different ones.
    """
    file_names = without_wrappers(weights)
    model_names = without_common_prefix(without_wrappers(expected))
    short = {full: name for name, full in model_names.items()}
    tied_names = {
        n: {short[o] for o in tied[full] if o in short} for n, full in model_names.items()
    }
    holders = find_holders(file_names, model_names, tied_names)
    if holders:
        return _choose_holder(stored, weights, holders), None
    file_names = without_common_prefix(file_names)
    by_renaming = pair_by_renaming(file_names, model_names)
    if by_renaming is not None:
        return by_renaming, None
    differences = describe_differences(file_names, model_names)
    refusal = f"{stored.path}: not the expected network"
    if not stored.ordered:
        raise RequestError(f"{refusal}: {differences}")
    model_layers = group_by_layer({name: expected[full] for name, full in model_names.items()})
    file_layers = group_by_layer({name: weights[full] for name, full in file_names.items()})
    try:
        by_order = pair_by_order(file_layers, model_layers)
    except ValueError as error:
        raise RequestError(f"{refusal}: {error}; {differences}") from None
    pairs = {
        model_names[name.lstrip(".")]: file_names[file_name.lstrip(".")]
        for name, file_name in by_order.items()
    }
    return pairs, find_ambiguous_layers(file_layers, model_layers)


def _choose_holder(stored: StoredNetwork, weights: Tensors, holders: Mapping[str, Names]) -> Names:
    """Return the pairs of the only module that holds the network, or of one of its equal copies."""
    (prefix, pairs), *others = sorted(holders.items(), key=lambda holder: len(holder[0]))
    used = set(pairs.values())
    for other_prefix, other_pairs in others:
        if any(not is_equal(weights[pairs[n]], weights[other_pairs[n]]) for n in pairs):
            modules = holder_name(pairs, prefix), holder_name(other_pairs, other_prefix)
            keys = ", ".join(_key_of(stored, module) for module in modules)
            raise RequestError(
                f"{stored.path}: contains the network more than once, with different values; "
                f"choose one with {stored.option}: {keys}"
            )
        used |= set(other_pairs.values())
    extra = [name for name in weights if name not in used]
    if not extra:
        return pairs
    module = holder_name(pairs, prefix)
    is_inside = not module or any(name.startswith(f"{module}.") for name in extra)
    hint = "" if is_inside else f"; {stored.option} {_key_of(stored, module)} leaves it out"
    raise RequestError(
        f"{stored.path}: not the expected network: unexpected tensor {list_names(extra)}{hint}"
    )


def _key_of(stored: StoredNetwork, module: str) -> str:
    """Return the key that selects a module of a file."""
    return ".".join(filter(None, (stored.key, module))) or "(the file itself)"


def _check_tied(path: Path, assigned: Tensors, tied: Mapping[str, set[str]]) -> None:
    """Require that tensors tied in the network are equal in the file."""
    for name, tensor in assigned.items():
        for other in sorted(tied[name] - {name}):
            if other in assigned and not is_equal(tensor, assigned[other]):
                raise RequestError(
                    f"{path}: {name} and {other} are tied in the network but differ in the file"
                )


def _check_shapes(
    path: Path, expected: Tensors, assigned: Tensors, pairs: Names, data_name: str
) -> None:
    """Refuse other shapes; ``pairs`` maps the network's names to the file's, for messages."""
    first = next((name for name, tensor in expected.items() if tensor.ndim == 4), None)
    last = [name for name, tensor in expected.items() if tensor.ndim == 2][-1:]
    for name, tensor in expected.items():
        shape, got = tuple(tensor.shape), tuple(assigned[name].shape)
        if shape == got:
            continue
        if name == first and shape[:1] + shape[2:] == got[:1] + got[2:]:
            raise RequestError(f"{path}: channels: expected {shape[1]} ({data_name}), got {got[1]}")
        if [name] == last and shape[1:] == got[1:]:
            raise RequestError(f"{path}: classes: expected {shape[0]} ({data_name}), got {got[0]}")
        raise RequestError(
            f"{path}: not the expected network: {pairs[name]} has shape {got}, expected {shape}"
        )


# --- windows ---------------------------------------------------------------------------------


def _check_windows(
    path: Path, model: nn.Module, windows: Tensors, modules: Mapping[str, str]
) -> None:
    """Require the windows in a file to be those of the network, in the same layers.

    Args:
        path: the file.
        model: the network.
        windows: windows in the file by the names of their layers.
        modules: names of layers in the file → names in the network.
    """
    if not windows:
        return
    for file_layer, values in windows.items():
        layer = model.get_submodule(modules[file_layer]) if file_layer in modules else None
        if not isinstance(layer, nn.Conv2d):
            raise RequestError(
                f"{path}: has a window in {file_layer or 'the network'}, which is not a convolution"
            )
        height, width = layer.kernel_size
        names = [w for w in WINDOWS_2D if _is_same_window(values, window_2d(w, height, width))]
        expected = applied_window(layer)
        if expected not in names:
            window = f"the window {names[0]}" if names else "an unknown window"
            raise RequestError(
                f"{path}: {file_layer} has {window}; the expected network has {expected}"
            )
    for file_layer, name in modules.items():
        layer = model.get_submodule(name)
        if file_layer in windows or not isinstance(layer, nn.Conv2d):
            continue
        if applied_window(layer) not in ("none", OTHER_WINDOW):
            raise RequestError(
                f"{path}: {file_layer} has no window; the expected network has one there"
            )


def _is_same_window(values: Tensor, window: Tensor) -> bool:
    if values.numel() != window.numel():
        return False
    return torch.allclose(values.double().reshape(window.shape), window.double(), atol=1e-5)


# --- values ----------------------------------------------------------------------------------


def load_tensors(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load tensors of the file ``path``, by the model's names, into ``model``.

    Raises:
        RequestError: other names or shapes, or values that are not finite.
    """
    model_state = model.state_dict()
    check_tensors({n: t for n, t in model_state.items() if isinstance(t, Tensor)}, state, path)
    try:
        model.load_state_dict(model_state | dict(state))
    except RuntimeError as error:  # a network may define its own state_dict
        raise RequestError(f"{path}: {' '.join(str(error).split())}") from None


def check_tensors(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    """Check the tensors of a file against those of a network.

    Raises:
        RequestError: other names, shapes or kinds of values, values that are not finite, or a
            negative variance of a BatchNorm.
    """
    for name, tensor in expected.items():
        if name not in state:
            raise RequestError(f"{path}: no tensor {name}")
        if state[name].shape != tensor.shape:
            raise RequestError(
                f"{path}: {name}: expected shape {tuple(tensor.shape)}, "
                f"got {tuple(state[name].shape)}"
            )
        dtype = state[name].dtype
        if dtype not in _NUMBERS or dtype.is_floating_point != tensor.is_floating_point():
            raise RequestError(
                f"{path}: {name}: expected values like {tensor.dtype}, got {state[name].dtype}"
            )
        is_finite = bool(torch.isfinite(state[name]).all())
        if not is_finite and (tensor.is_meta or not torch.equal(state[name], tensor.cpu())):
            raise RequestError(f"{path}: {name} has values that are not finite")
        if name.rpartition(".")[2] == "running_var" and bool((state[name] < 0).any()):
            lowest = float(state[name].min())
            raise RequestError(f"{path}: {name}: expected variances of at least 0, got {lowest:g}")
    extra = next((name for name in state if name not in expected), None)
    if extra is not None:
        raise RequestError(f"{path}: unexpected tensor {extra}")
