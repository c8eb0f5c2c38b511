"""What the adapters of other libraries share: which images are handed over, and counting passes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attacks.outcome import AttackOutcome, margins_of, misclassified
from attacks.prepare import Model, chunks

Call = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Model, images (B, C, H, W) in [0, 1] and labels (B,) to adversarial images of the same shape."""


def handed_over(model: Model, images: Tensor, labels: Tensor, *, call: Call) -> AttackOutcome:
    """What a library's attack finds for the images that are right at first and finite.

    ``forwards`` and ``backwards`` count what the library has spent on the chunk that an image was
    in, per image of it.
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
        found = call(counted, images[rows].clamp(0, 1), labels[rows])
        with torch.no_grad():
            fooled[rows] = misclassified(model(found), labels[rows])
        results[rows] = found
        forwards[rows] += -(-counted.forwards // len(rows)) + 1
        backwards[rows] += -(-counted.backwards // len(rows))
    return AttackOutcome(results, fooled, forwards, backwards)


class Counted(nn.Module):
    """A model that counts the images that go through it, forwards and backwards."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.forwards = self.backwards = 0

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, K)."""
        self.forwards += len(images)
        if images.requires_grad and torch.is_grad_enabled():
            images = images.view_as(images)  # the hook must not stay with the caller's tensor
            images.register_hook(self._count_backward)
        logits: Tensor = self.model(images)
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
