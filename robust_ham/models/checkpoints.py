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
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from robust_ham.config.experiment import Config
from robust_ham.config.models import FactoryGroup, ModelGroup, TableGroup, model_group
from robust_ham.config.user_code import import_function, one_line_for
from robust_ham.data.splits import MAX_CLASSES
from robust_ham.errors import RequestError
from robust_ham.models.build import MODELS, Normalize, build
from robust_ham.models.effective_kernel import OWN_WINDOW, windows_of
from robust_ham.models.importing.fit import check_tensors, fill, fit
from robust_ham.models.importing.networks import read_network
from robust_ham.models.safe_load import read_safetensors
from robust_ham.regular_files import is_regular
from robust_ham.storage.files import file_hash, read_json, write_csv, write_json, writing_folder

WEIGHTS, CARD, CURVE = "model.safetensors", "model.json", "training.csv"


_CARD = {"model_id": str, "model": dict, "in_channels": int, "num_classes": int}
_CARD |= {"weights_sha256": str}
_KINDS = {str: "text", dict: "a mapping", int: "a whole number"}


def save(folder: Path, model: nn.Module, card: dict[str, Any], curve: pd.DataFrame | None) -> None:
    """Write weights, card and, where it is known, training curve as one folder that appears whole.

    The card gains ``weights_sha256``; the folder must not be there yet.
    """
    with writing_folder(folder) as temporary:
        weights = temporary / WEIGHTS
        weights.write_bytes(to_safetensors(_unshared(model.state_dict())))
        write_json(temporary / CARD, card | {"weights_sha256": file_hash(weights)})
        if curve is not None:
            write_csv(temporary / CURVE, curve)


def _unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU that share no memory, which safetensors refuses: tied weights twice."""
    unshared: dict[str, Tensor] = {}
    seen = set[int]()
    for name, tensor in state.items():
        own = tensor.contiguous().cpu()
        place = own.untyped_storage().data_ptr()
        unshared[name] = own.clone() if place in seen else own
        seen.add(place)
    return unshared


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a model.

    Raises:
        RequestError: missing or damaged.
    """
    path = folder / CARD
    try:
        card = read_json(path, follow_links=True)
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
    curve = folder / CURVE
    return [folder / CARD, *([curve] if is_regular(curve, follow_links=True) else [])]


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
    if not path.exists():
        raise RequestError(f"{path}: no such file")
    if file_hash(path, follow_links=True) != card["weights_sha256"]:
        raise RequestError(f"{path}: not the weights that the card names (SHA-256 differs)")
    state = read_safetensors(path)
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


def load_weights(
    model: nn.Module, path: Path, key: str | None = None, option: str = "weights_key"
) -> None:
    """Fill ``model`` from a file of weights, read without running code.

    Args:
        model: any network; its tensors are found in the file by name, as by ``robust-ham import``.
        path: ``.safetensors``, or what ``torch.save`` wrote.
        key: which network of a file that holds several.
        option: what messages call the key.

    Raises:
        RequestError: unreadable, several networks, other names or shapes, values not finite.
    """
    found = fit(read_network(path, key, option), model)
    if found.alike is not None:
        raise RequestError(
            f"{path}: its names are not the network's, and {found.alike} have the same shapes: "
            "robust-ham import with --accuracy tells whether their order is right"
        )


_LATER_KEYS: dict[str, dict[str, Any]] = {
    "cnn": {"init": "default", "match": None, "window_layers": "all", "width": 1.0},
    "resnet18_cifar": {"init": "default", "match": None, "first_downsampling": False},
    "factory": {
        "init": "default",
        "match": None,
        "label_only": False,
        "weights_key": None,
    },
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
    if spec.weights is not None and not is_regular(Path(spec.weights), follow_links=True):
        raise RequestError(f"weights {spec.weights}: no such file")
    return factory


def load_factory(spec: FactoryGroup) -> nn.Module:
    """A user's own model in eval mode.

    Raises:
        RequestError: not an ``nn.Module``, or the weights do not fit it.
    """
    model = call_factory(spec)
    if spec.weights is not None:
        load_weights(model, Path(spec.weights), spec.weights_key)
    return model.eval()


def call_factory(spec: FactoryGroup) -> nn.Module:
    """What the user's function returns.

    Raises:
        RequestError: it raises, or returns no ``nn.Module``, or one without the window or the
            kernels that its group claims.
    """
    factory = import_factory(spec)
    with one_line_for(f"factory {spec.factory}"):
        model = factory()
    if not isinstance(model, nn.Module):
        raise RequestError(f"factory {spec.factory}: expected a torch.nn.Module, got {type(model)}")
    if not spec.label_only:
        _check_labels(spec, model)
    return model


def _check_labels(spec: FactoryGroup, model: nn.Module) -> None:
    """Refuse a window or a kernel size that the layers of a user's network do not have."""
    windows = windows_of(model)
    allowed = ("none", spec.window, OWN_WINDOW)
    other = next((name for name, window in windows.items() if window not in allowed), "")
    if other or (spec.window != "none" and spec.window not in windows.values()):
        has = f"its {other} has the window {windows[other]}" if other else "no layer of it has one"
        raise RequestError(
            f"factory {spec.factory}: window: {spec.window}, but {has}: put it in with "
            "robust_ham.windowed, name the window that is there, or set label_only: true"
        )
    sizes = [conv.kernel_size for conv in model.modules() if isinstance(conv, nn.Conv2d)]
    if sizes and not any(max(size) == spec.kernel_size for size in sizes):
        there = ", ".join(f"{height}×{width}" for height, width in sorted(set(sizes)))
        raise RequestError(
            f"factory {spec.factory}: kernel_size: {spec.kernel_size}, but its kernels are "
            f"{there}: name one that is there, or set label_only: true"
        )


def check_forward(
    spec: ModelGroup, model: nn.Module, image_shape: tuple[int, ...], device: torch.device
) -> None:
    """Refuse a user's network that fails on images of the data set, or returns no logits.

    Raises:
        RequestError: it raises, or answers with something else than a tensor (N, K).
    """
    if not isinstance(spec, FactoryGroup):
        return
    what = f"factory {spec.factory}: forward on images {image_shape}"
    images = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0))
    with one_line_for(what), torch.no_grad():
        logits = model.eval()(images.to(device))
    if isinstance(logits, Mapping):
        logits = logits.get("logits", logits)
    logits = getattr(logits, "logits", logits)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 2:
        is_tensor = isinstance(logits, Tensor)
        got = tuple(logits.shape) if is_tensor else f"a {type(logits).__name__}"
        raise RequestError(f"{what}: expected a tensor of logits (2, classes), got {got}")


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


ZOO = Path(__file__).with_name("zoo")


def source_folder(config: Config, spec: ModelGroup) -> Path | None:
    """Folder of a model that is made elsewhere; None for one that the run makes."""
    if spec.source in ("train", "factory"):
        return None
    collection = ZOO / config.dataset.name if spec.source == "zoo" else Path(spec.source)
    return collection / spec.model_id
