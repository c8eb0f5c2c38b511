"""Make a fast copy of a model for attacks, used only where it is the same function.

The copy is a traced graph with convolutions and BatchNorm fused, windows folded and channels last.
Tracing drops hooks and custom backward passes, and freezes decisions of Python code. Models with
hooks or custom backward passes therefore get no copy. For other models, the copy's logits and input
gradients are compared with the model's, on the first images and wherever an attack fails.
"""

from __future__ import annotations

import copy
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import BackwardCFunction
from torch.fx.experimental.optimization import fuse
from torch.nn.modules import module as global_hooks

from attacks.utils.model import Model, chunks, gradient, logits_of_answer, predict_logits, spread_of
from attacks.utils.tape import Tape

PROBE_IMAGES = 4
LOGIT_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3
KINK_TOLERANCE = 0.05

_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in eval mode

log = logging.getLogger(__name__)
_tracing = threading.Lock()


class FastCopy(nn.Module):
    """A traced model that leaves its input images unchanged.

    ``tape``: the same network for gradients of pairs, if it has been proven.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph
        self.tape: Tape | None = None
        self._low: Tape | None = None

    def in_bfloat16(self, device: torch.device) -> Tape | None:
        """A tape in bfloat16, on CPUs with instructions for it; else None."""
        if self.tape is None or device.type != "cpu" or not torch.cpu._is_avx512_bf16_supported():
            return None
        if self._low is None:
            graph = copy.deepcopy(self.graph).to(torch.bfloat16)
            self._low = Tape(graph.to(memory_format=torch.channels_last))
        return self._low

    def logits_and_gradient(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K), and the gradient of a fixed combination of them; by the tape if any."""
        if self.tape is None:
            return _logits_and_gradient(self, images)
        recording = self.tape.record(images)
        every = torch.arange(len(images), device=images.device)
        weights = _weights(recording.logits).expand(len(images), -1)
        return recording.logits, recording.gradients(every, weights)[0]

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, K)."""
        if self.tape and not (torch.is_grad_enabled() and images.requires_grad):
            return self.tape.logits(images)
        answer = self.graph(images.clone(memory_format=torch.channels_last))
        return logits_of_answer(answer, images)


def prepare(model: Model, images: Tensor) -> Model:
    """Return a ``FastCopy`` of ``model``, or ``model`` itself if no copy is the same function.

    Each submodule with a ``fold()`` method is replaced by the module it returns. On the first
    images, the copy's logits must equal the model's within 1e-4 of their spread, and its gradients
    within 1e-3 for the median image and 5 % for all, as an activation at its kink may take either
    side.

    Args:
        model: in ``attack_mode``.
        images: floats (N, C, H, W) in [0, 1].
    """
    if not isinstance(model, nn.Module) or len(images) == 0 or not _can_be_traced(model):
        return model
    probe = images[:: -(-len(images) // PROBE_IMAGES)]
    try:
        kept = _latest.get(model, images)
        if kept and agrees(kept, model, probe):
            return kept
        fast = FastCopy(_traced(model))
        if not agrees(fast, model, probe):
            return model
        fast.tape = _proven_tape(fast, probe)
        _latest.keep(model, images, fast)
        return fast
    except Exception as error:  # user code may raise anything when copied or traced
        log.debug("no fast copy of the model: %s", error)
        return model


class _Latest:
    """The copy of the model attacked last, for its next batch of images of the same shape."""

    def __init__(self) -> None:
        self.entry: tuple[weakref.ref[nn.Module], object, FastCopy] | None = None

    def get(self, model: nn.Module, images: Tensor) -> FastCopy | None:
        """The copy of ``model``, if nothing that can be compared has changed since."""
        if self.entry is None:
            return None
        copied, state, fast = self.entry
        return fast if copied() is model and state == _state(model, images) else None

    def keep(self, model: nn.Module, images: Tensor, fast: FastCopy) -> None:
        """Replace the copy; it is dropped together with the model."""
        self.entry = weakref.ref(model, self.drop), _state(model, images), fast

    def drop(self, dead: weakref.ref[nn.Module]) -> None:
        """Drop the copy of a model that no longer exists."""
        if self.entry and self.entry[0] is dead:
            self.entry = None


_latest = _Latest()


def _state(model: nn.Module, images: Tensor) -> object:
    """Identities of all layers and tensors, changes of tensors in place, and form of the images."""
    tensors = [*model.parameters(), *model.buffers()]
    changes = [(id(x), x.data_ptr(), 0 if x.is_inference() else x._version) for x in tensors]
    form = images.shape[1:], images.dtype, images.device
    return [id(module) for module in model.modules()], changes, form


def _proven_tape(fast: FastCopy, images: Tensor) -> Tape | None:
    """Return a tape of the copy if it has the copy's logits and gradients on ``images``.

    The gradients are of a few rows in another order, one of them repeated, so that a tape of a
    network that mixes images is refused.
    """
    try:
        tape = Tape(fast.graph)
        expected, slope = _logits_and_gradient(fast, images)
        for part in (images, images[:1]):
            logits = tape.record(part).logits
            if logits.shape != (len(part), expected.shape[1]) or logits.dtype != images.dtype:
                return None
        recording = tape.record(images)
        rows = torch.arange(len(images), device=images.device).flip(0)[:2].repeat(2)[:3]
        weights = _weights(expected).expand(len(rows), -1)
        parts, _ = recording.gradients(rows, weights)
    except Exception as error:  # operations of other people may raise anything
        log.debug("no tape of the model: %s", error)
        return None
    spread = spread_of(expected.detach())
    differs = (recording.logits - expected.detach()).abs().amax(1) > LOGIT_TOLERANCE * spread
    length = slope[rows].flatten(1).norm(dim=1)
    distance = (parts - slope[rows]).flatten(1).norm(dim=1)
    differs |= (distance > GRADIENT_TOLERANCE * length).any()
    return None if differs.any() else tape


def agrees(fast: FastCopy, model: Model, images: Tensor) -> bool:
    """Whether the copy has the model's logits, with and without gradients, and its gradients.

    Images that are not finite are ignored. At least half of the gradients must agree within 1e-3;
    of fewer than 4 images, any may be at a kink, and 1e-2 is enough. False if the model's graph
    contains a custom ``autograd.Function``, whose backward pass need not be the derivative of the
    traced operations.
    """
    whole = torch.isfinite(images).flatten(1).all(1)
    for rows in chunks(whole.nonzero().squeeze(1)):
        part = images[rows]
        with torch.no_grad():
            without_gradients = predict_logits(model, part)
        expected, slope = _logits_and_gradient(model, part)
        fast_logits, fast_slope = fast.logits_and_gradient(part)
        if expected.grad_fn is not None and _has_custom_function(expected.grad_fn):
            return False
        spread = spread_of(expected.detach())
        for logits in (fast_logits.detach(), without_gradients):
            if not ((logits - expected.detach()).abs().amax(1) <= LOGIT_TOLERANCE * spread).all():
                return False
        length = slope.flatten(1).norm(dim=1)
        error = (fast_slope - slope).flatten(1).norm(dim=1)
        if not (error <= KINK_TOLERANCE * length).all():
            return False
        tolerance = GRADIENT_TOLERANCE if len(part) >= PROBE_IMAGES else 10 * GRADIENT_TOLERANCE
        if not (error <= tolerance * length).double().mean() >= 0.5:
            return False
    return True


def _logits_and_gradient(model: Model, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, K), and the gradient of a fixed linear combination without symmetries."""
    inputs = images.detach().clone().requires_grad_()
    logits = predict_logits(model, inputs)
    return logits, gradient((logits * _weights(logits)).sum(), inputs)


