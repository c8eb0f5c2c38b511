"""Run an attack on one model, judge it afresh, write one row per image.

What an attack says of itself is not believed: every returned image goes through the model once
more, its pixels are checked against [0, 1], and its distances are measured here.
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
from robust_ham.config.experiment import AttackConfig, is_own
from robust_ham.data.splits import Split, balanced_order, to_float
from robust_ham.errors import RequestError
from robust_ham.evaluation.perturbations import normal_cosines, radial_spectrum
from robust_ham.evaluation.registry import (
    OwnFunction,
    attack_function,
    attack_options,
    shared_transforms,
)
from robust_ham.evaluation.scoring import describe_invalid, invalid_rows, judge
from robust_ham.progress import Progress, unseen

VERSION = 5
"""Raised when the same attack on the same model gives other rows; part of every key."""

GALLERY_IMAGES = 8
PRUNE_CHECK_IMAGES = 64
PRUNE_TOLERANCE = 0.001

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttackedImages:
    """The images that every model of a run is attacked on.

    ``images`` float32 (n, C, H, W) in [0, 1]; ``labels`` int64 (n,); ``sample_ids`` (n,) index into
    the split.
    """

    images: Tensor
    labels: Tensor
    sample_ids: list[int]

    def __getitem__(self, rows: slice) -> AttackedImages:
        """Some of them."""
        return AttackedImages(self.images[rows], self.labels[rows], self.sample_ids[rows])

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


@dataclass(frozen=True)
class Evaluation:
    """One attack on one model: a row and an adversarial image (n, C, H, W) per attacked image."""

    attacked: AttackedImages
    samples: pd.DataFrame
    adversarials: Tensor
    margins: Tensor | None
    """Where an attack keeps them: the margin under every candidate (n, T); NaN: wrong already."""
    transforms: Tensor | None
    """The candidates that all images share (T, 3): degrees, pixels right, pixels down."""

    def gallery(self) -> dict[str, np.ndarray[Any, Any]]:
        """The first fooled images, filled up with others, as small arrays."""
        samples, adversarials = self.samples, self.adversarials
        fooled = (samples["status"] == "fooled").to_numpy()
        rows = np.concatenate([np.flatnonzero(fooled), np.flatnonzero(~fooled)])[:GALLERY_IMAGES]
        clean = self.attacked.images[rows]
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

    def spectrum(self) -> pd.DataFrame:
        """Radial spectrum of the perturbations that fool; of an attack with a distance."""
        rows = torch.from_numpy(np.flatnonzero(self.samples["status"] == "fooled"))
        return radial_spectrum(self.adversarials[rows] - self.attacked.images[rows])

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


def evaluate(
    model: nn.Module,
    attacked: AttackedImages,
    config: AttackConfig,
    attack_id: str,
    *,
    batch_size: int,
    device: torch.device,
    progress: Progress = unseen,
    own: OwnFunction | None = None,
) -> Evaluation:
    """Attack all images and judge what comes back; ``own`` is a user's attack, if handed over.

    An attack that prunes is first run on 64 images with and without pruning; if a status or the
    mean distance differs, it is run without.

    Returns:
        Rows with the columns of contract 3 from ``sample_id`` on; adversarials (n, C, H, W).

    Raises:
        RequestError: the attack refuses its options or the input.
        ValueError: none of the images that it returns is valid.
    """
    options, count = attack_options(config, attack_id, own), len(attacked.labels)
    function = attack_function(config.attack, own)[0]
    work = _Work(model, attacked, function, attack_id, device, batch_size)
    parts, done = list[_Part](), 0
    is_ours = own is None and not is_own(config.attack)
    if is_ours and options.get("prune") is not None:
        unpruned = options | {"prune": None}
        done = min(PRUNE_CHECK_IMAGES, count)
        parts = work.attack(options, 0, done)
        full = work.attack(unpruned, 0, done)
        if not same_answer(_rows(parts), _rows(full), config.norm):
            log.warning("%s: pruning changes the answer; run without it", attack_id)
            options, parts = unpruned, full
    parts += work.attack(options, done, count, progress)
    samples, outcomes = _rows(parts), [part.outcome for part in parts]
    _refuse_invalid(samples, attack_id)
    samples.insert(0, "sample_id", attacked.sample_ids)
    found = torch.cat([outcome.images.cpu() for outcome in outcomes])
    samples["normal_cosine"] = np.nan
    if config.has_budget:
        fooled = np.flatnonzero(samples["status"] == "fooled")
        rows = torch.from_numpy(fooled)
        clean, moved, labels = attacked.images[rows], found[rows], attacked.labels[rows]
        angles = normal_cosines(model, clean, moved, labels, config.norm, device, work.batch_size)
        samples.loc[fooled, "normal_cosine"] = angles
    margins = [outcome.margins.cpu() for outcome in outcomes if outcome.margins is not None]
    return Evaluation(
        attacked,
        samples,
        found,
        torch.cat(margins) if margins else None,
        shared_transforms(config.attack, options, attacked.images.shape),
    )


def _refuse_invalid(samples: pd.DataFrame, attack_id: str) -> None:
    """Refuse an attack none of whose images is valid; warn if only some are not.

    Raises:
        ValueError: all images that were right at first came back invalid.
    """
    invalid = invalid_rows(samples)
    if not invalid.any():
        return
    if invalid.sum() == (samples["clean_prediction"] == samples["label"]).sum():
        raise ValueError(f"attacks.{attack_id}: {describe_invalid(samples)}")
    log.warning("%s: %s; they count as survived", attack_id, describe_invalid(samples))


class _Part(NamedTuple):
    """What an attack has made of some images, and how it was judged."""

    outcome: AttackOutcome
    rows: pd.DataFrame


def _rows(parts: list[_Part]) -> pd.DataFrame:
    return pd.concat([part.rows for part in parts], ignore_index=True)


@dataclass
class _Work:
    """One attack on one model, by as many images as there is memory for."""

    model: nn.Module
    attacked: AttackedImages
    function: Callable[..., AttackOutcome]
    attack_id: str
    device: torch.device
    batch_size: int

    def attack(
        self, options: dict[str, Any], start: int, stop: int, progress: Progress = unseen
    ) -> list[_Part]:
        """Attack and judge images ``start`` to ``stop``; ``batch_size`` may shrink."""
        parts = list[_Part]()
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
                    "%s: memory exhausted; goes on by %d images", self.attack_id, self.batch_size
                )
                continue
            parts.append(_Part(outcome, rows))
            start = end
            progress(start, len(self.attacked.labels))
        return parts


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
