"""Code shared by the adapters: select images, filter options, count passes."""

from __future__ import annotations

from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import torch
from torch import Tensor, nn

from attacks.utils.model import Model, chunks, gradient
from attacks.utils.outcome import AttackOutcome, margins_of, misclassified

Call = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Model, images (B, C, H, W) in [0, 1] and labels (B,) to adversarial images of the same shape."""


def is_plain(annotation: object) -> bool:
    """Whether a parameter of this type accepts only numbers, booleans and named choices.

    Other parameters are not offered as options: text may be a path, and objects and functions are
    code. Attacks of other libraries use them to write files (``tensorboard`` in foolbox) and to
    call functions (``init_attack`` in foolbox, ``callback`` in adversarial-library).
    """
    if get_origin(annotation) in (Union, UnionType, tuple, list):
        return all(is_plain(part) for part in get_args(annotation) if part is not Ellipsis)
    return get_origin(annotation) is Literal or annotation in (bool, int, float, NoneType)


def attack_correct_images(
    model: Model, images: Tensor, labels: Tensor, *, call: Call
) -> AttackOutcome:
    """Run a library's attack on the finite, correctly classified images.

    ``forwards`` and ``backwards`` are the library's passes on an image's chunk, divided by the
    number of images in it.
    """
    results = images.clone()
    forwards = torch.ones(len(images), dtype=torch.int64, device=images.device)
    backwards = torch.zeros_like(forwards)
    fooled = torch.zeros_like(forwards, dtype=torch.bool)
    finite = torch.isfinite(images).flatten(1).all(1).nonzero().squeeze(1)
    for part in chunks(finite):
        with torch.no_grad():
            clean = margins_of(model(images[part]), labels[part])
        fooled[part] = clean < 0
        rows = part[(clean >= 0) & torch.isfinite(clean)]
        if len(rows) == 0:
            continue
        counted = Counted(model)
        adversarials = call(counted, images[rows].clamp(0, 1), labels[rows])
        with torch.no_grad():
            fooled[rows] = misclassified(model(adversarials), labels[rows])
        results[rows] = adversarials
        forwards[rows] += -(-counted.forwards // len(rows)) + 1
        backwards[rows] += -(-counted.backwards // len(rows))
    return AttackOutcome(results, fooled, forwards, backwards)


class Counted(nn.Module):
    """A model that counts the images in its forward and backward passes."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.forwards = self.backwards = 0

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, K)."""
        self.forwards += len(images)
        logits: Tensor = _Counting.apply(images, self)
        return logits


class _Counting(torch.autograd.Function):
    """The model with a backward pass that only reaches the images.

    Libraries call ``backward``, which would otherwise change the gradients of parameters inside a
    user's function, and they require a gradient that a model may not have.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, counted: Counted) -> Tensor:  # noqa: ANN401
        """Logits (B, K) of images (B, C, H, W)."""
        needs_gradient: bool = ctx.needs_input_grad[0]
        with torch.set_grad_enabled(needs_gradient):
            inputs = images.detach().requires_grad_(needs_gradient)
            logits = counted.model(inputs)
        ctx.counted, ctx.inputs, ctx.logits = counted, inputs, logits if needs_gradient else None
        return logits.detach()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        """Gradient with respect to the images."""
        ctx.counted.backwards += len(ctx.inputs)
        with torch.enable_grad():
            total = (ctx.logits * slopes[0]).sum()
        return gradient(total, ctx.inputs), None
