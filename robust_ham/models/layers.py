"""Convolutions whose kernels are windowed or factorised."""

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
"""torch's forward hooks that compute ``weight`` from other tensors before every pass."""

_HOOKS = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_backward_pre_hooks", "_backward_hooks"),
)


class WindowedConv2d(nn.Conv2d):
    """``nn.Conv2d`` whose every k×k slice is multiplied by a 2-D window before it is applied.

    The parameters are those of ``nn.Conv2d``, with the same names and shapes: the window is no
    parameter and is not saved, so a plain checkpoint loads here without an error and means another
    function. The gradient of the raw weight is window × the plain gradient.
    Input (N, C, H, W), output as for ``nn.Conv2d``. Source: arXiv 2101.10143, section 3.

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
        """Use another window: a name in ``robust_ham.models.windows.WINDOWS_2D``."""
        height, width = self.kernel_size
        values = window_2d(window, height, width).to(self.weight)
        self.window_name = window
        self.register_buffer("window", values, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve with the windowed weight."""
        output: Tensor = self._conv_forward(input, self.weight * self.window, self.bias)
        return output

    def fold(self) -> nn.Conv2d:
        """The same function as a plain convolution with pre-multiplied weights.

        What spectral_norm, weight_norm or pruning do to the weight is multiplied in as well; other
        hooks are kept.
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
            weight = computed_weight(self) * self.window  # keeps the memory format
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
        """The convolution's own description and the window."""
        described: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{described}, window={self.window_name}"


class Window(nn.Module):
    """A 2-D window as a parametrization (``torch.nn.utils.parametrize``) of a weight (…, h, w).

    For convolutions with a forward of their own, and for weights that are parametrized already.
    The window is not saved.

    Args:
        window: a name in ``robust_ham.models.windows.WINDOWS_2D``.
        weight: the weight as it is; the window gets its size, dtype and device.
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


def computed_weight(conv: nn.Conv2d) -> Tensor:
    """``conv.weight`` as the next pass in eval mode has it, before the window of a WindowedConv2d.

    Where a hook of spectral_norm, weight_norm or pruning computes it, the attribute is that of the
    last pass, which is another since weights were loaded or trained: here it is computed again.
    """
    with _in_eval_mode(conv):
        for hook in conv._forward_pre_hooks.values():
            if isinstance(hook, _WEIGHT_HOOKS):
                hook(conv, ())
        return conv.weight


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def copied(module: ModuleT) -> ModuleT:
    """A deep copy, also after a training pass through spectral_norm, weight_norm or pruning.

    These leave a ``weight`` with a history of gradients behind, which ``copy.deepcopy`` refuses.
    """
    stale = [
        (part, name, tensor)
        for part in module.modules()
        for name, tensor in part.__dict__.items()
        if isinstance(tensor, Tensor) and not tensor.is_leaf
    ]
    try:
        for part, name, tensor in stale:
            part.__dict__[name] = tensor.detach()
        return copy.deepcopy(module)
    finally:
        for part, name, tensor in stale:
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
    """The window of a convolution; ``"none"`` where it has none."""
    if isinstance(module, WindowedConv2d):
        return module.window_name
    for part in weight_parametrizations(module):
        if isinstance(part, Window):
            return part.window_name
    return "none"


def weight_parametrizations(module: nn.Module) -> list[nn.Module]:
    """What is done to the weight of a module by ``torch.nn.utils.parametrize``, in order."""
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
    """A "same"-padded convolution of an odd kernel size: plain, windowed or factorised.

    ``factorised`` replaces k×k by k×1 followed by 1×k with ``out_channels`` between them; the
    window then tapers each factor along its long axis.

    Raises:
        ValueError: even kernel size.
    """
    if kernel_size % 2 == 0 or kernel_size < 1:
        raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")

    def one(channels: int, height: int, width: int, strides: tuple[int, int]) -> nn.Conv2d:
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
            one(in_channels, kernel_size, 1, (stride, 1)),
            one(out_channels, 1, kernel_size, (1, stride)),
        )
    return one(in_channels, kernel_size, kernel_size, (stride, stride))
