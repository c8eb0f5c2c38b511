"""Refuse evaluations that need more memory than this machine has.

All estimates are lower bounds, so that nothing is refused that would fit. GPU memory is not
checked: PyTorch reports what does not fit.
"""

from __future__ import annotations

import math

from robust_ham.config.experiment import Config
from robust_ham.config.sections import AttackConfig
from robust_ham.evaluation.options import attack_options
from robust_ham.evaluation.registry import num_candidates
from robust_ham.memory import check_need, format_image_shape

_FLOAT = 4  # bytes
_CHUNK = 64  # images per call of another library on a CPU, at most
_COPIES = ("population", "initial_gradient_eval_steps", "max_gradient_eval_steps")
"""Options of foolbox's attacks: number of copies of each image in memory."""


def check_images_memory(config: Config, num_images: int, image_shape: tuple[int, int, int]) -> None:
    """Refuse too many attacked images (C, H, W): all of them, and those that one job returns."""
    returned = min(num_images, config.evaluation.shard_size or num_images)
    check_need(
        _FLOAT * math.prod(image_shape) * (num_images + returned),
        f"evaluation.num_images: {num_images:,} images of {format_image_shape(image_shape)} "
        "and their adversarial images,",
    )


def check_attack_memory(
    config: AttackConfig,
    attack_id: str,
    image_shape: tuple[int, int, int],
    num_images: int,
    batch_size: int,
) -> None:
    """Refuse too many candidates of a spatial attack, or copies of the images inside foolbox.

    Args:
        config: the attack, its options checked; custom attacks have no limit.
        attack_id: its key in the configuration.
        image_shape: (C, H, W).
        num_images: images per job.
        batch_size: images per call of the attack.
    """
    if config.facts.is_user_code:
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
            f"{format_image_shape(image_shape)}",
        )
