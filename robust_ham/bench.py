"""Our attacks beside the peers': same model, images and threads, one process, alternating order.

Every round times each library once, in the opposite order of the round before; ratios are taken
round by round. Passes and memory are measured in a child process of their own, so that no library
profits from, or pays for, what another left behind.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import multiprocessing
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attacks import ATTACKS
from attacks.prepare import attack_mode, chunks, prepare
from robust_ham import peers, stopping
from robust_ham.cells import Context, load_model
from robust_ham.checkpoints import read_card
from robust_ham.config import RequestError
from robust_ham.evaluation import AttackedImages, attack_options, logits_of
from robust_ham.executors import Monitor, run_inline
from robust_ham.peers import OURS, Options
from robust_ham.plan import Plan
from robust_ham.store import RunFolder, content_key, read_json, reading, write_csv, write_json

_WARM_UP_IMAGES = 8
_FLOOR_REPEATS = 5
_BOX_TOLERANCE = 1e-6

log = logging.getLogger(__name__)

Said = Callable[[str], None]


@dataclass(frozen=True)
class Passes:
    """What a library spent: images through the model forwards and backwards, and memory.

    ``points``: at how many different images the model was evaluated; None as memory: not known on
    this system.
    """

    forwards: int
    backwards: int
    points: int
    peak_memory_mb: float | None


class Counting(nn.Module):
    """Counts what goes through a model; counts survive copies of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.counts = {"forwards": 0, "backwards": 0}
        self.points: set[bytes] = set()

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, K)."""
        self.counts["forwards"] += len(images)
        for image in images.detach().cpu().numpy():
            self.points.add(hashlib.blake2b(image.tobytes(), digest_size=16).digest())
        if images.requires_grad and torch.is_grad_enabled():
            images = images.view_as(images)  # the hook must not stay with the caller's tensor
            images.register_hook(self._count)
        logits: Tensor = self.model(images)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.counts["backwards"] += len(gradient)

    def __deepcopy__(self, memo: dict[int, Any]) -> Counting:
        return self


def right_images(
    model: nn.Module, attacked: AttackedImages, device: torch.device
) -> AttackedImages:
    """Those of the attacked images that the model classifies right."""
    prediction = logits_of(model, attacked.images, device).argmax(1)
    rows = (prediction == attacked.labels).nonzero().squeeze(1)
    ids = [attacked.sample_ids[i] for i in rows.tolist()]
    return AttackedImages(attacked.images[rows], attacked.labels[rows], ids)


def compare(
    context: Context,
    model: nn.Module,
    attack_id: str,
    libraries: list[str],
    rounds: int,
    say: Said,
) -> pd.DataFrame:
    """One attack on one model by each library that has it: a row per library.

    Only images that the model gets right are attacked, as libraries differ in what they do with
    others.
    """
    config = context.plan.config.attacks[attack_id]
    options = attack_options(config, attack_id)
    right = right_images(model, context.plan.attacked, context.device)
    if not right.sample_ids:
        raise RequestError("evaluation: the model gets none of the images right")
    images, labels = right.images.to(context.device), right.labels.to(context.device)
    model.eval()
    run = partial(peers.run, attack=config.attack, options=options, model=model)
    chosen = []
    for name in libraries:
        if not peers.can_run(name, config.attack, options):
            continue
        try:
            peers.load(name)
            run(name, images=images[:_WARM_UP_IMAGES], labels=labels[:_WARM_UP_IMAGES])
        except Exception as error:
            if name == OURS:
                raise
            say(f"{name} fails and is left out: {type(error).__name__}: {error}")
        else:
            chosen.append(name)

    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    found: dict[str, Tensor] = {}
    costs = []
    for number in range(rounds):
        costs.append(_pass_seconds(model, images, labels))
        for name in chosen if number % 2 == 0 else reversed(chosen):
            stopping.check()
            start = _now(context.device)
            found[name] = run(name, images=images, labels=labels)
            seconds[name].append(_now(context.device) - start)
            say(f"round {number + 1} of {rounds}: {name} {seconds[name][-1]:.2f} s")

    passes = {name: profile(name, config.attack, options, model, images, labels) for name in chosen}
    least = _least_passes(config.attack, options, passes[OURS], len(labels))
    floor = [f * least[0] + b * least[1] for f, b in costs] if least else [np.nan] * rounds
    outcomes = {name: _outcome(model, images, labels, found[name]) for name in chosen}
    spatial = config.attack.startswith("spatial")
    rows = []
    for name in chosen:
        times, fooled = seconds[name], outcomes[name]["fooled"]
        row: dict[str, Any] = {"library": name, "version": peers.installed()[name]}
        row |= {"num_images": len(labels), "rounds": rounds}
        row |= _spread("seconds", times)
        row |= {"images_per_second": len(labels) / row["seconds"]}
        row |= _spread("ratio", [a / b for a, b in zip(times, seconds[OURS], strict=True)])
        row |= {
            "times_floor": statistics.median(t / f for t, f in zip(times, floor, strict=True)),
            "forwards": passes[name].forwards / len(labels),
            "backwards": passes[name].backwards / len(labels),
            "least_forwards": least[0] / len(labels) if least else np.nan,
            "least_backwards": least[1] / len(labels) if least else np.nan,
            "peak_memory_mb": passes[name].peak_memory_mb,
            "fooled": fooled.mean(),
            "same_fooled": (fooled == outcomes[OURS]["fooled"]).mean(),
        }
        for norm in ("l2", "linf"):
            distances = outcomes[name][norm][fooled & (not spatial)]
            row[f"median_{norm}"] = np.median(distances) if len(distances) else np.nan
            row[f"mean_{norm}"] = np.mean(distances) if len(distances) else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def _spread(name: str, values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {
        name: statistics.median(values),
        f"{name}_low": min(values),
        f"{name}_high": max(values),
    }


def measure_all(
    plan: Plan,
    folder: Path,
    device: torch.device,
    libraries: list[str],
    rounds: int,
    monitor: Monitor | None = None,
    say: Said = lambda line: None,
) -> pd.DataFrame:
    """Obtain the plan's models, compare each of its attacks on each, write ``bench.csv``.

    What has been measured before with the same key is not measured again.

    Returns:
        A row per model, attack and library.

    Raises:
        RequestError: a library is not known or not here, or a model failed.
    """
    versions = peers.installed()
    for name in libraries:
        if name not in versions:
            hint = f"; {peers.INSTALL[name]}" if name in peers.INSTALL else ""
            have = ", ".join(versions)
            raise RequestError(f"--libraries: expected some of {have}, got {name!r}{hint}")
    chosen = [OURS, *(name for name in libraries if name != OURS)]
    if run_inline(plan, folder, device, monitor):
        raise RequestError(f"a model failed: {RunFolder(folder).failures}")
    context = Context(plan, RunFolder(folder), device)
    tables = []
    for spec in plan.config.model_specs():
        for attack_id in plan.config.attacks:
            path = folder / "bench" / spec.model_id / f"{attack_id}.json"
            key = _key(context, spec.model_id, attack_id, chosen, rounds)
            if not path.is_file() or read_json(path)["key"] != key:
                say(f"{spec.model_id} / {attack_id}")
                model, _ = load_model(context, spec)
                table = compare(context, model, attack_id, chosen, rounds, say)
                table.insert(0, "attack", attack_id)
                table.insert(0, "model_id", spec.model_id)
                rows = table.astype(object).where(table.notna(), None).to_dict(orient="records")
                write_json(path, {"key": key, "rows": rows})
            with reading(path):
                tables.append(pd.DataFrame(read_json(path)["rows"]))
    table = pd.concat(tables, ignore_index=True)
    write_csv(folder / "bench.csv", table)
    return table


def _key(context: Context, model_id: str, attack_id: str, libraries: list[str], rounds: int) -> str:
    """Hash of all that decides a measurement, our code and the machine included."""
    attack, versions = context.plan.config.attacks[attack_id], peers.installed()
    module = str(ATTACKS[attack.attack.partition(":")[0]].__module__)
    return content_key(
        context.where
        | {
            "weights": read_card(context.run.model(model_id))["weights_sha256"],
            "attack": attack.attack,
            "options": attack_options(attack, attack_id),
            "inputs": context.inputs_key,
            "versions": {name: versions[name] for name in libraries},
            "torch": torch.__version__,
            "rounds": rounds,
            "code": _sources(module),
            "machine": f"{platform.machine()} {platform.processor()} {os.cpu_count()}",
        }
    )


def _sources(module: str) -> dict[str, str]:
    """Source of a module of ``attacks`` and of those that it imports."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = inspect.getsource(sys.modules[name])
            waiting += re.findall(r"^from (attacks\.\w+) import", found[name], re.MULTILINE)
    return found


