"""Shared by several tests: small real networks, real images, tiny runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from robust_ham.cli import main
from robust_ham.config.experiment import DatasetConfig
from robust_ham.config.models import CnnGroup
from robust_ham.data.datasets import load_split
from robust_ham.data.splits import balanced_order, to_float
from robust_ham.models import checkpoints
from robust_ham.models.build import build
from robust_ham.models.checkpoints import ZOO

torch.set_num_threads(2)


@cache
def zoo_model(kernel_size: int, window: str, seed: int = 0) -> nn.Module:
    """A trained network of the zoo."""
    folder = ZOO / "fashion_mnist" / f"cnn3-w16x32-k{kernel_size}-{window}-s{seed}"
    return checkpoints.load(folder)[0]


def fashion_images(count: int) -> tuple[Tensor, Tensor]:
    """The first test images of the balanced order, in [0, 1], and their labels; fresh copies."""
    images, labels = _read_fashion_images(count)
    return images.clone(), labels.clone()


@cache
def _read_fashion_images(count: int) -> tuple[Tensor, Tensor]:
    split = load_split(DatasetConfig(name="fashion_mnist"), "test")
    rows = torch.from_numpy(balanced_order(split.labels, 0)[:count])
    return to_float(split.images[rows]), split.labels[rows]


SPEC = CnnGroup(depth=2, widths=(4,), first_kernel="same", kernel_size=3, window="hamming")


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of an untrained network: its folder and the network."""
    model = build(SPEC, 1, 10).eval()
    card = {
        "model_id": SPEC.model_id,
        "model": checkpoints.describe(SPEC),
        "in_channels": 1,
        "num_classes": 10,
    }
    folder = tmp_path / "models" / SPEC.model_id
    checkpoints.save(folder, model, card, pd.DataFrame({"epoch": [1]}))
    return folder, model


@pytest.fixture
def run_cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process: exit code, standard output, standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["robust-ham", *map(str, words)])
        monkeypatch.setattr(main.signals, "listen", lambda: None)
        monkeypatch.setenv("PYTHONSAFEPATH", "1")  # as main does, but for this test only
        with pytest.raises(SystemExit) as stopped:
            main.main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return run


TINY_RUN = """
schema: 1
name: tiny
dataset: {name: fashion_mnist, num_train: 256}
models:
  - architecture: cnn
    depth: 2
    widths: [4]
    first_kernel: same
    sweep: {kernel_size: [3], window: [none, hamming]}
training: {epochs: 1, batch_size: 64, lr: 0.1, precision: float32}
attacks:
  deepfool_l2: {attack: deepfool, budget: 0.25, budgets: [0.1, 0.25, 0.5], steps: 10}
  spatial_shift: {attack: spatial_shift, stop: first}
evaluation: {num_images: 20, gate: false}
"""
