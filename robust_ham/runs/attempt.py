"""One attempt at a job: skip it if its result is finished, else compute and write it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from robust_ham.errors import RequestError, ending_with
from robust_ham.progress import Progress
from robust_ham.runs.jobs.attack import attack_model, find_rows
from robust_ham.runs.jobs.model import is_obtained, obtain_model
from robust_ham.runs.plan.context import Context
from robust_ham.runs.plan.job import Done, Job
from robust_ham.storage.locks import try_lock
from robust_ham.training import distributed

log = logging.getLogger(__name__)


class Attempt(NamedTuple):
    """How a job ended."""

    outcome: str
    """``done``, ``already there`` or ``failed: reason``."""
    seconds: float
    error: str | None = None
    """Class name of the exception of a failed job."""


def already_there(context: Context, job: Job) -> Attempt | None:
    """Return the attempt if the job is finished, as far as that is known without its model."""
    if job.attack_id is None:
        finished = is_obtained(context, job.spec)
    else:
        finished = find_rows(context, job, job.attack_id)
    return Attempt("already there", 0.0) if finished else None


def attempt_job(context: Context, job: Job, started: Callable[[str], Progress]) -> Attempt | None:
    """Run a job; return None if another process is running it.

    ``started`` is called with the job's name when work begins, and returns its progress callback.

    Raises:
        RequestError: a checkpoint or an option does not match the configuration.
        OSError: the folder cannot be written.
    """
    start = time.monotonic()
    if distributed.num_processes() == 1 and (finished := already_there(context, job)):
        return finished  # checked without the lock, which costs more than the check
    lock = try_lock(context.run.lock(job.name))
    if lock is None:
        return None
    with ending_with(lock.release):
        try:
            outcome: str = run_job(context, job, started(job.name))
            error = None
        except (RequestError, OSError):
            raise
        except Exception as failure:  # a failed job is recorded; the others continue
            outcome = f"failed: {' '.join(str(failure).split()) or type(failure).__name__}"
            error = type(failure).__name__
            log.debug("%s failed", job.name, exc_info=True)
    return Attempt(outcome, time.monotonic() - start, error)


def run_job(context: Context, job: Job, progress: Progress) -> Done:
    """Obtain a model, or attack one.

    Raises:
        RequestError: a checkpoint or an option does not match the configuration.
        TrainingError: the loss is no longer finite.
    """
    if job.attack_id is None:
        return obtain_model(context, job.spec, progress)
    return attack_model(context, job, job.attack_id, progress)
