"""Compare convolutions by FFT with direct ones on a CPU: `make bench-convolutions`.

`attack` columns: forward pass and gradient of the images, as in attacks, weights transformed once
(attacks/utils/fourier.py). `training` columns: forward pass and gradients of images and weights.
Ratios above 1: the FFT in float32 is faster.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks.utils.fourier import FourierConvolution, filtered

ROUNDS, THREADS, ATTACKED, TRAINED = 5, 2, 64, 128
CHANNELS_AND_SIDES = ((32, 16), (64, 8), (64, 16), (64, 32), (128, 8), (128, 16))
CHANNELS_LAST = torch.channels_last


def milliseconds(*works: Callable[[], object]) -> list[float]:
    """Median time of each work, in alternating rounds."""
    times: list[list[float]] = [[] for _ in works]
    for work in works:
        work()
    for _ in range(ROUNDS):
        for work, seconds in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
    return [1e3 * statistics.median(seconds) for seconds in times]


def attack_passes(conv: nn.Conv2d, side: int) -> list[float]:
    images = torch.randn(ATTACKED, conv.in_channels, side, side).to(memory_format=CHANNELS_LAST)
    by_fft, padding = FourierConvolution(conv), conv.padding

    def direct() -> None:
        F.conv_transpose2d(conv(images), conv.weight, None, 1, padding)

    def fourier() -> None:
        by_fft.gradient(by_fft.output(images), side, side)

    with torch.no_grad():
        return milliseconds(direct, fourier)


def training_passes(conv: nn.Conv2d, side: int) -> list[float]:
    shape = (TRAINED, conv.in_channels, side, side)
    images = torch.randn(shape).to(memory_format=CHANNELS_LAST).requires_grad_()
    slope = torch.randn(shape).to(memory_format=CHANNELS_LAST)
    kernel = conv.kernel_size[0]
    margin, period = kernel // 2, (side + kernel // 2 + 1) // 2 * 2

    def step(output: Tensor) -> None:
        torch.autograd.grad(output, (images, conv.weight), slope.to(output.dtype))

    def in_bfloat16() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            output = conv(images)
        step(output)

    def fourier() -> None:
        rest = period - kernel
        whole = F.pad(conv.weight, (0, rest, 0, rest)).roll((-margin, -margin), (-2, -1))
        spectrum = torch.fft.rfft2(whole).conj().permute(2, 3, 1, 0).flatten(0, 1)
        step(filtered(images, spectrum, (period, period))[..., :side, :side])

    return milliseconds(lambda: step(conv(images)), in_bfloat16, fourier)


def main() -> None:
    torch.set_num_threads(THREADS)
    print(f"{THREADS} threads, batches of {ATTACKED} (attack) and {TRAINED} (training), ms")
    print(
        "channels  side   k   attack: direct    FFT  ratio   training: direct   bf16    FFT  ratios"
    )
    for channels, side in CHANNELS_AND_SIDES:
        for kernel in (7, 9, 11, 15):
            conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
            conv = conv.to(memory_format=CHANNELS_LAST)
            direct, fourier = attack_passes(conv, side)
            full, low, trained = training_passes(conv, side)
            print(
                f"{channels:>8}  {side:>4}  {kernel:>2}  {direct:>15.1f} {fourier:>6.1f}  "
                f"{direct / fourier:>5.2f}  {full:>17.1f} {low:>6.1f} {trained:>6.1f}  "
                f"{full / trained:.2f}, {low / trained:.2f}"
            )


if __name__ == "__main__":
    main()
