"""Our attacks beside the peers': same model, images and threads, one process, alternating order.

Every round times each library once, in the opposite order of the round before; ratios are taken
round by round.
"""

from __future__ import annotations

import inspect
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from attacks import ATTACKS, AttackOutcome
from attacks.utils.model import attack_mode, chunks
from attacks.utils.prepare import prepare
from robust_ham.config.experiment import OURS
from robust_ham.errors import RequestError
from robust_ham.evaluation.evaluate import AttackedImages
from robust_ham.evaluation.registry import attack_options, recipe_of
from robust_ham.evaluation.scoring import judge
from robust_ham.experiments.benchmark import peer_libraries
from robust_ham.experiments.benchmark.peer_libraries import Options
from robust_ham.experiments.benchmark.profiling import WARM_UP_IMAGES, Passes, ProfiledCall, profile
from robust_ham.models.checkpoints import read_card
from robust_ham.models.predict import logits_of
from robust_ham.progress import Monitor
from robust_ham.runs.jobs.model import load_model
from robust_ham.runs.plan.context import Context
from robust_ham.runs.plan.plan import Plan
from robust_ham.runs.runner import run_plan
from robust_ham.storage import signals
from robust_ham.storage.files import content_key, read_json, reading, write_csv, write_json
from robust_ham.storage.run_folder import RunFolder

_FLOOR_REPEATS = 5

Say = Callable[[str], None]
Rows = list[dict[str, Any]]


def measure_all(
    plan: Plan,
    folder: Path,
    device: torch.device,
    libraries: list[str],
    rounds: int,
    monitor: Monitor | None = None,
    say: Say = lambda line: None,
    source: Path | None = None,
) -> pd.DataFrame:
    """Obtain the plan's models, compare each of its attacks on each, write ``bench.csv``.

    What has been measured before with the same key is not measured again. ``source`` is the file
    that the plan's configuration was read from.

    Returns:
        A row per model, attack and library.

    Raises:
        RequestError: a library is not known or not here, or a model failed.
    """
    versions = peer_libraries.installed()
    for name in libraries:
        if name not in versions:
            hint = f"; {peer_libraries.INSTALL[name]}" if name in peer_libraries.INSTALL else ""
            have = ", ".join(versions)
            raise RequestError(f"--libraries: expected some of {have}, got {name!r}{hint}")
    chosen = [OURS, *(name for name in libraries if name != OURS)]
    if run_plan(plan, folder, device, monitor, source=source).num_failed:
        raise RequestError(f"a model failed: {RunFolder(folder).failures}")
    context = Context(plan, RunFolder(folder), device)
    every: Rows = []
    for spec in plan.config.model_specs():
        for attack_id in plan.config.attacks:
            path = folder / "bench" / spec.model_id / f"{attack_id}.json"
            key = _key(context, spec.model_id, attack_id, chosen, rounds)
            rows = _measured_before(path, key)
            if rows is None:
                say(f"{spec.model_id} / {attack_id}")
                model, _ = load_model(context, spec)
                names = {"model_id": spec.model_id, "attack": attack_id}
                found = compare(context, model, attack_id, chosen, rounds, say)
                rows = [names | row for row in found]
                write_json(path, {"key": key, "rows": rows})
            every += rows
    table = pd.DataFrame(every)
    write_csv(folder / "bench.csv", table)
    return table