# --- measuring -------------------------------------------------------------------------------


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _pass_seconds(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Seconds of one forward and one backward pass per image, on the model made fast for attack."""
    part = next(chunks(images))
    forward, backward = [], []
    with attack_mode(model):
        fast = prepare(model, part)
        for _ in range(_FLOOR_REPEATS + 1):
            inputs = part.clone().requires_grad_()
            start = _now(part.device)
            logits = fast(inputs)
            middle = _now(part.device)
            torch.autograd.grad(logits.gather(1, labels[: len(part), None]).sum(), inputs)
            end = _now(part.device)
            forward.append((middle - start) / len(part))
            backward.append((end - middle) / len(part))
    return statistics.median(forward[1:]), statistics.median(backward[1:])


def _least_passes(
    attack: str, options: Options, passes: Passes, count: int
) -> tuple[int, int] | None:
    """Fewest forwards and backwards of any implementation that takes our path; None: not defined.

    DeepFool: one forward at each point that an image visits, one backward at each but the last.
    """
    if attack == "deepfool" and not options["refine"]:
        return passes.points, passes.points - count
    return None


def profile(
    library: str,
    attack: str,
    options: Options,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
) -> Passes:
    """Passes and peak memory of one run in a fresh process."""
    arguments = (library, attack, options, model, images, labels, torch.get_num_threads())
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_profile_here, *arguments).result()


def _profile_here(
    library: str,
    attack: str,
    options: Options,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threads: int,
) -> Passes:
    torch.set_num_threads(threads)
    peers.load(library)
    run = partial(peers.run, library, attack, options)
    run(model, images[:_WARM_UP_IMAGES], labels[:_WARM_UP_IMAGES])
    counting = Counting(model).eval()
    with _PeakMemory(images.device) as peak:
        run(model if library == OURS else counting, images, labels)
    if library == OURS:  # counting hides the network from what makes it fast, and so changes memory
        run(counting, images, labels)
    return Passes(**counting.counts, points=len(counting.points), peak_memory_mb=peak.megabytes)


class _PeakMemory:
    """Memory in use at the worst moment of a block, over what was in use at its start."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.megabytes: float | None = None

    def __enter__(self) -> _PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        elif _STATUS.is_file():
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
            self.before = _from_status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.megabytes = (torch.cuda.max_memory_allocated(self.device) - self.before) / 1e6
        elif _STATUS.is_file():
            self.megabytes = (_from_status("VmHWM") - self.before) / 1e6


_STATUS = Path("/proc/self/status")


def _from_status(name: str) -> int:
    """Bytes of a line such as ``VmRSS: 123 kB``."""
    (line,) = [x for x in _STATUS.read_text().splitlines() if x.startswith(name)]
    return int(line.split()[1]) * 1024


def _outcome(
    model: nn.Module, images: Tensor, labels: Tensor, found: Tensor
) -> dict[str, np.ndarray[Any, Any]]:
    """Judged afresh: ``fooled`` (N,), and distances ``l2``, ``linf`` (N,)."""
    logits = logits_of(model, found.cpu(), images.device)
    inside = ((found >= -_BOX_TOLERANCE) & (found <= 1 + _BOX_TOLERANCE)).flatten(1).all(1).cpu()
    finite = torch.isfinite(logits).all(1)
    difference = (found - images).double().flatten(1).cpu()
    return {
        "fooled": (inside & finite & (logits.argmax(1) != labels.cpu())).numpy(),
        "l2": difference.norm(dim=1).numpy(),
        "linf": difference.abs().amax(1).numpy(),
    }
