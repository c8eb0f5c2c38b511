"""Time our attacks and other libraries' on the same model, images and threads, in one process.

Every round times each library once, in the reverse order of the previous round; ratios are
computed within each round.
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
from robust_ham.config.attacks import attack_facts
from robust_ham.config.experiment import OURS
from robust_ham.errors import RequestError
from robust_ham.evaluation.evaluate import AttackedImages, attacked_images
from robust_ham.evaluation.options import attack_options, recipe_of
from robust_ham.evaluation.scoring import judge
from robust_ham.experiments.benchmark import peer_libraries
from robust_ham.experiments.benchmark.peer_libraries import Options
from robust_ham.experiments.benchmark.profiling import WARM_UP_IMAGES, Passes, ProfiledCall, profile
from robust_ham.experiments.benchmark.scaling import LARGEST_NUM_IMAGES, scaling
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
    with_scaling: bool = False,
) -> pd.DataFrame:
    """Obtain the plan's models, time each attack on each model, and write ``bench.csv``.

    ``with_scaling``: write ``scaling.csv`` too, which tells how our DeepFool scales on the first
    model. Measurements with the same key are reused. ``source``: file of the plan's configuration.

    Returns:
        A row per model, attack and library.

    Raises:
        RequestError: a library is unknown or not installed, a model failed, or ``with_scaling``
            without DeepFool.
    """
    versions = peer_libraries.installed()
    for name in libraries:
        if name not in versions:
            hint = f"; {peer_libraries.INSTALL[name]}" if name in peer_libraries.INSTALL else ""
            known = ", ".join(versions)
            raise RequestError(f"--libraries: expected some of {known}, got {name!r}{hint}")
    attacks = plan.config.attacks.items()
    deepfools = [attack_id for attack_id, attack in attacks if attack.facts.stops_at_boundary]
    if with_scaling and not deepfools:
        raise RequestError("--scaling: expected a configuration with DeepFool")
    chosen = [OURS, *(name for name in libraries if name != OURS)]
    if run_plan(plan, folder, device, monitor, source=source).num_failed:
        raise RequestError(f"a model failed: {RunFolder(folder).failures}")
    context = Context(plan, RunFolder(folder), device)
    all_rows: Rows = []
    for spec in plan.config.model_specs():
        for attack_id in plan.config.attacks:
            path = folder / "bench" / spec.model_id / f"{attack_id}.json"
            key = _key(context, spec.model_id, attack_id, chosen, rounds)
            rows = _stored_rows(path, key)
            if rows is None:
                say(f"{spec.model_id} / {attack_id}")
                model, _ = load_model(context, spec)
                names = {"model_id": spec.model_id, "attack": attack_id}
                measured = time_libraries(context, model, attack_id, chosen, rounds, say)
                rows = [names | row for row in measured]
                write_json(path, {"key": key, "rows": rows})
            all_rows += rows
    table = pd.DataFrame(all_rows)
    write_csv(folder / "bench.csv", table)
    if with_scaling:
        _measure_scaling(context, folder, deepfools[0], rounds, say)
    return table


def _measure_scaling(context: Context, folder: Path, attack_id: str, rounds: int, say: Say) -> None:
    """Write ``scaling.csv``: our DeepFool on the first model."""
    spec = context.plan.config.model_specs()[0]
    path = folder / "bench" / spec.model_id / "scaling.json"
    key = _key(context, spec.model_id, attack_id, [OURS], rounds)
    rows = _stored_rows(path, key)
    if rows is None:
        model, _ = load_model(context, spec)
        split = context.plan.dataset.test
        every = attacked_images(split, min(len(split), LARGEST_NUM_IMAGES), seed=0)
        correct = _correctly_classified(model, every, context.device)
        images, labels = correct.images.to(context.device), correct.labels.to(context.device)
        rows = scaling(model.eval(), images, labels, rounds, say)
        write_json(path, {"key": key, "rows": rows})
    write_csv(folder / "scaling.csv", pd.DataFrame(rows))


def time_libraries(
    context: Context,
    model: nn.Module,
    attack_id: str,
    libraries: list[str],
    rounds: int,
    say: Say,
) -> Rows:
    """Time one attack on one model in each library that has it: a row per library, ours first.

    Attack only correctly classified images, because libraries treat the others differently.

    Raises:
        RequestError: the model misclassifies all images.
    """
    config = context.plan.config.attacks[attack_id]
    options = attack_options(config, attack_id)
    attacked = _correctly_classified(model, context.plan.attacked, context.device)
    if not attacked.sample_ids:
        raise RequestError("evaluation: the model misclassifies all images")
    images, labels = attacked.images.to(context.device), attacked.labels.to(context.device)
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
            except Exception as error:  # a library may raise anything
                if name == OURS:
                    raise
                say(f"{name} failed and is left out: {type(error).__name__}: {error}")
            else:
                chosen.append(name)

    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    adversarials: dict[str, Tensor] = {}
    pass_seconds = []
    for number in range(rounds):
        pass_seconds.append(_pass_seconds(model, images, labels))
        for name in chosen if number % 2 == 0 else reversed(chosen):
            signals.check()
            start = _now(context.device)
            adversarials[name] = run(name)
            seconds[name].append(_now(context.device) - start)
            say(f"round {number + 1} of {rounds}: {name} {seconds[name][-1]:.2f} s")

    passes = {
        name: profile(ProfiledCall(name, config.attack, options, model, images, labels))
        for name in chosen
    }
    least = _least_passes(config.attack, options, passes[OURS], len(labels))
    floor = [f * least[0] + b * least[1] for f, b in pass_seconds] if least else None
    our_samples = _score(model, attacked, adversarials[OURS], context.device)
    fooled_by_us = our_samples["status"] == "fooled"
    rows = []
    for name in chosen:
        samples = _score(model, attacked, adversarials[name], context.device)
        fooled = samples["status"] == "fooled"
        row: dict[str, Any] = {"library": name, "version": peer_libraries.installed()[name]}
        row |= _times(seconds[name], seconds[OURS], floor, len(labels))
        row |= _spent(passes[name], least, len(labels))
        row |= {"fooled": fooled.mean(), "same_fooled": (fooled == fooled_by_us).mean()}
        distances = samples[fooled & (config.facts.candidates is None)]
        for norm in ("l2", "linf"):
            row[f"median_{norm}"] = distances[norm].median()
            row[f"mean_{norm}"] = distances[norm].mean()
        rows.append({key: None if pd.isna(value) else value for key, value in row.items()})
    return rows


def _correctly_classified(
    model: nn.Module, attacked: AttackedImages, device: torch.device
) -> AttackedImages:
    """Select the images that the model classifies correctly."""
    prediction = logits_of(model, attacked.images, device).argmax(1)
    rows = (prediction == attacked.labels).nonzero().squeeze(1)
    ids = [attacked.sample_ids[i] for i in rows.tolist()]
    return AttackedImages(attacked.images[rows], attacked.labels[rows], ids)


def _score(
    model: nn.Module, attacked: AttackedImages, adversarials: Tensor, device: torch.device
) -> pd.DataFrame:
    """Score a library's images like those of our attacks; passes are unknown."""
    unknown = torch.zeros(len(adversarials), dtype=torch.int64)
    outcome = AttackOutcome(adversarials, unknown.bool(), unknown, unknown)
    return judge(model, attacked.images, attacked.labels, outcome, device)


