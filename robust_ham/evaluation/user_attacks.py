"""Run a custom attack under the contract of ``attacks``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attacks import AttackOutcome, Model, misclassified
from attacks.utils.model import attack_mode, predict_logits

UserFunction = Callable[..., Any]
"""Model, images, labels and options to images or an ``AttackOutcome``."""


def run_user_attack(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    function: UserFunction,
    **options: Any,  # noqa: ANN401
) -> AttackOutcome:
    """Call a user's function and convert what it returns to an ``AttackOutcome``.

    The function may overwrite its images. The model is in eval mode with frozen parameters during
    the call, and restored afterwards. Passes are those of a returned ``AttackOutcome``, else 0.

    Raises:
        ValueError: the function changed the model's parameters, or returned neither an
            ``AttackOutcome`` nor images of the shape of its input.
    """
    module = model if isinstance(model, nn.Module) else None
    before = [(p, p.detach().clone(), p.grad) for p in module.parameters()] if module else []
    with attack_mode(model):
        result = function(model, images.clone(), labels.clone(), **options)
    changed = False
    for parameter, value, gradient in before:
        if parameter.dtype != value.dtype or not torch.equal(parameter, value):
            parameter.data, changed = value, True
        parameter.grad = gradient
    if changed:
        raise ValueError("the attack has changed the model's parameters")
    outcome = result if isinstance(result, AttackOutcome) else None
    adversarials = _as_images(outcome.images if outcome else result, images)
    with attack_mode(model), torch.no_grad():
        fooled = misclassified(predict_logits(model, adversarials), labels)
    count = len(images)
    return AttackOutcome(
        adversarials,
        fooled,
        _field(outcome, "forwards", (count,), labels, torch.zeros_like(labels)),
        _field(outcome, "backwards", (count,), labels, torch.zeros_like(labels)),
        _field(outcome, "transform", (count, 3), images),
        _field(outcome, "margins", (count, None), images),
    )


def _as_images(value: Any, images: Tensor) -> Tensor:  # noqa: ANN401
    """Convert returned images to a tensor like ``images``.

    Raises:
        ValueError: another type or shape.
    """
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if not isinstance(value, Tensor) or value.shape != images.shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"expected images {tuple(images.shape)} or an AttackOutcome, got {got}")
    if not value.is_floating_point():
        raise ValueError(f"expected images of floats in [0, 1], got {value.dtype}")
    return value.detach().to(images)


def _field(
    outcome: AttackOutcome | None,
    name: str,
    shape: tuple[int | None, ...],
    like: Tensor,
    default: Any = None,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """A field of a returned outcome, checked to have a shape (None: any length); or ``default``."""
    value = getattr(outcome, name, None)
    if value is None:
        return default
    value = torch.as_tensor(value)
    sides = [value.shape[-1] if side is None else side for side in shape]
    if list(value.shape) != sides:
        expected = ", ".join("T" if side is None else str(side) for side in shape)
        raise ValueError(f"{name}: expected shape ({expected}), got {tuple(value.shape)}")
    return value.detach().to(like)
