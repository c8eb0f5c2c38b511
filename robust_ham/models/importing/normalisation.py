"""Find the constants of a normalisation among tensors, and copy a file's to a network's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from robust_ham.errors import RequestError, list_names
from robust_ham.models.importing.match_names import without_wrappers
from robust_ham.models.importing.state_dicts import StoredNetwork

_CONSTANTS = [  # usual names of a normalisation's mean and standard deviation
    *(("mean", "std"), ("mu", "sigma"), ("mu", "std"), ("new_mean", "new_std")),
    *(("_mean", "_std"), ("pixel_mean", "pixel_std"), ("data_mean", "data_std")),
    *(("image_mean", "image_std"), ("means", "stds"), ("mean", "sigma")),
]
_MAX_CHANNELS = 4  # of an image; longer vectors are not constants of its normalisation
_LARGEST_CONSTANT = 2.0  # for images in [0, 1]; those for 0 … 255 are around 100


def find_constants(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, str]]:
    """Map each module to the names of its mean and standard deviation."""
    constants: dict[str, tuple[str, str]] = {}
    for name, mean in tensors.items():
        module, _, leaf = name.rpartition(".")
        for mean_leaf, std_leaf in _CONSTANTS:
            std_name = f"{module}.{std_leaf}".lstrip(".")
            std = tensors.get(std_name)
            if leaf != mean_leaf or module in constants or std is None or std.shape != mean.shape:
                continue
            if mean.is_floating_point() and mean.numel() <= _MAX_CHANNELS:
                constants[module] = (name, std_name)
    return constants


def match_constants(
    stored: StoredNetwork, model_tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the constants of a file by the names of a network.

    Args:
        stored: the network in the file.
        model_tensors: tensors of the network; it keeps its constants if the file has none.

    Raises:
        RequestError: only the file normalises, or its constants do not match the network's.
    """
    path = stored.path
    model_pairs = list(find_constants(model_tensors).values())
    file_pairs = list(find_constants(stored.tensors).values())
    if not file_pairs:
        for mean, std in model_pairs:
            is_unset = not model_tensors[mean].any() and bool((model_tensors[std] == 1).all())
            if is_unset:
                raise RequestError(f"{path}: not the expected network: no tensor {mean}, {std}")
        return {}
    if not model_pairs:
        raise RequestError(
            f"{path}: contains a normalisation ({', '.join(file_pairs[0])}), but the network has "
            "none: import the file with normalize: true, or normalise in the factory's network"
        )
    file_pair_of = {tuple(without_wrappers(pair)): pair for pair in file_pairs}
    same_names = {pair: file_pair_of.get(tuple(without_wrappers(pair))) for pair in model_pairs}
    matches = {pair: file_pair for pair, file_pair in same_names.items() if file_pair is not None}
    if len(model_pairs) == 1 and not matches:
        matches = {model_pairs[0]: file_pairs[0]}

    def is_used(pair: tuple[str, str]) -> bool:
        return any(
            all(
                is_equal(stored.tensors[name], stored.tensors[used_name])
                for name, used_name in zip(pair, used, strict=True)
            )
            for used in matches.values()
        )

    if len(matches) < len(model_pairs) or not all(map(is_used, file_pairs)):
        raise RequestError(
            f"{path}: cannot match its normalisations with the network's: the file has "
            f"{list_names(', '.join(pair) for pair in file_pairs)}; the network has "
            f"{list_names(', '.join(pair) for pair in model_pairs)}"
        )
    constants: dict[str, Tensor] = {}
    for names, file_names in matches.items():
        may_be_255 = set(names) == set(file_names) and _are_for_255(
            *(model_tensors[n] for n in names)
        )
        _check_range(path, file_names, [stored.tensors[n] for n in file_names], may_be_255)
        for name, file_name in zip(names, file_names, strict=True):
            expected, got = model_tensors[name].numel(), stored.tensors[file_name].numel()
            if got != expected:
                raise RequestError(f"{path}: {file_name}: expected {expected} numbers, got {got}")
            constants[name] = stored.tensors[file_name].reshape(model_tensors[name].shape)
    return constants


def _are_for_255(mean: Tensor, std: Tensor) -> bool:
    """Whether constants are for images in 0 … 255."""
    return max(float(mean.abs().max()), float(std.abs().max())) > _LARGEST_CONSTANT


def _check_range(
    path: Path, names: tuple[str, str], values: list[Tensor], may_be_255: bool
) -> None:
    """Require constants for images in [0, 1], or for 0 … 255 if the network's are."""
    mean, std = values
    if bool((std <= 0).any()):
        raise RequestError(
            f"{path}: {names[1]}: expected standard deviations above 0, got "
            f"{std.flatten().tolist()}"
        )
    if _are_for_255(mean, std) and not may_be_255:
        raise RequestError(
            f"{path}: {', '.join(names)}: expected the mean and the standard deviation of images "
            f"in [0, 1], got {mean.flatten().tolist()} and {std.flatten().tolist()}"
        )


def is_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and values."""
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
