"""What a configuration needs of this machine's memory, refused before any of it is asked for.

Every need is a lower bound, so that nothing is refused that would work. GPUs say themselves what
does not fit.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from robust_ham import distributed
from robust_ham.catalogue import attack_options, num_candidates
from robust_ham.config import AttackConfig, Config, TrainingConfig, is_own
from robust_ham.errors import RequestError
from robust_ham.memory import in_bytes, memory_share
from robust_ham.model_groups import ModelGroup
from robust_ham.models import MODELS, num_params
from robust_ham.splits import FileSplit, Split

_SHARE = 0.8
_FLOAT = 4  # bytes
_CHUNK = 64  # images that other libraries are handed at once, at the most, on a CPU
_COPIES = ("population", "initial_gradient_eval_steps", "max_gradient_eval_steps")
"""Options of foolbox's attacks that say how many copies of each image are held at once."""


def check_need(num_bytes: int, what: str) -> None:
    """Refuse what needs more than 80 % of this machine's memory.

    Raises:
        RequestError: it does; ``what`` names the key and what is to be held.
    """
    limit = memory_share(_SHARE)
    if num_bytes > limit:
        raise RequestError(
            f"{what} needs at least {in_bytes(num_bytes)} of memory, expected at most "
            f"{in_bytes(limit)}, {_SHARE:.0%} of this machine's"
        )


def check_weights(spec: ModelGroup, network: nn.Module) -> None:
    """Refuse a network, built on the meta device, whose weights alone are too many."""
    count = num_params(network)
    check_need(_FLOAT * count, f"models: {spec.model_id}: a network of {count:,} weights")


def check_images(config: Config, num_images: int, image_shape: tuple[int, int, int]) -> None:
    """Refuse too many attacked images (C, H, W): all of them, and those that a cell returns."""
    returned = min(num_images, config.evaluation.shard_size or num_images)
    check_need(
        _FLOAT * math.prod(image_shape) * (num_images + returned),
        f"evaluation.num_images: {num_images:,} images of {_size(image_shape)}, and what an attack "
        "makes of them,",
    )


def check_attack(
    config: AttackConfig,
    attack_id: str,
    image_shape: tuple[int, int, int],
    num_images: int,
    batch_size: int,
) -> None:
    """Refuse too many candidates of a spatial attack, or copies of the images inside foolbox.

    Args:
        config: the attack, whose options have been checked; one's own may hold what it likes.
        attack_id: its key.
        image_shape: (C, H, W).
        num_images: attacked in one cell.
        batch_size: handed to the attack at once.
    """
    if is_own(config.attack):
        return
    options, batch = attack_options(config, attack_id), min(batch_size, num_images)
    candidates = num_candidates(config.attack, options, image_shape)
    kept = num_images if options.get("stop") is None else 0  # a margin of every candidate
    check_need(
        _FLOAT * candidates * (kept + 2 * batch),
        f"attacks.{attack_id}: {candidates:,} candidates for {num_images:,} images, {batch:,} at "
        "once,",
    )
    for name in _COPIES:
        copies, at_once = options.get(name, 0), min(batch, _CHUNK)
        check_need(
            _FLOAT * copies * at_once * math.prod(image_shape),
            f"attacks.{attack_id}.{name}: {copies:,} copies of {at_once} images of "
            f"{_size(image_shape)}",
        )


def check_step(
    spec: ModelGroup, config: TrainingConfig, split: Split | FileSplit, bytes_per_value: int
) -> None:
    """Refuse a training step on the CPU that keeps more activations than there is memory.

    Args:
        spec: the network.
        config: recipe.
        split: images trained on.
        bytes_per_value: of activations: 2 under bf16 autocast, else 4.
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
        f"{_size(split.image_shape)} (batch_size / accumulate)",
    )


def _size(image_shape: tuple[int, int, int]) -> str:
    channels, height, width = image_shape
    return f"{height}×{width}×{channels}"
