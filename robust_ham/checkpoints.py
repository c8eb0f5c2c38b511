"""A trained model on disk: weights that run no code, and a card that says what they mean.

A windowed and a plain network have the same parameter names and shapes; the card decides which of
them the weights belong to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from robust_ham.config import Config, RequestError
from robust_ham.foreign import check_packing, read_safetensors
from robust_ham.model_groups import FactoryGroup, ModelGroup, TableGroup, model_group
from robust_ham.models import MODELS, Normalize, build
from robust_ham.own_code import import_function
from robust_ham.splits import MAX_CLASSES
from robust_ham.store import file_hash, read_json, write_csv, write_json, writing_folder

WEIGHTS, CARD, CURVE = "model.safetensors", "model.json", "training.csv"


_CARD = {"model_id": str, "model": dict, "in_channels": int, "num_classes": int}
_CARD |= {"weights_sha256": str}
_KINDS = {str: "text", dict: "a mapping", int: "a whole number"}
_NUMBERS = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8),
}


def save(folder: Path, model: nn.Module, card: dict[str, Any], curve: pd.DataFrame | None) -> None:
    """Write weights, card and, where it is known, training curve as one folder that appears whole.

    The card gains ``weights_sha256``; the folder must not be there yet.
    """
    with writing_folder(folder) as temporary:
        weights = temporary / WEIGHTS
        save_file({k: v.contiguous().cpu() for k, v in model.state_dict().items()}, weights)
        weights.chmod(0o644)
        write_json(temporary / CARD, card | {"weights_sha256": file_hash(weights)})
        if curve is not None:
            write_csv(temporary / CURVE, curve)


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a model.

    Raises:
        RequestError: missing or damaged.
    """
    path = folder / CARD
    try:
        card = read_json(path)
    except FileNotFoundError:
        raise RequestError(f"{path}: no such model card") from None
    except ValueError as error:
        raise RequestError(str(error)) from None
    for key, kind in _CARD.items():
        if key not in card:
            raise RequestError(f"{path}: no {key}")
        if type(card[key]) is not kind:
            raise RequestError(f"{path}: {key}: expected {_KINDS[kind]}, got {card[key]!r:.100}")
    for key in ("in_channels", "num_classes"):
        if not 1 <= card[key] <= MAX_CLASSES:
            raise RequestError(
                f"{path}: {key}: expected a number of 1 … {MAX_CLASSES:,}, got {card[key]}"
            )
    if type(card.get("test_accuracy", 0.0)) not in (int, float):
        raise RequestError(f"{path}: test_accuracy: expected a number")
    return card


def described(folder: Path) -> list[Path]:
    """Files that say what a model is: its card and, unless it was imported, its training curve."""
    return [folder / name for name in (CARD, CURVE) if name == CARD or (folder / name).is_file()]


