"""Run an attack on one model, judge it afresh, write one row per image.

What an attack says of itself is not believed: every returned image goes through the model once
more, its pixels are checked against [0, 1], and its distances are measured here.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attacks import AttackOutcome, margins_of
from attacks.prepare import BOX_TOLERANCE, attack_mode
from robust_ham.catalogue import attack_function, attack_options, shared_transforms
from robust_ham.checkpoints import describe
from robust_ham.config import AttackConfig, RequestError
from robust_ham.model_groups import ModelGroup
from robust_ham.models import measure
from robust_ham.perturbations import normal_cosines, radial_spectrum
from robust_ham.splits import Split, balanced_order, to_float

VERSION = 4
"""Raised when the same attack on the same model gives other rows; part of every key."""

ACCURACY_TOLERANCE = 0.001
GALLERY_IMAGES = 8
NO_PREDICTION = -1  # where logits are not finite
PRUNE_CHECK_IMAGES = 64
PRUNE_TOLERANCE = 0.001
_JUDGE_BATCH = {"cpu": 125, "cuda": 1000}  # cpu: activations stay in the cache

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class AttackedImages:
    """The images that every model of a run is attacked on.

    ``images`` float32 (n, C, H, W) in [0, 1]; ``labels`` int64 (n,); ``sample_ids`` (n,) index into
    the split.
    """

    images: Tensor
    labels: Tensor
    sample_ids: list[int]

    def first(self, count: int | None) -> AttackedImages:
        """The first ``count`` of them; None: all."""
        if count is None:
            return self
        return AttackedImages(self.images[:count], self.labels[:count], self.sample_ids[:count])

    def table(self) -> pd.DataFrame:
        """``sample_id label sha256`` of the decoded uint8 pixels."""
        pixels = self.images.mul(255).round().to(torch.uint8).numpy()
        hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels]
        return pd.DataFrame(
            {"sample_id": self.sample_ids, "label": self.labels.numpy(), "sha256": hashes}
        )


def attacked_images(split: Split, num_images: int, seed: int) -> AttackedImages:
    """The first ``num_images`` of the split's class-balanced order.

    Raises:
        RequestError: the split has fewer.
    """
    if num_images > len(split):
        raise RequestError(
            f"evaluation.num_images: expected at most {len(split)} ({split.source}), "
            f"got {num_images}"
        )
    rows = torch.from_numpy(balanced_order(split.labels, seed)[:num_images])
    return AttackedImages(to_float(split.images[rows]), split.labels[rows], rows.tolist())


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """float32 logits (n, K) on the CPU, model in eval mode, autocast off.

    ``images`` are uint8, or floats in [0, 1].
    """
    with attack_mode(model):
        parts = []
        for part in images.split(_JUDGE_BATCH[device.type]):
            batch = part.to(device)
            parts.append(model(to_float(batch) if batch.dtype == torch.uint8 else batch).cpu())
    return torch.cat(parts)


def predictions(model: nn.Module, split: Split, device: torch.device) -> pd.DataFrame:
    """Clean prediction and margin of every image: ``sample_id label prediction margin``.

    Raises:
        RequestError: the model does not give one logit per class.
    """
    logits = logits_of(model, split.images, device)
    if logits.ndim != 2 or logits.shape[1] < split.num_classes:
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
    """Share of right predictions in a ``predictions`` table."""
    return float((table["prediction"] == table["label"]).mean())


def model_card(
    spec: ModelGroup,
    model: nn.Module,
    test: Split,
    test_sha256: str,
    num_classes: int,
    device: torch.device,
) -> dict[str, Any]:
    """What every model's card says, however it was come by; ``model`` goes to ``device``."""
    table = predictions(model.to(device), test, device)
    size = asdict(measure(model, spec, test.image_shape))
    return {
        "model_id": spec.model_id,
        "model": describe(spec),
        "in_channels": test.image_shape[0],
        "num_classes": num_classes,
        "test_accuracy": accuracy(table),
        "test_sha256": test_sha256,
    } | {k: v if np.isfinite(v) else None for k, v in size.items()}


@dataclass(frozen=True)
class Evaluation:
    """One attack on one model: rows, adversarial images, and what the gallery shows."""

    samples: pd.DataFrame
    adversarials: Tensor
    gallery: dict[str, np.ndarray[Any, Any]]
    margins: Tensor | None
    """Where an attack keeps them: the margin under every candidate (n, T); NaN: wrong already."""
    transforms: Tensor | None
    """The candidates that all images share (T, 3): degrees, pixels right, pixels down."""
    spectrum: pd.DataFrame | None
    """Of an attack with a distance: radial spectrum of the perturbations that fool."""

    def grid(self) -> pd.DataFrame | None:
        """``angle dx dy num_images num_fooled`` per candidate; images right at first only."""
        if self.margins is None or self.transforms is None:
            return None
        right = np.array(self.samples["clean_prediction"] == self.samples["label"])
        margins = self.margins[torch.from_numpy(right)]
        table = pd.DataFrame(self.transforms.numpy(), columns=["angle", "dx", "dy"])
        table["num_images"] = len(margins)
        table["num_fooled"] = (margins < 0).sum(0).numpy()
        return table


def _unseen(done: int, total: int) -> None:
    """Progress that nobody is told of."""


