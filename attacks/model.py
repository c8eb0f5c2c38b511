"""How attacks call a model: any callable from images to logits, left exactly as it was.

A model gets contiguous images of its own, which it may change in place, and may answer in any
floating-point type or on any device; ``predict_logits`` is the only place that calls one.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from attacks.precision import full_precision

Model = Callable[[Tensor], Tensor]

BOX_TOLERANCE = 1e-6
_CHUNK_IMAGES = {"cpu": 64, "cuda": 1024}  # cpu: activations stay in the cache

_lock = threading.Lock()
_users: Counter[int] = Counter()  # attacks at work on a model, by its id
_restorers: dict[int, Callable[[], None]] = {}


class InvalidAnswerError(ValueError):
    """A model answers with something that holds no logits."""


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


def check_labels(logits: Tensor, labels: Tensor) -> None:
    """Refuse labels that logits (N, K) have no class for.

    Raises:
        ValueError: a label outside 0 … K − 1.
    """
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]):
        bad = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
        raise ValueError(f"labels: expected 0 … {logits.shape[1] - 1}, got {bad}")


def predict_logits(model: Model, images: Tensor) -> Tensor:
    """Logits of ``model``, differentiable with respect to ``images`` where the model is.

    Args:
        model: called with a contiguous copy of ``images``. It may return the logits, or a
            dictionary or an object that has them under ``logits``.
        images: floats (N, C, H, W) in [0, 1].

    Returns:
        (N, K), dtype and device of ``images``.

    Raises:
        InvalidAnswerError: the model returns something else, or fewer than two logits per image.
    """
    answer = _call(model, images.clone(memory_format=torch.contiguous_format))
    return logits_of_answer(answer, images)


def logits_of_answer(answer: object, images: Tensor) -> Tensor:
    """The logits (N, K) in what a model has answered to ``images``; see ``predict_logits``."""
    logits = answer.get("logits") if isinstance(answer, Mapping) else answer
    logits = logits if isinstance(logits, Tensor) else getattr(logits, "logits", None)
    if not isinstance(logits, Tensor):
        kind = type(answer).__name__
        raise InvalidAnswerError(
            f"model: expected a tensor of logits (N, K), got {kind} without a tensor `logits`; "
            "pass a function that returns the logits alone"
        )
    if logits.ndim == 1 and len(images) == 1:  # as of a model that squeezes
        logits = logits[None]
    if logits.ndim != 2 or len(logits) != len(images) or logits.shape[1] < 2:
        raise InvalidAnswerError(
            f"model: expected logits (N, K) with K ≥ 2, got {tuple(logits.shape)} for "
            f"{len(images)} image{'s' if len(images) != 1 else ''}"
        )
    if logits.is_complex():
        raise InvalidAnswerError(f"model: expected real logits, got {logits.dtype}")
    if logits.is_inference():
        logits = logits.clone()
    if logits.dtype == torch.float64 != images.dtype:  # keep small gaps between large logits
        logits = logits - logits.detach().amax(1, keepdim=True)
    return logits.to(images)


def _call(model: Model, images: Tensor) -> object:
    """The model's own answer; parameters made in inference mode are replaced by normal copies."""
    if isinstance(model, nn.Module) and not isinstance(model, torch.jit.ScriptModule):
        state = itertools.chain(model.named_parameters(), model.named_buffers())
        copies = {name: tensor.detach().clone() for name, tensor in state if tensor.is_inference()}
        if copies:
            answer: object = torch.func.functional_call(model, copies, (images,))
            return answer
    return model(images)


def gradient(total: Tensor, inputs: Tensor) -> Tensor:
    """∇ of the scalar ``total`` with respect to ``inputs``; zeros where there is no path.

    The graph stays, so that further gradients can be taken from it.
    """
    if not total.requires_grad:
        return torch.zeros_like(inputs)
    slope: Tensor | None
    try:
        slope = torch.autograd.grad(total, inputs, retain_graph=True, allow_unused=True)[0]
    except RuntimeError as error:
        if "use_reentrant" not in str(error) or not inputs.is_leaf:
            raise
        inputs.grad = None  # a reentrant checkpoint allows no other way
        total.backward(retain_graph=True)
        slope, inputs.grad = inputs.grad, None
    return torch.zeros_like(inputs) if slope is None else slope


@contextlib.contextmanager
def attack_mode(model: Model) -> Iterator[None]:
    """Model in eval mode and frozen, gradients on, inference mode, autocast and TF32 off.

    All of it is restored on exit; where several threads attack one model, by the last to leave.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_evaluating(model))
        stack.enter_context(full_precision())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda", "mps"):
            if device == "cpu" or torch.get_device_module(device).is_available():
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextlib.contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    if not isinstance(model, nn.Module):
        yield
        return
    with _lock:
        if id(model) not in _restorers:
            _restorers[id(model)] = _freeze(model)
        _users[id(model)] += 1
    try:
        yield
    finally:
        with _lock:
            _users[id(model)] -= 1
            if not _users[id(model)]:
                del _users[id(model)]
                _restorers.pop(id(model))()


def _freeze(model: nn.Module) -> Callable[[], None]:
    """Put ``model`` in eval mode, its parameters frozen.

    Returns:
        A function that restores modes, flags and buffers that were changed in place.
    """
    modes = [(module, getattr(module, "training", None)) for module in model.modules()]
    normal = [parameter for parameter in model.parameters() if not parameter.is_inference()]
    flags = [(parameter, parameter.requires_grad) for parameter in normal]
    with torch.no_grad():
        buffers = [(x, x.clone()) for x in model.buffers() if not x.is_inference()]

    def restore() -> None:
        for buffer, value in buffers:
            if not torch.equal(buffer, value):  # as of a BatchNorm that stays in training mode
                with torch.no_grad():
                    buffer.copy_(value)
        for module, mode in modes:
            if mode is not None and module.training is not mode:
                module.training = mode
        for parameter, flag in flags:
            if parameter.requires_grad is not flag:
                parameter.requires_grad_(flag)

    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
    except BaseException:
        restore()
        raise
    return restore


def chunks(rows: Tensor, *, passes_per_row: int = 1) -> Iterator[Tensor]:
    """``rows`` in equal pieces that suit their device; none for no rows."""
    size = max(1, _CHUNK_IMAGES.get(rows.device.type, 64) // passes_per_row)
    if len(rows):
        yield from rows.tensor_split(max(1, round(len(rows) / size)))
