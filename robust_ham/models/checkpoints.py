"""Trained models on disk: weights in safetensors, and a card (JSON) that describes the model.

A windowed and a plain network have tensors of the same names and shapes; the card says which of
the two the weights belong to. Loading a checkpoint runs no code from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import ValidationError
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from robust_ham.config.experiment import Config
from robust_ham.config.fields import first_error
from robust_ham.config.models import FactoryGroup, ModelGroup, TableGroup, model_group
from robust_ham.data.splits import MAX_CLASSES
from robust_ham.errors import RequestError
from robust_ham.models.build import MODELS, Normalize, build
from robust_ham.models.factories import call_factory
from robust_ham.models.importing.assign import check_tensors, load_tensors
from robust_ham.models.safe_load import read_safetensors
from robust_ham.regular_files import is_regular
from robust_ham.storage.files import file_hash, read_json, write_csv, write_json, writing_folder
from robust_ham.storage.run_folder import CARD, CURVE, WEIGHTS

ZOO = Path(__file__).with_name("zoo")
"""Trained models that the package contains: ``<data set>/<model id>/``."""

_CARD_TYPES = {
    "model_id": str,
    "model": dict,
    "in_channels": int,
    "num_classes": int,
    "weights_sha256": str,
}
_TYPE_NAMES = {str: "text", dict: "a mapping", int: "a whole number"}


def source_folder(config: Config, spec: ModelGroup) -> Path | None:
    """Return the folder of a model from another run or the zoo; None if this run makes it."""
    if spec.source in ("train", "factory"):
        return None
    collection = ZOO / config.dataset.name if spec.source == "zoo" else Path(spec.source)
    return collection / spec.model_id


def save(folder: Path, model: nn.Module, card: dict[str, Any], curve: pd.DataFrame | None) -> None:
    """Write weights, card and, if given, training curve; the folder appears complete or not at all.

    Adds ``weights_sha256`` to the card. The folder must not exist yet.
    """
    with writing_folder(folder) as temporary:
        weights = temporary / WEIGHTS
        weights.write_bytes(to_safetensors(_without_sharing(model.state_dict())))
        write_json(temporary / CARD, card | {"weights_sha256": file_hash(weights)})
        if curve is not None:
            write_csv(temporary / CURVE, curve)


def _without_sharing(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tied weights: safetensors refuses tensors that share memory. Results are on the CPU."""
    separate: dict[str, Tensor] = {}
    used_storages = set[int]()
    for name, tensor in state.items():
        on_cpu = tensor.contiguous().cpu()
        storage = on_cpu.untyped_storage().data_ptr()
        separate[name] = on_cpu.clone() if storage in used_storages else on_cpu
        used_storages.add(storage)
    return separate


def read_card(folder: Path) -> dict[str, Any]:
    """Read and validate the card of a model.

    Raises:
        RequestError: the card is missing or damaged.
    """
    path = folder / CARD
    try:
        card = read_json(path, follow_links=True)
    except NotADirectoryError:
        raise RequestError(
            f"{folder}: expected the folder of a model, got a file; `robust-ham import` converts "
            "weights of other libraries"
        ) from None
    except FileNotFoundError:
        raise RequestError(
            f"{path}: no such model card; expected the folder of a model, such as "
            "results/NAME/models/ID"
        ) from None
    except ValueError as error:
        raise RequestError(str(error)) from None
    for key, kind in _CARD_TYPES.items():
        if key not in card:
            raise RequestError(f"{path}: missing key {key}")
        if type(card[key]) is not kind:
            raise RequestError(
                f"{path}: {key}: expected {_TYPE_NAMES[kind]}, got {card[key]!r:.100}"
            )
    for key in ("in_channels", "num_classes"):
        if not 1 <= card[key] <= MAX_CLASSES:
            raise RequestError(
                f"{path}: {key}: expected a number from 1 to {MAX_CLASSES:,}, got {card[key]}"
            )
    if type(card.get("test_accuracy", 0.0)) not in (int, float):
        raise RequestError(f"{path}: test_accuracy: expected a number")
    return card


def card_files(folder: Path) -> list[Path]:
    """List the files that identify a model: its card and, unless imported, its training curve."""
    curve = folder / CURVE
    return [folder / CARD, *([curve] if is_regular(curve, follow_links=True) else [])]


