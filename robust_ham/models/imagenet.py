"""ImageNet networks of torchvision, with larger kernels and windows."""

from __future__ import annotations

import torchvision
from torch import nn

from robust_ham.models.kernel_surgery import change_kernel


def resnet18(num_classes: int = 1000, *, kernel_size: int = 3, window: str = "none") -> nn.Module:
    """Build torchvision's ResNet-18 with k×k for 3×3 kernels; if k > 3, 9×9 for the first 7×7.

    Maps images (N, 3, H, W) to logits (N, num_classes). 1×1 shortcuts and max-pooling stay.

    Args:
        num_classes: number of logits.
        kernel_size: odd size k.
        window: window of all but the 1×1 convolutions; ``"none"`` is the baseline, or, with a
            larger k, the large-kernel control.
    """
    first = 7 if kernel_size == 3 else 9
    model = torchvision.models.resnet18(num_classes=num_classes)
    return _with_kernels(model, {7: first, 3: kernel_size}, window)


def vgg11_bn(num_classes: int = 1000, *, kernel_size: int = 3, window: str = "none") -> nn.Module:
    """Build torchvision's VGG-11 with BatchNorm and k×k kernels; see ``resnet18``."""
    model = torchvision.models.vgg11_bn(num_classes=num_classes)
    return _with_kernels(model, {3: kernel_size}, window)


def _with_kernels(model: nn.Module, sizes: dict[int, int], window: str) -> nn.Module:
    """Resize and window the convolutions whose size is a key of ``sizes``; draw new weights."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size[0] in sizes:
            change_kernel(module, window, sizes[module.kernel_size[0]], "draw")
    return model
