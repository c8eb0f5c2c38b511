"""A private copy of a model, made fast for attack, and used only where it is the same function.

The copy is a traced graph: convolutions and BatchNorm fused, windows folded, channels last. A trace
keeps neither hooks nor backward passes of the model's own, and freezes what Python code decides.
So models with these get no copy, and of the others the copy's logits and input gradients are
compared with the model's, on the first images and wherever an attack does not fool the model.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import BackwardCFunction
from torch.fx.experimental.optimization import fuse
from torch.nn.modules import module as global_hooks

from attacks.utils.model import Model, chunks, gradient, logits_of_answer, predict_logits, spread_of

PROBE_IMAGES = 4
LOGIT_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3
KINK_TOLERANCE = 0.05

log = logging.getLogger(__name__)
_tracing = threading.Lock()


class FastCopy(nn.Module):
    """A traced model; called as the model itself would be, with images that it does not change.

    ``features`` (B, d) is what the last layer with parameters was last given, if that is linear.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph
        self.features: Tensor | None = None
        layers = [n.target for n in graph.graph.nodes if n.op == "call_module"]
        modules = [graph.get_submodule(str(name)) for name in layers]
        weighted = [x for x in modules if next(x.parameters(recurse=False), None) is not None]
        if weighted and isinstance(weighted[-1], nn.Linear):
            weighted[-1].register_forward_pre_hook(self._keep_features)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, K)."""
        answer = self.graph(images.clone(memory_format=torch.channels_last))
        return logits_of_answer(answer, images)

    def _keep_features(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.features = inputs[0] if inputs and inputs[0].ndim == 2 else None


def prepare(model: Model, images: Tensor) -> Model:
    """A ``FastCopy`` of ``model``, or ``model`` itself where no copy is known to be the same.

    Any submodule with a ``fold()`` method is replaced by what it returns. The copy is used only if
    on the first images its logits are the model's within 1e-4 of their spread, and its gradients
    within 1e-3 (the median image; any: 5 %, as an activation at its kink may take either side).

    Args:
        model: in ``attack_mode``.
        images: floats (N, C, H, W) in [0, 1].
    """
    if not isinstance(model, nn.Module) or len(images) == 0 or not _can_be_traced(model):
        return model
    try:
        fast = FastCopy(_traced(model))
        probe = images[:: -(-len(images) // PROBE_IMAGES)]
        return fast if agrees(fast, model, probe) else model
    except Exception as error:  # whatever a model of others raises when it is copied or traced
        log.debug("no fast copy of the model: %s", error)
        return model


def agrees(fast: FastCopy, model: Model, images: Tensor) -> bool:
    """Whether the copy has the model's logits, with and without gradients, and its gradients.

    Images that are not finite are left out. A custom ``autograd.Function`` in the model's graph is
    a disagreement: its backward pass need not be the derivative of what was traced.
    """
    whole = torch.isfinite(images).flatten(1).all(1)
    for rows in chunks(whole.nonzero().squeeze(1)):
        part = images[rows]
        with torch.no_grad():
            silent = predict_logits(model, part)
        expected, slope = _logits_and_gradient(model, part)
        found, fast_slope = _logits_and_gradient(fast, part)
        if expected.grad_fn is not None and _has_custom_function(expected.grad_fn):
            return False
        spread = spread_of(expected.detach())
        for logits in (found.detach(), silent):
            if not ((logits - expected.detach()).abs().amax(1) <= LOGIT_TOLERANCE * spread).all():
                return False
        length = slope.flatten(1).norm(dim=1)
        error = (fast_slope - slope).flatten(1).norm(dim=1)
        if not (error <= KINK_TOLERANCE * length).all():
            return False
        if not (error <= GRADIENT_TOLERANCE * length).double().mean() >= 0.5:
            return False
    return True


def _logits_and_gradient(model: Model, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, K), and the gradient of a fixed combination of them that no symmetry cancels."""
    inputs = images.detach().clone().requires_grad_()
    logits = predict_logits(model, inputs)
    weights = torch.arange(1, logits.shape[1] + 1, device=logits.device).to(logits).cos()
    return logits, gradient((logits * weights).sum(), inputs)


def _has_custom_function(node: Any) -> bool:  # noqa: ANN401 - torch has no type for it
    """Whether a backward pass written in Python lies in the graph that leads to ``node``."""
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
    """Whether no module is compiled and none, nor all of them together, has a hook."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(global_hooks, f"_global{name}", None) for name in hooks):
        return False
    return not any(
        isinstance(module, torch.jit.ScriptModule)
        or any(getattr(module, name, None) for name in hooks)
        for module in model.modules()
    )


class _FrozenChoiceError(Exception):
    """The trace would not be the model's function."""


class _Tracer(fx.Tracer):
    """A tracer that refuses contexts it would drop, and leaves other threads' models alone."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()
        self.contexts = _contexts()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:  # noqa: ANN401
        """A node of the graph, made under the same contexts as all others."""
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
        """A call of a submodule; torch traces those of all threads."""
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)


def _contexts() -> tuple[bool, ...]:
    autocast = [torch.is_autocast_enabled(device) for device in ("cpu", "cuda", "mps")]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


def _traced(model: nn.Module) -> fx.GraphModule:
    """The model's graph, on parameters of its own.

    It is traced twice, with gradients and without: Python code that counts calls, draws numbers or
    asks whether there are gradients gives two graphs.

    Raises:
        Exception: the model cannot be copied or traced.
    """
    own = copy.deepcopy(model)
    if _shares_state(own, model):
        raise _FrozenChoiceError("the model's copies share its parameters")
    own.eval().requires_grad_(False)
    for parent in list(own.modules()):
        for name, child in list(parent.named_children()):
            fold = getattr(child, "fold", None)
            if callable(fold):
                setattr(parent, name, fold())
    own_fold = getattr(own, "fold", None)
    own = own_fold() if callable(own_fold) else own
    graph = _trace_twice(own)
    for node in graph.nodes:
        if node.op == "call_method" and node.target == "view":
            node.target = "reshape"  # channels last cannot be viewed as rows
    fused = fuse(fx.GraphModule(own, graph), inplace=True, no_trace=True)
    if not isinstance(fused, fx.GraphModule):
        raise AssertionError("fuse keeps graphs")
    return fused.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _trace_twice(model: nn.Module) -> fx.Graph:
    """The model's graph, if it is the same with gradients and without.

    Raises:
        Exception: it is not, or the model cannot be traced.
    """
    with _tracing:
        graph = _Tracer().trace(model)
        constants = {k: v for k, v in vars(model).items() if k.startswith("_tensor_constant")}
        for name in constants:  # so that the second trace gives its own the same names
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
