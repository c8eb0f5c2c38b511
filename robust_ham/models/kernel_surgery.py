"""Change the kernel of one convolution: its window, size, or parametrizations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils import parametrize

from robust_ham.models.layers import (
    Window,
    WindowedConv2d,
    compute_weight,
    weight_parametrizations,
)


def is_odd(kernel_size: Sequence[int]) -> bool:
    """Whether every side of a kernel is odd."""
    return all(k % 2 == 1 for k in kernel_size)


def set_window(conv: nn.Conv2d, window: str) -> None:
    """Replace or remove the window of a convolution, in place; nothing else changes."""
    if isinstance(conv, WindowedConv2d) and type(conv) is not WindowedConv2d:
        conv.set_window(window)  # parametrized later; "none" is a window of ones
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
            parametrization = Window(window, compute_weight(conv))
            parametrize.register_parametrization(conv, "weight", parametrization, unsafe=True)


def _remove_window(conv: nn.Conv2d) -> None:
    parts = weight_parametrizations(conv)
    indices = [index for index, part in enumerate(parts) if isinstance(part, Window)]
    if not indices:
        return
    if len(parts) == 1:
        remove_parametrizations(conv, keep_result=False)
    else:
        parametrizations: Any = conv.parametrizations
        del parametrizations["weight"][indices[0]]


def remove_parametrizations(conv: nn.Conv2d, *, keep_result: bool = True) -> None:
    """Make ``weight`` a parameter again: the computed weight (``keep_result``) or the original."""
    parametrizations: Any = conv.parametrizations
    parametrization_list = parametrizations["weight"]
    with torch.no_grad():
        weight = compute_weight(conv).clone() if keep_result else parametrization_list.original
    if keep_result:
        needs_grad = any(parameter.requires_grad for parameter in parametrization_list.parameters())
        weight = nn.Parameter(weight, needs_grad)
    shared_class = type(conv)  # copies share it, and torch removes its property: give conv a copy
    conv.__class__ = type(
        shared_class.__name__, shared_class.__bases__, dict(shared_class.__dict__)
    )
    if parametrization_list.is_tensor:
        parametrization_list.original = nn.Parameter(parametrization_list.original.detach().clone())
    parametrize.remove_parametrizations(conv, "weight", leave_parametrized=True)
    conv.weight = weight


def change_kernel(
    conv: nn.Conv2d,
    window: str,
    kernel_size: int | None = None,
    resize: Literal["pad", "draw"] = "pad",
    shared: dict[int, nn.Parameter] | None = None,
) -> None:
    """Change the window of ``conv``, and its size if given, in place; arguments as in ``windowed``.

    ``shared`` maps the id of an old weight to its new one, so that convolutions that share a
    weight still share it.

    Raises:
        ValueError: ``conv`` cannot be resized.
    """
    old = (conv.kernel_size[0], conv.kernel_size[1])
    new = old if kernel_size is None else (kernel_size, kernel_size)
    if new != old:
        _resize(conv, new, resize, {} if shared is None else shared)
    set_window(conv, window)


def padding_for(conv: nn.Conv2d, new: tuple[int, int]) -> Any:  # noqa: ANN401
    """Return the padding that keeps the size of feature maps with a kernel of size ``new``.

    Raises:
        ValueError: no padding does.
    """
    old, padding = conv.kernel_size, conv.padding
    if not is_odd(old) or padding == "valid":
        raise ValueError(f"has kernel {tuple(old)} and padding {padding}: cannot be resized")
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
    """Return slices of the old and the new weight that select the same taps."""
    inner, outer = [slice(None)] * 2, [slice(None)] * 2
    for o, n in zip(old, new, strict=True):
        margin = abs(n - o) // 2
        whole, part = slice(None), slice(margin, margin + min(o, n))
        inner.append(part if o > n else whole)
        outer.append(part if n > o else whole)
    return tuple(inner), tuple(outer)
