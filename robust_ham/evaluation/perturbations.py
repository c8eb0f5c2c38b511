"""Measure perturbations: their angle to the decision boundary, and their spectrum."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attacks.utils.boundary import Norm
from attacks.utils.model import attack_mode, gradient, predict_logits

SPECTRUM_COLUMNS = ["frequency", "num_bins", "share"]
_BATCH = 250
_NORMS = {"l2": 2.0, "linf": torch.inf}
_DUALS = {"l2": 2.0, "linf": 1.0}


def normal_cosines(
    model: nn.Module,
    images: Tensor,
    adversarials: Tensor,
    labels: Tensor,
    norm: Norm,
    device: torch.device,
    batch_size: int = _BATCH,
) -> NDArray[np.float64]:
    """Compute the cosine between each perturbation r and the boundary's normal w at its end, (n,).

    w = ∇(f_adv − f_label) at the adversarial image. The nearest point of a smooth boundary has
    cosine 1; a smaller one means that curvature has led the attack away from it (SuperDeepFool,
    arXiv 2303.12481, section 3). L2: ⟨r, w⟩ / (‖r‖₂ ‖w‖₂); L∞, by duality: ⟨r, w⟩ / (‖r‖_∞ ‖w‖₁).
    NaN if the perturbation is zero, or the gradient is zero, not finite or unavailable.

    Args:
        model: logits of images in [0, 1].
        images: floats (n, C, H, W).
        adversarials: the perturbed images, same shape.
        labels: int64 (n,).
        norm: norm of the perturbation.
        device: where the model is.
        batch_size: images per pass.
    """
    parts = [torch.empty(0, dtype=torch.float64)]
    with attack_mode(model), torch.enable_grad():
        for rows in torch.arange(len(images)).split(batch_size) if len(images) else ():
            ends = adversarials[rows].to(device).requires_grad_(True)
            logits, label = predict_logits(model, ends), labels[rows].to(device)[:, None]
            others = logits.detach().scatter(1, label, -torch.inf).argmax(1, keepdim=True)
            gap = logits.gather(1, others) - logits.gather(1, label)
            step = (ends.detach() - images[rows].to(device)).flatten(1)
            normal = gradient(gap.sum(), ends).flatten(1)
            length, dual = step.norm(_NORMS[norm], dim=1), normal.norm(_DUALS[norm], dim=1)
            cosine = (step * normal).sum(1) / (length * dual)
            parts.append(torch.where(torch.isfinite(cosine), cosine, torch.nan).double().cpu())
    return torch.cat(parts).numpy()


def radial_spectrum(perturbations: Tensor) -> pd.DataFrame:
    """Compute the distribution of perturbations over frequencies, ``SPECTRUM_COLUMNS``.

    ``share``: the share of energy in a ring of the 2-D FFT, averaged over images, so that all
    images have equal weight. The width of a ring is one over the shorter side; ``frequency`` is its
    middle in cycles per pixel, ``num_bins`` its number of FFT bins. White noise has the share
    num_bins / (H·W).

    Args:
        perturbations: finite floats (n, C, H, W); all-zero ones are ignored.
    """
    height, width = perturbations.shape[-2:]
    down, right = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    step = 1 / min(height, width)
    ring = ((down[:, None] ** 2 + right**2).sqrt() / step).round().long().flatten()
    count = int(ring.max()) + 1
    moved = perturbations[perturbations.flatten(1).any(1)]
    total = torch.full((count,), 0.0 if len(moved) else torch.nan, dtype=torch.float64)
    for part in moved.split(_BATCH) if len(moved) else ():
        power = torch.fft.fft2(part.double()).abs().square().sum(1).flatten(1)
        shares = power / power.sum(1, keepdim=True)
        per_ring = torch.zeros(len(part), count, dtype=torch.float64)
        total += per_ring.index_add_(1, ring, shares).sum(0)
    mean = (total / max(len(moved), 1)).numpy()
    columns = [np.arange(count) * step, torch.bincount(ring).numpy(), mean]
    return pd.DataFrame(dict(zip(SPECTRUM_COLUMNS, columns, strict=True)))


def high_frequency_share(images: Tensor) -> NDArray[np.float64]:
    """Compute each image's share of energy above half the Nyquist frequency on either axis, (n,).

    The mean does not count; the share is 0 for an image of one colour and 3/4 for white noise.

    Args:
        images: floats (n, C, H, W).
    """
    height, width = images.shape[-2:]
    down, right = torch.fft.fftfreq(height).abs(), torch.fft.fftfreq(width).abs()
    high = (down[:, None] > 0.25) | (right > 0.25)
    parts = []
    for part in images.split(_BATCH):
        centred = part.double() - part.double().mean((2, 3), keepdim=True)
        power = torch.fft.fft2(centred).abs().square().sum(1)
        whole = power.sum((1, 2))
        share = (power * high).sum((1, 2)) / whole.clamp_min(1e-300)
        parts.append(torch.where(whole > 1e-12, share, 0.0))
    return torch.cat(parts).numpy()
