"""Find widths at which networks of different kernel sizes have the same capacity."""

from __future__ import annotations

from collections.abc import Callable

import torch

from robust_ham.config.experiment import Config
from robust_ham.config.models import MatchConfig, ModelGroup, ResNet18CifarGroup
from robust_ham.models.build import MODELS
from robust_ham.models.size import num_flops, num_params

STEP = 64
"""Widths are multiples of 1/64, as channels are."""

_WIDEST = 16


def matched_width(count_at: Callable[[float], int], target: int) -> float:
    """Find the width n/64, up to 16, whose count is nearest to ``target``; ties: the smaller.

    ``count_at`` must grow with the width.
    """
    low, high = 1, _WIDEST * STEP
    while low < high:  # the first width that reaches the target
        middle = (low + high) // 2
        low, high = (low, middle) if count_at(middle / STEP) >= target else (middle + 1, high)
    below = max(low - 1, 1)
    nearest = min((below, low), key=lambda n: abs(count_at(n / STEP) - target))
    return nearest / STEP


def resolve_matches(config: Config, image_shape: tuple[int, int, int], num_classes: int) -> Config:
    """Set the width of every group that has ``match``.

    Raises:
        ValueError: a model cannot be built; the message names it.
    """
    if all(group.match is None for group in config.models):
        return config
    models: list[ModelGroup] = []
    for group in config.models:
        if group.match is None:
            models.append(group)
        else:
            models += [_matched(spec, image_shape, num_classes) for spec in group.expand()]
    return config.model_copy(update={"models": models})


def _matched(spec: ModelGroup, image_shape: tuple[int, int, int], num_classes: int) -> ModelGroup:
    match = spec.match
    assert match is not None
    reference = spec.model_copy(
        update={"kernel_size": match.kernel_size, "width": match.width}
        | ({"factorised": match.factorised} if isinstance(spec, ResNet18CifarGroup) else {})
    )
    target = count_size(reference, match, image_shape, num_classes)

    def count_at(width: float) -> int:
        scaled = spec.model_copy(update={"width": width})
        try:
            return count_size(scaled, match, image_shape, num_classes)
        except ValueError:  # too narrow: a layer has no channel
            return 0

    return spec.model_copy(update={"width": matched_width(count_at, target)})


def count_size(
    spec: ModelGroup, match: MatchConfig, image_shape: tuple[int, int, int], num_classes: int
) -> int:
    """Count trainable parameters or FLOPs of one image, on the meta device."""
    with torch.device("meta"):
        model = MODELS[type(spec)](spec, image_shape[0], num_classes)
    return num_params(model) if match.to == "params" else num_flops(model, image_shape)
