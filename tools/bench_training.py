"""Compare our training loop with a plain one, in images per second: `make bench-training`.

The plain loop is typical of scripts: a DataLoader over PIL images with torchvision's transforms,
float32, contiguous memory. Both train the same network on the same images, in alternating rounds.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from robust_ham.config.experiment import DatasetConfig, TrainingConfig
from robust_ham.config.models import CnnGroup
from robust_ham.data.datasets import load_split
from robust_ham.data.splits import Split
from robust_ham.models.build import build
from robust_ham.training.train import resolve_precision, train

ROUNDS, IMAGES, THREADS = 5, 6000, 2
CONFIG = TrainingConfig(epochs=1, lr=0.1)


class PilImages(Dataset[tuple[torch.Tensor, int]]):
    """PIL images with random crops and flips, as most data sets provide them."""

    def __init__(self, split: Split) -> None:
        height = split.image_shape[1]
        to_pil = transforms.ToPILImage()
        self.images = [to_pil(image) for image in split.images]
        self.labels = split.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(height, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def plain_loop(spec: CnnGroup, images: PilImages, split: Split) -> None:
    model = build(spec, split.image_shape[0], split.num_classes).train()
    optimizer = torch.optim.SGD(model.parameters(), CONFIG.lr, momentum=0.9, weight_decay=5e-4)
    for x, y in DataLoader(images, batch_size=CONFIG.batch_size, shuffle=True):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def our_loop(spec: CnnGroup, split: Split) -> nn.Module:
    device = torch.device("cpu")
    precision = resolve_precision("auto", device)
    return train(spec, CONFIG, split, split[:1], device=device, precision=precision)[0]


def main() -> None:
    torch.set_num_threads(THREADS)
    name = sys.argv[1] if len(sys.argv) > 1 else "fashion_mnist"
    split = load_split(DatasetConfig(name=name), "train")[:IMAGES]
    images = PilImages(split)
    print(f"{name}, {len(split)} images, {THREADS} threads, {ROUNDS} rounds, medians")
    print("network                      plain (img/s)  ours (img/s)  ratio (lowest … highest)")
    for depth, kernel_size in ((3, 3), (3, 7), (3, 11), (4, 7)):
        spec = CnnGroup(depth=depth, widths=(16, 32), first_kernel="same", kernel_size=kernel_size)
        seconds: dict[str, list[float]] = {"plain": [], "ours": []}
        our_loop(spec, split[:256])
        for _ in range(ROUNDS):
            for kind, run in (
                ("plain", lambda s=spec: plain_loop(s, images, split)),
                ("ours", lambda s=spec: our_loop(s, split)),
            ):
                start = time.perf_counter()
                run()
                seconds[kind].append(time.perf_counter() - start)
        ratios = [a / b for a, b in zip(seconds["plain"], seconds["ours"], strict=True)]
        rates = [len(split) / statistics.median(seconds[kind]) for kind in ("plain", "ours")]
        print(
            f"{spec.model_id:<28} {rates[0]:>13.0f} {rates[1]:>13.0f}  "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
