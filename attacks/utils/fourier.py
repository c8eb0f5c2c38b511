"""Convolutions with large kernels by FFT, where that is faster than a direct one.

``make bench-convolutions`` measures where: in float32 on a CPU, with kernels of 9×9 and more, 64
channels and more, and images of 12×12 and more.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SMALLEST_KERNEL = 9
_FEWEST_CHANNELS = 64
_SMALLEST_SIDE = 12
_LARGEST_SPECTRUM = 32e6
"""Bytes of a layer's transformed weight."""
_NOISE = 1e-6
"""Error of FFTs in float32, relative to an image's largest value. Smaller values are set to 0, as a
direct convolution of zeros is: gradients of ReLU and the signs of L∞ steps depend on it."""


class FourierConvolution:
    """A convolution with stride 1, and its gradient with respect to the input, by FFT.

    The period is at least image + padding, so that sums do not wrap around the image.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        self.layer = layer
        self._spectra: dict[tuple[int, int], Tensor] = {}  # of the latest size of images only

    def suits(self, height: int, width: int) -> bool:
        """Whether it is possible for images of this size, and faster."""
        layer = self.layer
        if isinstance(layer.padding, str):
            return False
        weight, kernel, padding = layer.weight, layer.kernel_size, _padding(layer)
        if weight.dtype != torch.float32 or weight.device.type != "cpu":
            return False
        if not (layer.stride == layer.dilation == (1, 1) and layer.groups == 1):
            return False
        if min(kernel) < _SMALLEST_KERNEL or min(weight.shape[:2]) < _FEWEST_CHANNELS:
            return False
        if min(height, width) < _SMALLEST_SIDE:
            return False
        rows, columns = self._periods(height, width)
        size = 8 * weight.shape[0] * weight.shape[1] * rows * (columns // 2 + 1)
        fits = all(
            pad < side <= period
            for pad, side, period in zip(padding, kernel, (rows, columns), strict=True)
        )
        return fits and size < _LARGEST_SPECTRUM

    def output(self, images: Tensor) -> Tensor:
        """Convolve (B, C, H, W): (B, K, H', W')."""
        layer, periods = self.layer, self._periods(*images.shape[2:])
        (down, right), (above, left) = layer.kernel_size, _padding(layer)
        height = images.shape[2] + 2 * above - down + 1
        width = images.shape[3] + 2 * left - right + 1
        found = filtered(images, self._spectrum(periods), periods)[..., :height, :width]
        return found if layer.bias is None else found + layer.bias.view(-1, 1, 1)

    def gradient(self, slope: Tensor, height: int, width: int) -> Tensor:
        """Gradient with respect to the input, (P, K, H', W') to (P, C, H, W)."""
        periods = self._periods(height, width)
        return filtered(slope, self._spectrum(periods).mH, periods)[..., :height, :width]

    def _periods(self, height: int, width: int) -> tuple[int, int]:
        """Image plus padding, rounded up to even numbers."""
        down, right = _padding(self.layer)
        return height + down + (height + down) % 2, width + right + (width + right) % 2

    def _spectrum(self, periods: tuple[int, int]) -> Tensor:
        """Weight that maps each frequency of the input to the output's, (frequencies, C, K)."""
        if periods not in self._spectra:
            weight = self.layer.weight.detach()
            whole = weight.new_zeros(*weight.shape[:2], *periods)
            whole[..., : weight.shape[2], : weight.shape[3]] = weight
            down, right = _padding(self.layer)
            spectrum = torch.fft.rfft2(whole.roll((-down, -right), (-2, -1))).conj_physical()
            self._spectra = {periods: spectrum.permute(2, 3, 1, 0).flatten(0, 1).contiguous()}
        return self._spectra[periods]


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    assert not isinstance(layer.padding, str)
    return layer.padding[0], layer.padding[1]


def filtered(images: Tensor, spectrum: Tensor, periods: tuple[int, int]) -> Tensor:
    """Multiply the frequencies of (B, C, H, W) by (frequencies, C, K): (B, K, *periods)."""
    frequencies = torch.fft.rfft2(images, s=periods)  # zeros follow each image
    rows, columns = frequencies.shape[2:]
    products = torch.bmm(frequencies.permute(2, 3, 0, 1).flatten(0, 1), spectrum)
    products = products.unflatten(0, (rows, columns)).permute(2, 3, 0, 1)
    found: Tensor = torch.fft.irfft2(products, s=periods)
    noise = _NOISE * found.abs().amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(found.abs() > noise, found, 0.0)
