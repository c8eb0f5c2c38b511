"""The kernel that a convolution really applies, whatever its class does with its weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robust_ham.models.layers import WindowedConv2d, computed_weight, copied, window_name
from robust_ham.models.windows import WINDOWS_2D, window_2d

OWN_WINDOW = "of its own"
"""What ``applied_window`` says of a kernel that is changed, but by no window known here."""


class _Record(TorchFunctionMode):
    """Notes the weight of every 2-D convolution."""

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


def trial_of(conv: nn.Conv2d) -> nn.Conv2d:
    """A copy in eval mode for trials, with a random weight: one of zeros would hide all changes."""
    trial = copied(conv).eval()
    weight = trial._parameters.get("weight")
    if weight is not None:
        generator = torch.Generator().manual_seed(0)
        weight.data = torch.randn(weight.shape, generator=generator).to(weight)
    return trial


@torch.no_grad()
def _applied_kernel(trial: nn.Conv2d) -> Tensor | None:
    """The weight (out, in / groups, h, w) with which a convolution convolves.

    None where its forward fails on a small image, or makes no or several 2-D convolutions.
    """
    computed_weight(trial)
    reach = [d * (k - 1) + 1 for k, d in zip(trial.kernel_size, trial.dilation, strict=True)]
    like = next(trial.parameters())
    image = like.new_zeros(1, trial.in_channels, 2 * reach[0], 2 * reach[1])
    with _Record() as record:
        try:
            trial.forward(image)
        except Exception:  # whatever somebody else's class raises
            return None
    return record.weights[0].detach() if len(record.weights) == 1 else None


@torch.no_grad()
def applies_its_weight(trial: nn.Conv2d, window: str = "none") -> bool:
    """Whether a convolution convolves with its ``weight`` × ``window``."""
    applied, weight = _applied_kernel(trial), computed_weight(trial)
    if applied is None or applied.shape != weight.shape:
        return False
    expected = weight * window_2d(window, *weight.shape[-2:]).to(weight)
    return torch.allclose(applied, expected, rtol=1e-3, atol=1e-5)


def applied_window(conv: nn.Conv2d) -> str:
    """The window that a convolution puts on its weight: our own, or one that its forward applies.

    ``"none"``: no window; ``OWN_WINDOW``: its forward does something else to the weight.
    """
    if window_name(conv) != "none" or type(conv) in (nn.Conv2d, WindowedConv2d):
        return window_name(conv)
    trial = trial_of(conv)
    windows = ("none", *WINDOWS_2D)
    return next((w for w in windows if applies_its_weight(trial, w)), OWN_WINDOW)


def windows_of(model: nn.Module) -> dict[str, str]:
    """Name of each 2-D convolution above 1×1 → the window that it applies."""
    return {
        name: applied_window(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1
    }
