"""How attacks call a model: any callable from images to logits, left exactly as it was.

A model gets contiguous images of its own, which it may change in place, and may answer in any
floating-point type or on any device; ``predict_logits`` is the only place that calls one.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TypeGuard

import torch
from torch import Tensor, nn

from attacks.utils.switches import process_switches

Model = Callable[[Tensor], Tensor]

BOX_TOLERANCE = 1e-6
_CHUNK_IMAGES = {"cpu": 64, "cuda": 1024}  # cpu: activations stay in the cache

_LARGE_LOGIT = 1e3

_lock = threading.Lock()
_saved: dict[int, _Saved] = {}  # modules and parameters that are under attack, by their ids


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
        largest = logits.detach().amax(1, keepdim=True)
        logits = logits - torch.where(largest.abs() > _LARGE_LOGIT, largest, 0.0)
    return logits.to(images, copy=True).as_subclass(Tensor)  # a model may use its own tensor again


def spread_of(logits: Tensor) -> Tensor:
    """Largest minus median logit, (N,): the scale of differences, whatever all are shifted by.

    Classes that are masked with large negative logits do not count.
    """
    return logits.amax(1) - logits.median(1).values


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

    All of it is restored on exit, as are buffers that the model changes in eval mode. Where several
    threads attack one model, or models that share layers, the last to leave restores what they
    share. ``torch.compile`` is off meanwhile: its graphs allow one backward pass only.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_evaluating(model))
        stack.enter_context(process_switches())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda", "mps"):
            if device == "cpu" or torch.get_device_module(device).is_available():
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextlib.contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    """Put ``model``, or the module whose method it is, in eval mode, its parameters frozen."""
    module = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    if not isinstance(module, nn.Module):
        yield
        return
    parts: list[nn.Module | nn.Parameter] = list(module.modules())
    parts += [parameter for parameter in module.parameters() if _is_normal(parameter)]
    with _lock:
        for part in parts:
            if id(part) not in _saved:
                _saved[id(part)] = _Saved(part)
            _saved[id(part)].users += 1
    try:
        with _lock:
            _freeze(module, parts)
        yield
    finally:
        with _lock:
            for part in parts:
                saved = _saved[id(part)]
                saved.users -= 1
                if saved.users == 0:
                    del _saved[id(part)]
                    saved.restore()


def _freeze(module: nn.Module, parts: list[nn.Module | nn.Parameter]) -> None:
    """Eval mode, and no gradients for the parameters among ``parts``."""
    try:
        module.eval()
    except NotImplementedError:  # as of a module that torch.export has made
        for submodule in module.modules():
            submodule.training = False
    for part in parts:
        if isinstance(part, nn.Parameter):
            part.requires_grad_(False)


class _Saved:
    """A module or parameter as it was before the first of its ``users`` attacked it."""

    def __init__(self, part: nn.Module | nn.Parameter) -> None:
        self.part = part
        self.users = 0
        self.buffers: dict[str, tuple[Tensor, Tensor]] = {}
        if isinstance(part, nn.Module):
            self.flag = getattr(part, "training", None)  # TorchScript may have removed it
            if not isinstance(part, torch.jit.ScriptModule):
                own = part._buffers.items()
                self.buffers = {k: (x, x.detach().clone()) for k, x in own if _is_normal(x)}
        else:
            self.flag = part.requires_grad

    def restore(self) -> None:
        """Set everything back that is not as it was."""
        if isinstance(self.part, nn.Parameter):
            if self.part.requires_grad is not self.flag:
                self.part.requires_grad_(bool(self.flag))
            return
        if self.flag is not None and self.part.training is not self.flag:
            self.part.training = self.flag
        for name, (buffer, value) in self.buffers.items():
            if self.part._buffers.get(name) is not buffer:
                self.part._buffers[name] = buffer
            if not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)


def _is_normal(tensor: Tensor | None) -> TypeGuard[Tensor]:
    """Whether it is a dense tensor with values that may be changed outside of inference mode."""
    if tensor is None or nn.parameter.is_lazy(tensor) or tensor.layout != torch.strided:
        return False
    return not tensor.is_inference() and not tensor.is_meta


def chunks(rows: Tensor, *, passes_per_row: int = 1) -> Iterator[Tensor]:
    """``rows`` in equal pieces that suit their device; none for no rows."""
    size = max(1, _CHUNK_IMAGES.get(rows.device.type, 64) // passes_per_row)
    if len(rows):
        yield from rows.tensor_split(max(1, round(len(rows) / size)))
