"""Which tensor of somebody else's network is which of ours: by name, else by order and shape."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_OURS = [  # names of torchvision's, timm's and most CIFAR networks, and ours for the same layer
    (re.compile(r"^layer(\d)\.(\d)\."), r"layer\1_\2."),
    (re.compile(r"\.downsample\."), ".shortcut."),
    (re.compile(r"^fc\."), "linear."),
]


def without_common_prefix(names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by their names without the modules that hold all of the network.

    ``model.conv1.weight`` of Lightning and ``module.conv1.weight`` of DataParallel become
    ``conv1.weight``.
    """
    while True:
        inner = {name.partition(".")[2]: tensor for name, tensor in names.items()}
        outer = {name.partition(".")[0] for name in names}
        if len(outer) != 1 or not all("." in name for name in inner):
            return dict(names)
        names = inner


def paired(
    theirs: Mapping[str, Tensor], own: Mapping[str, Tensor], ordered: bool
) -> dict[str, str]:
    """Our name to theirs, for every tensor; names are without common prefixes.

    Args:
        theirs: tensors of the file.
        own: tensors of the network asked for.
        ordered: whether the file keeps the order of its layers, so that it may be gone by.

    Raises:
        ValueError: they are not the same network.
    """
    for renamed in ({n: n for n in theirs}, {_our_name(n): n for n in theirs}):
        if renamed.keys() == own.keys():
            return {name: renamed[name] for name in own}
    if not ordered:
        missing = next((name for name in own if name not in theirs), None)
        unknown = next((name for name in theirs if name not in own), None)
        raise ValueError(
            f"no tensor {missing}" if missing else f"a tensor {unknown} that the network has not"
        )
    return _paired_in_order(_layers(theirs), _layers(own))


def _our_name(name: str) -> str:
    for pattern, ours in _OURS:
        name = pattern.sub(ours, name)
    return name


Layers = dict[str, dict[str, Tensor]]


def _layers(tensors: Mapping[str, Tensor]) -> Layers:
    """Module name to its tensors by their last name, in order."""
    layers: Layers = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        layers.setdefault(module, {})[leaf] = tensor
    return layers


def _paired_in_order(theirs: Layers, own: Layers) -> dict[str, str]:
    if len(theirs) != len(own):
        raise ValueError(f"{_count(theirs)}; the network asked for has {_count(own)}")
    pairs: dict[str, str] = {}
    for (their_name, their), (own_name, our) in zip(theirs.items(), own.items(), strict=True):
        if their.keys() != our.keys() or any(their[k].ndim != our[k].ndim for k in our):
            raise ValueError(
                f"{their_name} ({_leaves(their)}) stands where the network asked for has "
                f"{own_name} ({_leaves(our)})"
            )
        pairs |= {f"{own_name}.{leaf}": f"{their_name}.{leaf}" for leaf in our}
    return pairs


def _count(layers: Layers) -> str:
    weights = [layer["weight"] for layer in layers.values() if "weight" in layer]
    return (
        f"{len(layers)} layers, {sum(weight.ndim == 4 for weight in weights)} of them convolutions"
    )


def _leaves(layer: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{leaf} {tuple(tensor.shape)}" for leaf, tensor in layer.items())
