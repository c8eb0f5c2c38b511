"""Checks of a model without an attack; each detects a known defect.

A *fail* means that no result of this model says anything about its robustness: masked gradients,
random predictions, or a network that learned nothing.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attacks import margins_of
from attacks.utils.model import attack_mode, gradient, predict_logits
from attacks.utils.random_streams import image_streams
from robust_ham.models.predict import (
    ACCURACY_TOLERANCE,
    NO_PREDICTION,
    PASS_TOLERANCE,
    RANDOM_LAYER,
    largest_difference,
    logits_of,
)
from robust_ham.runs.jobs.attack_checks import Finding, finding

_NOISE_SHARE = 0.03
_LENGTHS, _HALF_PRECISION_LENGTH = (0.01, 0.03), 0.1  # L2, of finite differences
_DIRECTIONS = 8
_MOST_DEVIATION, _MOST_RANDOM_DEVIATION = 0.15, 0.4
_ONE_CLASS = 0.95


def check_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> Finding:
    """Trip if the margin's gradient is zero or not finite on a correctly classified image."""
    with attack_mode(model):
        logits, slopes = _logits_and_gradient(model, images, labels)
    right = margins_of(logits, labels) > 0
    size = slopes.flatten(1).norm(dim=1)
    lost = int((right & ~(torch.isfinite(size) & (size > 0))).sum())
    reason = f"no usable gradient on {lost} of {int(right.sum())} correctly classified images"
    return finding("gradient", lost, 0, reason)


def check_finite_differences(model: nn.Module, images: Tensor, labels: Tensor) -> Finding:
    """Trip if the margin does not change as its gradient predicts.

    Either a central difference along the gradient, over an L2 length of 0.01, or of 0.03 if that
    agrees better (rounding disturbs the first, kinks the second), differs by more than 15 %. Or the
    differences along eight random directions, over the same lengths, are off by more than 40 %
    (root mean square), which also detects a truncated gradient. Half-precision models are tested
    along the gradient only, also over 0.1. Images are mixed with 3 % noise, because the gradient of
    max-pooling means little where neighbouring pixels are equal.
    """
    mixed, directions = _mixed_images(images)
    with attack_mode(model), torch.no_grad():
        logits, slopes = _logits_and_gradient(model, mixed, labels)
        rivals = _rivals(logits, labels)
        pair = torch.stack([labels, rivals], dim=1)
        rounding = 64 * torch.finfo(logits.dtype).eps * logits.gather(1, pair).abs().amax(1)

        def differences(direction: Tensor, length: float) -> Tensor:
            ends = [mixed + sign * length * direction for sign in (1, -1)]
            ahead, behind = (_gaps(predict_logits(model, end), labels, rivals) for end in ends)
            return (ahead - behind) / (2 * length)

        slope = slopes.flatten(1).norm(dim=1)
        usable = torch.isfinite(slope) & (slope > 0)
        steepest = slopes / slope.view(-1, 1, 1, 1)
        coarse = _is_coarse(logits)
        agrees = torch.zeros_like(usable)
        for length in (*_LENGTHS, _HALF_PRECISION_LENGTH)[: 3 if coarse else 2]:
            error = (differences(steepest, length) - slope).abs()
            agrees |= error <= _MOST_DEVIATION * slope + rounding / (2 * length)
        if not coarse:
            expected = (slopes[:, None] * directions).flatten(2).sum(2)  # (n, 8)
            close = torch.zeros_like(usable)
            for length in _LENGTHS:
                measured = torch.stack(
                    [differences(d, length) for d in directions.unbind(1)], dim=1
                )
                error = (measured - expected).square().mean(1).sqrt()
                size = measured.square().mean(1).sqrt()
                close |= error <= _MOST_RANDOM_DEVIATION * size + rounding / (2 * length)
            agrees &= close
    share = float((usable & ~agrees).sum()) / max(int(usable.sum()), 1)
    reason = (
        f"finite differences contradict the gradient on {share:.0%} of the images: it is not that "
        "of the model (detached, replaced or quantised), so attacks that follow it are misled"
    )
    return finding("finite differences", share, 0.1, reason)


