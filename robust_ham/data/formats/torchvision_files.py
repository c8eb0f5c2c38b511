"""Read CIFAR in torchvision's layout, and download data sets with torchvision."""

from __future__ import annotations

from pathlib import Path

import torch

from robust_ham.config.datasets import DATASETS
from robust_ham.config.experiment import DatasetConfig
from robust_ham.data.splits import Split, SplitName
from robust_ham.errors import RequestError


def read_cifar(root: Path, config: DatasetConfig, split: SplitName) -> Split | None:
    """Read CIFAR with torchvision, which checks the MD5 of every file before it opens it."""
    if not (root / DATASETS[config.name].torchvision_folder).is_dir():
        return None
    try:
        return _torchvision(root, config, split, download=False)
    except (RuntimeError, OSError, ValueError):
        folder = root / DATASETS[config.name].torchvision_folder
        raise RequestError(
            f"{folder}: damaged or incomplete (the MD5 of a file differs); download it again"
        ) from None


def download(root: Path, config: DatasetConfig, split: SplitName) -> Split:
    """Download a data set into ``root`` with torchvision, and read a split of it.

    Raises:
        RequestError: the download fails.
    """
    root.mkdir(parents=True, exist_ok=True)
    try:
        return _torchvision(root, config, split, download=True)
    except (RuntimeError, OSError, ValueError) as error:
        raise RequestError(
            f"dataset {config.name}: download failed ({str(error).splitlines()[0][:100]}); "
            "download it yourself and pass its folder as --data-root"
        ) from None


def _torchvision(root: Path, config: DatasetConfig, split: SplitName, *, download: bool) -> Split:
    from torchvision import datasets

    kind = getattr(datasets, str(DATASETS[config.name].torchvision_class))
    dataset = kind(root=str(root), train=split == "train", download=download)
    pixels = torch.as_tensor(dataset.data)
    pixels = pixels.permute(0, 3, 1, 2).contiguous() if pixels.ndim == 4 else pixels.unsqueeze(1)
    labels = torch.as_tensor(dataset.targets, dtype=torch.int64)
    return Split(pixels, labels, DATASETS[config.name].num_classes, str(root))
