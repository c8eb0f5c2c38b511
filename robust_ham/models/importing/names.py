"""Which tensor of somebody else's network is which of ours: by name, else by order and shape."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

Names = dict[str, str]
"""Short name → full name."""

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Modules that hold another and do the same: DataParallel, torch.compile, FSDP, checkpointing."""

_HOLDERS = {"model", "net", "network", "backbone"}
"""What others call the module that holds their network, or all of it but the last layer."""

_OURS = [  # names of torchvision's, timm's and most CIFAR networks, and ours for the same layer
    (re.compile(r"(^|\.)conv(\d)\.conv1\."), r"\1conv\2.0."),  # factorised, of the replication
    (re.compile(r"(^|\.)conv(\d)\.conv2\."), r"\1conv\2.1."),
    (re.compile(r"^layer(\d)\.(\d)\."), r"layer\1_\2."),
    (re.compile(r"\.downsample\."), ".shortcut."),
    (re.compile(r"^fc\."), "linear."),
]
_MAX_LISTED = 4


# --- short names -----------------------------------------------------------------------------


def without_wrappers(names: Iterable[str]) -> Names:
    """Names without the modules that only wrap another, wherever they stand, to full names."""
    full_names = list(names)
    short = {".".join(p for p in n.split(".") if p not in _WRAPPERS): n for n in full_names}
    return short if len(short) == len(full_names) else {name: name for name in full_names}


def without_common_prefix(names: Names) -> Names:
    """Names without the modules that hold all of the network.

    ``model.conv1.weight`` of Lightning and ``module.conv1.weight`` of DataParallel become
    ``conv1.weight``.
    """
    while True:
        inner = {name.partition(".")[2]: full for name, full in names.items()}
        outer = {name.partition(".")[0] for name in names}
        if len(outer) != 1 or not all("." in name for name in inner):
            return names
        names = inner


def _without_holders(names: Names) -> Names:
    """Names without ``backbone.`` and the like, also where some layers stand beside it."""

    def inner(name: str) -> str:
        first, _, rest = name.partition(".")
        return inner(rest) if rest and first in _HOLDERS else name

    return {inner(name): full for name, full in names.items()}


def _with_our_names(names: Names) -> Names:
    """Names of torchvision's and timm's ResNets as ours."""
    renamed: Names = {}
    for name, full in names.items():
        ours = name
        for pattern, replacement in _OURS:
            ours = pattern.sub(replacement, ours)
        renamed[ours] = full
    return renamed


# --- by name ---------------------------------------------------------------------------------


def places_of(theirs: Names, own: Names, tied: Mapping[str, set[str]]) -> dict[str, Names]:
    """Modules of a file (with a final dot; empty: the file) that hold all tensors of a network.

    Args:
        theirs: names of the file.
        own: names of the network.
        tied: for each short name of the network those that are the same tensor; one is enough.

    Returns:
        For each module the network's full names to the file's.
    """
    anchor = min(own, key=lambda name: len(tied[name]), default="")
    places: dict[str, Names] = {}
    for name in theirs:
        for ending in tied.get(anchor, ()):
            prefix = name.removesuffix(ending)
            if not name.endswith(ending) or (prefix and not prefix.endswith(".")):
                continue
            pairs: Names = {}
            for own_name, full in own.items():
                same = (own_name, *sorted(tied[own_name]))
                there = next((prefix + n for n in same if prefix + n in theirs), None)
                if there is None:
                    break
                pairs[full] = theirs[there]
            else:
                places[prefix] = pairs
    return places


def holder_of(pairs: Names, prefix: str) -> str:
    """Full name of the module that ``places_of`` found under ``prefix``; empty: the file."""
    wanted = prefix.count(".")
    parts: list[str] = []
    for part in next(iter(pairs.values()), "").split("."):
        if sum(part not in _WRAPPERS for part in parts) == wanted:
            break
        parts.append(part)
    return ".".join(parts) if wanted else ""


def paired_by_rules(theirs: Names, own: Names) -> Names | None:
    """The network's full names to the file's, where a rule of renaming makes them the same."""
    for rename in (_without_holders, _with_our_names):
        their_names, own_names = rename(theirs), rename(own)
        whole = len(their_names) == len(theirs) and len(own_names) == len(own)
        if whole and their_names.keys() == own_names.keys():
            return {full: their_names[name] for name, full in own_names.items()}
    return None


def differences(theirs: Iterable[str], own: Iterable[str]) -> str:
    """Names that only one of file and network has."""
    known, expected = set(theirs), set(own)
    missing = listed(name for name in own if name not in known)
    extra = listed(name for name in theirs if name not in expected)
    parts = [missing and f"no tensor {missing}", extra and f"unexpected tensor {extra}"]
    return "; ".join(filter(None, parts))


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    everything = list(names)
    more = len(everything) - _MAX_LISTED
    return ", ".join(everything[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


# --- by order --------------------------------------------------------------------------------

Layers = dict[str, dict[str, Tensor]]
"""Module name → its tensors by their last name, in order."""


def layers_of(tensors: Mapping[str, Tensor]) -> Layers:
    """Tensors by the modules that they belong to."""
    layers: Layers = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        layers.setdefault(module, {})[leaf] = tensor
    return layers


def paired_in_order(theirs: Layers, own: Layers) -> Names:
    """Our name to theirs, for every tensor, layer by layer.

    Raises:
        ValueError: they are not the same network, or a name says that the order is another.
    """
    if len(theirs) != len(own):
        raise ValueError(f"{_count(theirs)}; the network asked for has {_count(own)}")
    pairs: Names = {}
    for (their_name, their), (own_name, our) in zip(theirs.items(), own.items(), strict=True):
        if their.keys() != our.keys() or any(their[k].ndim != our[k].ndim for k in our):
            raise ValueError(
                f"{their_name} ({_leaves(their)}) stands where the network asked for has "
                f"{own_name} ({_leaves(our)})"
            )
        if own_name != their_name and _is_named(own_name, theirs):
            raise ValueError(
                f"{their_name} stands where the network asked for has {own_name}, which the file "
                "has elsewhere"
            )
        pairs |= {f"{own_name}.{leaf}": f"{their_name}.{leaf}" for leaf in our}
    return pairs


def _is_named(name: str, theirs: Layers) -> bool:
    """Whether the file has a layer of that name; the numbers of an nn.Sequential say nothing."""
    return name in theirs and not name.rpartition(".")[2].isdecimal()


def alike_layers(theirs: Layers, own: Layers) -> str | None:
    """Two layers that only their order tells apart; None where there are none."""
    seen: dict[object, str] = {}
    for name, layer in own.items():
        if _is_named(name, theirs):
            continue
        signature = tuple(sorted((leaf, tuple(t.shape)) for leaf, t in layer.items()))
        if signature in seen:
            return f"{seen[signature]} and {name}"
        seen[signature] = name
    return None


def _count(layers: Layers) -> str:
    weights = [layer["weight"] for layer in layers.values() if "weight" in layer]
    return (
        f"{len(layers)} layers, {sum(weight.ndim == 4 for weight in weights)} of them convolutions"
    )


def _leaves(layer: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{leaf} {tuple(tensor.shape)}" for leaf, tensor in layer.items())
