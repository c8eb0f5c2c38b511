"""Run one job on another machine, whichever engine sent it.

If the machine shares the run folder, the job writes into it. Otherwise the job works in a temporary
folder and its files are sent back.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import tempfile
from collections.abc import Callable, Iterable
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
from robust_ham.storage.receipts import read_signed, write_signed
from robust_ham.storage.run_folder import RunFolder
from robust_ham.storage.working_folder import working_in

Files = dict[str, bytes]
"""Path inside a run folder to content."""


def run_on_worker(
    setup: WorkerSetup, job: Job, fetch_models: Callable[[], Files], progress: Progress
) -> tuple[Attempt | None, Files]:
    """Run a job; return its attempt and, if the run folder is not shared, its files.

    ``fetch_models`` returns the files of the job's model and of the models that it needs.

    Raises:
        RequestError: this machine would compute other results than the one that runs the plan.
    """
    context = _context(setup)
    if (context.run.locks / setup.token).is_file():
        with working_in(context.run.root):
            return attempt_job(context, job, lambda _: progress), {}
    with tempfile.TemporaryDirectory(prefix="robust-ham-") as folder:
        local = dataclasses.replace(context, run=RunFolder(Path(folder)))
        fetched = fetch_models()
        write_signed(local.run, fetched)
        attempt = attempt_job(local, job, lambda _: progress)
        files = read_signed(local.run, _results(local.run, job))
        return attempt, {name: data for name, data in files.items() if fetched.get(name) != data}


def _results(run: RunFolder, job: Job) -> Iterable[Path]:
    model_id = job.spec.model_id
    if job.attack_id is None:
        return job.result(run), run.predictions(model_id)
    if job.num_shards > 1:
        return (run.shard(model_id, job.attack_id, job.shard),)
    return (job.result(run),)


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
