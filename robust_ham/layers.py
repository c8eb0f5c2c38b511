"""Convolutions whose kernels are windowed or factorised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robust_ham.windows import window_2d


class WindowedConv2d(nn.Conv2d):
    """``nn.Conv2d`` whose every k×k slice is multiplied by a 2-D window before it is applied.

    The parameters are those of ``nn.Conv2d``, with the same names and shapes: the window is no
    parameter and is not saved, so a plain checkpoint loads here without an error and means another
    function. The gradient of the raw weight is window × the plain gradient.
    Input (N, C, H, W), output as for ``nn.Conv2d``. Source: arXiv 2101.10143, section 3.

    Args:
        *args: as for ``nn.Conv2d``.
        window: a name in ``robust_ham.windows.WINDOWS_2D``.
        **kwargs: as for ``nn.Conv2d``.
    """

    window: Tensor

    def __init__(self, *args: Any, window: str = "hamming", **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self.window_name = window
        height, width = self.kernel_size
        values = window_2d(window, height, width).to(self.weight)
        self.register_buffer("window", values, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve with the windowed weight."""
        output: Tensor = self._conv_forward(input, self.weight * self.window, self.bias)
        return output

    def fold(self) -> nn.Conv2d:
        """The same function as a plain convolution with pre-multiplied weights."""
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
            folded.weight = nn.Parameter(self.weight * self.window)  # keeps the memory format
            if self.bias is not None and folded.bias is not None:
                folded.bias.copy_(self.bias)
        return folded.train(self.training)

    def extra_repr(self) -> str:
        """The convolution's own description and the window."""
        described: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{described}, window={self.window_name}"


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
