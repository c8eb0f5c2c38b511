"""Networks and images in, a table out: the suite without configuration or run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from torch import Tensor, nn

from robust_ham import checkpoints
from robust_ham.config import AttackConfig, DatasetConfig
from robust_ham.data import load_split
from robust_ham.evaluation import AttackedImages, attacked_images
from robust_ham.evaluation import evaluate as evaluate_one
from robust_ham.plan import ZOO
from robust_ham.splits import to_float


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
        ValueError: fewer than one image, or an ``image_size`` that is none.
        RequestError: the data set is not found or damaged, or has fewer images.
    """
    if num_images < 1:
        raise ValueError(f"num_images: expected 1 or more, got {num_images}")
    config = DatasetConfig(name=dataset, image_size=image_size)
    split = load_split(config, "test", Path(data_root) if data_root is not None else None)
    found = attacked_images(split, num_images, seed)
    return found.images, found.labels


def evaluate(
    models: nn.Module | Mapping[str, nn.Module],
    images: Tensor,
    labels: Tensor,
    attack: str = "deepfool",
    *,
    batch_size: int = 250,
    progress: bool = True,
    **options: Any,  # noqa: ANN401
) -> pd.DataFrame:
    """Attack one or several networks on the same images, and judge every image afresh.

    Args:
        models: takes (N, C, H, W) in [0, 1], normalisation inside, returns logits (N, K); or
            several of them by name. They run on the device that their parameters are on.
        images: (N, C, H, W), uint8 or floats in [0, 1].
        labels: (N,), whole numbers.
        attack: a name in ``attacks.ATTACKS``, ``foolbox:NAME``, or ``module:function``.
        batch_size: images handed to the attack at once.
        progress: show a bar, on a terminal or in a notebook.
        options: of the attack.

    Returns:
        A row per network and image: ``model_id sample_id label clean_prediction clean_margin
        adversarial_prediction status l2 linf l2_relative forwards backwards angle dx dy margin
        normal_cosine``, as in a run's ``samples``. ``status``: already_wrong (distance 0), fooled,
        survived (distance ∞) or invalid.

    Raises:
        ValueError: images or labels of another shape, none, or a ``batch_size`` of none.
        RequestError: no such attack, or an option that it refuses.
    """
    named = dict(models) if isinstance(models, Mapping) else {"model": models}
    if images.ndim != 4 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"expected images (N, C, H, W) and labels (N,), got {tuple(images.shape)} and "
            f"{tuple(labels.shape)}"
        )
    if not len(images):
        raise ValueError("expected at least one image")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected 1 or more, got {batch_size}")
    clean = to_float(images) if images.dtype == torch.uint8 else images.detach().float()
    attacked = AttackedImages(clean.cpu(), labels.long().cpu(), list(range(len(labels))))
    asked = AttackConfig.model_validate({"attack": attack} | options)
    tables = []
    with Progress(console=Console(stderr=True), disable=not progress) as bars:
        for name, model in named.items():
            bar = bars.add_task(name, total=len(labels))

            def step(done: int, total: int, bar: TaskID = bar) -> None:
                bars.update(bar, completed=done, total=total)

            found = evaluate_one(
                model,
                attacked,
                asked,
                attack,
                batch_size=batch_size,
                device=next((p.device for p in model.parameters()), torch.device("cpu")),
                progress=step,
            )
            found.samples.insert(0, "model_id", name)
            tables.append(found.samples)
    return pd.concat(tables, ignore_index=True)
