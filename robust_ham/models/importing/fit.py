"""Somebody else's tensors put into a network: by name, all of them, or refused by name.

One loader for ``weights:`` of a factory and for ``robust-ham import``. Beside the weights, a file
may hold the constants of a normalisation (``mu`` and ``sigma``, ``normalizer.new_mean``, …),
windows, counters of BatchNorm and copies of the same network; what else it holds is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from robust_ham.errors import RequestError
from robust_ham.models.effective_kernel import OWN_WINDOW, applied_window
from robust_ham.models.importing.names import (
    Names,
    alike_layers,
    differences,
    holder_of,
    layers_of,
    listed,
    paired_by_rules,
    paired_in_order,
    places_of,
    without_common_prefix,
    without_wrappers,
)
from robust_ham.models.importing.networks import ForeignNetwork
from robust_ham.models.importing.normalisation import constants_of, is_equal, paired_constants
from robust_ham.models.windows import WINDOWS_2D, window_2d

Tensors = dict[str, Tensor]

_COUNTERS = {"num_batches_tracked", "n_averaged"}
"""Of BatchNorm, not in old files, and of torch's AveragedModel: they decide nothing."""
_WINDOW_BUFFER = re.compile(r"hamming|hann|blackman|kaiser|window", re.IGNORECASE)
_NUMBERS = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8),
}


@dataclass(frozen=True)
class Fit:
    """How the tensors of a file went into a network."""

    has_windows: bool
    """Windows stored in the file are those of the network."""
    alike: str | None
    """Paired by order although these layers are alike: only accuracy can tell whether rightly."""


def fit(network: ForeignNetwork, model: nn.Module, data_name: str = "the network") -> Fit:
    """Fill ``model`` with the tensors of a file; ``data_name``: what sets channels and classes.

    Raises:
        RequestError: not the same network, other shapes or windows, tensors that the network has
            not, a normalisation that only the file has, or values that are no finite numbers.
    """
    path = network.path
    own, tied = _tensors_of(network, model)
    own_constants, their_constants = constants_of(own), constants_of(network.tensors)
    wanted = {n: t for n, t in own.items() if not _is_aside(n, own_constants)}
    leaves = {name.rpartition(".")[2] for name in own}
    theirs: Tensors = {}
    windows: Tensors = {}
    counters: Tensors = {}
    for name, tensor in network.tensors.items():
        module, _, leaf = name.rpartition(".")
        if _WINDOW_BUFFER.search(leaf) and leaf not in leaves:
            windows[module] = tensor
        elif leaf in _COUNTERS:
            counters[name] = tensor
        elif not _is_aside(name, their_constants):
            theirs[name] = tensor
    pairs, alike = _paired(network, theirs, wanted, tied)
    modules = {_module(their_name): _module(own_name) for own_name, their_name in pairs.items()}
    constants = paired_constants(network, own)
    given = {own_name: theirs[their_name] for own_name, their_name in pairs.items()}
    _check_shapes(path, wanted, given, pairs, data_name)
    _check_tied(path, given, tied)
    _check_windows(path, model, windows, modules)
    counted = {
        f"{modules[_module(name)]}.{name.rpartition('.')[2]}".lstrip("."): counter
        for name, counter in counters.items()
        if _module(name) in modules
    }
    counted = {n: _as_counter(c, own[n]) for n, c in counted.items() if n in own}
    fill(model, own | given | constants | counted, path)
    return Fit(bool(windows), alike)