def load(folder: Path, factory: str | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """A trained network in eval mode, and its card.

    ``factory`` is the function that the configuration names, if any: no other is run, whatever a
    card says. Nothing is built before the weights are known to be those of such a network.

    Raises:
        RequestError: a file is missing, damaged, or not what the card says.
    """
    card = read_card(folder)
    spec = card_spec(card, folder / CARD)
    if isinstance(spec, FactoryGroup) and spec.factory != factory:
        raise RequestError(f"{folder / CARD}: names a function that the configuration does not")
    path = folder / WEIGHTS
    if not path.is_file():
        raise RequestError(f"{path}: no such file")
    if file_hash(path) != card["weights_sha256"]:
        raise RequestError(f"{path}: not the weights that the card names (SHA-256 differs)")
    state = _read_state(path)
    if not isinstance(spec, FactoryGroup):
        check_tensors(_own_tensors(spec, card, folder / CARD), state, path)
    model = new_model(spec, card["in_channels"], card["num_classes"])
    fill(model, state, path)
    return model.eval(), card


def _own_tensors(spec: ModelGroup, card: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Tensors of the network that a card describes, without values and without memory."""
    try:
        with torch.device("meta"):
            network = MODELS[type(spec)](spec, card["in_channels"], card["num_classes"])
            if spec.normalize:
                constants = torch.zeros(card["in_channels"])
                network = nn.Sequential(Normalize(constants, constants), network)
    except (ValueError, RuntimeError, ArithmeticError) as error:  # torch cannot count so far
        reason = str(error).partition("\n")[0]
        raise RequestError(f"{path}: describes a network that cannot be: {reason}") from None
    return network.state_dict()


def card_spec(card: dict[str, Any], path: Path) -> ModelGroup:
    """The model that a card describes."""
    try:
        spec = model_group(card["model"])
    except (ValidationError, ValueError):
        raise RequestError(f"{path}: does not describe a model known here") from None
    if not isinstance(spec, ModelGroup) or isinstance(spec, TableGroup):
        raise RequestError(f"{path}: does not describe a model that can be built")
    return spec


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill ``model`` from a .safetensors or, without running code, a .pth state dict.

    Raises:
        RequestError: unreadable, other names or shapes, or values that are not finite.
    """
    fill(model, _read_state(path), path)


def fill(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Fill ``model`` with the tensors that ``path`` held.

    Raises:
        RequestError: other names or shapes, or values that are no finite numbers.
    """
    check_tensors(model.state_dict(), state, path)
    model.load_state_dict(state)


def check_tensors(own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not those of a network, or hold what is no finite number.

    Raises:
        RequestError: other names, shapes or kinds of values, or values that are not finite.
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
        if not torch.isfinite(state[name]).all():
            raise RequestError(f"{path}: {name} has values that are not finite")
    extra = next((name for name in state if name not in own), None)
    if extra is not None:
        raise RequestError(f"{path}: unexpected tensor {extra}")


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise RequestError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    check_packing(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises many kinds for a damaged or unsafe file
        raise RequestError(f"{path}: not a state dict that can be read safely") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise RequestError(f"{path}: expected a state dict of tensors")
    return state


_LATER_KEYS: dict[str, dict[str, Any]] = {
    "cnn": {"init": "default", "match": None, "window_layers": "all", "width": 1.0},
    "resnet18_cifar": {"init": "default", "match": None, "first_downsampling": False},
    "factory": {"init": "default", "match": None},
}
"""Keys that older cards of an architecture do not have, and what these cards mean."""

_LATER_KEYS_OF_ALL: dict[str, Any] = {"accuracy_of": None}
"""The same for all architectures."""

_LATER_TRAINING_KEYS = {"warmup_epochs": 0, "accumulate": 1}
"""The same for recipes."""


def describe(spec: ModelGroup) -> dict[str, Any]:
    """What the card keeps of a model's configuration: all but how it was come by."""
    values: dict[str, Any] = json.loads(
        spec.model_dump_json(exclude={"sweep", "source", "training"})
    )
    later = _LATER_KEYS_OF_ALL | _LATER_KEYS.get(values["architecture"], {})
    return {k: v for k, v in values.items() if k not in later or v != later[k]}


def training_identity(config: Config, spec: ModelGroup) -> dict[str, Any]:
    """The part of a configuration that decides what a trained model is."""
    values: dict[str, Any] = json.loads(config.training_of(spec).model_dump_json())
    later = _LATER_TRAINING_KEYS
    training = {k: v for k, v in values.items() if k not in later or v != later[k]}
    return {"model": describe(spec) | {"prefix": None}, "training": training}


def import_factory(spec: FactoryGroup) -> Callable[[], nn.Module]:
    """The user's function ``module:function``.

    Raises:
        RequestError: no such module or function, or no such weights file.
    """
    factory: Callable[[], nn.Module] = import_function(spec.factory, "factory")
    if spec.weights is not None and not Path(spec.weights).is_file():
        raise RequestError(f"weights {spec.weights}: no such file")
    return factory


def load_factory(spec: FactoryGroup) -> nn.Module:
    """A user's own model in eval mode.

    Raises:
        RequestError: not an ``nn.Module``, or the weights do not fit it.
    """
    model = call_factory(spec)
    if spec.weights is not None:
        load_weights(model, Path(spec.weights))
    return model.eval()


def call_factory(spec: FactoryGroup) -> nn.Module:
    """What the user's function returns.

    Raises:
        RequestError: not an ``nn.Module``.
    """
    model = import_factory(spec)()
    if not isinstance(model, nn.Module):
        raise RequestError(f"factory {spec.factory}: expected a torch.nn.Module, got {type(model)}")
    return model


def new_model(spec: ModelGroup, in_channels: int, num_classes: int) -> nn.Module:
    """The network that a card describes, before it has its weights.

    A user's function is called; its network gets a normalisation in front where the card has one.

    Raises:
        RequestError: a factory that is not there, or returns no ``nn.Module``.
        ValueError: a network that cannot be built.
    """
    if not isinstance(spec, FactoryGroup):
        return build(spec, in_channels, num_classes)
    model = call_factory(spec)
    if not spec.normalize:
        return model
    return nn.Sequential(Normalize(torch.zeros(in_channels), torch.ones(in_channels)), model)


def state_hash(model: nn.Module) -> str:
    """SHA-256 over names, shapes and values of all tensors of a model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
