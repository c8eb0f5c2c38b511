"""Score the output of an attack independently of what the attack reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attacks import AttackOutcome, margins_of
from attacks.utils.model import BOX_TOLERANCE
from robust_ham.models.predict import NO_PREDICTION, logits_of


def judge(
    model: nn.Module, images: Tensor, labels: Tensor, outcome: AttackOutcome, device: torch.device
) -> pd.DataFrame:
    """Return one row per image, from fresh forward passes on the clean and the returned images.

    ``status``: ``already_wrong`` (distance 0), ``fooled``, ``survived`` (distance ∞) or
    ``invalid`` (pixels or logits not finite, or pixels outside [0, 1] by more than 1e-6; distance
    ∞, or 0 if the clean image was misclassified).
    """
    adversarial = outcome.images.cpu()
    clean_logits = logits_of(model, images, device)
    logits = logits_of(model, adversarial, device)
    clean_prediction, prediction = clean_logits.argmax(1), logits.argmax(1)
    clean_prediction[~torch.isfinite(clean_logits).all(1)] = NO_PREDICTION
    inside = (
        ((adversarial >= -BOX_TOLERANCE) & (adversarial <= 1 + BOX_TOLERANCE)).flatten(1).all(1)
    )
    finite = torch.isfinite(adversarial).flatten(1).all(1) & torch.isfinite(logits).all(1)
    valid = inside & finite & torch.isfinite(clean_logits).all(1)
    misclassified = (clean_prediction != labels).numpy()
    status = np.where(
        ~valid,
        "invalid",
        np.where(
            misclassified, "already_wrong", np.where(prediction != labels, "fooled", "survived")
        ),
    )
    difference = (adversarial - images).double().flatten(1)
    l2 = difference.norm(dim=1).numpy()
    linf = difference.abs().amax(1).numpy()
    relative = l2 / images.double().flatten(1).norm(dim=1).clamp_min(1e-12).numpy()
    spatial = outcome.transform is not None

    def distance(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if spatial:
            return np.full(len(labels), np.nan)
        censored = np.where(status == "fooled", values, np.inf)
        return np.where(misclassified, 0.0, censored)

    transform = (
        outcome.transform.cpu().double().numpy()
        if outcome.transform is not None
        else np.full((len(labels), 3), np.nan)
    )
    return pd.DataFrame(
        {
            "label": labels.numpy(),
            "clean_prediction": clean_prediction.numpy(),
            "clean_margin": margins_of(clean_logits, labels).double().numpy(),
            "adversarial_prediction": prediction.numpy(),
            "status": status,
            "l2": distance(l2),
            "linf": distance(linf),
            "l2_relative": distance(relative),
            "forwards": outcome.forwards.cpu().numpy(),
            "backwards": outcome.backwards.cpu().numpy(),
            "angle": transform[:, 0],
            "dx": transform[:, 1],
            "dy": transform[:, 2],
            "margin": margins_of(logits, labels).double().numpy(),
        }
    )


def invalid_rows(samples: pd.DataFrame) -> NDArray[np.bool_]:
    """Mark correctly classified images for which an attack returned no valid image, (n,)."""
    correct = samples["clean_prediction"] == samples["label"]
    return (correct & (samples["status"] == "invalid")).to_numpy()


def describe_invalid(samples: pd.DataFrame) -> str:
    """Describe how many images are invalid, why, and what to do, in one line."""
    invalid = invalid_rows(samples)
    not_finite = int((invalid & np.isinf(samples["margin"].to_numpy())).sum())
    outside = int(invalid.sum()) - not_finite
    causes = []
    if outside:
        causes.append(
            f"{outside} with pixels outside [0, 1] (the attack must clamp what it returns: "
            "images.clamp(0, 1))"
        )
    if not_finite:
        causes.append(f"{not_finite} with pixels or logits that are not finite")
    return f"{int(invalid.sum())} of {len(samples)} returned images are invalid: " + ", ".join(
        causes
    )
