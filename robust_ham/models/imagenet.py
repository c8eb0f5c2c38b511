"""ImageNet networks: torchvision's own, with larger kernels, and windowed."""

from __future__ import annotations

import torchvision
from torch import nn

from robust_ham.models.kernel_surgery import change_kernel


def resnet18(num_classes: int = 1000, *, kernel_size: int = 3, window: str = "none") -> nn.Module:
    """torchvision's ResNet-18; k×k for its 3×3, and 9×9 for its first 7×7 where k is above 3.

    Images (N, 3, H, W) to logits (N, num_classes). 1×1 shortcuts and max-pooling stay as they are.

    Args:
        num_classes: number of logits.
        kernel_size: odd size k.
        window: window of all but the 1×1 convolutions; ``"none"``: plain, or, with a larger k, the
            large-kernel control.
    """
    first = 7 if kernel_size == 3 else 9
    model = torchvision.models.resnet18(num_classes=num_classes)
    return _with_kernels(model, {7: first, 3: kernel_size}, window)


def vgg11_bn(num_classes: int = 1000, *, kernel_size: int = 3, window: str = "none") -> nn.Module:
    """torchvision's VGG-11 with BatchNorm, every convolution k×k; arguments as for ``resnet18``."""
    model = torchvision.models.vgg11_bn(num_classes=num_classes)
    return _with_kernels(model, {3: kernel_size}, window)


def _with_kernels(model: nn.Module, sizes: dict[int, int], window: str) -> nn.Module:
    """Convolutions of the sizes named, in their new sizes and windowed; weights drawn anew."""

    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size[0] in sizes:
            change_kernel(module, window, sizes[module.kernel_size[0]], "draw")
    return model
