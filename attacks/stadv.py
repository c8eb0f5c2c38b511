"""stAdv: a smooth flow of pixels that fools (Xiao et al., arXiv 1801.02612), batched."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from attacks.utils.confirm import run_confirmed
from attacks.utils.model import Model, chunks, gradient
from attacks.utils.outcome import AttackOutcome, margins_of
from attacks.utils.random_streams import image_streams
from attacks.utils.warp import warp_flow

_START = 0.01  # pixels; a zero flow is a stationary point of the smoothness term
_STEP = 0.1  # pixels, the initial step size
_PATIENCE = 20  # steps without a lower loss after which an image's step size is halved
_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # of Adam
_SMOOTH = 1e-8


def stadv(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    tau: float = 0.05,
    kappa: float = 0.0,
    steps: int = 200,
    seed: int = 0,
) -> AttackOutcome:
    """Move pixels by a small, smooth flow until the model is fooled.

    Minimises max(g_y − max_{i≠y} g_i, −κ) + τ Σ_p Σ_{q∈N4(p)} √(Δu² + Δv² + 1e-8) (equations 3
    and 4, untargeted) by Adam. Each image has its own step size, halved when its loss has not
    fallen for 20 steps. An image stops when its margin is below −κ.

    Args:
        model: images (N, C, H, W) in [0, 1] to logits (N, K).
        images: floats (N, C, H, W) in [0, 1].
        labels: int64 (N,).
        tau: weight of the smoothness term.
        kappa: margin by which the image must be misclassified.
        steps: maximum number of gradient steps per image.
        seed: seed of the small random initial flow, together with the image's bytes.

    Returns:
        An ``AttackOutcome``; ``transform`` and ``margins`` are None.

    Raises:
        ValueError: an option or the input is out of range.
    """
    for name, value in (("tau", tau), ("kappa", kappa)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}: expected at least 0, got {value}")
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    search = partial(_search, tau=tau, kappa=kappa, steps=steps, seed=seed)
    return run_confirmed(search, model, images, labels)


def flow_loss(flow: Tensor) -> Tensor:
    """Σ_p Σ_{q∈N4(p)} (√(Δu² + Δv² + 1e-8) − 1e-4): flows (N, 2, H, W) to (N,).

    Subtracting 1e-4 per pair makes the loss of a constant flow zero; the minimum does not change.
    """
    total = flow.new_zeros(len(flow))
    for dim in (2, 3):
        square = (flow.diff(dim=dim) ** 2).sum(1)
        # the sum counts each pair of neighbours twice
        total = total + 2 * ((square + _SMOOTH).sqrt() - _SMOOTH**0.5).flatten(1).sum(1)
    return total


def _search(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    tau: float,
    kappa: float,
    steps: int,
    seed: int,
) -> AttackOutcome:
    results = images.clone()
    fooled = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    forwards = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    backwards = torch.zeros_like(forwards)
    whole = torch.isfinite(images).flatten(1).all(1).nonzero().squeeze(1)
    for part in chunks(whole):
        with torch.no_grad():
            clean = margins_of(model(images[part]), labels[part])
        forwards[part] += 1
        fooled[part] = clean < 0
        rows = part[(clean >= 0) & torch.isfinite(clean)]
        flow = _start(images[rows], seed)
        first, second = torch.zeros_like(flow), torch.zeros_like(flow)  # Adam's moments
        step_size = images.new_full((len(rows),), _STEP)
        lowest = images.new_full((len(rows),), torch.inf)
        waited = torch.zeros_like(rows)
        for step in range(1, steps + 2):
            if len(rows) == 0:
                break
            flow.requires_grad_()
            warped = warp_flow(images[rows], flow)
            margin = margins_of(model(warped), labels[rows])
            forwards[rows] += 1
            results[rows] = warped.detach()
            done = margin.detach() < -kappa
            fooled[rows] = margin.detach() < 0
            loss = margin.clamp_min(-kappa) + tau * flow_loss(flow)
            going = ~done & torch.isfinite(loss.detach())
            if step > steps or not going.any():
                break
            slope = gradient(loss[going].sum(), flow)
            backwards[rows] += 1
            rows, flow, slope = rows[going], flow.detach()[going], slope[going]
            first = _BETAS[0] * first[going] + (1 - _BETAS[0]) * slope
            second = _BETAS[1] * second[going] + (1 - _BETAS[1]) * slope**2
            fell = loss.detach()[going] < lowest[going]
            lowest = lowest[going].minimum(loss.detach()[going])
            waited = torch.where(fell, 0, waited[going] + 1)
            tired = waited >= _PATIENCE
            step_size = torch.where(tired, step_size[going] / 2, step_size[going])
            waited = torch.where(tired, 0, waited)
            move = (first / (1 - _BETAS[0] ** step)) / (
                (second / (1 - _BETAS[1] ** step)).sqrt() + _EPSILON
            )
            flow = flow - step_size.view(-1, 1, 1, 1) * move
    return AttackOutcome(results, fooled, forwards, backwards)


def _start(images: Tensor, seed: int) -> Tensor:
    """Draw a small random flow (N, 2, H, W), each image from its own stream."""
    flows = images.new_zeros(len(images), 2, *images.shape[2:])
    for i, stream in enumerate(image_streams(images, f"stadv/{seed}/")):
        values = stream.normal(0, _START, flows.shape[1:])
        flows[i] = torch.from_numpy(values).to(images)
    return flows
