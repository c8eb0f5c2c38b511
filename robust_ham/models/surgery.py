"""Windows put into, folded into, and taken out of the convolutions of any network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn

from robust_ham.layers import WindowedConv2d

Layers = Callable[[str, nn.Conv2d], bool] | Sequence[str] | None


def windowed(
    model: nn.Module,
    window: str = "hamming",
    kernel_size: int | None = None,
    layers: Layers = None,
    *,
    resize: Literal["pad", "draw"] = "pad",
) -> nn.Module:
    """A copy of ``model`` whose chosen convolutions are windowed, with the weights it had.

    Args:
        model: any network; it is left as it is.
        window: a name in ``robust_ham.windows.WINDOWS_2D``; ``"none"``: plain convolutions, to
            change their size only.
        kernel_size: odd size k of the chosen kernels; None: as they are. Padding grows with the
            kernel, so that sizes of feature maps stay.
        layers: which convolutions: names or patterns such as ``"layer1.*.conv2"``, or a function of
            name and module; None: all of odd size above 1×1.
        resize: a kernel that grows is padded with zeros, or drawn anew as torch does by default
            (from the global generator); one that shrinks keeps its centre, or is drawn anew.

    Returns:
        The copy. Until it is trained again it is another function than ``model``: a window weakens
        the outer weights.

    Raises:
        ValueError: no convolution was chosen, a pattern names none, an even ``kernel_size``, or a
            chosen convolution is of a class of its own or cannot be resized.
    """
    if kernel_size is not None and (kernel_size < 1 or kernel_size % 2 == 0):
        raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
    if resize not in ("pad", "draw"):
        raise ValueError(f"resize: expected pad or draw, got {resize!r}")
    chosen = _chosen(model, layers)

    def put(name: str, module: nn.Module) -> nn.Module:
        if name not in chosen:
            return module
        assert isinstance(module, nn.Conv2d)
        return with_kernel(name, module, window, kernel_size, resize)

    return replace_modules(copy.deepcopy(model), put)


def folded(model: nn.Module) -> nn.Module:
    """A copy that is the same function in plain convolutions: the windows are in the weights."""
    return replace_modules(
        copy.deepcopy(model), lambda _, m: m.fold() if isinstance(m, WindowedConv2d) else m
    )


def unwindowed(model: nn.Module) -> nn.Module:
    """A copy with the raw weights and no window: plain convolutions, and another function."""
    return replace_modules(
        copy.deepcopy(model),
        lambda name, m: with_kernel(name, m, "none") if isinstance(m, WindowedConv2d) else m,
    )


def _chosen(model: nn.Module, layers: Layers) -> set[str]:
    """Names of the convolutions that ``layers`` means."""
    convolutions = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    }
    if layers is None:
        chosen = {
            name
            for name, conv in convolutions.items()
            if _is_known(conv) and max(conv.kernel_size) > 1 and _is_odd(conv.kernel_size)
        }
    elif callable(layers):
        chosen = {name for name, conv in convolutions.items() if layers(name, conv)}
    else:
        chosen = set()
        for pattern in layers:
            found = {name for name in convolutions if fnmatchcase(name, pattern)}
            if not found:
                raise ValueError(f"layers: no convolution is called {pattern}")
            chosen |= found
    if not chosen:
        raise ValueError("layers: no convolution was chosen")
    for name in chosen:
        if not _is_known(convolutions[name]):
            kind = type(convolutions[name]).__name__
            raise ValueError(f"layers: {name} is a {kind}, which does more than nn.Conv2d")
    return chosen


def _is_odd(kernel_size: tuple[int, ...]) -> bool:
    return all(k % 2 == 1 for k in kernel_size)


def _is_known(conv: nn.Conv2d) -> bool:
    return type(conv) in (nn.Conv2d, WindowedConv2d)


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


def with_kernel(
    name: str,
    conv: nn.Conv2d,
    window: str,
    kernel_size: int | None = None,
    resize: Literal["pad", "draw"] = "pad",
) -> nn.Conv2d:
    """``conv`` with another window and, perhaps, another size; arguments as for ``windowed``."""
    old = (conv.kernel_size[0], conv.kernel_size[1])
    new = old if kernel_size is None else (kernel_size, kernel_size)
    padding: Any = conv.padding
    if new != old:
        if not _is_odd(old) or padding == "valid":
            raise ValueError(f"layers: {name} has kernel {old} and padding {padding}: not resized")
        if not isinstance(padding, str):
            grown = zip(padding, old, new, conv.dilation, strict=True)
            padding = tuple(p + d * (n - o) // 2 for p, o, n, d in grown)
            if min(padding) < 0:
                raise ValueError(f"layers: {name} has too little padding to become {new}")
    shape: dict[str, Any] = {
        "stride": conv.stride,
        "padding": padding,
        "dilation": conv.dilation,
        "groups": conv.groups,
        "bias": conv.bias is not None,
        "padding_mode": conv.padding_mode,
        "device": conv.weight.device,
        "dtype": conv.weight.dtype,
    }
    made = (
        nn.Conv2d(conv.in_channels, conv.out_channels, new, **shape)
        if window == "none"
        else WindowedConv2d(conv.in_channels, conv.out_channels, new, window=window, **shape)
    )
    with torch.no_grad():
        if new == old or resize == "pad":
            made.weight.zero_()
            inner, outer = _centres(old, new)
            made.weight[outer] = conv.weight[inner]
        if conv.bias is not None and made.bias is not None:
            made.bias.copy_(conv.bias)
    made.requires_grad_(conv.weight.requires_grad)
    return made.train(conv.training)


def _centres(old: tuple[int, int], new: tuple[int, int]) -> tuple[Any, Any]:
    """Slices of the old and of the new weight that hold the same taps."""
    inner, outer = [slice(None)] * 2, [slice(None)] * 2
    for o, n in zip(old, new, strict=True):
        margin = abs(n - o) // 2
        whole, part = slice(None), slice(margin, margin + min(o, n))
        inner.append(part if o > n else whole)
        outer.append(part if n > o else whole)
    return tuple(inner), tuple(outer)