def _times(
    times: list[float], ours: list[float], floor: list[float] | None, count: int
) -> dict[str, Any]:
    """Summarise seconds, and their ratios to ours and to the floor within each round."""
    row: dict[str, Any] = {"num_images": count, "rounds": len(times)}
    row |= _spread("seconds", times)
    row["images_per_second"] = count / row["seconds"]
    row |= _spread("ratio", [a / b for a, b in zip(times, ours, strict=True)])
    against = zip(times, floor, strict=True) if floor else []
    row["times_floor"] = statistics.median([a / b for a, b in against]) if floor else None
    return row


def _spent(passes: Passes, least: tuple[int, int] | None, count: int) -> dict[str, Any]:
    """Return passes per image, the fewest possible, and memory."""
    return {
        "whole_passes": passes.whole_passes / count,
        "times_least": passes.whole_passes / sum(least) if least else None,
        "outside_convolutions": passes.outside,
        "forwards": passes.forwards / count,
        "backwards": passes.backwards / count,
        "least_forwards": least[0] / count if least else None,
        "least_backwards": least[1] / count if least else None,
        "peak_memory_mb": passes.peak_memory_mb,
    }


def _spread(name: str, values: list[float]) -> dict[str, float]:
    """Return median, lowest and highest."""
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
    """Time one forward and one backward pass per image, on the prepared model."""
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
    """Return the fewest forwards and backwards that our iterates need; None: not defined.

    DeepFool: one forward pass at each iterate, one backward pass at each but the last.
    """
    if attack_facts(attack).stops_at_boundary and not options["refine"]:
        return passes.points, passes.points - count
    return None


# --- stored measurements ---------------------------------------------------------------------


def _stored_rows(path: Path, key: str) -> Rows | None:
    """Return the rows of a stored measurement; None: missing, damaged, or of another key."""
    try:
        with reading(path):
            content = read_json(path)
            rows: Rows = content["rows"]
            return rows if content["key"] == key else None
    except (RequestError, FileNotFoundError):
        return None


def _key(context: Context, model_id: str, attack_id: str, libraries: list[str], rounds: int) -> str:
    """Hash everything that decides a measurement, including our code and the machine."""
    attack, versions = context.plan.config.attacks[attack_id], peer_libraries.installed()
    module = str(ATTACKS[attack.facts.catalogue_name].__module__)
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
    """Return the source of a module of ``attacks`` and of the modules that it imports."""
    sources: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in sources:
            sources[name] = inspect.getsource(sys.modules[name])
            waiting += re.findall(r"^from (attacks(?:\.\w+)+) import", sources[name], re.MULTILINE)
    return sources
