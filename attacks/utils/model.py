"""Call models safely: any callable from images to logits, restored after the attack.

A model gets a contiguous copy of the images, which it may change in place, and may return logits of
any floating-point type on any device. Only ``predict_logits`` calls models.
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
_saved: dict[int, _Saved] = {}  # modules and parameters under attack, by id


class InvalidAnswerError(ValueError):
    """A model returns something without logits."""


def check_inputs(images: Tensor, labels: Tensor) -> None:
    """Refuse invalid images and labels. Images with NaN are accepted, but cannot be attacked.

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
    """Refuse labels without a class in logits (N, K).

    Raises:
        ValueError: a label outside 0 … K − 1.
    """
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]):
        label = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
        raise ValueError(f"labels: expected 0 … {logits.shape[1] - 1}, got {label}")


def predict_logits(model: Model, images: Tensor) -> Tensor:
    """Compute the logits of ``model``, differentiable in ``images`` if the model is.

    Args:
        model: called with a contiguous copy of ``images``. It may return logits, or a
            dictionary or an object with the logits under ``logits``.
        images: floats (N, C, H, W) in [0, 1].

    Returns:
        (N, K), dtype and device of ``images``.

    Raises:
        InvalidAnswerError: the model returns something else, or fewer than two logits per image.
    """
    answer = _call(model, images.clone(memory_format=torch.contiguous_format))
    return logits_of_answer(answer, images)


def logits_of_answer(answer: object, images: Tensor) -> Tensor:
    """Extract the logits (N, K) from a model's output for ``images``; see ``predict_logits``."""
    logits = answer.get("logits") if isinstance(answer, Mapping) else answer
    logits = logits if isinstance(logits, Tensor) else getattr(logits, "logits", None)
    if not isinstance(logits, Tensor):
        kind = type(answer).__name__
        raise InvalidAnswerError(
            f"model: expected a tensor of logits (N, K), got {kind} without a tensor `logits`; "
            "pass a function that returns the logits alone"
        )
    if logits.ndim == 1 and len(images) == 1:  # the model squeezes its output
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
    return logits.to(images, copy=True).as_subclass(Tensor)  # the model may reuse its tensor


def spread_of(logits: Tensor) -> Tensor:
    """Largest minus median logit, (N,): the scale of differences, invariant to shifts.

    Classes masked by large negative logits have no influence.
    """
    return logits.amax(1) - logits.median(1).values


def _call(model: Model, images: Tensor) -> object:
    """Call the model, with normal copies of parameters created in inference mode."""
    if isinstance(model, nn.Module) and not isinstance(model, torch.jit.ScriptModule):
        state = itertools.chain(model.named_parameters(), model.named_buffers())
        copies = {name: tensor.detach().clone() for name, tensor in state if tensor.is_inference()}
        if copies:
            answer: object = torch.func.functional_call(model, copies, (images,))
            return answer
    return model(images)


def gradient(total: Tensor, inputs: Tensor) -> Tensor:
    """Gradient of the scalar ``total`` with respect to ``inputs``; zeros if they are not connected.

    The graph is kept for further gradients.
    """
    if not total.requires_grad:
        return torch.zeros_like(inputs)
    slope: Tensor | None
    try:
        slope = torch.autograd.grad(total, inputs, retain_graph=True, allow_unused=True)[0]
    except RuntimeError as error:
        if "use_reentrant" not in str(error) or not inputs.is_leaf:
            raise
        inputs.grad = None  # reentrant checkpoints only support backward()
        total.backward(retain_graph=True)
        slope, inputs.grad = inputs.grad, None
    return torch.zeros_like(inputs) if slope is None else slope


@contextlib.contextmanager
def attack_mode(model: Model) -> Iterator[None]:
    """Put the model in eval mode and freeze it; gradients on, inference mode, autocast, TF32 off.

    Everything is restored on exit, including buffers that the model changes in eval mode. If
    several threads attack one model, or models with common layers, the last thread to exit restores
    what they share. ``torch.compile`` is disabled, as its graphs allow only one backward pass.
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
    """Put ``model``, or the module it is a method of, in eval mode and freeze its parameters."""
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
    """Set eval mode, and freeze the parameters among ``parts``."""
    try:
        module.eval()
    except NotImplementedError:  # a module from torch.export
        for submodule in module.modules():
            submodule.training = False
    for part in parts:
        if isinstance(part, nn.Parameter):
            part.requires_grad_(False)


class _Saved:
    """State of a module or parameter before the first of its ``users`` attacked it."""

    def __init__(self, part: nn.Module | nn.Parameter) -> None:
        self.part = part
        self.users = 0
        self.buffers: dict[str, tuple[Tensor, Tensor]] = {}
        if isinstance(part, nn.Module):
            self.flag = getattr(part, "training", None)  # TorchScript may have removed it
            if not isinstance(part, torch.jit.ScriptModule):
                stored = part._buffers.items()
                self.buffers = {k: (x, x.detach().clone()) for k, x in stored if _is_normal(x)}
        else:
            self.flag = part.requires_grad

    def restore(self) -> None:
        """Restore everything that has changed."""
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
    """Whether it is a dense tensor whose values can change outside of inference mode."""
    if tensor is None or nn.parameter.is_lazy(tensor) or tensor.layout != torch.strided:
        return False
    return not tensor.is_inference() and not tensor.is_meta


def chunks(rows: Tensor, *, passes_per_row: int = 1) -> Iterator[Tensor]:
    """Yield ``rows`` in equal pieces that suit their device; nothing for no rows."""
    size = max(1, _CHUNK_IMAGES.get(rows.device.type, 64) // passes_per_row)
    if len(rows):
        yield from rows.tensor_split(max(1, round(len(rows) / size)))
