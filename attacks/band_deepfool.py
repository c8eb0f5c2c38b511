"""DeepFool confined to a band of spatial frequencies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from attacks.deepfool import PRUNE, Found, check_options, run_audited, search
from attacks.utils.confirm import run_confirmed
from attacks.utils.model import Model, check_inputs
from attacks.utils.outcome import AttackOutcome

_ROUNDING = 100  # in units of eps: a projected gradient below this share is rounding error


def band_deepfool(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    band: int = 0,
    bands: int = 4,
    steps: int = 50,
    overshoot: float = 0.02,
    candidates: int | Literal["all"] = 10,
    prune: float | None = PRUNE,
) -> AttackOutcome:
    """Near-minimal L2 perturbation within one ring of the 2-D Fourier plane.

    DeepFool (arXiv 1511.04599) with every gradient g replaced by P g, its orthogonal projection on
    ring ``band`` of ``ring_masks``, channel by channel: each step is the shortest one within the
    ring to the nearest linearised boundary, min_l |f_l − f_0| / ‖P (∇f_l − ∇f_0)‖₂. The rings have
    equal dimension, so a gradient without a preferred frequency gives every ring the same distance;
    on one affine boundary the rings' 1/d² add up to 1/d² of plain DeepFool. Fourier subspaces as
    probes of robustness: cf. arXiv 1906.08988.

    The accumulated perturbation lies in the ring, but clipping the image to [0, 1] moves a part of
    its energy out: none if no pixel is near 0 or 1, a fifth in the higher rings of Fashion-MNIST,
    whose pixels are mostly black. That part alone may fool. An image fails if all its projected
    gradients vanish, or if it is not fooled after ``steps``.

    Args:
        model: images (N, C, H, W) in [0, 1] to logits (N, K).
        images: floats (N, C, H, W) in [0, 1].
        labels: int64 (N,), the original classes.
        band: ring of the perturbation, from 0 (the lowest frequencies and the mean) to
            ``bands`` − 1 (the highest).
        bands: number of rings; 1: plain DeepFool.
        steps: maximum number of linearisations per image; the final point is judged too.
        overshoot: factor 1 + overshoot on the accumulated perturbation.
        candidates: classes considered, as in ``deepfool``.
        prune: as in ``deepfool``, with norms of projected gradients.

    Returns:
        An ``AttackOutcome``; ``transform`` and ``margins`` are None.

    Raises:
        ValueError: an option or the input is out of range, or the images have too few pixels for
            the rings.
    """
    check_options("l2", steps, overshoot, candidates, prune)
    check_inputs(images, labels)
    masks = ring_masks(images.shape[2], images.shape[3], bands)
    if not 0 <= band < bands:
        raise ValueError(f"band: expected 0 to {bands - 1}, got {band}")
    project = None if bands == 1 else _projection(masks[band].to(images.device))

    def attack(model: Model, images: Tensor, labels: Tensor) -> AttackOutcome:
        def attempt(prune: float | None) -> Found:
            return search(
                model,
                images,
                labels,
                norm="l2",
                steps=steps,
                overshoot=overshoot,
                candidates=candidates,
                prune=prune,
                project=project,
            )

        return run_audited(attempt, prune)

    return run_confirmed(attack, model, images, labels)


def ring_masks(height: int, width: int, bands: int) -> Tensor:
    """Divide the bins of the 2-D FFT by |f| into rings of equal dimension.

    A bin f = (f_y, f_x), ``fftfreq`` cycles per pixel, has radius (f_y² + f_x²)^½. It is in
    the same ring as −f, so that a ring of n bins is an n-dimensional space of real images, and the
    rings are orthogonal. From the lowest radius on, each ring takes the number of bins closest to
    its equal share of the remaining ones, the smaller of two; numbers differ by 2 at most. Pairs of
    equal radius are in row-major order of the pair's first bin: low vertical frequencies first.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
        bands: number of rings, 1 to height · width / 2.

    Returns:
        Bool (bands, height, width), laid out as ``torch.fft.fft2``; each bin is in one ring, the
        mean in ring 0.

    Raises:
        ValueError: ``bands`` is out of range.
    """
    size = height * width
    most = max(1, size // 2)
    if not 1 <= bands <= most:
        raise ValueError(
            f"bands: expected 1 to {most} for images of {height} × {width}, got {bands}"
        )
    rows, columns = torch.arange(height), torch.arange(width)
    bins = torch.arange(size).view(height, width)
    first = bins.minimum(bins[-rows % height][:, -columns % width]).flatten()  # of f and −f
    # |f|² in units of (height · width)⁻², an integer, so that ties are exact
    squares = (rows.minimum(height - rows)[:, None] * width) ** 2
    squares = (squares + (columns.minimum(width - columns) * height) ** 2).flatten()
    order = first.argsort(stable=True)
    order = order[squares[order].argsort(stable=True)]  # (H · W,)
    pair = first[order]
    between_pairs = torch.cat([pair[1:] != pair[:-1], torch.ones(1, dtype=torch.bool)])
    ends = between_pairs.nonzero().squeeze(1) + 1
    masks = torch.zeros(bands, size, dtype=torch.bool)
    start = 0
    for ring in range(bands):
        off_share = ((ends - start) * (bands - ring) - (size - start)).abs()
        end = int(ends[off_share.argmin()])
        masks[ring, order[start:end]] = True
        start = end
    return masks.view(bands, height, width)


def _projection(mask: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the orthogonal projection of (B, C, H, W) on images with spectrum in ``mask`` (H, W).

    Rounding errors become exactly 0, so that they are not taken for a direction.
    """
    shape = mask.shape
    half = mask[:, : shape[1] // 2 + 1]  # real images: the other half is conjugate

    def project(gradient: Tensor) -> Tensor:
        part: Tensor = torch.fft.irfft2(torch.fft.rfft2(gradient.contiguous()) * half, s=shape)
        noise = _ROUNDING * torch.finfo(gradient.dtype).eps
        vanishes = part.flatten(1).norm(dim=1) <= noise * gradient.flatten(1).norm(dim=1)
        return part.masked_fill(vanishes.view(-1, 1, 1, 1), 0)

    return project
