"""CIFAR in torchvision's layout, and what torchvision downloads."""

from __future__ import annotations

from pathlib import Path

import torch

from robust_ham.config.experiment import DatasetConfig
from robust_ham.data.splits import KNOWN, Split, SplitName
from robust_ham.errors import RequestError


def read_cifar(root: Path, config: DatasetConfig, split: SplitName) -> Split | None:
    """CIFAR as torchvision keeps it: its reader checks the MD5 of every file before opening it."""
    if not (root / KNOWN[config.name].torchvision_folder).is_dir():
        return None
    try:
        return _torchvision(root, config, split, download=False)
    except (RuntimeError, OSError, ValueError):
        folder = root / KNOWN[config.name].torchvision_folder
        raise RequestError(f"{folder}: damaged or incomplete (MD5 of a file differs)") from None


def download(root: Path, config: DatasetConfig, split: SplitName) -> Split:
    """What torchvision downloads into ``root``.

    Raises:
        RequestError: the download failed.
    """
    root.mkdir(parents=True, exist_ok=True)
    try:
        return _torchvision(root, config, split, download=True)
    except (RuntimeError, OSError, ValueError) as error:
        raise RequestError(
            f"dataset {config.name}: download failed ({str(error).splitlines()[0][:100]}); "
            "put it under --data-root"
        ) from None


def _torchvision(root: Path, config: DatasetConfig, split: SplitName, *, download: bool) -> Split:
    from torchvision import datasets

    kind = getattr(datasets, str(KNOWN[config.name].torchvision_class))
    found = kind(root=str(root), train=split == "train", download=download)
    pixels = torch.as_tensor(found.data)
    pixels = pixels.permute(0, 3, 1, 2).contiguous() if pixels.ndim == 4 else pixels.unsqueeze(1)
    labels = torch.as_tensor(found.targets, dtype=torch.int64)
    return Split(pixels, labels, KNOWN[config.name].num_classes, str(root))
