"""Images and labels as a user hands them over: tensors, arrays or lists, checked."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from attacks.utils.model import BOX_TOLERANCE
from robust_ham.data.splits import to_float
from robust_ham.memory import check_memory


def given_images(images: ArrayLike) -> Tensor:
    """Floats in [0, 1] on the CPU, from uint8 or floats, of whatever shape; NaN passes.

    Raises:
        ValueError: other numbers, or pixels outside [0, 1].
    """
    pixels = _tensor(images, "images")
    if pixels.dtype == torch.uint8:
        if pixels.numel() and pixels.any() and pixels.max() == 1:
            raise ValueError("images: expected uint8 of 0 … 255, got 0 and 1: hand over floats")
        return to_float(pixels)
    if not pixels.is_floating_point():
        kind = str(pixels.dtype).removeprefix("torch.")
        raise ValueError(f"images: expected uint8 or floats in [0, 1], got {kind}")
    pixels = pixels.float()
    outside = (pixels < -BOX_TOLERANCE) | (pixels > 1 + BOX_TOLERANCE)
    if outside.any():
        low, high = pixels[~pixels.isnan()].aminmax()
        remedy = "divide by 255, or hand over uint8" if low >= 0 else "normalise inside the model"
        raise ValueError(f"images: expected pixels in [0, 1], got {low:g} … {high:g}: {remedy}")
    return pixels


def given_labels(labels: ArrayLike) -> Tensor:
    """int64 on the CPU, of whatever shape.

    Raises:
        ValueError: no whole numbers.
    """
    classes = _tensor(labels, "labels")
    kind = str(classes.dtype).removeprefix("torch.")
    if classes.dtype == torch.bool or classes.is_complex():
        raise ValueError(f"labels: expected whole numbers, got {kind}")
    whole = classes.long()
    if not torch.equal(whole.to(classes.dtype), classes):
        raise ValueError(
            f"labels: expected whole numbers, got {kind} such as {classes.flatten()[0]}"
        )
    return whole


def _tensor(values: ArrayLike, name: str) -> Tensor:
    """A copy on the CPU, so that what is handed over is never changed.

    Raises:
        ValueError: not an array of numbers, or a tensor without values of its own.
        RequestError: more than half of this machine's memory.
    """
    if isinstance(values, Tensor) and (
        values.layout != torch.strided or values.is_meta or values.is_quantized
    ):
        raise ValueError(f"{name}: expected a dense tensor with values, got {_kind(values)}")
    check_memory(name, getattr(values, "nbytes", 0), part=2)  # also of a view that repeats itself
    if not hasattr(values, "__len__") or hasattr(values, "dataset"):  # as a DataLoader has
        kind = type(values).__name__
        raise ValueError(f"{name}: expected a tensor, an array or a list, got {kind}")
    try:
        if isinstance(values, list | tuple) and any(isinstance(v, Tensor) for v in values):
            values = torch.stack([torch.as_tensor(value) for value in values])
        if not isinstance(values, Tensor):
            return torch.from_numpy(np.array(values))
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{name}: expected an array of numbers: {reason}") from None
    return values.detach().cpu().clone()


def _kind(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "one on the meta device"
    return "a quantized one" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
