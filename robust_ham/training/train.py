"""Train one model, in one or several processes, and resume it after an interruption.

The same seed, device, precision and threads give the same weights, interrupted or not.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from robust_ham.config.experiment import TrainingConfig
from robust_ham.config.models import ModelGroup
from robust_ham.data.splits import FileSplit, Split, to_float
from robust_ham.models.build import Normalize, build
from robust_ham.progress import Progress, no_progress
from robust_ham.training import distributed
from robust_ham.training.batches import Batch, Share, make_batches, pixel_statistics
from robust_ham.training.memory import check_step_memory
from robust_ham.training.resume import Unfinished

VERSION = 1
"""Raise it when the same configuration gives other weights; part of every trained model's key."""

Precision = Literal["bf16", "float32"]
_EVALUATION_BATCH = 500


class TrainingError(Exception):
    """Training failed; other models may still succeed."""


def resolve_precision(
    precision: Literal["auto", "bf16", "float32"], device: torch.device
) -> Precision:
    """Resolve ``auto``: bf16 if the device supports it, else float32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Use only deterministic cuDNN kernels inside the block."""
    backend = torch.backends.cudnn
    before = (backend.deterministic, backend.benchmark)
    backend.deterministic, backend.benchmark = True, False
    try:
        yield
    finally:
        backend.deterministic, backend.benchmark = before


def make_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, steps_per_epoch: int
) -> lr_scheduler.LRScheduler:
    """Make the schedule of the learning rate: one cycle, ×0.1 at milestones, or constant."""
    if config.schedule == "one_cycle":
        return lr_scheduler.OneCycleLR(
            optimizer, config.lr, config.epochs * steps_per_epoch, cycle_momentum=False
        )
    milestones = config.milestones if config.schedule == "step" else ()
    steps = lr_scheduler.MultiStepLR(optimizer, [m * steps_per_epoch for m in milestones])
    if not config.warmup_epochs:
        return steps
    warmup = config.warmup_epochs * steps_per_epoch
    growth = lr_scheduler.LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
    return lr_scheduler.ChainedScheduler([growth, steps])


def train(
    spec: ModelGroup,
    config: TrainingConfig,
    train_split: Split | FileSplit,
    validation_split: Split,
    *,
    device: torch.device,
    precision: Precision,
    progress: Progress = no_progress,
    unfinished: Unfinished | None = None,
    last_epoch: int | None = None,
) -> tuple[nn.Module, pd.DataFrame]:
    """Train the network of ``spec`` from its initial weights or its last complete epoch.

    Args:
        spec: architecture, window and seed.
        config: recipe.
        train_split: training images.
        validation_split: evaluated after each epoch; no decision depends on it.
        device: where to compute.
        precision: precision of the autocast forward pass; parameters are always float32.
        progress: called with (batches done, batches in all).
        unfinished: file of the state after each epoch; None: none is kept.
        last_epoch: stop after this epoch; None: after all epochs.

    Returns:
        The network after the last epoch, in eval mode, and one row per epoch: ``epoch lr
        train_loss train_accuracy validation_loss validation_accuracy`` (the training columns are
        means over the epoch, in training mode).

    Raises:
        TrainingError: the loss is no longer finite.
        RequestError: a step on the CPU needs more memory than the machine has.
    """
    if device.type == "cpu":
        check_step_memory(
            spec, config, train_split, bytes_per_value=2 if precision == "bf16" else 4
        )
    model = build(spec, train_split.image_shape[0], train_split.num_classes)
    _set_normalization(model, train_split)
    model = model.to(device).to(memory_format=torch.channels_last)
    parts, rank = config.accumulate, distributed.rank()
    share = Share(parts * distributed.num_processes(), range(rank * parts, (rank + 1) * parts))
    batches = make_batches(train_split, config, spec.seed, device, share)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
    )
    scheduler = make_scheduler(optimizer, config, len(batches))
    rows = _resume(unfinished, model, optimizer, scheduler, len(batches), device)
    network = distributed.parallel(model, device)
    with deterministic():
        num_epochs = last_epoch or config.epochs
        for epoch in range(len(rows), num_epochs):
            lr = float(scheduler.get_last_lr()[0])

            def count(step: int, before: int = epoch * len(batches)) -> None:
                progress(before + step, num_epochs * len(batches))

            loss, accuracy = _train_epoch(
                network, batches.epoch(epoch), optimizer, scheduler, device, precision, count
            )
            if not np.isfinite(loss):
                raise TrainingError(
                    f"loss is {loss} in epoch {epoch + 1}: lower training.lr ({config.lr:g})"
                )
            validation_loss, validation_accuracy = evaluate_split(
                model, validation_split, device, precision
            )
            rows.append(
                {
                    "epoch": epoch + 1,
                    "lr": lr,
                    "train_loss": loss,
                    "train_accuracy": accuracy,
                    "validation_loss": validation_loss,
                    "validation_accuracy": validation_accuracy,
                }
            )
            if unfinished is not None and rank == 0 and epoch + 1 < num_epochs:
                unfinished.save(rows, model, optimizer)
    return model.eval(), pd.DataFrame(rows)