def _weights(logits: Tensor) -> Tensor:
    """Weights (K,) without symmetries."""
    return torch.arange(1, logits.shape[1] + 1, device=logits.device).to(logits).cos()


def _has_custom_function(node: Any) -> bool:  # noqa: ANN401 - torch has no type for it
    """Whether the graph of ``node`` contains a backward pass written in Python."""
    seen, waiting = set(), [node]
    while waiting:
        current = waiting.pop()
        if current is None or current in seen:
            continue
        if isinstance(current, BackwardCFunction):
            return True
        seen.add(current)
        waiting += [following for following, _ in current.next_functions]
    return False


def _can_be_traced(model: nn.Module) -> bool:
    """Whether no module is compiled, and there are neither module hooks nor global hooks."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(global_hooks, f"_global{name}", None) for name in hooks):
        return False
    return not any(
        isinstance(module, torch.jit.ScriptModule)
        or any(getattr(module, name, None) for name in hooks)
        for module in model.modules()
    )


class _FrozenChoiceError(Exception):
    """The trace would not be the same function as the model."""


class _Tracer(fx.Tracer):
    """A tracer that refuses contexts it would drop, and ignores models of other threads."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()
        self.contexts = _contexts()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:  # noqa: ANN401
        """Create a node, if the contexts are the same as for all others."""
        if _contexts() != self.contexts:
            raise _FrozenChoiceError("gradients or autocast are switched inside the model")
        return super().create_node(*args, **kwargs)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:  # noqa: ANN401
        """Trace a call of a submodule, unless it comes from another thread."""
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)


