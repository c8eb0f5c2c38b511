"""ResNet-18 for small images: first convolution of stride 1, no max-pooling."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from robust_ham.models.layers import conv2d


class BasicBlock(nn.Module):
    """Two k×k convolutions beside a shortcut (He et al., arXiv 1512.03385)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int,
        window: str,
        factorised: bool,
    ) -> None:
        super().__init__()

        def conv(channels: int, stride: int) -> nn.Module:
            return conv2d(
                channels,
                out_channels,
                kernel_size,
                window=window,
                factorised=factorised,
                stride=stride,
            )

        self.conv1 = conv(in_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, 1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, in, H, W) to (N, out, H / stride, W / stride)."""
        hidden = F.relu(self.bn1(self.conv1(features)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(features))


def resnet18_cifar(
    in_channels: int,
    num_classes: int,
    *,
    kernel_size: int = 3,
    first_kernel: int | Literal["same"] = "same",
    width: float = 1.0,
    factorised: bool = False,
    first_downsampling: bool = False,
    window: str = "none",
) -> nn.Module:
    """Build ResNet-18 with k×k kernels: images (N, in_channels, H, W) to logits (N, num_classes).

    Args:
        in_channels: channels of the images.
        num_classes: number of logits.
        kernel_size: odd size of all convolutions but the 1×1 shortcuts.
        first_kernel: odd size of the first convolution, or ``"same"``.
        width: multiplier of 64, 128, 256 and 512 channels.
        factorised: k×1 then 1×k instead of k×k.
        first_downsampling: stride 2 in the first convolution and 3×3 max-pooling of stride 2 after
            it, as for ImageNet.
        window: window of all but the 1×1 convolutions; ``"none"`` is the baseline.

    Raises:
        ValueError: even kernel size, unknown window, a width that leaves no channel.
    """
    widths = [int(channels * width) for channels in (64, 128, 256, 512)]
    if widths[0] < 1:
        raise ValueError(f"width: expected at least 1/64, got {width}")
    size = kernel_size if first_kernel == "same" else first_kernel
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = conv2d(
        in_channels,
        widths[0],
        size,
        window=window,
        factorised=factorised,
        stride=2 if first_downsampling else 1,
    )
    layers["bn1"] = nn.BatchNorm2d(widths[0])
    layers["relu1"] = nn.ReLU(inplace=True)
    if first_downsampling:
        layers["pool"] = nn.MaxPool2d(3, stride=2, padding=1)
    channels = widths[0]
    for stage, out_channels in enumerate(widths):
        for i in range(2):
            stride = 2 if stage > 0 and i == 0 else 1
            layers[f"layer{stage + 1}_{i}"] = BasicBlock(
                channels,
                out_channels,
                kernel_size,
                stride=stride,
                window=window,
                factorised=factorised,
            )
            channels = out_channels
    layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["linear"] = nn.Linear(channels, num_classes)
    return nn.Sequential(layers)
