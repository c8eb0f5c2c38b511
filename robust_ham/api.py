"""The Python interface: load images and networks, and evaluate them without a run folder."""

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
from robust_ham.data.user_arrays import to_image_tensor, to_label_tensor
from robust_ham.errors import RequestError, printable
from robust_ham.evaluation.evaluate import AttackedImages, attacked_images
from robust_ham.evaluation.evaluate import evaluate as evaluate_one
from robust_ham.evaluation.memory import check_attack_memory
from robust_ham.evaluation.options import check_attack_options, resolve_attack
from robust_ham.evaluation.registry import attack_function
from robust_ham.evaluation.user_attacks import UserFunction
from robust_ham.models import checkpoints
from robust_ham.models.checkpoints import ZOO
from robust_ham.models.predict import logits_of


def load_model(path: str | Path) -> nn.Module:
    """Load a trained network.

    Args:
        path: the folder of a model in a run, ``results/NAME/models/ID``, or
            ``zoo:fashion_mnist/ID`` for a model that the package contains.

    Returns:
        The network in eval mode. It maps float images (N, C, H, W) in [0, 1] to logits
        (N, classes).

    Raises:
        RequestError: a file is missing or damaged, or does not match the model's card.

    Example:
        >>> from robust_ham import load_images, load_model
        >>> images, labels = load_images("fashion_mnist", 10)
        >>> model = load_model("zoo:fashion_mnist/cnn3-w16x32-k7-hamming-s0")
        >>> model(images).shape
        torch.Size([10, 10])
    """
    name = str(path)
    folder = ZOO / name.removeprefix("zoo:") if name.startswith("zoo:") else Path(path)
    return checkpoints.load(folder)[0]


