"""Somebody else's checkpoint -> our layout: given our names, checked, measured, written whole.

A windowed and a plain network have the same tensors: one loads as the other without an error and is
another function. So weights must prove to be what they are imported as: by windows stored beside
them, by what the file says of them, and by the accuracy that they have under each reading.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from robust_ham.config.models import FactoryGroup, ModelGroup, ResNet18CifarGroup
from robust_ham.data.datasets import Dataset
from robust_ham.data.splits import Split, balanced_order
from robust_ham.errors import RequestError
from robust_ham.models import checkpoints
from robust_ham.models.build import Normalize, build
from robust_ham.models.importing.fit import fit
from robust_ham.models.importing.networks import ForeignNetwork, read_network
from robust_ham.models.importing.normalisation import constants_of
from robust_ham.models.predict import logits_of, model_card
from robust_ham.storage.files import file_hash

READINGS = ("none", "hamming", "hamming_sqrt")
"""Windows under which the weights are tried, beside the one asked for: those of known releases."""

READING_IMAGES = 1000
CLEARLY = 3.0
"""Standard deviations by which one reading must be right more often than another."""

STATED_TOLERANCE = 0.002
"""Accuracies that others state were rounded, and measured on other machines."""


@dataclass(frozen=True)
class Request:
    """What to import: the weights in ``path`` are those of the network ``spec``.

    ``key`` names one network of several in a file. ``mean`` and ``std`` per channel, for images in
    [0, 1]. ``accuracy`` as published, in 0 … 1; it must be found again.
    """

    path: Path
    spec: ModelGroup
    key: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Imported:
    """Where the model is, its card, and whether it had been there already."""

    folder: Path
    card: dict[str, Any]
    already_there: bool

    @property
    def group(self) -> str:
        """The group under ``models`` by which a configuration uses the model."""
        spec = checkpoints.card_spec(self.card, self.folder)
        group = {
            "source": str(self.folder.parent),
            "architecture": spec.model_dump()["architecture"],
        }
        group |= json.loads(spec.model_dump_json(exclude_defaults=True))
        return yaml.safe_dump(group, default_flow_style=True, sort_keys=False, width=10_000).strip()


Say = Callable[[str], None]


def import_checkpoint(
    request: Request, dataset: Dataset, collection: Path, device: torch.device, say: Say
) -> Imported:
    """Write ``<collection>/<model id>/``: weights and card; ``say`` is told what was measured.

    Raises:
        RequestError: the file cannot be read safely, is not the network asked for, or has not the
            accuracy that it should have; nothing is written.
    """
    path, spec, test = request.path, request.spec, dataset.test
    network = read_network(path, request.key)
    source = {
        "file": path.name,
        "sha256": file_hash(path, follow_links=True),
        "key": network.key or None,
        "mean": request.mean and list(request.mean),
        "std": request.std and list(request.std),
    }
    folder = collection / spec.model_id
    if folder.exists():
        card = checkpoints.read_card(folder)
        asked = (checkpoints.describe(spec), dataset.test_hash)
        if (card["model"], card.get("test_sha256")) != asked or not _contains(card, source):
            raise RequestError(f"{folder}: holds another model; --out FOLDER, or a prefix in --as")
        return Imported(folder, card, already_there=True)
    try:
        model = checkpoints.new_model(spec, test.image_shape[0], test.num_classes)
    except ValueError as error:
        raise RequestError(f"--as: {error}") from None
    stated = network.accuracy if request.accuracy is None else request.accuracy
    target = _target(request, network, model)
    found = fit(network, target, Path(dataset.config.name).name)
    if not isinstance(spec, FactoryGroup):
        _check_statements(path, spec, network)
    elif found.alike is not None and stated is None:
        raise RequestError(
            f"{path}: its names are not the network's, and {found.alike} have the same shapes: "
            "give the published --accuracy, which tells whether their order is right"
        )
    model.eval().to(device)
    evidence: dict[str, Any] = {}
    is_settled = found.has_windows and found.alike is None
    if not isinstance(spec, FactoryGroup) and not is_settled:
        evidence["readings"] = _readings(request, model, test, device, say, needed=stated is None)
    checkpoints.check_forward(spec, model, test.image_shape, device)
    card = model_card(spec, model, test, dataset.test_hash, test.num_classes, device)
    say(f"{card['test_accuracy']:6.2%} of all {len(test)} test images right")
    if stated is not None:
        evidence["stated_accuracy"] = stated
        origin = "the file" if request.accuracy is None else "--accuracy"
        if abs(card["test_accuracy"] - stated) > STATED_TOLERANCE:
            raise RequestError(
                f"{path}: test accuracy {card['test_accuracy']:.4f}, but {origin} says "
                f"{stated:.4f}: other weights, --mean and --std, or images"
            )
        if found.alike is not None and card["test_accuracy"] <= _at_chance(test):
            raise RequestError(
                f"{path}: paired by order alone, and right as often as chance, which confirms "
                f"nothing of {found.alike}"
            )
    checkpoints.save(folder, model.cpu(), card | {"source": source | evidence}, None)
    return Imported(folder, checkpoints.read_card(folder), already_there=False)


def _contains(card: dict[str, Any], source: dict[str, Any]) -> bool:
    known = card.get("source")
    return isinstance(known, dict) and all(known.get(key) == source[key] for key in source)


# --- the weights -----------------------------------------------------------------------------


def _target(request: Request, network: ForeignNetwork, model: nn.Module) -> nn.Module:
    """Set the constants of the normalisation; the part of ``model`` that the file holds."""
    mean, std = request.mean, request.std
    if not request.spec.normalize:
        if mean or std:
            raise RequestError("--mean, --std: only with normalize: true in --as")
        return model
    assert isinstance(model, nn.Sequential)
    normalize = model[0]
    assert isinstance(normalize, Normalize)
    if constants_of(network.tensors):
        if mean or std:
            raise RequestError(f"--mean, --std: {request.path} has its own")
        return model
    if mean is None or std is None:
        raise RequestError(
            "--mean, --std: needed with normalize: true; the constants it was trained with, for "
            "images in [0, 1]: ImageNet's are --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
        )
    channels = len(normalize.mean)
    for option, values in (("--mean", mean), ("--std", std)):
        if len(values) != channels:
            raise RequestError(f"{option}: expected {channels} numbers, got {len(values)}")
    if min(std) <= 0:
        raise RequestError(f"--std: expected numbers above 0, got {min(std):g}")
    with torch.no_grad():
        normalize.mean.copy_(torch.tensor(mean).reshape(-1, 1, 1))
        normalize.std.copy_(torch.tensor(std).reshape(-1, 1, 1))
    network_inside: nn.Module = model[1]
    return network_inside


def _at_chance(test: Split) -> float:
    """Accuracy up to which a network may know nothing: its best constant guess, and chance."""
    share = float(test.labels.bincount().max()) / len(test)
    return share + CLEARLY * math.sqrt(share * (1 - share) / len(test))


# --- windowed or plain -----------------------------------------------------------------------


def _check_statements(path: Path, spec: ModelGroup, network: ForeignNetwork) -> None:
    """What the file says of the network must agree with what it is imported as."""
    if network.windowed is not None and network.windowed != (spec.window != "none"):
        says = "windowed" if network.windowed else "plain"
        raise RequestError(f"{path}: says that it is {says}; --as has window {spec.window}")
    said = network.hyper_parameters  # of the replication on CIFAR-10
    kernel, padding = said.get("kernel"), said.get("padding")
    if isinstance(kernel, int) and isinstance(padding, int) and padding != kernel // 2:
        raise RequestError(
            f"{path}: kernels of {kernel} padded by {padding}; ours: by {kernel // 2}"
        )
    if said.get("big_first") is True:
        raise RequestError(f"{path}: big_first pads kernels of 9 by 5; ours are padded by 4")
    down = said.get("first_downsampling")
    if isinstance(spec, ResNet18CifarGroup) and down not in (None, spec.first_downsampling):
        own = spec.first_downsampling
        raise RequestError(f"{path}: says first_downsampling {down}; --as has {own}")


def _readings(
    request: Request, model: nn.Module, test: Split, device: torch.device, say: Say, *, needed: bool
) -> dict[str, float]:
    """Share of test images that the weights get right under each window.

    Raises:
        RequestError: another window than that asked for is clearly better, or, where this is
            ``needed``, it does not show whether the network is windowed.
    """
    path, spec = request.path, request.spec
    part = test[torch.from_numpy(balanced_order(test.labels, 0)[:READING_IMAGES])]
    right: dict[str, Tensor] = {}
    shares: dict[str, float] = {}
    for window in dict.fromkeys((spec.window, *READINGS)):
        reading = build(
            spec.model_copy(update={"window": window}), test.image_shape[0], test.num_classes
        )
        reading.load_state_dict(model.state_dict())
        logits = logits_of(reading.to(device), part.images, device)
        right[window] = logits.argmax(1) == part.labels
        shares[window] = int(right[window].sum()) / len(part)
        say(f"{shares[window]:6.2%} of {len(part)} test images right with window {window}")
    best = max(shares, key=lambda window: shares[window])
    own = right[spec.window]
    if _lead(right[best], own) > CLEARLY:
        raise RequestError(
            f"{path}: --as has window {spec.window}, but of {len(part)} test images "
            f"{shares[spec.window]:.1%} are right so and {shares[best]:.1%} with {best}"
        )
    others = [w for w in right if w != "none"] if spec.window == "none" else ["none"]
    if needed and any(_lead(own, right[w]) < CLEARLY for w in others):
        told = ", ".join(f"{share:.1%} with window {w}" for w, share in shares.items())
        raise RequestError(
            f"{path}: cannot tell whether it is windowed: right on {told} of {len(part)} test "
            "images; check --mean and --std, or give the published --accuracy"
        )
    return shares


def _lead(right: Tensor, other: Tensor) -> float:
    """By how many standard deviations ``right`` is right more often, both on the same images."""
    only, only_other = int((right & ~other).sum()), int((other & ~right).sum())
    return (only - only_other) / math.sqrt(max(only + only_other, 1))
