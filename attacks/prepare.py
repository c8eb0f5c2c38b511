"""A model made fast for attack, and given back as it was.

Attacks search on a prepared copy (convolutions and BatchNorm fused, windows folded, channels last,
parameters frozen); what they find is confirmed on the caller's own model.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from attacks.outcome import AttackOutcome, misclassified

Model = Callable[[Tensor], Tensor]
Search = Callable[[Model, Tensor, Tensor], AttackOutcome]

BOX_TOLERANCE = 1e-6
_LOGIT_TOLERANCE = 1e-4
_PROBE_IMAGES = 4
_CHUNK_IMAGES = {"cpu": 64, "cuda": 1024}  # cpu: activations stay in the cache


def check_inputs(images: Tensor, labels: Tensor) -> None:
    """Refuse what no attack can work on; NaN pixels pass, as images that cannot be attacked.

    Raises:
        ValueError: wrong shapes or dtypes, or pixels outside [0, 1] by more than 1e-6.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"images: expected floats (N, C, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels: expected int64 ({len(images)},), got {labels.dtype} {tuple(labels.shape)}"
        )
    outside = (images < -BOX_TOLERANCE) | (images > 1 + BOX_TOLERANCE)
    if outside.any():
        worst = images[outside][0].item()
        raise ValueError(f"images: expected pixels in [0, 1], got {worst:g}")


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """Refuse logits (of the first image) that do not fit the labels (of all).

    Raises:
        ValueError: not (1, K) with K of at least 2, or a label outside 0 … K − 1.
    """
    if logits.ndim != 2 or len(logits) != 1 or logits.shape[1] < 2:
        raise ValueError(
            f"model: expected logits (N, K) with K ≥ 2, got {tuple(logits.shape)} for one image"
        )
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]):
        bad = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
        raise ValueError(f"labels: expected 0 … {logits.shape[1] - 1}, got {bad}")


@contextlib.contextmanager
def attack_mode(model: Model) -> Iterator[None]:
    """Model in eval mode and frozen, gradients on, autocast and TF32 off; all restored on exit."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    flags = [parameter.requires_grad for parameter in parameters]
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    tf32 = (matmul.allow_tf32, cudnn.allow_tf32)
    try:
        for module in modules:
            module.training = False
        for parameter in parameters:
            parameter.requires_grad_(False)
        matmul.allow_tf32 = cudnn.allow_tf32 = False
        with (
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False) if torch.cuda.is_available() else _nothing(),
        ):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = tf32
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)


def _nothing() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def chunks(rows: Tensor, *, passes_per_row: int = 1) -> Iterator[Tensor]:
    """``rows`` in equal pieces that suit their device; none for no rows."""
    size = max(1, _CHUNK_IMAGES.get(rows.device.type, 64) // passes_per_row)
    if len(rows):
        yield from rows.tensor_split(max(1, round(len(rows) / size)))


def prepare(model: Model, images: Tensor) -> Model:
    """A faster copy of ``model`` with the same logits, or ``model`` itself.

    Any submodule with a ``fold()`` method is replaced by what it returns, convolutions are fused
    with BatchNorm where the graph can be traced, weights are channels last. The copy is used only
    if its logits on the first images equal the model's within 1e-4 of their size.
    """
    if not isinstance(model, nn.Module) or len(images) == 0:
        return model
    with torch.no_grad():
        try:
            fast = _rewritten(model)
            probe = images[:_PROBE_IMAGES]
            expected, found = model(probe), fast(probe)
        except Exception:  # whatever a foreign model raises when copied or run twice: do without
            return model
        scale = expected.abs().amax().clamp_min(torch.finfo(expected.dtype).tiny)
        same = found.shape == expected.shape and bool(
            ((found - expected).abs().amax() <= _LOGIT_TOLERANCE * scale).item()
        )
    return fast if same else model


def _rewritten(model: nn.Module) -> nn.Module:
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    for parent in list(fast.modules()):
        for name, child in list(parent.named_children()):
            fold = getattr(child, "fold", None)
            if callable(fold):
                setattr(parent, name, fold())
    own_fold = getattr(fast, "fold", None)
    if callable(own_fold):
        fast = own_fold()
    with contextlib.suppress(Exception):  # not traceable: unfused, still folded and frozen
        fast = fuse(fast, inplace=True)
    return fast.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def run_confirmed(search: Search, model: Model, images: Tensor, labels: Tensor) -> AttackOutcome:
    """Run ``search`` on a prepared copy and confirm every image on the caller's model.

    Images on which the two models disagree are searched again on the caller's model.

    Raises:
        ValueError: inputs or logits of the wrong shape or range.
    """
    check_inputs(images, labels)
    images = images.detach()
    if len(images) == 0:
        counts = torch.zeros(0, dtype=torch.int64, device=images.device)
        return AttackOutcome(images.clone(), counts.bool(), counts, counts.clone())
    with attack_mode(model):
        with torch.no_grad():
            check_logits(model(images[:1]), labels)
        fast = prepare(model, images)
        outcome = search(fast, images, labels)
        if fast is model:
            return outcome
        fooled = _judge(model, outcome.images, labels)
        outcome = replace(outcome, forwards=outcome.forwards + 1)
        disputed = (outcome.fooled & ~fooled).nonzero().squeeze(1)
        if len(disputed):
            again = search(model, images[disputed], labels[disputed])
            outcome = _replaced(outcome, disputed, again)
            fooled[disputed] = again.fooled
        return replace(outcome, fooled=fooled)


@torch.no_grad()
def _judge(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    images = images.contiguous(memory_format=torch.channels_last)  # faster, whatever the weights
    parts = zip(chunks(images), chunks(labels), strict=True)
    return torch.cat([misclassified(model(x), y) for x, y in parts])


def _replaced(outcome: AttackOutcome, rows: Tensor, again: AttackOutcome) -> AttackOutcome:
    """``outcome`` with some images' results exchanged and their passes added up."""

    def merged(old: Tensor | None, new: Tensor | None) -> Tensor | None:
        return None if old is None or new is None else old.index_copy(0, rows, new)

    return AttackOutcome(
        images=outcome.images.index_copy(0, rows, again.images),
        fooled=outcome.fooled.index_copy(0, rows, again.fooled),
        forwards=outcome.forwards.index_add(0, rows, again.forwards),
        backwards=outcome.backwards.index_add(0, rows, again.backwards),
        transform=merged(outcome.transform, again.transform),
        margins=merged(outcome.margins, again.margins),
    )
