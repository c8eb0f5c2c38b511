"""Add windows to the convolutions of any network, fold them into its weights, or remove them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from robust_ham.config.bounds import MAX_KERNEL
from robust_ham.errors import list_names
from robust_ham.models.applied_window import applies_its_weight, trial_copy
from robust_ham.models.kernel_surgery import (
    change_kernel,
    is_odd,
    padding_for,
    remove_parametrizations,
    set_window,
)
from robust_ham.models.layers import (
    WindowedConv2d,
    copy_module,
    weight_parametrizations,
    window_name,
)
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
    """Copy a network and apply a window to its convolutions; the copy keeps the weights.

    Plain ``nn.Conv2d`` layers become ``WindowedConv2d``. Subclasses (such as timm's ``Conv2dSame``)
    and layers with a parametrized weight get the window as the last parametrization of their
    weight. Hooks, spectral_norm, pruning masks, shared weights, dtypes, devices and
    ``requires_grad`` are preserved.

    Args:
        model: any network; it is not changed.
        window: ``"hamming"``, ``"hamming_sqrt"``, ``"hann"``, ``"blackman"``, ``"kaiser"``,
            ``"hamming_shuffled"`` (a placebo), or ``"none"`` to change only the size.
        kernel_size: new odd size k of the selected kernels; None keeps their size. Padding changes
            with it, so that feature maps keep their size.
        layers: which convolutions to change: names or patterns such as ``"layer1.*.conv2"``, or a
            function of name and module that returns a bool; None selects all kernels of odd size
            above 1×1.
        resize: ``"pad"`` pads a larger kernel with zeros, or crops a smaller one to its centre;
            ``"draw"`` draws new weights as torch does, from its global generator.
        allow_partial: skip layers that cannot be windowed or resized, instead of raising an error
            that lists them.

    Returns:
        The modified copy. Train it before use: a window weakens the outer weights, so it does not
        compute the same function as ``model``.

    Raises:
        ValueError: no convolution is selected, a pattern matches none, ``kernel_size`` is even or
            too large, ``window`` or ``resize`` is unknown, or a selected kernel cannot be windowed
            or resized.

    Example:
        >>> from torch import nn
        >>> from robust_ham import windowed
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Conv2d(4, 8, 3))
        >>> windowed(network, "hamming", kernel_size=7)[0]
        WindowedConv2d(1, 4, kernel_size=(7, 7), stride=(1, 1), padding=(1, 1), window=hamming)
    """
    if kernel_size is not None and (kernel_size < 1 or kernel_size % 2 == 0):
        raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
    if kernel_size is not None and kernel_size > MAX_KERNEL:
        raise ValueError(f"kernel_size: expected at most {MAX_KERNEL}, got {kernel_size}")
    if resize not in ("pad", "draw"):
        raise ValueError(f"resize: expected pad or draw, got {resize!r}")
    window_2d(window, 1, 1)  # raises for an unknown name
    network = copy_module(model)
    selected = _select_convolutions(network, layers)
    obstacles = {} if layers is not None else _other_kernels(network)
    for name, conv in list(selected.items()):
        obstacle = _obstacle(conv, window, kernel_size)
        if obstacle is not None:
            obstacles[name] = obstacle
            del selected[name]
    if obstacles and not allow_partial:
        listed = "; ".join(f"{name or 'the network'} {why}" for name, why in obstacles.items())
        raise ValueError(f"layers: {listed}; set allow_partial=True to leave them unchanged")
    if not selected:
        raise ValueError("layers: no convolution is selected")
    shared: dict[int, nn.Parameter] = {}
    for conv in selected.values():
        change_kernel(conv, window, kernel_size, resize, shared)
    return network


def folded(model: nn.Module) -> nn.Module:
    """Copy a network and multiply its windows into the weights; the function stays the same.

    A computed weight (spectral_norm, pruning) is replaced by its value in eval mode.
    """

    def fold(_: str, module: nn.Module) -> nn.Module:
        if isinstance(module, WindowedConv2d):
            return module.fold()
        if isinstance(module, nn.Conv2d) and window_name(module) != "none":
            remove_parametrizations(module)
        return module

    return replace_modules(copy_module(model), fold)


def unwindowed(model: nn.Module) -> nn.Module:
    """Copy a network and remove its windows; raw weights stay, so the function changes."""
    network = copy_module(model)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and window_name(module) != "none":
            set_window(module, "none")
    return network


def replace_modules(model: nn.Module, change: Callable[[str, nn.Module], nn.Module]) -> nn.Module:
    """Replace each module by ``change(name, module)``, in place; return the network.

    A module that occurs several times is changed once and stays shared.
    """
    changed: dict[int, nn.Module] = {}
    names = {module: name for name, module in model.named_modules()}
    top = change("", model)
    if top is not model:
        return top
    for parent in names:
        for child_name, child in list(parent._modules.items()):  # children() hides shared ones
            if child is None:
                continue
            if id(child) not in changed:
                changed[id(child)] = change(names[child], child)
            setattr(parent, child_name, changed[id(child)])
    return model


def _select_convolutions(network: nn.Module, layers: Layers) -> dict[str, nn.Conv2d]:
    """Return the convolutions that ``layers`` selects, by name."""
    convolutions = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    if layers is None:
        return {n: m for n, m in convolutions.items() if _is_odd_above_one(m.kernel_size)}
    if callable(layers):
        return {name: conv for name, conv in convolutions.items() if layers(name, conv)}
    names = set[str]()
    for pattern in layers:
        matches = {name for name in convolutions if fnmatchcase(name, pattern)}
        if not matches:
            raise ValueError(
                f"layers: no convolution matches {pattern!r}; the network has "
                f"{list_names(convolutions) or 'none'}"
            )
        names |= matches
    return {name: conv for name, conv in convolutions.items() if name in names}


def _is_odd_above_one(kernel_size: Sequence[int]) -> bool:
    return max(kernel_size) > 1 and is_odd(kernel_size)


# --- what cannot be windowed -----------------------------------------------------------------


def _other_kernels(network: nn.Module) -> dict[str, str]:
    """Find kernels of odd size above 1×1 outside of ``nn.Conv2d``, and describe their modules.

    A parameter of shape (1, C, h, w) is taken for a position embedding.
    """
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    known = {id(parameter) for conv in convolutions for parameter in conv.parameters()}
    others: dict[str, str] = {}
    for name, module in network.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if id(parameter) in known or nn.parameter.is_lazy(parameter) or parameter.ndim != 4:
                continue
            if len(parameter) > 1 and _is_odd_above_one(parameter.shape[-2:]):
                owner = network.get_submodule(name.partition("parametrizations")[0].rstrip("."))
                kind = type(owner).__name__
                full_name = f"{name}.{leaf}".lstrip(".")
                others[full_name] = f"is a kernel of a {kind}, not of an nn.Conv2d"
    return others


def _obstacle(conv: nn.Conv2d, window: str, kernel_size: int | None) -> str | None:
    """Explain why a convolution cannot be windowed or resized; None if it can."""
    kind = type(conv).__name__
    is_plain = type(conv) in (nn.Conv2d, WindowedConv2d)
    has_weight = conv._parameters.get("weight") is not None
    resized = kernel_size not in (None, *_square_size(conv.kernel_size))
    why = None
    if any(nn.parameter.is_lazy(parameter) for parameter in conv.parameters()):
        why = "without weights yet: run one batch through the network first"
    elif not {"forward", "_conv_forward"}.isdisjoint(conv.__dict__):
        why = "whose forward was replaced"
    elif resized and not (is_plain and has_weight):
        why = "that cannot be resized: a subclass of nn.Conv2d, or its weight is parametrized"
    elif not is_plain and not has_weight and not weight_parametrizations(conv):
        why = "with a weight that a hook computes"
    elif not is_plain and not isinstance(conv, WindowedConv2d):
        trial = trial_copy(conv)
        applies_raw = applies_its_weight(trial)
        set_window(trial, window)
        if not (applies_raw and applies_its_weight(trial)):
            why = "whose forward does more with its weight than nn.Conv2d does"
    if why is None and kernel_size is not None and resized:
        try:
            padding_for(conv, (kernel_size, kernel_size))
        except ValueError as error:
            return str(error)
    return why and f"is a {kind} {why}"


def _square_size(kernel_size: tuple[int, ...]) -> tuple[int, ...]:
    """Return (k,) for a k×k kernel, else ()."""
    return kernel_size[:1] if len(set(kernel_size)) == 1 else ()