def _contexts() -> tuple[bool, ...]:
    autocast = [torch.is_autocast_enabled(device) for device in ("cpu", "cuda", "mps")]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


def _traced(model: nn.Module) -> fx.GraphModule:
    """Trace a copy of the model, with its own parameters.

    The model is traced twice, with and without gradients. The two graphs differ if Python code
    counts calls, draws random numbers or depends on gradients.

    Raises:
        Exception: the model cannot be copied or traced.
    """
    copied = copy.deepcopy(model)
    if _shares_state(copied, model):
        raise _FrozenChoiceError("the model's copies share its parameters")
    copied.eval().requires_grad_(False)
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            fold = getattr(child, "fold", None)
            if callable(fold):
                setattr(parent, name, fold())
    fold = getattr(copied, "fold", None)
    copied = fold() if callable(fold) else copied
    graph = _trace_twice(copied)
    for node in graph.nodes:
        if node.op == "call_method" and node.target == "view":
            node.target = "reshape"  # view does not support channels last
        if node.op == "call_module" and isinstance(copied.get_submodule(node.target), _IDENTITIES):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
    _without_overwriting(copied, graph)
    fused = fuse(fx.GraphModule(copied, graph), inplace=True, no_trace=True)
    if not isinstance(fused, fx.GraphModule):
        raise AssertionError("fuse keeps graphs")
    return fused.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _without_overwriting(model: nn.Module, graph: fx.Graph) -> None:
    """Let operations return new tensors where nothing else uses the one that they overwrite.

    A gradient cannot be computed again from an overwritten input.
    """
    for node in graph.nodes:
        if len(node.all_input_nodes) == 1 and len(node.all_input_nodes[0].users) == 1:
            if node.op == "call_module":
                layer: Any = model.get_submodule(node.target)
                if getattr(layer, "inplace", False) is True:
                    layer.inplace = False
            elif node.kwargs.get("inplace") is True:
                node.kwargs = {**node.kwargs, "inplace": False}


def _trace_twice(model: nn.Module) -> fx.Graph:
    """Trace the model with and without gradients, and return the graph if both are equal.

    Raises:
        Exception: they differ, or the model cannot be traced.
    """
    with _tracing:
        graph = _Tracer().trace(model)
        constants = {k: v for k, v in vars(model).items() if k.startswith("_tensor_constant")}
        for name in constants:  # so that the second trace uses the same names
            delattr(model, name)
        with torch.no_grad():
            again = _Tracer().trace(model)
    same = str(graph) == str(again)
    if not same or not all(torch.equal(v, getattr(model, k)) for k, v in constants.items()):
        raise _FrozenChoiceError("two traces of the model differ")
    return graph


def _shares_state(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have a module, a parameter or a buffer in common."""

    def parts(model: nn.Module) -> set[int]:
        tensors = [*model.parameters(), *model.buffers()]
        stored = {tensor.data_ptr() for tensor in tensors if tensor.numel()}
        return {id(module) for module in model.modules()} | stored

    return not parts(one).isdisjoint(parts(other))
