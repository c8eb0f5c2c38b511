"""Networks and images in, a table out: the suite without configuration or run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn
from torch import Tensor, nn

from attacks import ATTACKS, Model
from attacks.utils.model import attack_mode, predict_logits
from robust_ham.config.bounds import MAX_BATCH, MAX_IMAGES, MAX_SEED
from robust_ham.config.experiment import AttackConfig, DatasetConfig
from robust_ham.config.fields import first_error, shown
from robust_ham.data.datasets import load_split
from robust_ham.data.user_arrays import given_images, given_labels
from robust_ham.errors import RequestError, printable
from robust_ham.evaluation.evaluate import AttackedImages, attacked_images
from robust_ham.evaluation.evaluate import evaluate as evaluate_one
from robust_ham.evaluation.memory import check_attack_memory
from robust_ham.evaluation.registry import (
    OwnFunction,
    attack_function,
    check_attack,
    resolve_attack,
)
from robust_ham.models import checkpoints
from robust_ham.models.checkpoints import ZOO
from robust_ham.models.predict import logits_of


def load_model(place: str | Path) -> nn.Module:
    """A trained network in eval mode: images in [0, 1] in, logits out.

    Args:
        place: its folder in a run, ``results/NAME/models/ID``, or ``zoo:fashion_mnist/ID`` for one
            that the package holds.

    Raises:
        RequestError: a file is missing, damaged, or not what the model's card says.
    """
    name = str(place)
    folder = ZOO / name.removeprefix("zoo:") if name.startswith("zoo:") else Path(place)
    return checkpoints.load(folder)[0]


def load_images(
    dataset: str = "fashion_mnist",
    num_images: int = 200,
    *,
    data_root: str | Path | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """The test images that a run attacks, classes taking turns, and their labels.

    Args:
        dataset: its name or path, as in a configuration (``dataset.name``).
        num_images: how many, from the start of the order that ``seed`` draws.
        data_root: folder to look in first.
        image_size: of data whose images differ in size, or to subsample to.
        seed: ``evaluation.seed`` of the run.

    Returns:
        Images (N, C, H, W) in [0, 1], labels (N,) int64.

    Raises:
        ValueError: a number that is none or out of range, as 0 images.
        RequestError: the data set is not found or damaged, or has fewer images.
    """
    _check_whole("num_images", num_images, 1, MAX_IMAGES)
    _check_whole("seed", seed, 0, MAX_SEED)
    try:
        config = DatasetConfig(name=dataset, image_size=image_size)
    except ValidationError as error:
        raise ValueError(first_error(error)) from None
    split = load_split(config, "test", Path(data_root) if data_root is not None else None)
    found = attacked_images(split, num_images, seed)
    return found.images, found.labels


def evaluate(
    models: Model | Mapping[str, Model],
    images: ArrayLike,
    labels: ArrayLike,
    attack: str | OwnFunction = "deepfool",
    *,
    batch_size: int = 250,
    progress: bool = True,
    **options: Any,  # noqa: ANN401
) -> pd.DataFrame:
    """Attack one or several networks on the same images, and judge every image afresh.

    Args:
        models: takes (N, C, H, W) in [0, 1], normalisation inside, returns logits (N, K): an
            ``nn.Module``, which runs on the device that its parameters are on, or a function; or
            several of them by name.
        images: (N, C, H, W), uint8 or floats in [0, 1]: a tensor, an array or lists of them.
        labels: (N,), whole numbers from 0.
        attack: a name in ``attacks.ATTACKS``, ``foolbox:NAME``, or ``module:function``; or a
            function of model, images, labels and options that returns images or an
            ``AttackOutcome``.
        batch_size: images handed to the attack at once.
        progress: show a bar, on a terminal or in a notebook.
        options: of the attack.

    Returns:
        A row per network and image: ``model_id sample_id label clean_prediction clean_margin
        adversarial_prediction status l2 linf l2_relative forwards backwards angle dx dy margin
        normal_cosine``, as in a run's ``samples``. ``status``: already_wrong (distance 0), fooled,
        survived (distance ∞) or invalid.

    Raises:
        ValueError: images or labels of another shape, kind or range, none, or a ``batch_size`` of
            none.
        RequestError: no such attack, an option that it does not have or refuses, or a model that
            does not take the images.
    """
    named: dict[str, Model] = dict(models) if isinstance(models, Mapping) else {"model": models}
    clean, classes = given_images(images), given_labels(labels)
    if clean.ndim != 4 or classes.shape != clean.shape[:1]:
        raise ValueError(
            f"expected images (N, C, H, W) and labels (N,), got {tuple(clean.shape)} and "
            f"{tuple(classes.shape)}"
        )
    if not len(clean):
        raise ValueError("expected at least one image")
    _check_whole("batch_size", batch_size, 1, MAX_BATCH)
    if not named:
        raise ValueError("expected at least one model")
    home = images.device if isinstance(images, Tensor) else torch.device("cpu")
    devices = {name: _device_of(model, home) for name, model in named.items()}
    for name, model in named.items():
        _check_model(name, model, clean, classes, devices[name])
    asked, own = _asked(attack, options, _shape(clean))
    check_attack_memory(asked, asked.attack, _shape(clean), len(clean), batch_size)
    attacked = AttackedImages(clean, classes, list(range(len(classes))))
    tables = []
    name_column = TextColumn("{task.description}", style="progress.description", markup=False)
    columns = [name_column, *Progress.get_default_columns()[1:]]
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bars:
        for name, model in named.items():
            bar = bars.add_task(printable(str(name)), total=len(classes))

            def step(done: int, total: int, bar: TaskID = bar) -> None:
                bars.update(bar, completed=done, total=total)

            found = evaluate_one(
                cast(nn.Module, model),  # a function serves as well: it has no modes or parameters
                attacked,
                asked,
                asked.attack,
                batch_size=batch_size,
                device=devices[name],
                progress=step,
                own=own,
            )
            found.samples.insert(0, "model_id", name)
            tables.append(found.samples)
    return pd.concat(tables, ignore_index=True)


def _asked(
    attack: str | OwnFunction, options: dict[str, Any], image_shape: tuple[int, int, int]
) -> tuple[AttackConfig, OwnFunction | None]:
    """The attack as a configuration has it; beside it the function, where it is the user's own."""
    own = None
    if not isinstance(attack, str):
        if not callable(attack):
            raise ValueError(f"attack: expected a name or a function, got {type(attack).__name__}")
        known = {function: name for name, function in ATTACKS.items() if function is attack}
        own = None if known else attack
        attack = known.get(attack) or f"own:{getattr(attack, '__name__', type(attack).__name__)}"
    attack_function(attack, own)  # there is such an attack
    for name in set(options) & set(AttackConfig.model_fields):
        hint = ""
        if name in ("budget", "budgets"):
            hint = ": every image has its distance, which compare(..., budget=...) counts"
        raise RequestError(f"{name}: a key of configurations, not an option of {attack}{hint}")
    try:
        asked = AttackConfig.model_validate({"attack": attack} | options)
    except ValidationError as error:
        raise RequestError(f"{attack}: {first_error(error)}") from None
    asked = resolve_attack(asked, attack, own)
    check_attack(asked, attack, image_shape, own)
    return asked, own


