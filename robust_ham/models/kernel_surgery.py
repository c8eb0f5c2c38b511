"""The kernel of one convolution: given a window, another size, or what computes it taken away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils import parametrize

from robust_ham.models.layers import (
    Window,
    WindowedConv2d,
    computed_weight,
    weight_parametrizations,
)


def is_odd(kernel_size: Sequence[int]) -> bool:
    """Whether every side of a kernel is odd."""
    return all(k % 2 == 1 for k in kernel_size)


def set_window(conv: nn.Conv2d, window: str) -> None:
    """Give a convolution another window, or none; everything else stays."""
    if isinstance(conv, WindowedConv2d) and type(conv) is not WindowedConv2d:
        conv.set_window(window)  # parametrized since: a window of ones is none
    elif isinstance(conv, WindowedConv2d) and window == "none":
        del conv.window, conv.window_name
        plain: nn.Conv2d = conv
        plain.__class__ = nn.Conv2d
    elif type(conv) in (nn.Conv2d, WindowedConv2d):
        if window != "none":
            conv.__class__ = WindowedConv2d
            assert isinstance(conv, WindowedConv2d)
            conv.set_window(window)
    else:
        _remove_window(conv)
        if window != "none":
            added = Window(window, computed_weight(conv))
            parametrize.register_parametrization(conv, "weight", added, unsafe=True)


def _remove_window(conv: nn.Conv2d) -> None:
    parts = weight_parametrizations(conv)
    places = [place for place, part in enumerate(parts) if isinstance(part, Window)]
    if not places:
        return
    if len(parts) == 1:
        remove_parametrizations(conv, keep_result=False)
    else:
        parametrizations: Any = conv.parametrizations
        del parametrizations["weight"][places[0]]


def remove_parametrizations(conv: nn.Conv2d, *, keep_result: bool = True) -> None:
    """Make ``weight`` a parameter again: what it is in eval mode, or what it was made from."""
    parametrizations: Any = conv.parametrizations
    made_from = parametrizations["weight"]
    with torch.no_grad():
        weight = computed_weight(conv).clone() if keep_result else made_from.original
    if keep_result:
        needs_grad = any(parameter.requires_grad for parameter in made_from.parameters())
        weight = nn.Parameter(weight, needs_grad)
    own_class = type(conv)  # torch shares it between copies, and takes the property out of it
    conv.__class__ = type(own_class.__name__, own_class.__bases__, dict(own_class.__dict__))
    if made_from.is_tensor:
        made_from.original = nn.Parameter(made_from.original.detach().clone())
    parametrize.remove_parametrizations(conv, "weight", leave_parametrized=True)
    conv.weight = weight


def change_kernel(
    conv: nn.Conv2d,
    window: str,
    kernel_size: int | None = None,
    resize: Literal["pad", "draw"] = "pad",
    shared: dict[int, nn.Parameter] | None = None,
) -> None:
    """Give ``conv`` another window and, perhaps, another size; arguments as for ``windowed``.

    ``shared`` keeps the new weights by the id of the old: convolutions that share one still do.

    Raises:
        ValueError: it cannot be resized.
    """
    old = (conv.kernel_size[0], conv.kernel_size[1])
    new = old if kernel_size is None else (kernel_size, kernel_size)
    if new != old:
        _resize(conv, new, resize, {} if shared is None else shared)
    set_window(conv, window)


def padding_for(conv: nn.Conv2d, new: tuple[int, int]) -> Any:  # noqa: ANN401
    """The padding with which a kernel of another size gives feature maps of the same size.

    Raises:
        ValueError: there is none.
    """
    old, padding = conv.kernel_size, conv.padding
    if not is_odd(old) or padding == "valid":
        raise ValueError(f"has kernel {tuple(old)} and padding {padding}: not resized")
    if isinstance(padding, str):
        return padding
    grown = zip(padding, old, new, conv.dilation, strict=True)
    padding = tuple(p + d * (n - o) // 2 for p, o, n, d in grown)
    if min(padding) < 0:
        raise ValueError(f"has too little padding to become {new}")
    return padding


def _resize(
    conv: nn.Conv2d,
    new: tuple[int, int],
    resize: Literal["pad", "draw"],
    shared: dict[int, nn.Parameter],
) -> None:
    old = (conv.kernel_size[0], conv.kernel_size[1])
    shape: dict[str, Any] = {
        "stride": conv.stride,
        "padding": padding_for(conv, new),
        "dilation": conv.dilation,
        "groups": conv.groups,
        "bias": conv.bias is not None,
        "padding_mode": conv.padding_mode,
        "device": conv.weight.device if resize == "draw" else "meta",
        "dtype": conv.weight.dtype,
    }
    resized = nn.Conv2d(conv.in_channels, conv.out_channels, new, **shape)
    if id(conv.weight) not in shared:
        weight = resized.weight.detach()
        if resize == "pad":
            weight = conv.weight.new_zeros(weight.shape)
            inner, outer = _centres(old, new)
            weight[outer] = conv.weight.detach()[inner]
        shared[id(conv.weight)] = nn.Parameter(weight, conv.weight.requires_grad)
    conv.weight = shared[id(conv.weight)]
    conv.kernel_size, conv.padding = new, resized.padding
    conv._reversed_padding_repeated_twice = resized._reversed_padding_repeated_twice


def _centres(old: tuple[int, int], new: tuple[int, int]) -> tuple[Any, Any]:
    """Slices of the old and of the new weight that hold the same taps."""
    inner, outer = [slice(None)] * 2, [slice(None)] * 2
    for o, n in zip(old, new, strict=True):
        margin = abs(n - o) // 2
        whole, part = slice(None), slice(margin, margin + min(o, n))
        inner.append(part if o > n else whole)
        outer.append(part if n > o else whole)
    return tuple(inner), tuple(outer)
