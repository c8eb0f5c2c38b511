"""Backward pass of a convolution with few input channels, in blocks of pixels.

The convolutions of a CPU compute 16 channels at once, also where images have 1 or 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LANES = 16
"""Channels that the convolutions of a CPU compute at once."""


class BlockedBackward:
    """The gradient of a convolution's input as a convolution with stride b.

    Its output channels are the b² · C values of a block of b × b pixels.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        self.side = int((_LANES / layer.in_channels) ** 0.5)
        regular = layer.stride == layer.dilation == (1, 1) and layer.groups == 1
        height, width = layer.kernel_size
        down, right = layer.padding if isinstance(layer.padding, tuple) else (height, width)
        self.padding = height - 1 - down, width - 1 - right
        if self.side < 2 or not regular or min(self.padding) < 0:
            self.side = 1
            return
        side, flipped = self.side, layer.weight.detach().flip(2, 3).transpose(0, 1)
        channels, outputs = flipped.shape[:2]
        shape = (channels, side, side, outputs, height + side - 1, width + side - 1)
        weight = flipped.new_zeros(shape)
        for y in range(side):
            for x in range(side):
                weight[:, y, x, :, y : y + height, x : x + width] = flipped
        self.weight = weight.flatten(0, 2).contiguous(memory_format=torch.channels_last)

    def suit(self, height: int, width: int, device: torch.device) -> bool:
        """Whether images of this size are whole blocks, on a CPU."""
        fits = height % self.side == width % self.side == 0
        return self.side > 1 and fits and device.type == "cpu"

    def gradient(self, slope: Tensor) -> Tensor:
        """Gradient with respect to the layer's input, from that of its output."""
        blocks = F.conv2d(slope, self.weight, stride=self.side, padding=self.padding)
        return F.pixel_shuffle(blocks, self.side)
