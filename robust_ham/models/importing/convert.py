"""Import a third-party checkpoint: match names, check, measure, and write a model folder.

A windowed and a plain network have tensors of the same names and shapes, so either loads as the
other without an error. Imported weights must therefore prove which of them they are: by windows
stored in the file, by its metadata, and by their accuracy under each window.
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
from robust_ham.models.factories import check_forward
from robust_ham.models.importing.assign import assign_tensors
from robust_ham.models.importing.normalisation import find_constants
from robust_ham.models.importing.state_dicts import StoredNetwork, read_network
from robust_ham.models.predict import logits_of, model_card
from robust_ham.storage.files import file_hash

TRIED_WINDOWS = ("none", "hamming", "hamming_sqrt")
"""Windows of known releases, tried beside the requested one."""

TRIAL_IMAGES = 1000
CLEARLY = 3.0
"""Standard deviations by which a window must give more correct predictions than another."""

STATED_TOLERANCE = 0.002
"""For published accuracies: they are rounded, and were measured on other machines."""


@dataclass(frozen=True)
class Request:
    """What to import: the weights in ``path``, as those of the network ``spec``.

    ``key`` selects one network of several in a file. ``mean`` and ``std`` are per channel, for
    images in [0, 1]. ``accuracy`` is the published test accuracy, in 0 … 1; the import must
    reproduce it.
    """

    path: Path
    spec: ModelGroup
    key: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Imported:
    """The folder of an imported model, its card, and whether it existed before."""

    folder: Path
    card: dict[str, Any]
    already_there: bool

    @property
    def group(self) -> str:
        """The group under ``models`` with which a configuration uses the model, in YAML."""
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
    """Write ``<collection>/<model id>/``: weights and card. ``say`` receives each measurement.

    Raises:
        RequestError: the file is unsafe to read, is not the expected network, or does not reach
            the expected accuracy; nothing is written.
    """
    path, spec, test = request.path, request.spec, dataset.test
    stored = read_network(path, request.key)
    source = {
        "file": path.name,
        "sha256": file_hash(path, follow_links=True),
        "key": stored.key or None,
        "mean": request.mean and list(request.mean),
        "std": request.std and list(request.std),
    }
    folder = collection / spec.model_id
    if folder.exists():
        card = checkpoints.read_card(folder)
        expected = (checkpoints.describe(spec), dataset.test_hash)
        if (card["model"], card.get("test_sha256")) != expected or not _is_from(card, source):
            raise RequestError(
                f"{folder}: contains another model: choose another folder with --out, or add a "
                "prefix in --as"
            )
        return Imported(folder, card, already_there=True)
    try:
        model = checkpoints.new_model(spec, test.image_shape[0], test.num_classes)
    except ValueError as error:
        raise RequestError(f"--as: {error}") from None
    stated_accuracy = stored.accuracy if request.accuracy is None else request.accuracy
    target = _set_normalisation(request, stored, model)
    assignment = assign_tensors(stored, target, Path(dataset.config.name).name)
    if not isinstance(spec, FactoryGroup):
        _check_metadata(path, spec, stored)
    elif assignment.ambiguous_layers is not None and stated_accuracy is None:
        raise RequestError(
            f"{path}: its tensor names differ from the network's, and "
            f"{assignment.ambiguous_layers} have the same shapes, so their order is uncertain: "
            "give the published --accuracy to check it"
        )
    model.eval().to(device)
    evidence: dict[str, Any] = {}
    is_settled = assignment.has_windows and assignment.ambiguous_layers is None
    if not isinstance(spec, FactoryGroup) and not is_settled:
        evidence["readings"] = _accuracy_by_window(
            request, model, test, device, say, must_decide=stated_accuracy is None
        )
    check_forward(spec, model, test.image_shape, device)
    card = model_card(spec, model, test, dataset.test_hash, test.num_classes, device)
    say(f"{card['test_accuracy']:6.2%} accuracy on all {len(test)} test images")
    if stated_accuracy is not None:
        evidence["stated_accuracy"] = stated_accuracy
        origin = "the file" if request.accuracy is None else "--accuracy"
        if abs(card["test_accuracy"] - stated_accuracy) > STATED_TOLERANCE:
            raise RequestError(
                f"{path}: test accuracy is {card['test_accuracy']:.4f}, but {origin} states "
                f"{stated_accuracy:.4f}: check the weights, --mean and --std, and the images"
            )
        if assignment.ambiguous_layers is not None and card["test_accuracy"] <= _chance(test):
            raise RequestError(
                f"{path}: accuracy is at chance level, so it does not confirm the order of "
                f"{assignment.ambiguous_layers}"
            )
    checkpoints.save(folder, model.cpu(), card | {"source": source | evidence}, None)
    return Imported(folder, checkpoints.read_card(folder), already_there=False)


def _is_from(card: dict[str, Any], source: dict[str, Any]) -> bool:
    """Whether a card names this source: file, hash, key and constants."""
    card_source = card.get("source")
    return isinstance(card_source, dict) and all(
        card_source.get(key) == value for key, value in source.items()
    )


# --- the weights -----------------------------------------------------------------------------


def _set_normalisation(request: Request, stored: StoredNetwork, model: nn.Module) -> nn.Module:
    """Set ``--mean`` and ``--std`` in ``model``; return the part of it that the file contains."""
    mean, std = request.mean, request.std
    if not request.spec.normalize:
        if mean or std:
            raise RequestError("--mean, --std: only with normalize: true in --as")
        return model
    assert isinstance(model, nn.Sequential)
    normalize = model[0]
    assert isinstance(normalize, Normalize)
    if find_constants(stored.tensors):
        if mean or std:
            raise RequestError(f"--mean, --std: {request.path} contains its own; leave them out")
        return model
    if mean is None or std is None:
        raise RequestError(
            "--mean, --std: required with normalize: true: the constants of training, for images "
            "in [0, 1]; those of ImageNet are --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
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


def _chance(test: Split) -> float:
    """Return the accuracy that a constant prediction may reach by chance."""
    share = float(test.labels.bincount().max()) / len(test)
    return share + CLEARLY * math.sqrt(share * (1 - share) / len(test))


# --- windowed or plain -----------------------------------------------------------------------


def _check_metadata(path: Path, spec: ModelGroup, stored: StoredNetwork) -> None:
    """Require that the metadata of a file agree with the requested network."""
    if stored.windowed is not None and stored.windowed != (spec.window != "none"):
        declared = "windowed" if stored.windowed else "plain"
        raise RequestError(f"{path}: declares a {declared} network; --as has window {spec.window}")
    declared_values = stored.hyper_parameters  # of the replication on CIFAR-10
    kernel, padding = declared_values.get("kernel"), declared_values.get("padding")
    if isinstance(kernel, int) and isinstance(padding, int) and padding != kernel // 2:
        raise RequestError(
            f"{path}: declares padding {padding} for kernels of {kernel}; expected {kernel // 2}"
        )
    if declared_values.get("big_first") is True:
        raise RequestError(
            f"{path}: declares big_first, which pads kernels of 9 by 5; expected padding 4"
        )
    first_downsampling = declared_values.get("first_downsampling")
    if isinstance(spec, ResNet18CifarGroup) and first_downsampling not in (
        None,
        spec.first_downsampling,
    ):
        raise RequestError(
            f"{path}: declares first_downsampling {first_downsampling}; --as has "
            f"{spec.first_downsampling}"
        )


def _accuracy_by_window(
    request: Request,
    model: nn.Module,
    test: Split,
    device: torch.device,
    say: Say,
    *,
    must_decide: bool,
) -> dict[str, float]:
    """Compute the accuracy of the weights under each window.

    Raises:
        RequestError: another window is clearly better than the requested one; or, with
            ``must_decide``, accuracy does not show whether the network is windowed.
    """
    path, spec = request.path, request.spec
    part = test[torch.from_numpy(balanced_order(test.labels, 0)[:TRIAL_IMAGES])]
    is_correct: dict[str, Tensor] = {}
    accuracies: dict[str, float] = {}
    for window in dict.fromkeys((spec.window, *TRIED_WINDOWS)):
        trial = build(
            spec.model_copy(update={"window": window}), test.image_shape[0], test.num_classes
        )
        trial.load_state_dict(model.state_dict())
        logits = logits_of(trial.to(device), part.images, device)
        is_correct[window] = logits.argmax(1) == part.labels
        accuracies[window] = int(is_correct[window].sum()) / len(part)
        say(f"{accuracies[window]:6.2%} accuracy on {len(part)} test images with window {window}")
    best = max(accuracies, key=lambda window: accuracies[window])
    requested = is_correct[spec.window]
    if _lead(is_correct[best], requested) > CLEARLY:
        raise RequestError(
            f"{path}: --as has window {spec.window}, but accuracy on {len(part)} test images is "
            f"{accuracies[spec.window]:.1%} with it and {accuracies[best]:.1%} with {best}"
        )
    others = [w for w in is_correct if w != "none"] if spec.window == "none" else ["none"]
    if must_decide and any(_lead(requested, is_correct[w]) < CLEARLY for w in others):
        listed = ", ".join(f"{share:.1%} with window {w}" for w, share in accuracies.items())
        raise RequestError(
            f"{path}: cannot tell whether the network is windowed: accuracy is {listed}, on "
            f"{len(part)} test images; check --mean and --std, or give the published --accuracy"
        )
    return accuracies


def _lead(one: Tensor, other: Tensor) -> float:
    """By how many standard deviations ``one`` is correct more often, on the same images."""
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    return (only_one - only_other) / math.sqrt(max(only_one + only_other, 1))
