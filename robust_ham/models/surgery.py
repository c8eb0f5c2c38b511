"""Windows put into, folded into, and taken out of the convolutions of any network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from robust_ham.config.bounds import MAX_KERNEL
from robust_ham.models.effective_kernel import applies_its_weight, trial_of
from robust_ham.models.kernel_surgery import (
    change_kernel,
    is_odd,
    padding_for,
    remove_parametrizations,
    set_window,
)
from robust_ham.models.layers import WindowedConv2d, copied, weight_parametrizations, window_name
from robust_ham.models.windows import window_2d

Layers = Callable[[str, nn.Conv2d], bool] | Sequence[str] | None


def windowed(
    model: nn.Module,
    window: str = "hamming",
    kernel_size: int | None = None,
    layers: Layers = None,
    *,
    resize: Literal["pad", "draw"] = "pad",
    allow_partial: bool = False,
) -> nn.Module:
    """A copy of ``model`` whose chosen convolutions are windowed, with the weights it had.

    Convolutions that are ``nn.Conv2d`` itself become ``WindowedConv2d``. Those of a class of their
    own (timm's ``Conv2dSame``), and those whose weight is parametrized already, get the window as a
    parametrization of their weight: the window is applied last. Hooks, spectral_norm, pruning
    masks, shared weights, dtypes, devices and ``requires_grad`` stay as they are.

    Args:
        model: any network; it is left as it is.
        window: a name in ``models.windows.WINDOWS_2D``; ``"none"``: plain convolutions, to
            change their size only.
        kernel_size: odd size k of the chosen kernels; None: as they are. Padding grows with the
            kernel, so that sizes of feature maps stay.
        layers: which convolutions: names or patterns such as ``"layer1.*.conv2"``, or a function of
            name and module; None: all of odd size above 1×1.
        resize: a kernel that grows is padded with zeros, or drawn anew as torch does by default
            (from the global generator); one that shrinks keeps its centre, or is drawn anew.
        allow_partial: leave those as they are that cannot be windowed or resized; by default, the
            error lists them.

    Returns:
        The copy. Until it is trained again it is another function than ``model``: a window weakens
        the outer weights.

    Raises:
        ValueError: no convolution was chosen, a pattern names none, an even ``kernel_size``, an
            unknown window, or a kernel that cannot be windowed or resized: its convolution does
            more to its weight than apply it, or it belongs to no convolution known here.
    """
    if kernel_size is not None and (kernel_size < 1 or kernel_size % 2 == 0):
        raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
    if kernel_size is not None and kernel_size > MAX_KERNEL:
        raise ValueError(f"kernel_size: expected at most {MAX_KERNEL}, got {kernel_size}")
    if resize not in ("pad", "draw"):
        raise ValueError(f"resize: expected pad or draw, got {resize!r}")
    window_2d(window, 1, 1)  # an unknown name is refused
    network = copied(model)
    chosen = _chosen(network, layers)
    left_out = {} if layers is not None else _kernels_elsewhere(network)
    for name, conv in list(chosen.items()):
        obstacle = _obstacle(conv, window, kernel_size)
        if obstacle is not None:
            left_out[name] = obstacle
            del chosen[name]
    if left_out and not allow_partial:
        listed = "; ".join(f"{name or 'the network'} {why}" for name, why in left_out.items())
        raise ValueError(f"layers: {listed}; allow_partial=True leaves them as they are")
    if not chosen:
        raise ValueError("layers: no convolution was chosen")
    shared: dict[int, nn.Parameter] = {}
    for conv in chosen.values():
        change_kernel(conv, window, kernel_size, resize, shared)
    return network


def folded(model: nn.Module) -> nn.Module:
    """A copy that is the same function without windows: they are multiplied into the weights.

    Where a weight is computed (spectral_norm, pruning), what it is in eval mode is multiplied in.
    """

    def fold(_: str, module: nn.Module) -> nn.Module:
        if isinstance(module, WindowedConv2d):
            return module.fold()
        if isinstance(module, nn.Conv2d) and window_name(module) != "none":
            remove_parametrizations(module)
        return module

    return replace_modules(copied(model), fold)


def unwindowed(model: nn.Module) -> nn.Module:
    """A copy with the raw weights and no window: plain convolutions, and another function."""
    network = copied(model)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and window_name(module) != "none":
            set_window(module, "none")
    return network


def replace_modules(model: nn.Module, change: Callable[[str, nn.Module], nn.Module]) -> nn.Module:
    """Put what ``change`` makes of each module (name, module) in its place; return the network.

    A module that is used in several places stays one.
    """
    made: dict[int, nn.Module] = {}
    names = {module: name for name, module in model.named_modules()}
    top = change("", model)
    if top is not model:
        return top
    for parent in names:
        for child_name, child in list(parent._modules.items()):  # children() hides shared ones
            if child is None:
                continue
            if id(child) not in made:
                made[id(child)] = change(names[child], child)
            setattr(parent, child_name, made[id(child)])
    return model


def _chosen(network: nn.Module, layers: Layers) -> dict[str, nn.Conv2d]:
    """The convolutions to be windowed, by name."""
    convolutions = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    if layers is None:
        return {n: m for n, m in convolutions.items() if _is_odd_above_one(m.kernel_size)}
    if callable(layers):
        return {name: conv for name, conv in convolutions.items() if layers(name, conv)}
    names = set[str]()
    for pattern in layers:
        found = {name for name in convolutions if fnmatchcase(name, pattern)}
        if not found:
            raise ValueError(f"layers: no convolution is called {pattern}")
        names |= found
    return {name: conv for name, conv in convolutions.items() if name in names}


def _is_odd_above_one(kernel_size: Sequence[int]) -> bool:
    return max(kernel_size) > 1 and is_odd(kernel_size)


# --- what cannot be windowed -----------------------------------------------------------------


def _kernels_elsewhere(network: nn.Module) -> dict[str, str]:
    """Kernels of odd size above 1×1 in modules that are no ``nn.Conv2d``, and what these are.

    A parameter (1, C, h, w) is taken for a position embedding.
    """
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    known = {id(parameter) for conv in convolutions for parameter in conv.parameters()}
    elsewhere: dict[str, str] = {}
    for name, module in network.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if id(parameter) in known or nn.parameter.is_lazy(parameter) or parameter.ndim != 4:
                continue
            if len(parameter) > 1 and _is_odd_above_one(parameter.shape[-2:]):
                owner = network.get_submodule(name.partition("parametrizations")[0].rstrip("."))
                kind = type(owner).__name__
                elsewhere[f"{name}.{leaf}".lstrip(".")] = f"is a kernel of a {kind}, no nn.Conv2d"
    return elsewhere


def _obstacle(conv: nn.Conv2d, window: str, kernel_size: int | None) -> str | None:
    """Why a convolution cannot be windowed or resized; None where it can."""
    kind = type(conv).__name__
    is_plain = type(conv) in (nn.Conv2d, WindowedConv2d)
    has_weight = conv._parameters.get("weight") is not None
    resized = kernel_size not in (None, *_same(conv.kernel_size))
    why = None
    if any(nn.parameter.is_lazy(parameter) for parameter in conv.parameters()):
        why = "without weights: run one batch through the network first"
    elif not {"forward", "_conv_forward"}.isdisjoint(conv.__dict__):
        why = "whose forward has been replaced"
    elif resized and not (is_plain and has_weight):
        why = "whose class or weight is its own: cannot be resized"
    elif not is_plain and not has_weight and not weight_parametrizations(conv):
        why = "whose weight a hook computes"
    elif not is_plain and not isinstance(conv, WindowedConv2d):
        trial = trial_of(conv)
        applies_raw = applies_its_weight(trial)
        set_window(trial, window)
        if not (applies_raw and applies_its_weight(trial)):
            why = "that does more with its weight than nn.Conv2d"
    if why is None and kernel_size is not None and resized:
        try:
            padding_for(conv, (kernel_size, kernel_size))
        except ValueError as error:
            return str(error)
    return why and f"is a {kind} {why}"


def _same(kernel_size: tuple[int, ...]) -> tuple[int, ...]:
    """The k of a k×k kernel, or nothing."""
    return kernel_size[:1] if len(set(kernel_size)) == 1 else ()
