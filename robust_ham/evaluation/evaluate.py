"""Run an attack on one model and score its output: one row per image.

Scoring does not trust the attack: it classifies every returned image again, checks that its pixels
are in [0, 1], and measures its distance.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attacks import AttackOutcome
from robust_ham.config.sections import AttackConfig
from robust_ham.data.splits import Split, balanced_order, to_float
from robust_ham.errors import RequestError
from robust_ham.evaluation.options import attack_options
from robust_ham.evaluation.perturbations import normal_cosines, radial_spectrum
from robust_ham.evaluation.registry import attack_function, shared_transforms
from robust_ham.evaluation.scoring import describe_invalid, invalid_rows, judge
from robust_ham.evaluation.user_attacks import UserFunction
from robust_ham.progress import Progress, no_progress

VERSION = 6
"""Increase it when the same attack on the same model gives other rows; part of every key."""

GALLERY_IMAGES = 8
PRUNE_CHECK_IMAGES = 16
PRUNE_TOLERANCE = 0.001

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttackedImages:
    """Images to attack, the same for all models of a run.

    ``images`` float32 (n, C, H, W) in [0, 1]; ``labels`` int64 (n,); ``sample_ids`` (n,) index into
    the split.
    """

    images: Tensor
    labels: Tensor
    sample_ids: list[int]

    def __getitem__(self, rows: slice) -> AttackedImages:
        """The images in ``rows``."""
        return AttackedImages(self.images[rows], self.labels[rows], self.sample_ids[rows])

    def table(self) -> pd.DataFrame:
        """Return ``sample_id label sha256``; the hash is over the decoded uint8 pixels."""
        pixels = self.images.mul(255).round().to(torch.uint8).numpy()
        hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels]
        return pd.DataFrame(
            {"sample_id": self.sample_ids, "label": self.labels.numpy(), "sha256": hashes}
        )


def attacked_images(split: Split, num_images: int, seed: int) -> AttackedImages:
    """Return the first ``num_images`` of the split's class-balanced order.

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


