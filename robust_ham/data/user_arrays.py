"""Convert and check a user's images and labels: tensors, arrays or lists."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from attacks.utils.model import BOX_TOLERANCE
from robust_ham.data.splits import to_float
from robust_ham.memory import check_memory


def to_image_tensor(images: ArrayLike) -> Tensor:
    """Convert images of any shape, uint8 or floats in [0, 1], to float32 on the CPU; NaN is kept.

    Raises:
        ValueError: another type, or pixels outside of [0, 1].
    """
    pixels = _copy_to_cpu(images, "images")
    if pixels.dtype == torch.uint8:
        if pixels.numel() and pixels.any() and pixels.max() == 1:
            raise ValueError(
                "images: expected uint8 pixels of 0 … 255, got only 0 and 1: convert them to floats"
            )
        return to_float(pixels)
    if not pixels.is_floating_point():
        raise ValueError(f"images: expected uint8 or floats in [0, 1], got {_dtype_name(pixels)}")
    pixels = pixels.float()
    outside = (pixels < -BOX_TOLERANCE) | (pixels > 1 + BOX_TOLERANCE)
    if outside.any():
        low, high = pixels[~pixels.isnan()].aminmax()
        remedy = "divide by 255, or pass uint8" if low >= 0 else "normalise inside the model"
        raise ValueError(f"images: expected pixels in [0, 1], got {low:g} … {high:g}: {remedy}")
    return pixels


def to_label_tensor(labels: ArrayLike) -> Tensor:
    """Convert labels of any shape to int64 on the CPU.

    Raises:
        ValueError: they are not whole numbers.
    """
    values = _copy_to_cpu(labels, "labels")
    if values.dtype == torch.bool or values.is_complex():
        raise ValueError(f"labels: expected whole numbers, got {_dtype_name(values)}")
    whole = values.long()
    if not torch.equal(whole.to(values.dtype), values):
        raise ValueError(
            f"labels: expected whole numbers, got {_dtype_name(values)} such as "
            f"{values.flatten()[0]}"
        )
    return whole


def _copy_to_cpu(values: ArrayLike, name: str) -> Tensor:
    """Copy values to the CPU, so that the caller's are never changed.

    Raises:
        ValueError: not an array of numbers, or a sparse, meta or quantized tensor.
        RequestError: more than half of this machine's memory.
    """
    if isinstance(values, Tensor) and (
        values.layout != torch.strided or values.is_meta or values.is_quantized
    ):
        raise ValueError(f"{name}: expected a dense tensor with values, got {_tensor_kind(values)}")
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


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _tensor_kind(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "a tensor on the meta device"
    if tensor.is_quantized:
        return "a quantized tensor"
    return f"a {str(tensor.layout).removeprefix('torch.')} tensor"
