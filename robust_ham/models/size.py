"""The size of a network: parameters, FLOPs, and the effective width of its kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from robust_ham.config.models import ModelGroup
from robust_ham.memory import check_need
from robust_ham.models.layers import WindowedConv2d, compute_weight
from robust_ham.models.windows import effective_width, nominal_width


class _NoModules(ModuleTracker):
    """Assigns no FLOPs to modules: the hooks for that fail inside ``torch.autograd.grad``."""

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *args: object) -> None:
        pass


class FlopCounter(FlopCounterMode):
    """Counts the FLOPs of all operations in a block, forward and backward; those of FFTs as 0."""

    def __init__(self) -> None:
        super().__init__(display=False)
        self.mod_tracker = _NoModules()


def num_params(model: nn.Module) -> int:
    """Count trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def num_flops(model: nn.Module, image_shape: Sequence[int]) -> int:
    """Count the FLOPs of one image (C, H, W) with torch's counter."""
    parameter = next(model.parameters(), torch.zeros(0))
    image = torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype)
    was_training = model.training
    counter = FlopCounter()
    with torch.no_grad(), counter:
        model.eval()(image)
    model.train(was_training)
    return counter.get_total_flops()


@dataclass(frozen=True)
class Size:
    """Cost of a network and width of its kernels; see ``measure_size``."""

    params: int
    flops: int
    effective_width: float
    effective_width_learned: float


def measure_size(model: nn.Module, spec: ModelGroup, image_shape: tuple[int, int, int]) -> Size:
    """Measure trainable parameters, FLOPs of one image (C, H, W), and effective widths in taps."""
    return Size(
        params=num_params(model),
        flops=num_flops(model, image_shape),
        effective_width=nominal_width(spec.window, spec.kernel_size),
        effective_width_learned=learned_width(model),
    )


@torch.no_grad()
def learned_width(model: nn.Module) -> float:
    """Compute the effective number of taps of learned kernels, averaged over axes and layers.

    (ΣE)²/ΣE², with E the mean squared effective weight per tap along one axis. Axes of one tap are
    left out; NaN if no axis remains.
    """
    widths = []
    for module in model.modules():
        if not isinstance(module, nn.Conv2d):
            continue
        weight = compute_weight(module).double()  # (out, in, kh, kw)
        if isinstance(module, WindowedConv2d):
            weight = weight * module.window.double()
        energy = (weight**2).mean(dim=(0, 1)).cpu().numpy()  # (kh, kw)
        for axis in (0, 1):
            profile = energy.mean(axis=1 - axis)
            if len(profile) > 1:
                widths.append(effective_width(profile))
    return float(np.mean(widths)) if widths else math.nan


def check_weights(spec: ModelGroup, network: nn.Module) -> None:
    """Refuse a network, built on the meta device, whose weights exceed the memory."""
    count = num_params(network)
    check_need(4 * count, f"models: {spec.model_id}: a network of {count:,} weights")