@dataclass(frozen=True)
class Evaluation:
    """One attack on one model: a row and an adversarial image (n, C, H, W) per attacked image."""

    attacked: AttackedImages
    samples: pd.DataFrame
    adversarials: Tensor
    margins: Tensor | None
    """Margin under every candidate (n, T), if the attack stores them; NaN: misclassified before."""
    transforms: Tensor | None
    """Candidates shared by all images (T, 3): degrees, pixels right, pixels down."""

    def gallery(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the first fooled images, filled up with others, as small arrays."""
        samples, adversarials = self.samples, self.adversarials
        fooled = (samples["status"] == "fooled").to_numpy()
        rows = np.concatenate([np.flatnonzero(fooled), np.flatnonzero(~fooled)])[:GALLERY_IMAGES]
        clean = self.attacked.images[rows]
        columns = ["sample_id", "label", "clean_prediction", "adversarial_prediction"]
        values = {name: samples[name].to_numpy()[rows].astype(np.int64) for name in columns}
        return values | {
            "clean": clean.mul(255).round().to(torch.uint8).numpy(),
            "adversarial": adversarials[rows].numpy().astype(np.float16),
            "perturbation": (adversarials[rows] - clean).numpy().astype(np.float16),
            "fooled": fooled[rows],
            "l2": samples["l2"].to_numpy()[rows],
            "transform": samples[["angle", "dx", "dy"]].to_numpy()[rows],
        }

    def spectrum(self) -> pd.DataFrame:
        """Compute the radial spectrum of the perturbations that fool."""
        rows = torch.from_numpy(np.flatnonzero(self.samples["status"] == "fooled"))
        return radial_spectrum(self.adversarials[rows] - self.attacked.images[rows])

    def grid(self) -> pd.DataFrame | None:
        """Count ``angle dx dy num_images num_fooled`` per candidate.

        Only images that the model classifies correctly count. None if margins are not stored.
        """
        if self.margins is None or self.transforms is None:
            return None
        correct = np.array(self.samples["clean_prediction"] == self.samples["label"])
        margins = self.margins[torch.from_numpy(correct)]
        table = pd.DataFrame(self.transforms.numpy(), columns=["angle", "dx", "dy"])
        table["num_images"] = len(margins)
        table["num_fooled"] = (margins < 0).sum(0).numpy()
        return table


def evaluate(
    model: nn.Module,
    attacked: AttackedImages,
    config: AttackConfig,
    attack_id: str,
    *,
    batch_size: int,
    device: torch.device,
    progress: Progress = no_progress,
    user_function: UserFunction | None = None,
) -> Evaluation:
    """Attack all images and score the adversarial images.

    An attack that prunes is also run without pruning on 16 images. If a status or the mean distance
    differs, all images are attacked without pruning.

    Args:
        model: logits of images in [0, 1].
        attacked: the images and their labels.
        config: the attack.
        attack_id: its key in the configuration, for messages.
        batch_size: images per call of the attack.
        device: where the model is.
        progress: called with the numbers of finished and of all images.
        user_function: the function of a custom attack; None: imported by its name.

    Raises:
        RequestError: the attack refuses its options or the input.
        ValueError: none of the returned images is valid.
    """
    options, count = attack_options(config, attack_id, user_function), len(attacked.labels)
    function = attack_function(config.attack, user_function)[0]
    work = _Work(model, attacked, function, attack_id, device, batch_size)
    parts = work.attack(options, count, progress)
    is_user_code = user_function is not None or config.facts.is_user_code
    if not is_user_code and options.get("prune") is not None:
        unpruned = options | {"prune": None}
        checked = _rows(work.attack(unpruned, min(PRUNE_CHECK_IMAGES, count)))
        if not same_answer(_rows(parts)[: len(checked)], checked, config.norm):
            log.warning(
                "%s: pruning is not exact for this network, so it is off (slower, same result)",
                attack_id,
            )
            options = unpruned
            parts = work.attack(options, count, progress)
    samples, outcomes = _rows(parts), [part.outcome for part in parts]
    _refuse_invalid(samples, attack_id)
    samples.insert(0, "sample_id", attacked.sample_ids)
    adversarials = torch.cat([outcome.images.cpu() for outcome in outcomes])
    samples["normal_cosine"] = np.nan
    if config.has_budget:
        fooled = np.flatnonzero(samples["status"] == "fooled")
        rows = torch.from_numpy(fooled)
        clean, moved, labels = attacked.images[rows], adversarials[rows], attacked.labels[rows]
        angles = normal_cosines(model, clean, moved, labels, config.norm, device, work.batch_size)
        samples.loc[fooled, "normal_cosine"] = angles
    margins = [outcome.margins.cpu() for outcome in outcomes if outcome.margins is not None]
    return Evaluation(
        attacked,
        samples,
        adversarials,
        torch.cat(margins) if margins else None,
        shared_transforms(config.attack, options, attacked.images.shape),
    )


def _refuse_invalid(samples: pd.DataFrame, attack_id: str) -> None:
    """Warn about invalid images; refuse an attack that returns no valid image.

    Raises:
        ValueError: all correctly classified images came back invalid.
    """
    invalid = invalid_rows(samples)
    if not invalid.any():
        return
    if invalid.sum() == (samples["clean_prediction"] == samples["label"]).sum():
        raise ValueError(f"attacks.{attack_id}: {describe_invalid(samples)}")
    log.warning("%s: %s; they count as survived", attack_id, describe_invalid(samples))


class _Part(NamedTuple):
    """Outcome and scores of one batch."""

    outcome: AttackOutcome
    rows: pd.DataFrame


def _rows(parts: list[_Part]) -> pd.DataFrame:
    return pd.concat([part.rows for part in parts], ignore_index=True)


@dataclass
class _Work:
    """One attack on one model, in batches that shrink when memory runs out."""

    model: nn.Module
    attacked: AttackedImages
    function: Callable[..., AttackOutcome]
    attack_id: str
    device: torch.device
    batch_size: int

    def attack(
        self, options: dict[str, Any], stop: int, progress: Progress = no_progress
    ) -> list[_Part]:
        """Attack and score the first ``stop`` images."""
        parts, start = list[_Part](), 0
        while start < stop:
            end = min(start + self.batch_size, stop)
            images, labels = self.attacked.images[start:end], self.attacked.labels[start:end]
            try:
                given = _onto(images, self.device), _onto(labels, self.device)
                outcome = self.function(self.model, *given, **options)
                rows = judge(self.model, images, labels, outcome, self.device)
            except ValueError as error:
                raise RequestError(f"attacks.{self.attack_id}: {error}") from None
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or self.batch_size == 1:
                    raise
                self.batch_size = max(1, (end - start) // 2)
                log.warning(
                    "%s: out of memory; continuing with batches of %d images",
                    self.attack_id,
                    self.batch_size,
                )
                continue
            parts.append(_Part(outcome, rows))
            start = end
            progress(start, len(self.attacked.labels))
        return parts


def _onto(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":  # a transfer from pinned memory does not block the host
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _out_of_memory(error: Exception) -> bool:
    """Whether the error is a lack of memory, of torch on any device or of Python."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def same_answer(pruned: pd.DataFrame, full: pd.DataFrame, norm: str) -> bool:
    """Whether pruning kept every status, and the mean distance of fooled images to 0.1 %."""
    if not pruned["status"].equals(full["status"]):
        return False
    fooled = full["status"] == "fooled"
    if not fooled.any():
        return True
    ratio = pruned.loc[fooled, norm].mean() / full.loc[fooled, norm].mean()
    return bool(abs(ratio - 1) <= PRUNE_TOLERANCE)
