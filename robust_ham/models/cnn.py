"""The small network of Tomen & van Gemert (ICCV 2021, arXiv 2101.10143)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import nn

from robust_ham.models.layers import conv2d


def cnn(
    in_channels: int,
    num_classes: int,
    *,
    depth: int = 6,
    kernel_size: int = 7,
    first_kernel: int | Literal["same"] = 7,
    widths: Sequence[int] = (128, 256),
    downsampling: Literal["stride", "maxpool", "none"] = "stride",
    window: str = "none",
    window_layers: Literal["all", "first"] = "all",
) -> nn.Module:
    """Build ``depth`` × (convolution, BatchNorm, ReLU), global average pooling, a linear layer.

    Maps images (N, in_channels, H, W) to logits (N, num_classes).

    Args:
        in_channels: channels of the images.
        num_classes: number of logits.
        depth: number of convolutions (M).
        kernel_size: odd size k of all convolutions; of the first, see ``first_kernel``.
        first_kernel: odd size of the first convolution, or ``"same"``.
        widths: channels per layer; the last value repeats.
        downsampling: how the first layer halves the resolution.
        window: window of the convolutions; ``"none"`` is the baseline.
        window_layers: which convolutions are windowed.

    Raises:
        ValueError: even kernel size, unknown window, more widths than layers, no channels.
    """
    if len(widths) > depth:
        raise ValueError(f"widths: expected at most depth = {depth} values, got {len(widths)}")
    if min(widths) < 1:
        raise ValueError(f"widths: expected at least one channel, got {min(widths)}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_channels
    for i in range(depth):
        width = widths[min(i, len(widths) - 1)]
        size = kernel_size if i > 0 or first_kernel == "same" else first_kernel
        stride = 2 if i == 0 and downsampling == "stride" else 1
        layer_window = window if i == 0 or window_layers == "all" else "none"
        layers[f"conv{i + 1}"] = conv2d(channels, width, size, window=layer_window, stride=stride)
        layers[f"bn{i + 1}"] = nn.BatchNorm2d(width)
        layers[f"relu{i + 1}"] = nn.ReLU(inplace=True)
        if i == 0 and downsampling == "maxpool":
            layers["pool"] = nn.MaxPool2d(2)
        channels = width
    layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["linear"] = nn.Linear(channels, num_classes)
    return nn.Sequential(layers)
