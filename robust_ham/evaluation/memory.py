"""What a configuration needs of this machine's memory, refused before any of it is asked for.

Every need is a lower bound, so that nothing is refused that would work. GPUs say themselves what
does not fit.
"""

from __future__ import annotations

import math

from robust_ham.config.experiment import AttackConfig, Config, is_own
from robust_ham.evaluation.registry import attack_options, num_candidates
from robust_ham.memory import check_need, size_of_images

_FLOAT = 4  # bytes
_CHUNK = 64  # images that other libraries are handed at once, at the most, on a CPU
_COPIES = ("population", "initial_gradient_eval_steps", "max_gradient_eval_steps")
"""Options of foolbox's attacks that say how many copies of each image are held at once."""


def check_images_memory(config: Config, num_images: int, image_shape: tuple[int, int, int]) -> None:
    """Refuse too many attacked images (C, H, W): all of them, and those that a job returns."""
    returned = min(num_images, config.evaluation.shard_size or num_images)
    check_need(
        _FLOAT * math.prod(image_shape) * (num_images + returned),
        f"evaluation.num_images: {num_images:,} images of {size_of_images(image_shape)}, and what "
        "an attack makes of them,",
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
        config: the attack, whose options have been checked; one's own may hold what it likes.
        attack_id: its key.
        image_shape: (C, H, W).
        num_images: attacked in one job.
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
            f"{size_of_images(image_shape)}",
        )
