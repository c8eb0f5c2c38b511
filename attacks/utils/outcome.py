"""The result of an attack, and the definition of success."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttackOutcome:
    """Result of one attack on N images.

    Attributes:
        images: (N, C, H, W), shape and dtype of the input, in [0, 1]; the adversarial image, or
            the last iterate (spatial attacks: the worst candidate) if the attack failed.
            Misclassified clean images are returned unchanged.
        fooled: bool (N,), whether the model misclassifies the returned image (always true for
            misclassified clean images); false for an image or logits with NaN.
        forwards: int64 (N,), forward passes per image.
        backwards: int64 (N,), backward passes per image.
        transform: spatial attacks: (N, 3), degrees counter-clockwise, pixels right, pixels down of
            the returned image; else None.
        margins: spatial attacks with ``stop=None``: (N, T), margin of each candidate; NaN for
            misclassified clean images; else None.
    """

    images: Tensor
    fooled: Tensor
    forwards: Tensor
    backwards: Tensor
    transform: Tensor | None = None
    margins: Tensor | None = None


def margins_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the label minus the largest other logit: negative exactly when misclassified.

    A tie that the arg max resolves to another class has the smallest negative margin. Logits that
    are not finite have margin +∞, as they never count as fooled.

    Args:
        logits: (N, K).
        labels: int64 (N,).

    Returns:
        (N,).
    """
    label_logit = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    margin = label_logit - others
    lost_tie = (margin == 0) & (logits.argmax(1) != labels)
    margin = torch.where(lost_tie, -torch.finfo(margin.dtype).tiny, margin)
    return torch.where(torch.isfinite(logits).all(1), margin, torch.inf)


def misclassified(logits: Tensor, labels: Tensor) -> Tensor:
    """Bool (N,): the arg max differs from the label and all logits are finite."""
    return (logits.argmax(1) != labels) & torch.isfinite(logits).all(1)
