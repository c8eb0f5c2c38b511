"""Match the tensor names of a third-party file with a network's: by name, else by order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from robust_ham.errors import list_names

Names = dict[str, str]
"""Short name → full name."""

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Modules that only wrap another: DataParallel, torch.compile, FSDP, checkpointing."""

_HOLDERS = {"model", "net", "network", "backbone"}
"""Usual names of a module that holds a network, or all of it but the last layer."""

_RENAMINGS = [  # names in torchvision, timm and most CIFAR networks → names here
    (re.compile(r"(^|\.)conv(\d)\.conv1\."), r"\1conv\2.0."),  # factorised, of the replication
    (re.compile(r"(^|\.)conv(\d)\.conv2\."), r"\1conv\2.1."),
    (re.compile(r"^layer(\d)\.(\d)\."), r"layer\1_\2."),
    (re.compile(r"\.downsample\."), ".shortcut."),
    (re.compile(r"^fc\."), "linear."),
]


# --- short names -----------------------------------------------------------------------------


def without_wrappers(names: Iterable[str]) -> Names:
    """Remove wrapper modules anywhere in the names; maps short to full names."""
    full_names = list(names)
    short = {".".join(p for p in n.split(".") if p not in _WRAPPERS): n for n in full_names}
    return short if len(short) == len(full_names) else {name: name for name in full_names}


def without_common_prefix(names: Names) -> Names:
    """Remove modules that hold the whole network.

    ``model.conv1.weight`` (Lightning) and ``module.conv1.weight`` (DataParallel) become
    ``conv1.weight``.
    """
    while True:
        inner = {name.partition(".")[2]: full for name, full in names.items()}
        outer = {name.partition(".")[0] for name in names}
        if len(outer) != 1 or not all("." in name for name in inner):
            return names
        names = inner


def _without_holders(names: Names) -> Names:
    """Remove ``backbone.`` and the like, also if other layers are outside of it."""

    def inner(name: str) -> str:
        first, _, rest = name.partition(".")
        return inner(rest) if rest and first in _HOLDERS else name

    return {inner(name): full for name, full in names.items()}


def _renamed(names: Names) -> Names:
    """Rename layers of torchvision's and timm's ResNets as they are named here."""
    renamed: Names = {}
    for name, full in names.items():
        new_name = name
        for pattern, replacement in _RENAMINGS:
            new_name = pattern.sub(replacement, new_name)
        renamed[new_name] = full
    return renamed


# --- by name ---------------------------------------------------------------------------------


def find_holders(
    file_names: Names, model_names: Names, tied: Mapping[str, set[str]]
) -> dict[str, Names]:
    """Find the modules of a file that hold all tensors of a network.

    Args:
        file_names: names in the file.
        model_names: names in the network.
        tied: for each short name of the network, all names of the same tensor; the file needs one.

    Returns:
        For each prefix (empty, or ending in a dot): the network's full names → the file's.
    """
    anchor = min(model_names, key=lambda name: len(tied[name]), default="")
    holders: dict[str, Names] = {}
    for file_name in file_names:
        for ending in tied.get(anchor, ()):
            prefix = file_name.removesuffix(ending)
            if not file_name.endswith(ending) or (prefix and not prefix.endswith(".")):
                continue
            pairs: Names = {}
            for name, full in model_names.items():
                candidates = (prefix + n for n in (name, *sorted(tied[name])))
                match = next((c for c in candidates if c in file_names), None)
                if match is None:
                    break
                pairs[full] = file_names[match]
            else:
                holders[prefix] = pairs
    return holders


def holder_name(pairs: Names, prefix: str) -> str:
    """Return the full name of the module that ``find_holders`` found; empty: the file itself."""
    num_parts = prefix.count(".")
    parts: list[str] = []
    for part in next(iter(pairs.values()), "").split("."):
        if sum(part not in _WRAPPERS for part in parts) == num_parts:
            break
        parts.append(part)
    return ".".join(parts) if num_parts else ""


def pair_by_renaming(file_names: Names, model_names: Names) -> Names | None:
    """Map the network's full names to the file's if a known renaming makes them equal."""
    for rename in (_without_holders, _renamed):
        file_renamed, model_renamed = rename(file_names), rename(model_names)
        is_unique = len(file_renamed) == len(file_names) and len(model_renamed) == len(model_names)
        if is_unique and file_renamed.keys() == model_renamed.keys():
            return {full: file_renamed[name] for name, full in model_renamed.items()}
    return None


def describe_differences(file_names: Iterable[str], model_names: Iterable[str]) -> str:
    """List the names that only the file or only the network has."""
    in_file, in_model = dict.fromkeys(file_names), dict.fromkeys(model_names)
    missing = list_names(name for name in in_model if name not in in_file)
    extra = list_names(name for name in in_file if name not in in_model)
    parts = [missing and f"no tensor {missing}", extra and f"unexpected tensor {extra}"]
    return "; ".join(filter(None, parts))


# --- by order --------------------------------------------------------------------------------

Layers = dict[str, dict[str, Tensor]]
"""Module name → its tensors by their last name, in order."""


def group_by_layer(tensors: Mapping[str, Tensor]) -> Layers:
    """Group tensors by the module that they belong to."""
    layers: Layers = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        layers.setdefault(module, {})[leaf] = tensor
    return layers


def pair_by_order(file_layers: Layers, model_layers: Layers) -> Names:
    """Map each tensor name of the network to the file's, layer by layer.

    Raises:
        ValueError: the networks differ, or a name shows that the order does.
    """
    if len(file_layers) != len(model_layers):
        raise ValueError(
            f"{_count_layers(file_layers)}; the expected network has {_count_layers(model_layers)}"
        )
    pairs: Names = {}
    for (file_name, in_file), (name, in_model) in zip(
        file_layers.items(), model_layers.items(), strict=True
    ):
        differs = in_file.keys() != in_model.keys()
        if differs or any(in_file[leaf].ndim != in_model[leaf].ndim for leaf in in_model):
            raise ValueError(
                f"{file_name} ({_list_shapes(in_file)}) stands where the expected network has "
                f"{name} ({_list_shapes(in_model)})"
            )
        if name != file_name and _identifies(name, file_layers):
            raise ValueError(
                f"{file_name} stands where the expected network has {name}, which the file has "
                "elsewhere"
            )
        pairs |= {f"{name}.{leaf}": f"{file_name}.{leaf}" for leaf in in_model}
    return pairs


def _identifies(name: str, file_layers: Layers) -> bool:
    """Whether the file has a layer of that name, which is not a number in an nn.Sequential."""
    return name in file_layers and not name.rpartition(".")[2].isdecimal()


def find_ambiguous_layers(file_layers: Layers, model_layers: Layers) -> str | None:
    """Name two layers that only their order tells apart; None if there are none."""
    name_of_shapes: dict[object, str] = {}
    for name, layer in model_layers.items():
        if _identifies(name, file_layers):
            continue
        shapes = tuple(sorted((leaf, tuple(t.shape)) for leaf, t in layer.items()))
        if shapes in name_of_shapes:
            return f"{name_of_shapes[shapes]} and {name}"
        name_of_shapes[shapes] = name
    return None


def _count_layers(layers: Layers) -> str:
    weights = [layer["weight"] for layer in layers.values() if "weight" in layer]
    return (
        f"{len(layers)} layers, {sum(weight.ndim == 4 for weight in weights)} of them convolutions"
    )


def _list_shapes(layer: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{leaf} {tuple(tensor.shape)}" for leaf, tensor in layer.items())
