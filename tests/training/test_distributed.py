"""torchrun: two processes train the network that one trains in two parts per batch."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from robust_ham.models.checkpoints import read_card
from robust_ham.training import distributed

CONFIG = """
schema: 1
name: together
dataset: {name: fashion_mnist, num_train: 600}
models:
  - {architecture: cnn, depth: 2, widths: [8], kernel_size: 5, window: hamming}
training: {epochs: 3, batch_size: 32, lr: 0.4, precision: float32}
attacks:
  deepfool: {attack: deepfool}
evaluation: {num_images: 8, threads: 1}
"""
MODEL = "cnn2-w8-f7-k5-hamming-s0"


def start(folder: Path, *words: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    (folder / "together.yaml").write_text(CONFIG)
    command = [sys.executable, *launcher, "-m", "robust_ham", "run", "together.yaml", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def test_two_processes_train_as_one_that_accumulates(tmp_path):
    together = start(
        tmp_path, "--stop-after", "train", "--out", "together", "--device", "cpu", launcher=TORCHRUN
    )
    assert together.returncode == 0, together.stderr
    assert together.stdout.count(f"{MODEL}: done") == 1  # only the first process speaks
    alone = start(
        tmp_path, "--stop-after", "train", "--out", "alone", "-o", "training.accumulate=2"
    )
    assert alone.returncode == 0, alone.stderr
    found, expected = (
        pd.read_csv(tmp_path / name / "models" / MODEL / "training.csv")
        for name in ("together", "alone")
    )
    assert found["train_loss"].tolist() == pytest.approx(expected["train_loss"].tolist(), rel=1e-4)
    assert expected["train_loss"].iloc[-1] < 0.9 * expected["train_loss"].iloc[0]  # it learns
    assert read_card(tmp_path / "together" / "models" / MODEL)["trained_on"]["processes"] == 2
    assert read_card(tmp_path / "alone" / "models" / MODEL)["trained_on"]["processes"] == 1
    # one process goes on where the two have stopped
    attacked = start(tmp_path, "--stop-after", "attack", "--out", "together", "--device", "cpu")
    assert attacked.returncode == 0, attacked.stderr
    assert f"{MODEL}: already there" in attacked.stdout


def test_torchrun_is_for_training(tmp_path, run_cli, monkeypatch):
    monkeypatch.setattr(distributed, "launched", lambda: True)
    path = tmp_path / "together.yaml"
    path.write_text(CONFIG)
    code, _, err = run_cli("run", path, "--out", tmp_path / "out")
    assert code == 2
    assert err.strip() == (
        "robust-ham: torchrun only trains: add --stop-after train, then run without torchrun"
    )
    assert not (tmp_path / "out").exists()


def test_alone_all_is_left_as_it_is():
    model, value = torch.nn.Linear(2, 2), torch.tensor(3.0)
    assert distributed.parallel(model, torch.device("cpu")) is model
    assert distributed.summed(value) is value
    assert distributed.agreed(7, torch.device("cpu")) == 7
    assert (distributed.rank(), distributed.num_processes()) == (0, 1)
