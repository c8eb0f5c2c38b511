"""Rotate and translate images; all conventions of sign, unit, padding and interpolation.

A transform is a row (angle, right, down): degrees, positive counter-clockwise as displayed, and
pixels. The image is rotated about its centre, ((W − 1)/2, (H − 1)/2), then moved; both in one
bilinear interpolation. Pixels outside the image are zero, copied from the border, or reflected at
the centres of the border pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from kornia.geometry.conversions import normalize_homography
from kornia.geometry.transform import get_rotation_matrix2d
from torch import Tensor
from torch.nn import functional as F

Padding = Literal["zeros", "border", "reflection"]
_PAD_MODE = {"zeros": "constant", "border": "replicate", "reflection": "reflect"}


def sampling_grids(transforms: Tensor, height: int, width: int) -> Tensor:
    """Source coordinates of each output pixel, for ``grid_sample`` with aligned corners.

    Args:
        transforms: (T, 3), computed in float64.
        height: H.
        width: W.

    Returns:
        float64 (T, H, W, 2). A side of one pixel, which has no extent between corners, counts as
        the middle one of three, as in ``warp``.
    """
    if 1 in (height, width):
        grids = sampling_grids(transforms, *_sides(height, width))
        rows = slice(1, 2) if height == 1 else slice(None)
        return grids[:, rows, 1:2] if width == 1 else grids[:, rows]
    transforms = transforms.double()
    angle, right, down = transforms.unbind(1)
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=torch.float64)
    centre = centre.to(transforms.device).expand(len(transforms), 2)
    affine = get_rotation_matrix2d(centre, angle, torch.ones_like(centre))  # (T, 2, 3)
    affine[:, 0, 2] += right
    affine[:, 1, 2] += down
    last = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64, device=transforms.device)
    matrix = torch.cat([affine, last.expand(len(transforms), 1, 3)], dim=1)  # (T, 3, 3)
    size = (height, width)
    inverse = torch.linalg.inv(normalize_homography(matrix, size, size))
    return F.affine_grid(inverse[:, :2], [len(transforms), 1, height, width], align_corners=True)


def _sides(height: int, width: int) -> tuple[int, int]:
    """Sides of the image to which coordinates refer: 3 instead of 1."""
    return (3 if height == 1 else height), (3 if width == 1 else width)


def warp(images: Tensor, grids: Tensor, padding: Padding) -> Tensor:
    """Apply one transform to each image.

    Args:
        images: (N, C, H, W).
        grids: (N, H, W, 2) from ``sampling_grids``.
        padding: values outside the image.

    Returns:
        (N, C, H, W), clamped to [0, 1].
    """
    grids = grids.to(images)
    if 1 in images.shape[2:]:  # pad a side of one pixel to three
        beside_width, beside_height = (int(side == 1) for side in reversed(images.shape[2:]))
        pads = (beside_width, beside_width, beside_height, beside_height)
        images = F.pad(images, pads, mode="constant" if padding == "zeros" else "replicate")
    warped = F.grid_sample(images, grids, "bilinear", padding, align_corners=True)
    return warped.clamp(0, 1)


def warp_all(images: Tensor, grids: Tensor, padding: Padding) -> Tensor:
    """Apply all transforms to all images, sharing interpolation weights.

    Args:
        images: (N, C, H, W).
        grids: (T, H, W, 2) from ``sampling_grids``.
        padding: values outside the image.

    Returns:
        (T, N, C, H, W).
    """
    shape = (len(grids), *images.shape)
    as_channels = images.flatten(0, 1).expand(len(grids), -1, -1, -1)  # (T, N·C, H, W)
    return warp(as_channels, grids, padding).view(shape)


def warp_flow(images: Tensor, flow: Tensor, padding: Padding = "zeros") -> Tensor:
    """Sample each output pixel at its own position plus the flow; differentiable.

    Args:
        images: (N, C, H, W).
        flow: (N, 2, H, W), pixels right and pixels down; a constant (−3, 0) moves the image 3
            pixels to the right.
        padding: values outside the image.

    Returns:
        (N, C, H, W).
    """
    height, width = images.shape[2:]
    identity = sampling_grids(torch.zeros(1, 3, device=images.device), height, width).to(flow)
    high, wide = _sides(height, width)
    scale = flow.new_tensor([2 / (wide - 1), 2 / (high - 1)])
    return warp(images, identity + flow.permute(0, 2, 3, 1) * scale, padding)


def shift(images: Tensor, right: int, down: int, padding: Padding) -> Tensor:
    """Move all images (N, C, H, W) by whole pixels, without interpolation."""
    height, width = images.shape[2:]
    pads = (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0))
    padded = F.pad(images, pads, mode=_PAD_MODE[padding])
    top, left = max(-down, 0), max(-right, 0)
    return padded[:, :, top : top + height, left : left + width]
