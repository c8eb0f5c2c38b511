"""Which window a convolution applies to its kernel, even if its class is not known here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robust_ham.models.layers import (
    WindowedConv2d,
    compute_weight,
    copy_module,
    window_name,
)
from robust_ham.models.windows import WINDOWS_2D, window_2d

OTHER_WINDOW = "unknown"
"""``applied_window`` of a convolution that changes its weight, but not by a known window."""


class _Record(TorchFunctionMode):
    """Records the weight of every 2-D convolution that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func is torch.conv2d:
            self.weights.append(kwargs["weight"] if "weight" in kwargs else args[1])
        return func(*args, **kwargs)


def trial_copy(conv: nn.Conv2d) -> nn.Conv2d:
    """Copy a convolution, in eval mode and with a random weight: zeros would hide any window."""
    trial = copy_module(conv).eval()
    weight = trial._parameters.get("weight")
    if weight is not None:
        generator = torch.Generator().manual_seed(0)
        weight.data = torch.randn(weight.shape, generator=generator).to(weight)
    return trial


@torch.no_grad()
def _applied_kernel(trial: nn.Conv2d) -> Tensor | None:
    """Return the weight (out, in / groups, h, w) with which a convolution convolves.

    None if its forward fails on a small image, or runs no or several 2-D convolutions.
    """
    compute_weight(trial)
    reach = [d * (k - 1) + 1 for k, d in zip(trial.kernel_size, trial.dilation, strict=True)]
    like = next(trial.parameters())
    image = like.new_zeros(1, trial.in_channels, 2 * reach[0], 2 * reach[1])
    with _Record() as record:
        try:
            trial.forward(image)
        except Exception:  # a third-party class may raise anything
            return None
    return record.weights[0].detach() if len(record.weights) == 1 else None


@torch.no_grad()
def applies_its_weight(trial: nn.Conv2d, window: str = "none") -> bool:
    """Whether a convolution convolves with its ``weight`` × ``window``."""
    applied, weight = _applied_kernel(trial), compute_weight(trial)
    if applied is None or applied.shape != weight.shape:
        return False
    expected = weight * window_2d(window, *weight.shape[-2:]).to(weight)
    return torch.allclose(applied, expected, rtol=1e-3, atol=1e-5)


def applied_window(conv: nn.Conv2d) -> str:
    """Return the name of the window that a convolution applies to its weight.

    ``"none"``: no window. ``OTHER_WINDOW``: its forward changes the weight in another way.
    """
    if window_name(conv) != "none" or type(conv) in (nn.Conv2d, WindowedConv2d):
        return window_name(conv)
    trial = trial_copy(conv)
    windows = ("none", *WINDOWS_2D)
    return next((w for w in windows if applies_its_weight(trial, w)), OTHER_WINDOW)


def windows_of(model: nn.Module) -> dict[str, str]:
    """Map the name of each 2-D convolution above 1×1 to the window that it applies."""
    return {
        name: applied_window(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1
    }