def load(folder: Path, factory: str | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Load a trained network in eval mode, and its card.

    Weights are checked before memory for the network is allocated. The only user code that runs is
    ``factory``, the function that the configuration names; a card cannot choose another one.

    Raises:
        RequestError: a file is missing or damaged, or does not match the card.
    """
    card = read_card(folder)
    spec = card_spec(card, folder / CARD)
    if isinstance(spec, FactoryGroup) and spec.factory != factory:
        raise RequestError(
            f"{folder / CARD}: names factory {spec.factory}, which the configuration does not name"
        )
    path = folder / WEIGHTS
    if not path.exists():
        raise RequestError(f"{path}: no such file")
    if file_hash(path, follow_links=True) != card["weights_sha256"]:
        raise RequestError(f"{path}: SHA-256 differs from the one in {CARD}: changed or damaged")
    state = read_safetensors(path)
    if not isinstance(spec, FactoryGroup):
        check_tensors(_meta_tensors(spec, card, folder / CARD), state, path)
    model = new_model(spec, card["in_channels"], card["num_classes"])
    load_tensors(model, state, path)
    return model.eval(), card


def _meta_tensors(spec: ModelGroup, card: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the tensors of the network that a card describes, on the meta device (no memory)."""
    try:
        with torch.device("meta"):
            network = MODELS[type(spec)](spec, card["in_channels"], card["num_classes"])
            if spec.normalize:
                constants = torch.zeros(card["in_channels"])
                network = nn.Sequential(Normalize(constants, constants), network)
    except (ValueError, RuntimeError, ArithmeticError) as error:  # sizes that overflow in torch
        reason = str(error).partition("\n")[0]
        raise RequestError(f"{path}: describes a network that cannot be built: {reason}") from None
    return network.state_dict()


def card_spec(card: dict[str, Any], path: Path) -> ModelGroup:
    """Parse the model that a card describes; messages call the card ``path``."""
    try:
        spec = model_group(card["model"])
    except ValidationError as error:
        raise RequestError(f"{path}: model: {first_error(error)}") from None
    except ValueError as error:
        raise RequestError(f"{path}: model: {error}") from None
    if not isinstance(spec, ModelGroup) or isinstance(spec, TableGroup):
        raise RequestError(f"{path}: model: expected an architecture that can be built")
    return spec


def new_model(spec: ModelGroup, in_channels: int, num_classes: int) -> nn.Module:
    """Build the network of a card, without its trained weights.

    A factory is called; its network gets a normalisation in front if the card has one.

    Raises:
        RequestError: the factory does not exist, or does not return an ``nn.Module``.
        ValueError: the network cannot be built.
    """
    if not isinstance(spec, FactoryGroup):
        return build(spec, in_channels, num_classes)
    model = call_factory(spec)
    if not spec.normalize:
        return model
    return nn.Sequential(Normalize(torch.zeros(in_channels), torch.ones(in_channels)), model)


def state_hash(model: nn.Module) -> str:
    """Compute the SHA-256 of names, dtypes, shapes and values of all tensors of a model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


# --- what identifies a model -----------------------------------------------------------------

_OMITTED: dict[str, dict[str, Any]] = {
    "every architecture": {"accuracy_of": None},
    "cnn": {"init": "default", "match": None, "window_layers": "all", "width": 1.0},
    "resnet18_cifar": {"init": "default", "match": None, "first_downsampling": False},
    "factory": {"init": "default", "match": None, "label_only": False, "weights_key": None},
    "training": {"warmup_epochs": 0, "accumulate": 1},
}
"""Keys added after schema 1 was published, and the values that leave earlier hashes unchanged.

Cards and job keys omit a key at this value. Add a row here when you add a key to a configuration.
"""


def _without_omitted(values: dict[str, Any], section: str) -> dict[str, Any]:
    omitted = _OMITTED.get(section, {})
    return {k: v for k, v in values.items() if k not in omitted or v != omitted[k]}


def describe(spec: ModelGroup) -> dict[str, Any]:
    """Return the part of a model's configuration that its card keeps: all but its origin."""
    values: dict[str, Any] = json.loads(
        spec.model_dump_json(exclude={"sweep", "source", "training"})
    )
    return _without_omitted(_without_omitted(values, "every architecture"), values["architecture"])


def training_identity(config: Config, spec: ModelGroup) -> dict[str, Any]:
    """Return the part of a configuration that decides the result of training a model."""
    values: dict[str, Any] = json.loads(config.training_of(spec).model_dump_json())
    training = _without_omitted(values, "training")
    return {"model": describe(spec) | {"prefix": None}, "training": training}