def _train_epoch(
    network: nn.Module,
    batches: Iterator[Batch],
    optimizer: torch.optim.SGD,
    scheduler: lr_scheduler.LRScheduler,
    device: torch.device,
    precision: Precision,
    progress: Callable[[int], None],
) -> tuple[float, float]:
    """Take one step per batch; return mean loss and accuracy over all processes' images."""
    network.train()
    totals = torch.zeros(3, device=device, dtype=torch.float64)  # loss, correct, images
    for step, (size, parts) in enumerate(batches, start=1):
        optimizer.zero_grad(set_to_none=True)
        for i, (images, labels) in enumerate(parts):
            with distributed.averaging(network, enabled=i == len(parts) - 1):
                with _autocast(device, precision):
                    logits = network(images)
                loss = F.cross_entropy(logits.float(), labels)
                weight = len(labels) * distributed.num_processes() / size
                (loss * weight).backward()  # the mean over the whole batch
            correct = (logits.detach().argmax(1) == labels).sum()
            count = torch.full_like(correct, len(labels))
            totals += torch.stack([loss.detach() * len(labels), correct, count])
        optimizer.step()
        scheduler.step()
        progress(step)
    loss_sum, num_correct, num_images = distributed.summed(totals).tolist()
    return loss_sum / num_images, num_correct / num_images


def _resume(
    unfinished: Unfinished | None,
    model: nn.Module,
    optimizer: torch.optim.SGD,
    scheduler: lr_scheduler.LRScheduler,
    steps_per_epoch: int,
    device: torch.device,
) -> list[dict[str, float]]:
    """Resume after the last complete epoch, in all processes; return the curve so far."""
    rows = []
    if unfinished is not None and distributed.rank() == 0:
        rows = unfinished.load(model, optimizer)
    num_done = distributed.agreed(len(rows), device)
    if num_done and distributed.rank() > 0:
        rows = [{}] * num_done
    for parameter in model.parameters() if num_done else ():
        state = optimizer.state[parameter]
        if distributed.rank() > 0:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        if state.get("momentum_buffer") is not None:
            distributed.from_first(state["momentum_buffer"])
    with warnings.catch_warnings():  # the interrupted process made the optimizer's steps
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(num_done * steps_per_epoch):
            scheduler.step()
    return rows


@torch.no_grad()
def evaluate_split(
    model: nn.Module, split: Split, device: torch.device, precision: Precision
) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy over a split, in eval mode; processes share it."""
    model.eval()
    for buffer in model.buffers():
        distributed.from_first(buffer)
    totals = torch.zeros(2, device=device, dtype=torch.float64)  # loss, correct
    starts = range(0, len(split), _EVALUATION_BATCH)
    for start in starts[distributed.rank() :: distributed.num_processes()]:
        part = split[start : start + _EVALUATION_BATCH]
        images = to_float(part.images.to(device)).to(memory_format=torch.channels_last)
        labels = part.labels.to(device)
        with _autocast(device, precision):
            logits = model(images).float()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        totals += torch.stack([loss, (logits.argmax(1) == labels).sum()])
    loss_sum, num_correct = distributed.summed(totals).tolist()
    return loss_sum / len(split), num_correct / len(split)


def _autocast(device: torch.device, precision: Precision) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@torch.no_grad()
def _set_normalization(model: nn.Module, split: Split | FileSplit) -> None:
    """Set mean and standard deviation per channel from all training pixels."""
    for module in model.modules():
        if isinstance(module, Normalize):
            module.mean[:, 0, 0], module.std[:, 0, 0] = pixel_statistics(split)
