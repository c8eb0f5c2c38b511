"""Train one model on images held in memory.

Images stay one uint8 tensor; each batch is gathered, cropped and flipped per image on the device,
without worker processes. The same seed, device, precision and threads give the same weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Literal

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from robust_ham.config import ModelGroup, TrainingConfig
from robust_ham.models import Normalize, build
from robust_ham.splits import Split, to_float

VERSION = 1
"""Raised when the same configuration gives other weights than before; part of every model's key."""

Precision = Literal["bf16", "float32"]
Progress = Callable[[int, int], None]
_CROP_PADDING = 4
_EVALUATION_BATCH = 500


class TrainingError(Exception):
    """Training cannot go on: this model fails, others may not."""


def resolve_precision(asked: Literal["auto", "bf16", "float32"], device: torch.device) -> Precision:
    """What ``auto`` means here: bf16 where the device computes in it, else float32."""
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Only deterministic cuDNN kernels inside; the settings are restored afterwards."""
    backend = torch.backends.cudnn
    before = (backend.deterministic, backend.benchmark)
    backend.deterministic, backend.benchmark = True, False
    try:
        yield
    finally:
        backend.deterministic, backend.benchmark = before


class Batches:
    """Epochs of shuffled, augmented batches, the same for every model of one seed.

    Args:
        split: the training images.
        config: batch size and augmentation.
        seed: decides order, crops and flips.
        device: where the batches are made.
    """

    def __init__(
        self, split: Split, config: TrainingConfig, seed: int, device: torch.device
    ) -> None:
        self.labels = split.labels.to(device)
        self.shape = split.image_shape
        self.config = config
        self.seed = seed
        padding = _CROP_PADDING if "crop" in config.augment else 0
        self.padding = padding
        images = F.pad(split.images, (padding,) * 4).to(device)
        _, height, width = self.shape
        # (N, C, 2p + 1, 2p + 1, H, W): a view of every crop of every image
        self.crops = images.unfold(2, height, 1).unfold(3, width, 1)

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return math.ceil(len(self.labels) / self.config.batch_size)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Float images (N, C, H, W) in [0, 1], channels last, and labels (N,) of one epoch."""
        digest = hashlib.sha256(f"{self.seed}/{epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        count, device = len(self.labels), self.labels.device
        order = torch.randperm(count, generator=generator).to(device)
        crops = 2 * self.padding + 1
        down, right = torch.randint(crops, (2, count), generator=generator).to(device)
        flips = torch.rand(count, generator=generator).lt(0.5).to(device)
        for start in range(0, count, self.config.batch_size):
            rows = order[start : start + self.config.batch_size]
            images = self.crops[rows, :, down[rows], right[rows]]  # (B, C, H, W)
            if "flip" in self.config.augment:
                images = torch.where(flips[rows].view(-1, 1, 1, 1), images.flip(3), images)
            yield to_float(images).to(memory_format=torch.channels_last), self.labels[rows]


def make_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, steps_per_epoch: int
) -> lr_scheduler.LRScheduler:
    """Learning rate per step: one cycle, ×0.1 at the milestones, or constant."""
    if config.schedule == "one_cycle":
        return lr_scheduler.OneCycleLR(
            optimizer, config.lr, config.epochs * steps_per_epoch, cycle_momentum=False
        )
    milestones = config.milestones if config.schedule == "step" else ()
    return lr_scheduler.MultiStepLR(optimizer, [m * steps_per_epoch for m in milestones])


def train(
    spec: ModelGroup,
    config: TrainingConfig,
    train_split: Split,
    validation_split: Split,
    *,
    device: torch.device,
    precision: Precision,
    progress: Progress = lambda done, total: None,
) -> tuple[nn.Module, pd.DataFrame]:
    """Train the network of ``spec`` from its initial weights.

    Args:
        spec: architecture, window and seed.
        config: recipe.
        train_split: images trained on.
        validation_split: images looked at after each epoch; they decide nothing.
        device: where it is computed.
        precision: of the autocast forward pass; parameters are float32 in any case.
        progress: called with (batches done, batches in all).

    Returns:
        The network after the last epoch, in eval mode, and one row per epoch: ``epoch lr
        train_loss train_accuracy validation_loss validation_accuracy`` (the training columns are
        means over the epoch, in training mode).

    Raises:
        TrainingError: the loss is no longer finite.
    """
    model = build(spec, train_split.image_shape[0], train_split.num_classes)
    _set_normalization(model, train_split)
    model = model.to(device).to(memory_format=torch.channels_last)
    batches = Batches(train_split, config, spec.seed, device)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
    )
    scheduler = make_scheduler(optimizer, config, len(batches))
    rows = []
    with deterministic():
        for epoch in range(config.epochs):
            model.train()
            lr = scheduler.get_last_lr()[0]
            loss_sum = torch.zeros((), device=device)
            correct = torch.zeros((), device=device, dtype=torch.int64)
            for step, (images, labels) in enumerate(batches.epoch(epoch)):
                with _autocast(device, precision):
                    logits = model(images)
                loss = F.cross_entropy(logits.float(), labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                scheduler.step()
                loss_sum += loss.detach() * len(labels)
                correct += (logits.detach().argmax(1) == labels).sum()
                progress(epoch * len(batches) + step + 1, config.epochs * len(batches))
            train_loss = loss_sum.item() / len(train_split)
            if not torch.isfinite(loss_sum):
                raise TrainingError(
                    f"loss is {train_loss} in epoch {epoch + 1}: lower training.lr ({config.lr:g})"
                )
            validation_loss, validation_accuracy = evaluate_split(
                model, validation_split, device, precision
            )
            rows.append(
                {
                    "epoch": epoch + 1,
                    "lr": lr,
                    "train_loss": train_loss,
                    "train_accuracy": correct.item() / len(train_split),
                    "validation_loss": validation_loss,
                    "validation_accuracy": validation_accuracy,
                }
            )
    return model.eval(), pd.DataFrame(rows)


@torch.no_grad()
def evaluate_split(
    model: nn.Module, split: Split, device: torch.device, precision: Precision
) -> tuple[float, float]:
    """Mean cross-entropy loss and accuracy over a split, in eval mode."""
    model.eval()
    loss, correct = 0.0, 0
    for start in range(0, len(split), _EVALUATION_BATCH):
        part = split[start : start + _EVALUATION_BATCH]
        images = to_float(part.images.to(device)).to(memory_format=torch.channels_last)
        labels = part.labels.to(device)
        with _autocast(device, precision):
            logits = model(images).float()
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(1) == labels).sum())
    return loss / len(split), correct / len(split)


def _autocast(device: torch.device, precision: Precision) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@torch.no_grad()
def _set_normalization(model: nn.Module, split: Split) -> None:
    """Mean and standard deviation per channel over all training pixels."""
    for module in model.modules():
        if isinstance(module, Normalize):
            values = torch.arange(256, dtype=torch.float64) / 255
            for channel in range(split.image_shape[0]):
                pixels = split.images[:, channel].flatten().to(torch.int64)
                share = torch.bincount(pixels, minlength=256).double() / len(pixels)
                mean = (share * values).sum()
                module.mean[channel] = mean
                module.std[channel] = (share * (values - mean) ** 2).sum().sqrt()
