"""Epochs of shuffled, augmented batches, from images in memory or from files."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transforms

from robust_ham.config.experiment import TrainingConfig
from robust_ham.data.formats.images import open_image, resize_and_crop
from robust_ham.data.splits import FileSplit, Split, to_float
from robust_ham.errors import RequestError

_CROP_PADDING = 4
_CROP_AREA, _CROP_ASPECT = (0.1, 1.0), (0.8, 1.25)


@dataclass(frozen=True)
class Share:
    """The parts of every batch that a process computes: ``mine`` of ``total``."""

    total: int
    mine: range

    def of(self, rows: Tensor) -> list[Tensor]:
        """Return the rows of each of these parts; sizes of parts differ by at most one row."""
        parts = rows.tensor_split(self.total)
        return [parts[i] for i in self.mine]


Batch = tuple[int, list[tuple[Tensor, Tensor]]]
"""Number of images in the whole batch, and the parts of this process: float images (N, C, H, W) in
[0, 1], channels last, and labels (N,)."""


class Batches(Protocol):
    """Epochs of batches, equal for all models with the same seed."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        ...

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of one epoch."""
        ...


def make_batches(
    split: Split | FileSplit,
    config: TrainingConfig,
    seed: int,
    device: torch.device,
    share: Share | None = None,
) -> Batches:
    """Make batches of ``split``: size and augmentation from ``config``, draws from ``seed``.

    Raises:
        RequestError: fewer images in a batch, or in total, than parts.
    """
    share = share or Share(1, range(1))
    for key, count in (("training.batch_size", config.batch_size), ("training images", len(split))):
        if count < share.total:
            raise RequestError(f"{key}: expected at least the {share.total} parts, got {count}")
    if isinstance(split, Split):
        return MemoryBatches(split, config, seed, device, share)
    return FileBatches(split, config, seed, device, share)


def _num_batches(num_images: int, batch_size: int, parts: int) -> int:
    """Count the batches in an epoch; drop a last one with fewer images than parts."""
    whole, rest = divmod(num_images, batch_size)
    return whole + (rest >= parts)


def _batch_rows(order: Tensor, batch_size: int, parts: int) -> tuple[Tensor, ...]:
    """Return the rows of each batch."""
    batches: tuple[Tensor, ...] = order.split(batch_size)
    return batches[: _num_batches(len(order), batch_size, parts)]


def _generator(seed: int, epoch: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class MemoryBatches:
    """Batches gathered, cropped and flipped on the device, without worker processes."""

    def __init__(
        self, split: Split, config: TrainingConfig, seed: int, device: torch.device, share: Share
    ) -> None:
        self.labels = split.labels.to(device)
        self.config = config
        self.seed = seed
        self.share = share
        self.padding = _CROP_PADDING if "crop" in config.augment else 0
        images = F.pad(split.images, (self.padding,) * 4).to(device)
        _, height, width = split.image_shape
        # (N, C, 2p + 1, 2p + 1, H, W): a view of every crop of every image
        self.crops = images.unfold(2, height, 1).unfold(3, width, 1)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return _num_batches(len(self.labels), self.config.batch_size, self.share.total)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """See ``Batches.epoch``."""
        generator = _generator(self.seed, epoch)
        count, device = len(self.labels), self.labels.device
        order = torch.randperm(count, generator=generator).to(device)
        crops = 2 * self.padding + 1
        down, right = torch.randint(crops, (2, count), generator=generator).to(device)
        flips = torch.rand(count, generator=generator).lt(0.5).to(device)
        for batch in _batch_rows(order, self.config.batch_size, self.share.total):
            parts = []
            for rows in self.share.of(batch):
                images = self.crops[rows, :, down[rows], right[rows]]  # (B, C, H, W)
                if "flip" in self.config.augment:
                    images = torch.where(flips[rows].view(-1, 1, 1, 1), images.flip(3), images)
                channels_last = to_float(images).to(memory_format=torch.channels_last)
                parts.append((channels_last, self.labels[rows]))
            yield len(batch), parts


class FileBatches:
    """Batches read, cropped and flipped by worker processes, one per core."""

    def __init__(
        self,
        split: FileSplit,
        config: TrainingConfig,
        seed: int,
        device: torch.device,
        share: Share,
    ) -> None:
        self.split = split
        self.config = config
        self.seed = seed
        self.device = device
        self.share = share

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return _num_batches(len(self.split), self.config.batch_size, self.share.total)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """See ``Batches.epoch``."""
        order = torch.randperm(len(self.split), generator=_generator(self.seed, epoch))
        batches = _batch_rows(order, self.config.batch_size, self.share.total)
        parts = [part.tolist() for batch in batches for part in self.share.of(batch)]
        loader = DataLoader(
            _Files(self.split, self.config, f"{self.seed}/{epoch}"),
            batch_sampler=parts,
            num_workers=_num_workers(),
            generator=torch.Generator(),  # else it would draw from the global one
            worker_init_fn=_ignore_ctrl_c,
            pin_memory=self.device.type == "cuda",
        )
        loaded = iter(loader)
        for batch in batches:
            try:
                mine = [self._on_device(*next(loaded)) for _ in self.share.mine]
            except RequestError as error:  # from a worker, with a traceback around its message
                line = str(error.args[0]).splitlines()[-1]
                raise RequestError(line.split("Error: ", 1)[-1]) from None
            yield len(batch), mine

    def _on_device(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images = images.to(self.device, non_blocking=True)
        return to_float(images).to(memory_format=torch.channels_last), labels.to(self.device)


def _num_workers() -> int:
    """Return the number of cores per process that torchrun started on this machine."""
    return max((os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


def _ignore_ctrl_c(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def pixel_statistics(split: Split | FileSplit) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (C,) of all pixels in [0, 1] (files: the first 1,000)."""
    if isinstance(split, FileSplit):
        plain = _Files(split, TrainingConfig(augment=()), "")
        images = torch.stack([plain[row][0] for row in range(min(len(split), 1000))])
    else:
        images = split.images
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        pixels = images[:, channel].flatten().to(torch.int64)
        share = torch.bincount(pixels, minlength=256).double() / len(pixels)
        mean = (share * values).sum()
        means.append(mean)
        deviations.append((share * (values - mean) ** 2).sum().sqrt())
    return torch.stack(means), torch.stack(deviations)


class _Files(Dataset[tuple[Tensor, Tensor]]):
    """Images of an epoch: uint8 (3, size, size), each with its own random augmentation."""

    def __init__(self, split: FileSplit, config: TrainingConfig, key: str) -> None:
        self.split = split
        self.config = config
        self.key = key
        size = split.image_size
        self.resized_crop = v2.RandomResizedCrop(size, scale=_CROP_AREA, ratio=_CROP_ASPECT)
        self.flip = v2.RandomHorizontalFlip()

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        image = open_image(self.split.files[row]).convert("RGB")
        digest = hashlib.sha256(f"{self.key}/{row}".encode()).digest()
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.default_generator.manual_seed(int.from_bytes(digest[:7], "big"))
            if "resized_crop" in self.config.augment:
                image = self.resized_crop(image)
            else:
                image = resize_and_crop(image, self.split.image_size, self.split.short_side)
            if "flip" in self.config.augment:
                image = self.flip(image)
        pixels: Tensor = transforms.pil_to_tensor(image)
        return pixels, self.split.labels[row]