def _mixed_images(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return images with 3 % noise and, for each, eight directions of length 1: (n, 8, C, H, W)."""
    noise, directions = [], []
    for stream in image_streams(images, "finite differences"):
        noise.append(stream.random(images.shape[1:], np.float32))
        directions.append(stream.standard_normal((_DIRECTIONS, *images.shape[1:]), np.float32))
    drawn = torch.from_numpy(np.stack(directions)).to(images)
    length = drawn.flatten(2).norm(dim=2).view(*drawn.shape[:2], 1, 1, 1)
    mixed = images + _NOISE_SHARE * (torch.from_numpy(np.stack(noise)).to(images) - images)
    return mixed, drawn / length


def _logits_and_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (n, K) and the margins' gradient (n, C, H, W), 0 without a gradient."""
    with torch.enable_grad():
        inputs = images.clone().requires_grad_(True)
        logits = predict_logits(model, inputs)
        gaps = _gaps(logits, labels, _rivals(logits.detach(), labels))
        return logits.detach(), gradient(gaps.sum(), inputs)


def _rivals(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the likeliest class other than the label, (n,)."""
    return logits.scatter(1, labels[:, None], -torch.inf).argmax(1)


def _gaps(logits: Tensor, labels: Tensor, rivals: Tensor) -> Tensor:
    """Return the logit of the label minus that of the rival, (n,)."""
    label_logit, rival_logit = (
        logits.gather(1, classes[:, None]).squeeze(1) for classes in (labels, rivals)
    )
    return label_logit - rival_logit


def _is_coarse(logits: Tensor) -> bool:
    """Whether all logits are representable in half precision."""
    halves = (torch.bfloat16, torch.float16)
    return any(bool((logits == logits.to(half).to(logits.dtype)).all()) for half in halves)


def check_determinism(model: nn.Module, images: Tensor, device: torch.device) -> Finding:
    """Trip if passes over the same images differ although the model is in eval mode.

    A model may override ``train`` so that dropout stays on, or drop out in every mode. If BatchNorm
    stays in training mode, an image's logits depend on the rest of its batch.
    """
    passes = [logits_of(model, images, device) for _ in range(4)]
    halves = images.split(-(-len(images) // 2))
    passes.append(torch.cat([logits_of(model, half, device) for half in halves]))
    with attack_mode(model):
        active = sorted({type(module).__name__ for module in model.modules() if module.training})
    if not all(torch.isfinite(logits).all() for logits in passes):
        return finding("determinism", float("nan"), PASS_TOLERANCE, "logits are not finite")
    spread = largest_difference(passes)
    reason = (
        f"two passes over the same images differ, by {spread:.1g} of the spread of the logits: "
        f"{RANDOM_LAYER}"
    )
    if active:
        reason += f" (train() is overridden; still training: {', '.join(active)})"
    return finding("determinism", spread, PASS_TOLERANCE, reason)


def check_logits(model: nn.Module, images: Tensor, device: torch.device) -> Finding:
    """Trip if outputs look like probabilities: a softmax hides the margin from the attack."""
    logits = logits_of(model, images, device)
    inside = bool(((logits >= 0) & (logits <= 1)).all())
    tolerance = 0.02 if _is_coarse(logits) else 1e-5
    sums = bool(((logits.sum(1) - 1).abs() <= tolerance).all())
    reason = "outputs lie in [0, 1] and sum to 1: probabilities, not logits"
    return finding("logits", float(inside and sums), 0, reason)


def check_accuracy(accuracy: float, card: float) -> Finding:
    """Trip if the accuracy over the whole test split differs from the card."""
    reason = f"test accuracy {accuracy:.4f}, the card says {card:.4f}"
    return finding("accuracy", abs(accuracy - card), ACCURACY_TOLERANCE, reason)


def check_chance(predictions: pd.DataFrame) -> Finding:
    """Trip if the error, averaged over classes, is no better than chance.

    ``predictions`` has ``label`` and ``prediction`` of the whole test split.
    """
    wrong = predictions["prediction"] != predictions["label"]
    per_class = wrong.groupby(predictions["label"]).agg(["mean", "size"])
    num_classes = len(per_class)
    if num_classes < 2:
        return finding("chance", 0.0, 1.0, "")
    error, chance = float(per_class["mean"].mean()), 1 - 1 / num_classes
    noise = np.sqrt((chance * (1 - chance) / per_class["size"]).sum()) / num_classes
    answers = predictions["prediction"].value_counts(normalize=True)
    if answers.index[0] == NO_PREDICTION:
        reason = f"the logits of {answers.iloc[0]:.0%} of the test images are not finite"
    elif answers.iloc[0] > _ONE_CLASS:
        reason = f"the network predicts one class ({answers.index[0]}) for {answers.iloc[0]:.0%}"
        reason += " of the test images; train longer"
    else:
        reason = f"test accuracy {1 - wrong.mean():.1%} is no better than chance; train longer"
    return finding("chance", error, float(chance - 2 * noise), reason)