def compare(
    context: Context,
    model: nn.Module,
    attack_id: str,
    libraries: list[str],
    rounds: int,
    say: Say,
) -> Rows:
    """One attack on one model by each library that has it: a row per library, ours first.

    Only images that the model gets right are attacked, as libraries differ in what they do with
    others.

    Raises:
        RequestError: the model gets none right.
    """
    config = context.plan.config.attacks[attack_id]
    options = attack_options(config, attack_id)
    right = _right_images(model, context.plan.attacked, context.device)
    if not right.sample_ids:
        raise RequestError("evaluation: the model gets none of the images right")
    images, labels = right.images.to(context.device), right.labels.to(context.device)
    model.eval()

    def run(library: str, part: slice = slice(None)) -> Tensor:
        return peer_libraries.run(
            library, config.attack, options, model, images[part], labels[part]
        )

    chosen = []
    for name in libraries:
        if peer_libraries.can_run(name, config.attack, options):
            try:
                peer_libraries.load(name)
                run(name, slice(WARM_UP_IMAGES))
            except Exception as error:  # whatever a library raises on this model
                if name == OURS:
                    raise
                say(f"{name} fails and is left out: {type(error).__name__}: {error}")
            else:
                chosen.append(name)

    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    found: dict[str, Tensor] = {}
    pass_seconds = []
    for number in range(rounds):
        pass_seconds.append(_pass_seconds(model, images, labels))
        for name in chosen if number % 2 == 0 else reversed(chosen):
            signals.check()
            start = _now(context.device)
            found[name] = run(name)
            seconds[name].append(_now(context.device) - start)
            say(f"round {number + 1} of {rounds}: {name} {seconds[name][-1]:.2f} s")

    passes = {
        name: profile(ProfiledCall(name, config.attack, options, model, images, labels))
        for name in chosen
    }
    least = _least_passes(config.attack, options, passes[OURS], len(labels))
    floor = [f * least[0] + b * least[1] for f, b in pass_seconds] if least else None
    fooled_by_us = _judged(model, right, found[OURS], context.device)["status"] == "fooled"
    rows = []
    for name in chosen:
        judged = _judged(model, right, found[name], context.device)
        fooled = judged["status"] == "fooled"
        row: dict[str, Any] = {"library": name, "version": peer_libraries.installed()[name]}
        row |= _times(seconds[name], seconds[OURS], floor, len(labels))
        row |= _spent(passes[name], least, len(labels))
        row |= {"fooled": fooled.mean(), "same_fooled": (fooled == fooled_by_us).mean()}
        distances = judged[fooled & (not config.attack.startswith("spatial"))]
        for norm in ("l2", "linf"):
            row[f"median_{norm}"] = distances[norm].median()
            row[f"mean_{norm}"] = distances[norm].mean()
        rows.append({key: None if pd.isna(value) else value for key, value in row.items()})
    return rows


def _right_images(
    model: nn.Module, attacked: AttackedImages, device: torch.device
) -> AttackedImages:
    """Those of the attacked images that the model classifies right."""
    prediction = logits_of(model, attacked.images, device).argmax(1)
    rows = (prediction == attacked.labels).nonzero().squeeze(1)
    ids = [attacked.sample_ids[i] for i in rows.tolist()]
    return AttackedImages(attacked.images[rows], attacked.labels[rows], ids)


def _judged(
    model: nn.Module, attacked: AttackedImages, found: Tensor, device: torch.device
) -> pd.DataFrame:
    """What a library returned, judged as any attack of ours is; it has told us no more."""
    unknown = torch.zeros(len(found), dtype=torch.int64)
    outcome = AttackOutcome(found, unknown.bool(), unknown, unknown)
    return judge(model, attacked.images, attacked.labels, outcome, device)


def _times(
    times: list[float], ours: list[float], floor: list[float] | None, count: int
) -> dict[str, Any]:
    """Seconds, and their ratios to ours and to the floor, round by round."""
    row: dict[str, Any] = {"num_images": count, "rounds": len(times)}
    row |= _spread("seconds", times)
    row["images_per_second"] = count / row["seconds"]
    row |= _spread("ratio", [a / b for a, b in zip(times, ours, strict=True)])
    against = zip(times, floor, strict=True) if floor else []
    row["times_floor"] = statistics.median([a / b for a, b in against]) if floor else None
    return row


def _spent(passes: Passes, least: tuple[int, int] | None, count: int) -> dict[str, Any]:
    """Passes per image, the fewest possible, and memory."""
    return {
        "forwards": passes.forwards / count,
        "backwards": passes.backwards / count,
        "least_forwards": least[0] / count if least else None,
        "least_backwards": least[1] / count if least else None,
        "peak_memory_mb": passes.peak_memory_mb,
    }


def _spread(name: str, values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {
        name: statistics.median(values),
        f"{name}_low": min(values),
        f"{name}_high": max(values),
    }


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


# --- what has been measured before -----------------------------------------------------------


def _measured_before(path: Path, key: str) -> Rows | None:
    """Rows of a measurement; None if it is of something else, damaged, or not there."""
    try:
        with reading(path):
            content = read_json(path)
            rows: Rows = content["rows"]
            return rows if content["key"] == key else None
    except (RequestError, FileNotFoundError):
        return None


def _key(context: Context, model_id: str, attack_id: str, libraries: list[str], rounds: int) -> str:
    """Hash of all that decides a measurement, our code and the machine included."""
    attack, versions = context.plan.config.attacks[attack_id], peer_libraries.installed()
    module = str(ATTACKS[attack.attack.partition(":")[0]].__module__)
    return content_key(
        context.where
        | {
            "weights": read_card(context.run.model(model_id))["weights_sha256"],
            "attack": attack.attack,
            "options": recipe_of(attack_options(attack, attack_id)),
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
            waiting += re.findall(r"^from (attacks(?:\.\w+)+) import", found[name], re.MULTILINE)
    return found
