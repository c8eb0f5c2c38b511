"""Windowed and factorised convolutions."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from robust_ham.models.windows import window_2d

_WEIGHT_HOOKS = (SpectralNorm, WeightNorm, BasePruningMethod)
"""Forward hooks of torch that compute ``weight`` from other tensors before every pass."""

_HOOKS = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_backward_pre_hooks", "_backward_hooks"),
)


class WindowedConv2d(nn.Conv2d):
    """``nn.Conv2d`` that multiplies each k×k slice of its weight by a 2-D window.

    Parameters have the names and shapes of ``nn.Conv2d``; the window is not saved. A plain
    checkpoint therefore loads without an error, but computes another function. The gradient of the
    raw weight is the plain gradient × the window. Input (N, C, H, W), output as for ``nn.Conv2d``.
    Source: arXiv 2101.10143, section 3.

    Args:
        *args: as for ``nn.Conv2d``.
        window: a name in ``robust_ham.models.windows.WINDOWS_2D``.
        **kwargs: as for ``nn.Conv2d``.
    """

    window: Tensor

    def __init__(self, *args: Any, window: str = "hamming", **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self.set_window(window)

    def set_window(self, window: str) -> None:
        """Replace the window; ``window`` is a name in ``robust_ham.models.windows.WINDOWS_2D``."""
        height, width = self.kernel_size
        values = window_2d(window, height, width).to(self.weight)
        self.window_name = window
        self.register_buffer("window", values, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve with the windowed weight."""
        output: Tensor = self._conv_forward(input, self.weight * self.window, self.bias)
        return output

    def fold(self) -> nn.Conv2d:
        """Return an equivalent plain convolution, with the window multiplied into its weight.

        Effects of spectral_norm, weight_norm and pruning on the weight are included; other hooks
        are kept.
        """
        folded = nn.utils.skip_init(
            nn.Conv2d,
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            bias=self.bias is not None,
            padding_mode=self.padding_mode,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        assert isinstance(folded, nn.Conv2d)
        with torch.no_grad():
            weight = compute_weight(self) * self.window  # keeps the memory format
            folded.weight = nn.Parameter(weight)
            if self.bias is not None and folded.bias is not None:
                folded.bias.copy_(self.bias)
        for kind in _HOOKS:
            setattr(folded, kind, getattr(self, kind).copy())
        folded._is_full_backward_hook = self._is_full_backward_hook
        for key, hook in self._forward_pre_hooks.items():
            if isinstance(hook, _WEIGHT_HOOKS):
                del folded._forward_pre_hooks[key]
        return folded.train(self.training)

    def extra_repr(self) -> str:
        """Describe the convolution and its window."""
        described: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{described}, window={self.window_name}"


class Window(nn.Module):
    """A 2-D window as a parametrization (``torch.nn.utils.parametrize``) of a weight (…, h, w).

    For subclasses of ``nn.Conv2d``, and for weights that are already parametrized. The window is
    not saved.

    Args:
        window: a name in ``robust_ham.models.windows.WINDOWS_2D``.
        weight: the current weight; the window takes its size, dtype and device.
    """

    window: Tensor

    def __init__(self, window: str, weight: Tensor) -> None:
        super().__init__()
        self.window_name = window
        height, width = weight.shape[-2:]
        self.register_buffer("window", window_2d(window, height, width).to(weight), False)

    def forward(self, weight: Tensor) -> Tensor:
        """Multiply each h×w slice by the window."""
        return weight * self.window


def compute_weight(conv: nn.Conv2d) -> Tensor:
    """Return the weight of the next pass in eval mode, before the window of a WindowedConv2d.

    Hooks of spectral_norm, weight_norm and pruning update ``conv.weight`` only during a pass, so
    it is stale after loading or training; this runs them again.
    """
    with _in_eval_mode(conv):
        for hook in conv._forward_pre_hooks.values():
            if isinstance(hook, _WEIGHT_HOOKS):
                hook(conv, ())
        return conv.weight


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def copy_module(module: ModuleT) -> ModuleT:
    """Make a deep copy, also after a training pass with spectral_norm, weight_norm or pruning.

    These leave a non-leaf ``weight`` behind, which ``copy.deepcopy`` refuses.
    """
    non_leaves = [
        (part, name, tensor)
        for part in module.modules()
        for name, tensor in part.__dict__.items()
        if isinstance(tensor, Tensor) and not tensor.is_leaf
    ]
    try:
        for part, name, tensor in non_leaves:
            part.__dict__[name] = tensor.detach()
        return copy.deepcopy(module)
    finally:
        for part, name, tensor in non_leaves:
            part.__dict__[name] = tensor


@contextlib.contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, training in modes:
            part.training = training


def window_name(module: nn.Module) -> str:
    """Return the name of a convolution's window; ``"none"`` if it has no window."""
    if isinstance(module, WindowedConv2d):
        return module.window_name
    for part in weight_parametrizations(module):
        if isinstance(part, Window):
            return part.window_name
    return "none"


def weight_parametrizations(module: nn.Module) -> list[nn.Module]:
    """List the parametrizations (``torch.nn.utils.parametrize``) of a weight, in order."""
    if not parametrize.is_parametrized(module, "weight"):
        return []
    assert isinstance(module.parametrizations, nn.ModuleDict)
    return list(module.parametrizations["weight"].children())


def conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    window: str = "none",
    factorised: bool = False,
    stride: int = 1,
    bias: bool = False,
) -> nn.Module:
    """Build a "same"-padded convolution of odd kernel size: plain, windowed or factorised.

    ``factorised`` replaces k×k by k×1 followed by 1×k, with ``out_channels`` between them; the
    window then tapers each factor along its long axis.

    Raises:
        ValueError: ``kernel_size`` is even.
    """
    if kernel_size % 2 == 0 or kernel_size < 1:
        raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")

    def build(channels: int, height: int, width: int, strides: tuple[int, int]) -> nn.Conv2d:
        shape: dict[str, Any] = {
            "stride": strides,
            "padding": (height // 2, width // 2),
            "bias": bias,
        }
        if window == "none":
            return nn.Conv2d(channels, out_channels, (height, width), **shape)
        return WindowedConv2d(channels, out_channels, (height, width), window=window, **shape)

    if factorised and kernel_size > 1:
        return nn.Sequential(
            build(in_channels, kernel_size, 1, (stride, 1)),
            build(out_channels, 1, kernel_size, (1, stride)),
        )
    return build(in_channels, kernel_size, kernel_size, (stride, stride))
