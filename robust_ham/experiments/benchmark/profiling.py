"""Count passes and arithmetic, and measure peak memory, of one run of a library in a fresh process.

A fresh process keeps libraries from affecting each other's measurements.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from attacks.adapters.common import Counted
from robust_ham.config.experiment import OURS
from robust_ham.evaluation.registry import attack_function
from robust_ham.experiments.benchmark import peer_libraries
from robust_ham.experiments.benchmark.peer_libraries import Options
from robust_ham.models.size import FlopCounter

WARM_UP_IMAGES = 8
_MATRIX_PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm")
_STATUS = Path("/proc/self/status")  # Linux only


Result = TypeVar("Result")


@dataclass(frozen=True)
class Passes:
    """Passes (one per image), arithmetic and memory of one run.

    ``points``: number of distinct images on which the model was evaluated; ``whole_passes``:
    multiplications of convolutions and matrix products, in units of a forward pass of one image;
    ``outside``: share of our time that is spent outside of them (None: another library, or not on
    a CPU); ``peak_memory_mb`` None: unknown on this system.
    """

    forwards: int
    backwards: int
    points: int
    whole_passes: float
    outside: float | None
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
    """Measure passes, arithmetic and peak memory of one run in a fresh process."""
    return _in_fresh_process(_profile_here, call)


def profile_memory(call: ProfiledCall) -> float | None:
    """Measure the peak memory in MB of one run in a fresh process."""
    return _in_fresh_process(_memory_here, call)


def _in_fresh_process(measure: Callable[[ProfiledCall], Result], call: ProfiledCall) -> Result:
    """Measure a call with the threads of this process, after a run on a few images."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_warmed_up, measure, call, torch.get_num_threads()).result()


def _warmed_up(
    measure: Callable[[ProfiledCall], Result], call: ProfiledCall, threads: int
) -> Result:
    torch.set_num_threads(threads)
    peer_libraries.load(call.library)
    call.run(call.model, slice(WARM_UP_IMAGES))
    return measure(call)


def _memory_here(call: ProfiledCall) -> float | None:
    with _PeakMemory(call.images.device) as peak:
        call.run(call.model)
    return peak.megabytes


def _profile_here(call: ProfiledCall) -> Passes:
    megabytes = _memory_here(call)
    counted = CountedPoints(call.model).eval()
    call.run(counted)
    forwards, backwards, outside = counted.forwards, counted.backwards, None
    with FlopCounter() as of_run:  # not of the counted network: it hides gradients of weights
        if call.library == OURS:  # and it cannot be prepared, so it only told the points
            function = attack_function(call.attack)[0]
            outcome = function(call.model, call.images, call.labels, **call.options)
            forwards, backwards = int(outcome.forwards.sum()), int(outcome.backwards.sum())
        else:
            call.run(call.model)
    if call.library == OURS:
        outside = _share_outside(call)
    with FlopCounter() as of_pass, torch.no_grad():
        call.model(call.images[:1])
    whole = float(of_run.get_total_flops()) / max(1.0, float(of_pass.get_total_flops()))
    return Passes(forwards, backwards, len(counted.points), whole, outside, megabytes)


def _share_outside(call: ProfiledCall) -> float | None:
    """Share of the time outside of convolutions and matrix products, on a CPU."""
    if call.images.device.type != "cpu":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        call.run(call.model)
        seconds = time.perf_counter() - start
    inside = sum(
        float(event.self_cpu_time_total)
        for event in profiler.key_averages()
        if "conv" in event.key or "fft" in event.key or event.key in _MATRIX_PRODUCTS
    )
    return max(0.0, 1 - inside / 1e6 / seconds)


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