def load_images(
    dataset: str = "fashion_mnist",
    num_images: int = 200,
    *,
    data_root: str | Path | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Load the test images that a run attacks: the first ones of a class-balanced order.

    Args:
        dataset: name or path of a data set, as ``dataset.name`` in a configuration.
        num_images: number of images, at least 1.
        data_root: folder to search first.
        image_size: height and width in pixels. Images of class folders are resized and cropped;
            those of small named data sets are subsampled. None keeps the stored size.
        seed: seed of the order, as ``evaluation.seed`` in a configuration.

    Returns:
        Images, float32 (N, C, H, W) in [0, 1], and labels, int64 (N,).

    Raises:
        ValueError: a number is out of range.
        RequestError: the data set is missing or damaged, or has fewer images.

    Example:
        >>> from robust_ham import load_images
        >>> images, labels = load_images("fashion_mnist", 20)
        >>> images.shape, labels.bincount().tolist()
        (torch.Size([20, 1, 28, 28]), [2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    """
    _check_whole("num_images", num_images, 1, MAX_IMAGES)
    _check_whole("seed", seed, 0, MAX_SEED)
    try:
        config = DatasetConfig(name=dataset, image_size=image_size)
    except ValidationError as error:
        raise ValueError(first_error(error)) from None
    split = load_split(config, "test", Path(data_root) if data_root is not None else None)
    attacked = attacked_images(split, num_images, seed)
    return attacked.images, attacked.labels


def evaluate(
    models: Model | Mapping[str, Model],
    images: ArrayLike,
    labels: ArrayLike,
    attack: str | UserFunction = "deepfool",
    *,
    batch_size: int = 250,
    progress: bool = True,
    **options: Any,  # noqa: ANN401
) -> pd.DataFrame:
    """Attack one or several networks on the same images, and score every returned image.

    Scoring does not trust the attack: a fresh forward pass classifies each returned image.

    Args:
        models: a network, or several by name. A network is an ``nn.Module`` (it runs on the device
            of its parameters) or a function from float images (N, C, H, W) in [0, 1] to logits
            (N, K). Normalisation must happen inside it.
        images: tensor, array or nested lists (N, C, H, W), uint8 or floats in [0, 1].
        labels: whole numbers (N,) in 0 … K − 1.
        attack: a name in ``attacks.ATTACKS``, ``"foolbox:NAME"`` or ``"module:function"``; or a
            function ``attack(model, images, labels, **options)`` that returns adversarial images
            or an ``attacks.AttackOutcome``.
        batch_size: number of images that the attack gets at once.
        progress: whether to show a progress bar on standard error.
        **options: options of the attack.

    Returns:
        A table with a row per network and image, in the columns of a run's ``samples``:
        ``model_id sample_id label clean_prediction clean_margin adversarial_prediction status l2
        linf l2_relative forwards backwards angle dx dy margin normal_cosine``. ``status`` is
        ``already_wrong`` (misclassified without attack; distance 0), ``fooled``, ``survived``
        (distance ∞ for minimum-norm attacks) or ``invalid`` (NaN, or pixels outside of [0, 1]).
        Distances ``l2`` and ``linf`` are in units of pixel values in [0, 1].

    Raises:
        ValueError: images or labels have the wrong shape, type or range, there are no images or no
            models, or ``batch_size`` is out of range.
        RequestError: the attack or an option is unknown or invalid, or a model does not accept the
            images.

    Example:
        >>> from robust_ham import evaluate, load_images, load_model
        >>> images, labels = load_images("fashion_mnist", 10)
        >>> models = {
        ...     window: load_model(f"zoo:fashion_mnist/cnn3-w16x32-k7-{window}-s0")
        ...     for window in ("none", "hamming")
        ... }
        >>> rows = evaluate(models, images, labels, "deepfool", steps=20, progress=False)
        >>> rows.groupby("model_id").size().to_dict()
        {'hamming': 10, 'none': 10}
    """
    networks: dict[str, Model] = dict(models) if isinstance(models, Mapping) else {"model": models}
    clean, classes = to_image_tensor(images), to_label_tensor(labels)
    if clean.ndim != 4 or classes.shape != clean.shape[:1]:
        raise ValueError(
            f"expected images (N, C, H, W) and labels (N,), got {tuple(clean.shape)} and "
            f"{tuple(classes.shape)}"
        )
    if not len(clean):
        raise ValueError("expected at least one image")
    _check_whole("batch_size", batch_size, 1, MAX_BATCH)
    if not networks:
        raise ValueError("expected at least one model")
    default_device = images.device if isinstance(images, Tensor) else torch.device("cpu")
    devices = {name: _device_of(model, default_device) for name, model in networks.items()}
    for name, model in networks.items():
        _check_model(name, model, clean, classes, devices[name])
    config, user_function = _configure_attack(attack, options, _image_shape(clean))
    check_attack_memory(config, config.attack, _image_shape(clean), len(clean), batch_size)
    attacked = AttackedImages(clean, classes, list(range(len(classes))))
    tables = []
    name_column = TextColumn("{task.description}", style="progress.description", markup=False)
    columns = [name_column, *Progress.get_default_columns()[1:]]
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bars:
        for name, model in networks.items():
            bar = bars.add_task(printable(str(name)), total=len(classes))

            def show_progress(done: int, total: int, bar: TaskID = bar) -> None:
                bars.update(bar, completed=done, total=total)

            evaluation = evaluate_one(
                cast(nn.Module, model),  # functions work too: they have no modes or parameters
                attacked,
                config,
                config.attack,
                batch_size=batch_size,
                device=devices[name],
                progress=show_progress,
                user_function=user_function,
            )
            evaluation.samples.insert(0, "model_id", name)
            tables.append(evaluation.samples)
    return pd.concat(tables, ignore_index=True)


def _configure_attack(
    attack: str | UserFunction, options: dict[str, Any], image_shape: tuple[int, int, int]
) -> tuple[AttackConfig, UserFunction | None]:
    """Validate an attack and its options; also return the function of a custom attack."""
    user_function = None
    if not isinstance(attack, str):
        if not callable(attack):
            raise ValueError(f"attack: expected a name or a function, got {type(attack).__name__}")
        catalogue_names = [name for name, function in ATTACKS.items() if function is attack]
        if catalogue_names:
            attack = catalogue_names[0]
        else:
            user_function = attack
            attack = f"custom:{getattr(attack, '__name__', type(attack).__name__)}"
    attack_function(attack, user_function)  # raises for an unknown name
    for name in set(options) & set(AttackConfig.model_fields):
        hint = ""
        if name in ("budget", "budgets"):
            hint = "; pass a budget to compare, which applies it to the distance of every image"
        raise RequestError(f"{name}: a key of configurations, not an option of {attack}{hint}")
    try:
        config = AttackConfig.model_validate({"attack": attack} | options)
    except ValidationError as error:
        raise RequestError(f"{attack}: {first_error(error)}") from None
    config = resolve_attack(config, attack, user_function)
    check_attack_options(config, attack, image_shape, user_function)
    return config, user_function


def _image_shape(images: Tensor) -> tuple[int, int, int]:
    channels, height, width = images.shape[1:]
    return channels, height, width


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    """Require a whole number of ``low`` … ``high``.

    Raises:
        ValueError: it is not; the message names the argument.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int | np.integer)
        or not low <= value <= high
    ):
        raise ValueError(f"{name}: expected {low:,} to {high:,}, got {shown(value)}")


def _device_of(model: Model, default: torch.device) -> torch.device:
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    return tensors[0].device if tensors else default


def _check_model(
    name: str, model: Model, images: Tensor, labels: Tensor, device: torch.device
) -> None:
    """Refuse a model that fails on the first image, and labels that cannot be its classes."""
    if not callable(model) or isinstance(model, type):
        raise RequestError(f"{name}: expected a network or a function, got {model!r:.80}")
    shape = tuple(images.shape[1:])
    try:
        with attack_mode(model), torch.no_grad():
            logits = predict_logits(model, images[:1].to(device))
    except Exception as error:  # user code may raise anything
        reason = " ".join(str(error).split())
        hint = "; expected images (N, C, H, W)" if shape[0] > 4 >= shape[2] else ""
        raise RequestError(
            f"{name}: failed on an image of shape {shape}: {type(error).__name__}: {reason}{hint}"
        ) from error
    num_classes = logits.shape[1]
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        row = int(outside.nonzero()[0])
        hint = "; do they begin at 1?" if labels.min() == 1 and labels.max() == num_classes else ""
        raise ValueError(
            f"labels: expected 0 … {num_classes - 1}, as {name} has {num_classes} classes, got "
            f"{int(labels[row])} (image {row}){hint}"
        )
    if labels.min() >= 1:
        _check_first_label(name, model, images, labels, device)


def _check_first_label(
    name: str, model: Model, images: Tensor, labels: Tensor, device: torch.device
) -> None:
    """Refuse labels that appear to begin at 1, judged by the model's predictions."""
    is_finite = images.isfinite().flatten(1).all(dim=1)
    if not is_finite.any():
        return
    predicted = logits_of(cast(nn.Module, model), images, device).argmax(1)
    share_before = (predicted == labels - 1)[is_finite].float().mean()
    share_correct = (predicted == labels)[is_finite].float().mean()
    if share_before > 0.5 and share_correct < 0.1:
        raise ValueError(
            f"labels: {name} predicts the class before the label for {share_before:.0%} of images: "
            "expected labels that begin at 0"
        )
