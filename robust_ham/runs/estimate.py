"""Estimate how long a run will take, by timing one short pass of every kind of job."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from torch import nn

from robust_ham.config.models import FactoryGroup, ModelGroup
from robust_ham.evaluation.options import attack_options
from robust_ham.evaluation.registry import attack_function, num_candidates
from robust_ham.models import checkpoints, factories
from robust_ham.models.checkpoints import source_folder
from robust_ham.models.predict import logits_of
from robust_ham.models.size import num_flops
from robust_ham.runs.plan.context import Context
from robust_ham.runs.plan.job import Job
from robust_ham.runs.status import is_done
from robust_ham.training import train

_BATCHES, _IMAGES = 3, 16
_CANDIDATES = 1_000  # of a spatial attack; where there are more, fewer are timed
_LONG = 2.0  # seconds of an attack on one image, after which 16 are not tried


class Expected(NamedTuple):
    """Cost of the unfinished jobs, run one after the other."""

    training: float
    """Seconds."""
    attacks: float
    """Seconds."""
    training_flops: int
    """Floating-point operations: forward, and twice as many backward."""


def expected_cost(context: Context) -> Expected:
    """Time a training step and an attack on 16 images for each kind of network.

    If an attack is slow, one image is timed. A network that is not trained yet is attacked after
    three training steps, with its own predictions as labels. A trained one may resist longer, so
    this is a rough estimate. It does not include the gate and the report.
    """
    unfinished = [job for job in context.plan.jobs if not is_done(context.run, job)]
    kinds: dict[tuple[str, str, int], list[Job]] = {}
    for job in unfinished:
        kind = (job.spec.source, job.spec.family, job.spec.kernel_size)
        kinds.setdefault(kind, []).append(job)
    torch.set_num_threads(context.plan.config.evaluation.threads)
    shape, num_train = context.plan.attacked.images.shape[1:], len(context.plan.dataset.train)
    training = attacks = 0.0
    flops = 0
    for jobs in kinds.values():
        specs = [c.spec for c in jobs if c.attack_id is None and _is_trained(context, c.spec)]
        seconds, model = _measured_model(context, jobs[0].spec, bool(specs))
        training += len(specs) * seconds
        epochs = sum(context.plan.config.training_of(spec).epochs for spec in specs)
        flops += 3 * epochs * num_train * num_flops(model, shape)
        for attack_id in {c.attack_id for c in jobs if c.attack_id is not None}:
            images = sum(
                len(context.plan.shard_of(c).labels) for c in jobs if c.attack_id == attack_id
            )
            attacks += images * _seconds_per_image(context, model, attack_id)
    return Expected(training, attacks, flops)


def _is_trained(context: Context, spec: ModelGroup) -> bool:
    trained_here = not isinstance(spec, FactoryGroup)
    return trained_here and source_folder(context.plan.config, spec) is None


def _measured_model(context: Context, spec: ModelGroup, timed: bool) -> tuple[float, nn.Module]:
    """Return the seconds of a complete training, and a network of the same kind."""
    source = source_folder(context.plan.config, spec)
    if source is not None:
        factory = spec.factory if isinstance(spec, FactoryGroup) else None
        return 0.0, checkpoints.load(source, factory)[0].to(context.device)
    if isinstance(spec, FactoryGroup):
        return 0.0, factories.load_factory(spec).to(context.device)
    config, dataset = context.plan.config.training_of(spec), context.plan.dataset
    short = config.model_copy(update={"epochs": 1, "schedule": "constant", "warmup_epochs": 0})
    seconds = 0.0
    for count in (1, _BATCHES) if timed else (1,):  # the first warms up
        split = dataset.train[: count * config.batch_size]
        start = time.monotonic()
        model, _ = train.train(
            spec,
            short,
            split,
            dataset.validation[: len(split)],
            device=context.device,
            precision=train.resolve_precision(config.precision, context.device),
        )
        seconds = (time.monotonic() - start) / len(split)
    return seconds * len(dataset.train) * config.epochs, model.eval()


def _seconds_per_image(context: Context, model: nn.Module, attack_id: str) -> float:
    attack = context.plan.config.attacks[attack_id]
    options, factor = _fewer_candidates(context, attack_id)
    seconds, num_images = 0.0, 1
    for count in (1, _IMAGES):  # the first warms up
        images = context.plan.attacked.images[:count]
        labels = logits_of(model, images, context.device).argmax(1)  # attack all
        batch = images.to(context.device), labels.to(context.device)
        start = time.monotonic()
        outcome = attack_function(attack.attack)[0](model, *batch, **options)
        seconds, num_images = time.monotonic() - start, len(images)
        needs_all = 1.0  # share of images that need all candidates
        if options.get("stop") == "first":
            needs_all = float((~outcome.fooled).float().mean())
        seconds *= 1 + (factor - 1) * needs_all
        if seconds > _LONG:
            break
    return seconds / num_images


def _fewer_candidates(context: Context, attack_id: str) -> tuple[dict[str, Any], float]:
    """Return options with at most about 1,000 candidates, and the factor to the full number."""
    attack = context.plan.config.attacks[attack_id]
    options, shape = attack_options(attack, attack_id), context.plan.attacked.images.shape[1:]
    count = num_candidates(attack.attack, options, shape)
    if count <= _CANDIDATES:
        return options, 1.0
    fewer = options | dict(attack.facts.few_candidates)
    return fewer, count / num_candidates(attack.attack, fewer, shape)
