"""Networks: one builder per family; a baseline and its windowed twin differ in one argument."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from robust_ham.config.models import CnnGroup, ImageNetGroup, ModelGroup, ResNet18CifarGroup
from robust_ham.memory import check_need
from robust_ham.models.cnn import cnn
from robust_ham.models.imagenet import resnet18, vgg11_bn
from robust_ham.models.layers import WindowedConv2d, computed_weight
from robust_ham.models.resnet import resnet18_cifar
from robust_ham.models.windows import effective_width, nominal_width


class Normalize(nn.Module):
    """(x − mean) / std per channel; the constants are saved with the network.

    Input and output (N, C, H, W).
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
    """The network of ``spec``: float images (N, C, H, W) in [0, 1] to logits (N, num_classes).

    Initial weights depend on ``spec.seed`` and each parameter's name alone, so that twins that
    differ only in the window start from the same raw weights. The global random state is left
    alone.
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
    """Draw weights and biases as torch does by default, U(−1/√fan_in, 1/√fan_in), per name."""
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
    """Divide raw weights by the root mean square of their window: windowed, as large as plain."""
    for module in network.modules():
        if isinstance(module, WindowedConv2d):
            module.weight /= (module.window**2).mean().sqrt()


def num_params(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def num_flops(model: nn.Module, image_shape: Sequence[int]) -> int:
    """FLOPs of one image (C, H, W), by torch's counter."""
    parameter = next(model.parameters(), torch.zeros(0))
    image = torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype)
    was_training = model.training
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(image)
    model.train(was_training)
    return counter.get_total_flops()


@dataclass(frozen=True)
class Size:
    """What a network costs and how wide its kernels are."""

    params: int
    flops: int
    effective_width: float
    effective_width_learned: float


def measure(model: nn.Module, spec: ModelGroup, image_shape: tuple[int, int, int]) -> Size:
    """Trainable parameters, FLOPs of one image (torch's counter) and effective widths in taps."""
    return Size(
        params=num_params(model),
        flops=num_flops(model, image_shape),
        effective_width=nominal_width(spec.window, spec.kernel_size),
        effective_width_learned=learned_width(model),
    )


@torch.no_grad()
def learned_width(model: nn.Module) -> float:
    """Effective number of taps of the learned kernels, averaged over axes and layers.

    (ΣE)²/ΣE² with E the mean squared effective weight per tap along one axis; axes of one tap are
    left out. NaN for a model without such a convolution.
    """
    widths = []
    for module in model.modules():
        if not isinstance(module, nn.Conv2d):
            continue
        weight = computed_weight(module).double()  # (out, in, kh, kw)
        if isinstance(module, WindowedConv2d):
            weight = weight * module.window.double()
        energy = (weight**2).mean(dim=(0, 1)).cpu().numpy()  # (kh, kw)
        for axis in (0, 1):
            profile = energy.mean(axis=1 - axis)
            if len(profile) > 1:
                widths.append(effective_width(profile))
    return float(np.mean(widths)) if widths else math.nan


def check_weights(spec: ModelGroup, network: nn.Module) -> None:
    """Refuse a network, built on the meta device, whose weights alone are too many."""
    count = num_params(network)
    check_need(4 * count, f"models: {spec.model_id}: a network of {count:,} weights")