def evaluate(
    model: nn.Module,
    attacked: AttackedImages,
    config: AttackConfig,
    attack_id: str,
    *,
    batch_size: int,
    device: torch.device,
    progress: Progress = _unseen,
) -> Evaluation:
    """Attack all images and judge what comes back.

    An attack that prunes is first run on 64 images with and without pruning; if a status or the
    mean distance differs, it is run without.

    Returns:
        Rows with the columns of contract 3 from ``sample_id`` on; adversarials (n, C, H, W).

    Raises:
        RequestError: the attack refuses its options or the input.
    """
    attack, options = attack_function(config.attack)[0], attack_options(config, attack_id)
    count = len(attacked.labels)

    def attacked_rows(
        options: dict[str, Any], start: int, stop: int, progress: Progress
    ) -> tuple[list[AttackOutcome], list[pd.DataFrame]]:
        """Attack and judge images ``start`` to ``stop``, by as many as there is memory for."""
        nonlocal batch_size
        outcomes, tables = [], []
        while start < stop:
            end = min(start + batch_size, stop)
            images, labels = attacked.images[start:end], attacked.labels[start:end]
            try:
                outcome = attack(model, _onto(images, device), _onto(labels, device), **options)
                table = judge(model, images, labels, outcome, device)
            except ValueError as error:
                raise RequestError(f"attacks.{attack_id}: {error}") from None
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or batch_size == 1:
                    raise
                batch_size = max(1, (end - start) // 2)
                log.warning("%s: memory exhausted; goes on by %d images", attack_id, batch_size)
                continue
            outcomes.append(outcome)
            tables.append(table)
            start = end
            progress(start, count)
        return outcomes, tables

    outcomes, tables, done = list[AttackOutcome](), list[pd.DataFrame](), 0
    if options.get("prune") is not None:
        done = min(PRUNE_CHECK_IMAGES, count)
        outcomes, tables = attacked_rows(options, 0, done, _unseen)
        full_outcomes, full = attacked_rows(options | {"prune": None}, 0, done, _unseen)
        pruned, unpruned = (pd.concat(parts, ignore_index=True) for parts in (tables, full))
        if not same_answer(pruned, unpruned, config.norm):
            log.warning("%s: pruning changes the answer; run without it", attack_id)
            options = options | {"prune": None}
            outcomes, tables = full_outcomes, full
    rest = attacked_rows(options, done, count, progress)
    outcomes, samples = outcomes + rest[0], pd.concat(tables + rest[1], ignore_index=True)
    samples.insert(0, "sample_id", attacked.sample_ids)
    found = torch.cat([outcome.images.cpu() for outcome in outcomes])
    samples["normal_cosine"], spectrum = np.nan, None
    if config.has_budget:
        fooled = np.flatnonzero(samples["status"] == "fooled")
        rows = torch.from_numpy(fooled)
        ends = (attacked.images[rows], found[rows], attacked.labels[rows])
        angles = normal_cosines(model, *ends, config.norm, device, batch_size)
        samples.loc[fooled, "normal_cosine"] = angles
        spectrum = radial_spectrum(ends[1] - ends[0])
    margins = [outcome.margins.cpu() for outcome in outcomes if outcome.margins is not None]
    return Evaluation(
        samples,
        found,
        _gallery(attacked, found, samples),
        torch.cat(margins) if margins else None,
        shared_transforms(config.attack, options, attacked.images.shape),
        spectrum,
    )


def _onto(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":  # from pinned memory, a transfer does not hold up the host
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _out_of_memory(error: Exception) -> bool:
    """Whether torch, on a GPU or the CPU, or Python found no memory."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def same_answer(pruned: pd.DataFrame, full: pd.DataFrame, norm: str) -> bool:
    """Whether pruning kept every status, and the mean distance of fooled images within 0.1 %."""
    if not pruned["status"].equals(full["status"]):
        return False
    fooled = full["status"] == "fooled"
    if not fooled.any():
        return True
    ratio = pruned.loc[fooled, norm].mean() / full.loc[fooled, norm].mean()
    return bool(abs(ratio - 1) <= PRUNE_TOLERANCE)


def judge(
    model: nn.Module, images: Tensor, labels: Tensor, outcome: AttackOutcome, device: torch.device
) -> pd.DataFrame:
    """One row per image, from fresh forward passes on the clean and the returned images.

    ``status``: ``already_wrong`` (distance 0), ``fooled``, ``survived`` (distance ∞) or
    ``invalid`` (pixels or logits not finite, or pixels outside [0, 1] by more than 1e-6: distance
    ∞, but 0 where the clean image was not classified right).
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
    wrong = (clean_prediction != labels).numpy()
    status = np.where(
        ~valid,
        "invalid",
        np.where(wrong, "already_wrong", np.where(prediction != labels, "fooled", "survived")),
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
        return np.where(wrong, 0.0, censored)

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


def _gallery(
    attacked: AttackedImages, adversarials: Tensor, samples: pd.DataFrame
) -> dict[str, np.ndarray[Any, Any]]:
    """The first fooled images, filled up with others, as small arrays."""
    fooled = (samples["status"] == "fooled").to_numpy()
    rows = np.concatenate([np.flatnonzero(fooled), np.flatnonzero(~fooled)])[:GALLERY_IMAGES]
    clean = attacked.images[rows]
    columns = ["sample_id", "label", "clean_prediction", "adversarial_prediction"]
    shown = {name: samples[name].to_numpy()[rows].astype(np.int64) for name in columns}
    return shown | {
        "clean": clean.mul(255).round().to(torch.uint8).numpy(),
        "adversarial": adversarials[rows].numpy().astype(np.float16),
        "perturbation": (adversarials[rows] - clean).numpy().astype(np.float16),
        "fooled": fooled[rows],
        "l2": samples["l2"].to_numpy()[rows],
        "transform": samples[["angle", "dx", "dy"]].to_numpy()[rows],
    }
