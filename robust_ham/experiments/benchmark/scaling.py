"""How the time and memory of our attacks grow with the number of images and of classes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attacks import deepfool
from robust_ham.config.experiment import OURS
from robust_ham.experiments.benchmark.profiling import WARM_UP_IMAGES, ProfiledCall, profile_memory
from robust_ham.storage import signals

NUM_IMAGES = (100, 300, 1000)
LARGEST_NUM_IMAGES = 5000
NUM_CLASSES = (10, 100, 1000)
CLASS_IMAGES = 128


class _WithClasses(nn.Module):
    """A model with an untrained linear layer on its logits."""

    def __init__(self, model: nn.Module, num_logits: int, num_classes: int) -> None:
        super().__init__()
        self.model = model
        self.linear = nn.Linear(num_logits, num_classes)
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.linear.weight.normal_(generator=random)
            self.linear.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, num_classes)."""
        logits: Tensor = self.linear(self.model(images))
        return logits


def scaling(
    model: nn.Module, images: Tensor, labels: Tensor, rounds: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Time DeepFool (L2) on growing parts of correctly classified images, and with more classes.

    For more classes, the model gets an untrained layer on its logits and labels the images itself:
    only the cost of a step is compared. Orders alternate as in ``time_libraries``.

    Args:
        model: logits (N, K) of images.
        images: (N, C, H, W).
        labels: int64 (N,).
        rounds: how often each size is timed.
        say: prints a line.

    Returns:
        A row per size: ``of`` (images or classes), ``count``, ``rounds``, ``ms_per_image``,
        ``ms_per_step``, ``ratio`` (time per image, or for classes per step, in units of that of the
        first size; median over rounds), ``peak_memory_mb`` (of images only).
    """
    cases: dict[tuple[str, int], ProfiledCall] = {}
    for count in (*(count for count in NUM_IMAGES if count < len(images)), len(images)):
        cases["images", count] = _deepfool(model, images[:count], labels[:count])
    part = images[:CLASS_IMAGES]
    for count in NUM_CLASSES:
        with torch.no_grad():
            wide = _WithClasses(model, model(part).shape[1], count).to(part.device).eval()
            cases["classes", count] = _deepfool(wide, part, wide(part).argmax(1))
    seconds = {case: list[float]() for case in cases}
    for number in range(rounds):
        for case in list(cases) if number % 2 == 0 else list(reversed(cases)):
            signals.check()
            cases[case].run(cases[case].model, slice(WARM_UP_IMAGES))
            start = time.perf_counter()
            cases[case].run(cases[case].model)
            seconds[case].append(time.perf_counter() - start)
    rows: list[dict[str, Any]] = []
    first: dict[str, list[float]] = {}  # time per unit in each round, of the first size
    for (of, count), call in cases.items():
        times, steps = seconds[of, count], _num_steps(call)
        per_unit = [one / (steps if of == "classes" else count) for one in times]
        ratios = [a / b for a, b in zip(per_unit, first.setdefault(of, per_unit), strict=True)]
        row = {
            "of": of,
            "count": count,
            "rounds": rounds,
            "ms_per_image": 1e3 * statistics.median(times) / len(call.labels),
            "ms_per_step": 1e3 * statistics.median(times) / steps,
            "ratio": statistics.median(ratios),
            "peak_memory_mb": profile_memory(call) if of == "images" else None,
        }
        rows.append(row)
        say(f"{count} {of}: {row['ms_per_image']:.2f} ms per image")
    return rows


def _deepfool(model: nn.Module, images: Tensor, labels: Tensor) -> ProfiledCall:
    return ProfiledCall(OURS, "deepfool", {"norm": "l2"}, model, images, labels)


def _num_steps(call: ProfiledCall) -> int:
    """Number of linearisations: of an image's forward passes, the last two only judge."""
    outcome = deepfool(call.model, call.images, call.labels, **call.options)
    return int((outcome.forwards - 2).clamp_min(1).sum())