def _tensors_of(network: ForeignNetwork, model: nn.Module) -> tuple[Tensors, dict[str, set[str]]]:
    """Tensors of a network, and for each name all names of the same tensor."""
    lazy = [n for n, p in model.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise RequestError(
            f"{network.path}: the network's {listed(lazy)} has no shape yet: run one batch through "
            "it before it is returned"
        )
    own = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    same: dict[object, set[str]] = {}
    for name, tensor in own.items():
        place = (
            (tensor.data_ptr(), tuple(tensor.shape), tensor.stride()) if tensor.numel() else name
        )
        same.setdefault(place, set()).add(name)
    return own, {name: names for names in same.values() for name in names}


def _is_aside(name: str, constants: Mapping[str, tuple[str, str]]) -> bool:
    """Whether a tensor is a counter or a constant of a normalisation."""
    is_constant = any(name in pair for pair in constants.values())
    return is_constant or name.rpartition(".")[2] in _COUNTERS


def _as_counter(counter: Tensor, own: Tensor) -> Tensor:
    """A file's counter in the network's dtype, or the network's own where it is no number.

    Files of averaged weights have counters that are averaged as well; they decide nothing.
    """
    if counter.dtype not in _NUMBERS or counter.numel() != own.numel():
        return own
    if not bool(torch.isfinite(counter).all()):
        return own
    return counter.reshape(own.shape).to(own.dtype)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


# --- which tensor is which -------------------------------------------------------------------


def _paired(
    network: ForeignNetwork, theirs: Tensors, own: Tensors, tied: Mapping[str, set[str]]
) -> tuple[Names, str | None]:
    """The network's names to the file's; and, where order decided, layers that are alike.

    Raises:
        RequestError: not the same network, or more than one.
    """
    their_names, own_names = without_wrappers(theirs), without_common_prefix(without_wrappers(own))
    short = {full: name for name, full in own_names.items()}
    tied_names = {n: {short[o] for o in tied[full] if o in short} for n, full in own_names.items()}
    places = places_of(their_names, own_names, tied_names)
    if places:
        return _one_of(network, theirs, places), None
    their_names = without_common_prefix(their_names)
    by_rules = paired_by_rules(their_names, own_names)
    if by_rules is not None:
        return by_rules, None
    unlike = differences(their_names, own_names)
    refusal = f"{network.path}: not the network asked for"
    if not network.ordered:
        raise RequestError(f"{refusal}: {unlike}")
    own_layers = layers_of({name: own[full] for name, full in own_names.items()})
    their_layers = layers_of({name: theirs[full] for name, full in their_names.items()})
    try:
        in_order = paired_in_order(their_layers, own_layers)
    except ValueError as error:
        raise RequestError(f"{refusal}: {error}; {unlike}") from None
    pairs = {own_names[o.lstrip(".")]: their_names[t.lstrip(".")] for o, t in in_order.items()}
    return pairs, alike_layers(their_layers, own_layers)


def _one_of(network: ForeignNetwork, theirs: Tensors, places: Mapping[str, Names]) -> Names:
    """The pairs of the only place where a file holds the network, or of one of several copies."""
    (prefix, pairs), *others = sorted(places.items(), key=lambda place: len(place[0]))
    used = set(pairs.values())
    for other_prefix, other in others:
        if any(not is_equal(theirs[pairs[n]], theirs[other[n]]) for n in pairs):
            holders = holder_of(pairs, prefix), holder_of(other, other_prefix)
            keys = ", ".join(_key(network, holder) for holder in holders)
            raise RequestError(
                f"{network.path}: holds the network more than once, with other values; choose by "
                f"{network.option}: {keys}"
            )
        used |= set(other.values())
    extra = [name for name in theirs if name not in used]
    if not extra:
        return pairs
    holder = holder_of(pairs, prefix)
    inside = not holder or any(name.startswith(f"{holder}.") for name in extra)
    hint = "" if inside else f"; {network.option} {_key(network, holder)} leaves it out"
    raise RequestError(
        f"{network.path}: not the network asked for: unexpected tensor {listed(extra)}{hint}"
    )


def _key(network: ForeignNetwork, holder: str) -> str:
    """By which key a module of a file is chosen."""
    return ".".join(filter(None, (network.key, holder))) or "(the file itself)"


def _check_tied(path: Path, given: Tensors, tied: Mapping[str, set[str]]) -> None:
    """Tensors that are one in the network must be one in the file."""
    for name, tensor in given.items():
        for other in sorted(tied[name] - {name}):
            if other in given and not is_equal(tensor, given[other]):
                raise RequestError(
                    f"{path}: {name} and {other} are one tensor in the network, and differ here"
                )


def _check_shapes(
    path: Path, own: Tensors, theirs: Tensors, names: Mapping[str, str], data_name: str
) -> None:
    """Refuse other shapes; both mappings are by our names, ``names`` are those in the file."""
    first = next((name for name, tensor in own.items() if tensor.ndim == 4), None)
    last = [name for name, tensor in own.items() if tensor.ndim == 2][-1:]
    for name, tensor in own.items():
        expected, got = tuple(tensor.shape), tuple(theirs[name].shape)
        if expected == got:
            continue
        if name == first and expected[:1] + expected[2:] == got[:1] + got[2:]:
            raise RequestError(f"{path}: for {got[1]}-channel images; {data_name}: {expected[1]}")
        if [name] == last and expected[1:] == got[1:]:
            raise RequestError(f"{path}: for {got[0]} classes; {data_name}: {expected[0]}")
        raise RequestError(
            f"{path}: not the network asked for: {names[name]} has shape {got}, expected {expected}"
        )


# --- windows ---------------------------------------------------------------------------------


def _check_windows(
    path: Path, model: nn.Module, windows: Tensors, modules: Mapping[str, str]
) -> None:
    """Windows stored in a file must be ours, in the layers where ours are.

    Args:
        path: the file.
        model: the network asked for.
        windows: stored windows by the names of their layers.
        modules: names of layers in the file to ours.
    """
    if not windows:
        return
    for theirs, values in windows.items():
        layer = model.get_submodule(modules[theirs]) if theirs in modules else None
        if not isinstance(layer, nn.Conv2d):
            raise RequestError(f"{path}: a window in {theirs or 'the network'}, no convolution")
        height, width = layer.kernel_size
        names = [w for w in WINDOWS_2D if _is_same_window(values, window_2d(w, height, width))]
        own = applied_window(layer)
        if own not in names:
            found = names[0] if names else "of other values"
            raise RequestError(
                f"{path}: {theirs} has the window {found}; the network asked for has {own}"
            )
    for theirs, own_name in modules.items():
        layer = model.get_submodule(own_name)
        if theirs in windows or not isinstance(layer, nn.Conv2d):
            continue
        if applied_window(layer) not in ("none", OWN_WINDOW):
            raise RequestError(
                f"{path}: {theirs} has no window; the network asked for has one there"
            )


def _is_same_window(values: Tensor, window: Tensor) -> bool:
    if values.numel() != window.numel():
        return False
    return torch.allclose(values.double().reshape(window.shape), window.double(), atol=1e-5)


# --- values ----------------------------------------------------------------------------------


def fill(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Fill ``model`` with the tensors that ``path`` held, by the model's names.

    Raises:
        RequestError: other names or shapes, or values that are no finite numbers.
    """
    own = model.state_dict()
    check_tensors({n: t for n, t in own.items() if isinstance(t, Tensor)}, state, path)
    try:
        model.load_state_dict(own | dict(state))
    except RuntimeError as error:  # of a network with a state_dict of its own
        raise RequestError(f"{path}: {' '.join(str(error).split())}") from None


def check_tensors(own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not those of a network, or hold what is no finite number.

    Raises:
        RequestError: other names, shapes or kinds of values, values that are not finite, or a
            negative variance of a BatchNorm.
    """
    for name, tensor in own.items():
        if name not in state:
            raise RequestError(f"{path}: no tensor {name}")
        if state[name].shape != tensor.shape:
            raise RequestError(
                f"{path}: {name}: expected shape {tuple(tensor.shape)}, "
                f"got {tuple(state[name].shape)}"
            )
        kind = state[name].dtype
        if kind not in _NUMBERS or kind.is_floating_point != tensor.is_floating_point():
            raise RequestError(
                f"{path}: {name}: expected values like {tensor.dtype}, got {state[name].dtype}"
            )
        is_finite = bool(torch.isfinite(state[name]).all())
        if not is_finite and (tensor.is_meta or not torch.equal(state[name], tensor.cpu())):
            raise RequestError(f"{path}: {name} has values that are not finite")
        if name.rpartition(".")[2] == "running_var" and bool((state[name] < 0).any()):
            lowest = float(state[name].min())
            raise RequestError(f"{path}: {name}: expected variances of at least 0, got {lowest:g}")
    extra = next((name for name in state if name not in own), None)
    if extra is not None:
        raise RequestError(f"{path}: unexpected tensor {extra}")
