"""Build networks: one builder per family; baseline and windowed twin differ in one argument."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from robust_ham.config.models import CnnGroup, ImageNetGroup, ModelGroup, ResNet18CifarGroup
from robust_ham.models.cnn import cnn
from robust_ham.models.imagenet import resnet18, vgg11_bn
from robust_ham.models.layers import WindowedConv2d
from robust_ham.models.resnet import resnet18_cifar


class Normalize(nn.Module):
    """Normalise images: (x − mean) / std per channel; the constants are saved with the network.

    Input and output have shape (N, C, H, W).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.reshape(-1, 1, 1).clone())
        self.register_buffer("std", std.reshape(-1, 1, 1).clone())

    def forward(self, images: Tensor) -> Tensor:
        """Normalise a batch."""
        return (images - self.mean) / self.std


def _build_cnn(spec: ModelGroup, in_channels: int, num_classes: int) -> nn.Module:
    assert isinstance(spec, CnnGroup)
    return cnn(
        in_channels,
        num_classes,
        depth=spec.depth,
        kernel_size=spec.kernel_size,
        first_kernel=spec.first_kernel,
        widths=[int(channels * spec.width) for channels in spec.widths],
        downsampling=spec.downsampling,
        window=spec.window,
        window_layers=spec.window_layers,
    )


def _build_resnet18_cifar(spec: ModelGroup, in_channels: int, num_classes: int) -> nn.Module:
    assert isinstance(spec, ResNet18CifarGroup)
    return resnet18_cifar(
        in_channels,
        num_classes,
        kernel_size=spec.kernel_size,
        first_kernel=spec.first_kernel,
        width=spec.width,
        factorised=spec.factorised,
        first_downsampling=spec.first_downsampling,
        window=spec.window,
    )


def _build_imagenet(spec: ModelGroup, in_channels: int, num_classes: int) -> nn.Module:
    assert isinstance(spec, ImageNetGroup)
    if in_channels != 3:
        raise ValueError(f"{spec.architecture}: expected colour images, got {in_channels} channels")
    builder = {"resnet18": resnet18, "vgg11_bn": vgg11_bn}[spec.architecture]
    return builder(num_classes, kernel_size=spec.kernel_size, window=spec.window)


MODELS: dict[type[ModelGroup], Callable[[ModelGroup, int, int], nn.Module]] = {
    CnnGroup: _build_cnn,
    ResNet18CifarGroup: _build_resnet18_cifar,
    ImageNetGroup: _build_imagenet,
}


def build(spec: ModelGroup, in_channels: int, num_classes: int) -> nn.Module:
    """Build the network of ``spec``: images (N, C, H, W) in [0, 1] to logits (N, num_classes).

    Initial weights depend only on ``spec.seed`` and the name of each parameter, so twins that
    differ in the window start from the same raw weights. The global random state does not change.
    """
    with torch.random.fork_rng(devices=[]):  # constructors draw weights that are replaced below
        network = MODELS[type(spec)](spec, in_channels, num_classes)
    initialise(network, spec.seed)
    if spec.init == "compensated":
        compensate(network)
    if not spec.normalize:
        return network
    normalize = Normalize(torch.zeros(in_channels), torch.ones(in_channels))
    return nn.Sequential(normalize, network)


@torch.no_grad()
def initialise(network: nn.Module, seed: int) -> None:
    """Draw weights and biases from U(−1/√fan_in, 1/√fan_in), as torch does, seeded by name."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            bound = 1 / math.sqrt(module.weight[0].numel())
            module.weight.uniform_(-bound, bound, generator=generator)
            if module.bias is not None:
                module.bias.uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def compensate(network: nn.Module) -> None:
    """Divide raw weights by the RMS of their window, so that windowed weights keep their scale."""
    for module in network.modules():
        if isinstance(module, WindowedConv2d):
            module.weight /= (module.window**2).mean().sqrt()
