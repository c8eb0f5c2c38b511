"""Check the memory of a training step before it is allocated."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from robust_ham.config.experiment import TrainingConfig
from robust_ham.config.models import ModelGroup
from robust_ham.data.splits import FileSplit, Split
from robust_ham.memory import check_need, format_image_shape
from robust_ham.models.build import MODELS
from robust_ham.training import distributed


def check_step_memory(
    spec: ModelGroup, config: TrainingConfig, split: Split | FileSplit, bytes_per_value: int
) -> None:
    """Refuse a training step on the CPU whose activations exceed the memory.

    Args:
        spec: the network.
        config: recipe.
        split: images trained on.
        bytes_per_value: bytes per activation: 2 under bf16 autocast, else 4.
    """
    values = [0]

    def count(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:  # noqa: ANN401
        values[0] += output.numel()

    with torch.device("meta"), torch.no_grad():
        network = MODELS[type(spec)](spec, split.image_shape[0], split.num_classes).eval()
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(count)
        network(torch.zeros(1, *split.image_shape))
    parts = config.accumulate * distributed.num_processes()
    part = math.ceil(min(config.batch_size, len(split)) / parts)
    check_need(
        part * values[0] * bytes_per_value,
        f"training.batch_size: {spec.model_id}: a pass of {part:,} images of "
        f"{format_image_shape(split.image_shape)} (batch_size / accumulate)",
    )
