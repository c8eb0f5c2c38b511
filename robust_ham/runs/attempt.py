"""One job of a run: left alone if its result is there, else computed and written whole.

A result carries the key of everything that decides it; only a result with the right key counts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from robust_ham.data.splits import to_float
from robust_ham.errors import RequestError, ending_with
from robust_ham.evaluation.perturbations import high_frequency_share
from robust_ham.progress import Progress
from robust_ham.runs.jobs.attack import attack_model, attack_recipe, find_rows
from robust_ham.runs.jobs.model import is_obtained, model_key, obtain_model
from robust_ham.runs.plan.context import Context, Done
from robust_ham.runs.plan.job import Job
from robust_ham.storage.files import content_key
from robust_ham.storage.locks import try_lock
from robust_ham.storage.parquet_tables import write_table
from robust_ham.training import distributed

log = logging.getLogger(__name__)


class Attempt(NamedTuple):
    """How a job has ended."""

    outcome: str
    """``done``, ``already there``, or ``failed: `` and why."""
    seconds: float
    error: str | None = None
    """Of a failed job: the kind of the error."""


def run_key(context: Context) -> str:
    """Hash of all that decides a run's results: data, options, code, device, threads, precision.

    Only processes that find the same one may work in the same folder.
    """
    config = context.plan.config
    about = {
        "config": config.to_yaml(),
        "test": context.plan.dataset.test_hash,
        "models": [model_key(context, spec) for spec in config.model_specs()],
        "attacks": [attack_recipe(context, attack_id) for attack_id in config.attacks],
    }
    return content_key(context.where | about)


def already_there(context: Context, job: Job) -> Attempt | None:
    """How a job ends that has nothing to do, as far as that is known without its model."""
    if job.attack_id is None:
        there = is_obtained(context, job.spec)
    else:
        there = find_rows(context, job, job.attack_id)
    return Attempt("already there", 0.0) if there else None


def attempt_job(context: Context, job: Job, started: Callable[[str], Progress]) -> Attempt | None:
    """Run a job, unless another process is at it: None.

    ``started`` is told its name when it begins, and returns what is told of its progress.

    Raises:
        RequestError: a checkpoint or an option is not what was asked for.
        OSError: the folder cannot be written.
    """
    start = time.monotonic()
    if distributed.num_processes() == 1 and (known := already_there(context, job)):
        return known  # without a lock, which costs more than to look
    lock = try_lock(context.run.lock(job.name))
    if lock is None:
        return None
    with ending_with(lock.release):
        try:
            outcome: str = run_job(context, job, started(job.name))
            error = None
        except (RequestError, OSError):
            raise
        except Exception as fault:  # one job's fault is noted; the others go on
            outcome = f"failed: {' '.join(str(fault).split()) or type(fault).__name__}"
            error = type(fault).__name__
            log.debug("%s failed", job.name, exc_info=True)
    return Attempt(outcome, time.monotonic() - start, error)


def run_job(context: Context, job: Job, progress: Progress) -> Done:
    """Obtain a model, or attack one.

    Raises:
        RequestError: a checkpoint or an option is not what was asked for.
        TrainingError: the loss is no longer finite.
    """
    if job.attack_id is None:
        return obtain_model(context, job.spec, progress)
    return attack_model(context, job, job.attack_id, progress)


def inputs_table(context: Context) -> pd.DataFrame:
    """``inputs.parquet`` of the run: a row per attacked image.

    Beside what identifies an image stands its share of high frequencies, and that before it was
    subsampled, where it was.
    """
    plan = context.plan
    table = context.inputs.copy()
    table["high_frequency"] = high_frequency_share(plan.attacked.images)
    stored = plan.dataset.test_before_subsampling()
    if stored is not None and plan.config.evaluation.split == "test":
        images = to_float(stored.images[table["sample_id"].tolist()])
        table["high_frequency_original"] = high_frequency_share(images)
    return table


def write_inputs(context: Context) -> None:
    """Write ``inputs.parquet``."""
    about = {"dataset": Path(context.plan.config.dataset.name).name}
    write_table(context.run.inputs, inputs_table(context), about)
