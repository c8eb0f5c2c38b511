"""Constants of a normalisation among the tensors of a network, and those of a file for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from robust_ham.errors import RequestError
from robust_ham.models.importing.names import listed, without_wrappers
from robust_ham.models.importing.networks import ForeignNetwork

_CONSTANTS = [  # of a normalisation: what is subtracted, what it is divided by
    *(("mean", "std"), ("mu", "sigma"), ("mu", "std"), ("new_mean", "new_std")),
    *(("_mean", "_std"), ("pixel_mean", "pixel_std"), ("data_mean", "data_std")),
    *(("image_mean", "image_std"), ("means", "stds"), ("mean", "sigma")),
]
_MAX_CHANNELS = 4  # of an image; longer vectors are no constants of its normalisation
_LARGEST_CONSTANT = 2.0  # for images in [0, 1]; those for 0 … 255 are around 100


def constants_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, str]]:
    """Module → names of the constants of a normalisation, mean and standard deviation."""
    found: dict[str, tuple[str, str]] = {}
    for name, mean in tensors.items():
        module, _, leaf = name.rpartition(".")
        for mean_leaf, std_leaf in _CONSTANTS:
            std_name = f"{module}.{std_leaf}".lstrip(".")
            std = tensors.get(std_name)
            if leaf != mean_leaf or module in found or std is None or std.shape != mean.shape:
                continue
            if mean.is_floating_point() and mean.numel() <= _MAX_CHANNELS:
                found[module] = (name, std_name)
    return found


def paired_constants(network: ForeignNetwork, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The constants that a file gives a network, by the network's names.

    Args:
        network: the file's network.
        own: tensors of the network; where the file has no constants, these stay.

    Raises:
        RequestError: only the file normalises, or the constants are not those of the network.
    """
    tensors, path = network.tensors, network.path
    ours, theirs = list(constants_of(own).values()), list(constants_of(tensors).values())
    if not theirs:
        for mean, std in ours:
            if not own[mean].any() and bool((own[std] == 1).all()):  # never set
                raise RequestError(f"{path}: not the network asked for: no tensor {mean}, {std}")
        return {}
    if not ours:
        raise RequestError(
            f"{path}: holds a normalisation ({', '.join(theirs[0])}), and the network has none: "
            "import the file with normalize: true, or let the factory's network normalise"
        )
    by_name = {tuple(without_wrappers(pair)): pair for pair in theirs}
    same_names = {pair: by_name.get(tuple(without_wrappers(pair))) for pair in ours}
    chosen = {pair: there for pair, there in same_names.items() if there is not None}
    if len(ours) == 1 and not chosen:
        chosen = {ours[0]: theirs[0]}

    def is_used(pair: tuple[str, str]) -> bool:
        return any(
            all(is_equal(tensors[n], tensors[u]) for n, u in zip(pair, used, strict=True))
            for used in chosen.values()
        )

    if len(chosen) < len(ours) or not all(map(is_used, theirs)):
        raise RequestError(
            f"{path}: cannot tell which normalisation is which: the file has "
            f"{listed(', '.join(pair) for pair in theirs)}; the network "
            f"{listed(', '.join(pair) for pair in ours)}"
        )
    constants: dict[str, Tensor] = {}
    for names, their_names in chosen.items():
        is_for_255 = set(names) == set(their_names) and _are_large(*(own[n] for n in names))
        _check_range(path, their_names, [tensors[n] for n in their_names], is_for_255)
        for name, their_name in zip(names, their_names, strict=True):
            expected, got = own[name].numel(), tensors[their_name].numel()
            if got != expected:
                raise RequestError(f"{path}: {their_name}: expected {expected} numbers, got {got}")
            constants[name] = tensors[their_name].reshape(own[name].shape)
    return constants


def _are_large(mean: Tensor, std: Tensor) -> bool:
    """Whether constants are for images in 0 … 255."""
    return max(float(mean.abs().max()), float(std.abs().max())) > _LARGEST_CONSTANT


def _check_range(
    path: Path, names: tuple[str, str], values: list[Tensor], may_be_255: bool
) -> None:
    """Constants must be for images in [0, 1], or for 0 … 255 where the network's own are too."""
    mean, std = values
    if bool((std <= 0).any()):
        raise RequestError(
            f"{path}: {names[1]}: expected standard deviations above 0, got "
            f"{std.flatten().tolist()}"
        )
    if _are_large(mean, std) and not may_be_255:
        raise RequestError(
            f"{path}: {', '.join(names)}: expected the mean and the standard deviation of images "
            f"in [0, 1], got {mean.flatten().tolist()} and {std.flatten().tolist()}"
        )


def is_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and values."""
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
