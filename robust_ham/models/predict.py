"""Logits, clean predictions and accuracy of a network, and the card that records them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attacks import margins_of
from attacks.utils.model import (
    InvalidAnswerError,
    attack_mode,
    predict_logits,
    spread_of,
)
from robust_ham.config.models import ModelGroup
from robust_ham.data.splits import Split, to_float
from robust_ham.errors import RequestError
from robust_ham.models.checkpoints import describe
from robust_ham.models.size import measure_size

ACCURACY_TOLERANCE = 0.001

PASS_TOLERANCE = 1e-4
"""By how much two passes over the same images may differ, as a share of the logits' spread."""

RANDOM_LAYER = "dropout or another random layer is active in eval mode"

NO_PREDICTION = -1  # if logits are not finite

_BATCH = {"cpu": 125, "cuda": 1000}  # on a CPU, activations stay in the cache


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """Compute float32 logits (n, K) on the CPU, in eval mode, with autocast off.

    ``images`` are uint8, or floats in [0, 1].
    """
    with attack_mode(model):
        parts = []
        for part in images.split(_BATCH[device.type]):
            batch = part.to(device)
            floats = to_float(batch) if batch.dtype == torch.uint8 else batch
            parts.append(predict_logits(model, floats).cpu())
    return torch.cat(parts)


def largest_difference(passes: Sequence[Tensor]) -> float:
    """Return the largest difference between logits (n, K) of several passes, relative to spread."""
    stacked = torch.stack(list(passes))
    spread = spread_of(stacked[0]).max()
    return float((stacked - stacked[0]).abs().max() / spread.clamp_min(1e-30))


def predictions(model: nn.Module, split: Split, device: torch.device) -> pd.DataFrame:
    """Predict every clean image: ``sample_id label prediction margin``.

    Raises:
        RequestError: the model does not return one logit per class.
    """
    try:
        logits = logits_of(model, split.images, device)
    except InvalidAnswerError as error:
        raise RequestError(str(error)) from None
    if logits.shape[1] < split.num_classes:
        raise RequestError(
            f"model: expected logits (N, {split.num_classes}), got {tuple(logits.shape)}"
        )
    return pd.DataFrame(
        {
            "sample_id": np.arange(len(split)),
            "label": split.labels.numpy(),
            "prediction": logits.argmax(1)
            .masked_fill(~torch.isfinite(logits).all(1), NO_PREDICTION)
            .numpy(),
            "margin": margins_of(logits, split.labels).numpy(),
        }
    )


def accuracy(table: pd.DataFrame) -> float:
    """Return the share of correct predictions in a ``predictions`` table."""
    return float((table["prediction"] == table["label"]).mean())


def model_card(
    spec: ModelGroup,
    model: nn.Module,
    test: Split,
    test_sha256: str,
    num_classes: int,
    device: torch.device,
) -> dict[str, Any]:
    """Make the card of a model, whatever its source; moves ``model`` to ``device``."""
    table = predictions(model.to(device), test, device)
    size = asdict(measure_size(model, spec, test.image_shape))
    return {
        "model_id": spec.model_id,
        "model": describe(spec),
        "in_channels": test.image_shape[0],
        "num_classes": num_classes,
        "test_accuracy": accuracy(table),
        "test_sha256": test_sha256,
    } | {k: v if np.isfinite(v) else None for k, v in size.items()}
