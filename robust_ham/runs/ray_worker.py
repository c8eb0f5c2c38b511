"""Run one job on another machine, which shares the run folder."""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path

import torch

from robust_ham.config.files import parse_config
from robust_ham.errors import RequestError
from robust_ham.progress import Progress
from robust_ham.runs.attempt import Attempt, attempt_job
from robust_ham.runs.plan.context import Context
from robust_ham.runs.plan.job import Job
from robust_ham.runs.plan.keys import run_key
from robust_ham.runs.plan.plan import make_plan
from robust_ham.runs.worker_setup import WorkerSetup
from robust_ham.storage.run_folder import RunFolder
from robust_ham.storage.working_folder import working_in

_PATIENCE_SECONDS = 5.0  # network file systems show new files late


def run_on_worker(setup: WorkerSetup, job: Job, progress: Progress) -> Attempt | None:
    """Run a job; return None if another process is running it.

    Raises:
        RequestError: this machine does not share the run folder, or would compute other results
            than the one that runs the plan.
    """
    run = RunFolder(Path(setup.folder))
    until = time.monotonic() + _PATIENCE_SECONDS
    while not (is_shared := (run.locks / setup.token).is_file()) and time.monotonic() < until:
        time.sleep(0.5)
    if not is_shared:
        raise RequestError(
            f"this worker does not see the run folder {setup.folder}: write the run (--out) to a "
            "folder that all machines share"
        )
    context = _context(setup)
    with working_in(run.root):
        return attempt_job(context, job, lambda _: progress)


@functools.lru_cache(maxsize=1)
def _context(setup: WorkerSetup) -> Context:
    """Return the context of this worker; computed once."""
    if setup.user_code not in sys.path:
        sys.path.append(setup.user_code)
    config = parse_config(setup.config, origin="the run's configuration")
    torch.set_num_threads(config.evaluation.threads)
    plan = make_plan(config, Path(setup.data_root) if setup.data_root else None)
    context = Context(plan, RunFolder(Path(setup.folder)), torch.device(setup.device))
    if run_key(context) != setup.key:
        raise RequestError("this worker has other data, code or precision than the driver")
    return context