def _shape(images: Tensor) -> tuple[int, int, int]:
    channels, height, width = images.shape[1:]
    return channels, height, width


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    """Refuse what is no whole number of a range.

    Raises:
        ValueError: names the argument.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int | np.integer)
        or not low <= value <= high
    ):
        raise ValueError(f"{name}: expected {low:,} to {high:,}, got {shown(value)}")


def _device_of(model: Model, home: torch.device) -> torch.device:
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    return tensors[0].device if tensors else home


def _check_model(
    name: str, model: Model, images: Tensor, labels: Tensor, device: torch.device
) -> None:
    """Refuse a model that cannot be asked, or labels that are not its classes."""
    if not callable(model) or isinstance(model, type):
        raise RequestError(f"{name}: expected a network or a function, got {model!r:.80}")
    try:
        with attack_mode(model), torch.no_grad():
            logits = predict_logits(model, images[:1].to(device))
    except Exception as error:  # it is the user's code: whatever it raises, one line says so
        reason = " ".join(str(error).split())
        raise RequestError(
            f"{name}: {type(error).__name__} for an image {tuple(images.shape[1:])}: {reason}"
        ) from error
    num_classes, wrong = logits.shape[1], (labels < 0) | (labels >= logits.shape[1])
    if wrong.any():
        row = int(wrong.nonzero()[0])
        hint = "; do they begin at 1?" if labels.min() == 1 and labels.max() == num_classes else ""
        raise ValueError(
            f"labels: expected 0 … {num_classes - 1}, as {name} has {num_classes} classes, got "
            f"{int(labels[row])} (image {row}){hint}"
        )
    if labels.min() >= 1:
        predicted = logits_of(cast(nn.Module, model), images, device).argmax(1)
        finite = images.isfinite().flatten(1).all(dim=1)  # others have no prediction
        if not finite.any():
            return
        before, right = (
            (predicted == labels - 1)[finite].float().mean(),
            (predicted == labels)[finite].float().mean(),
        )
        if before > 0.5 and right < 0.1:
            raise ValueError(
                f"labels: {name} predicts the class before the label for {before:.0%} of images: "
                "expected labels that begin at 0"
            )
