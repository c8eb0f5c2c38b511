"""Count passes and measure peak memory of one run of a library in a fresh process.

A fresh process keeps libraries from affecting each other's measurements.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from attacks.adapters.common import Counted
from robust_ham.config.experiment import OURS
from robust_ham.evaluation.registry import attack_function
from robust_ham.experiments.benchmark import peer_libraries
from robust_ham.experiments.benchmark.peer_libraries import Options

WARM_UP_IMAGES = 8
_STATUS = Path("/proc/self/status")  # Linux only


@dataclass(frozen=True)
class Passes:
    """Forward and backward passes (one per image), and memory.

    ``points``: number of distinct images on which the model was evaluated; ``peak_memory_mb``
    None: unknown on this system.
    """

    forwards: int
    backwards: int
    points: int
    peak_memory_mb: float | None


class CountedPoints(Counted):
    """Counts distinct images too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.points: set[bytes] = set()

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits (B, K) of images (B, C, H, W)."""
        for image in images.detach().cpu().numpy():
            self.points.add(hashlib.blake2b(image.tobytes(), digest_size=16).digest())
        return super().forward(images)


@dataclass(frozen=True)
class ProfiledCall:
    """One attack of one library on images (N, C, H, W) with labels (N,)."""

    library: str
    attack: str
    options: Options
    model: nn.Module
    images: Tensor
    labels: Tensor

    def run(self, model: nn.Module, part: slice = slice(None)) -> None:
        """Attack ``model`` on some of the images."""
        images, labels = self.images[part], self.labels[part]
        peer_libraries.run(self.library, self.attack, self.options, model, images, labels)


def profile(call: ProfiledCall) -> Passes:
    """Measure passes and peak memory of one run in a fresh process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_profile_here, call, torch.get_num_threads()).result()


def _profile_here(call: ProfiledCall, threads: int) -> Passes:
    torch.set_num_threads(threads)
    peer_libraries.load(call.library)
    call.run(call.model, slice(WARM_UP_IMAGES))
    counted = CountedPoints(call.model).eval()
    if call.library != OURS:
        with _PeakMemory(call.images.device) as peak:
            call.run(counted)
        return Passes(counted.forwards, counted.backwards, len(counted.points), peak.megabytes)
    function = attack_function(call.attack)[
        0
    ]  # our attacks count passes themselves, on the fast copy
    with _PeakMemory(call.images.device) as peak:
        outcome = function(call.model, call.images, call.labels, **call.options)
    call.run(counted)  # for the points only: a counted network cannot be prepared
    passes = int(outcome.forwards.sum()), int(outcome.backwards.sum())
    return Passes(*passes, len(counted.points), peak.megabytes)


class _PeakMemory:
    """Peak memory during a block, above the memory in use at its start."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.megabytes: float | None = None

    def __enter__(self) -> _PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        elif _STATUS.is_file():
            Path("/proc/self/clear_refs").write_text("5")  # reset the peak
            self.before = _from_status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.megabytes = (torch.cuda.max_memory_allocated(self.device) - self.before) / 1e6
        elif _STATUS.is_file():
            self.megabytes = (_from_status("VmHWM") - self.before) / 1e6


def _from_status(name: str) -> int:
    """Return the bytes of a line like ``VmRSS: 123 kB``."""
    (line,) = [x for x in _STATUS.read_text().splitlines() if x.startswith(name)]
    return int(line.split()[1]) * 1024
