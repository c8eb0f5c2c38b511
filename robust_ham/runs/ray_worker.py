"""One job on another machine, whichever engine has brought it there.

Where the run folder can be seen, the job writes into it; elsewhere it works in a folder of its
own and hands its files back.
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
from robust_ham.runs.attempt import Attempt, attempt_job, run_key
from robust_ham.runs.plan.context import Context
from robust_ham.runs.plan.job import Job
from robust_ham.runs.plan.plan import make_plan
from robust_ham.runs.worker_setup import WorkerSetup
from robust_ham.storage.receipts import read_signed, write_signed
from robust_ham.storage.run_folder import RunFolder
from robust_ham.storage.working_folder import working_in

Files = dict[str, bytes]
"""Path inside a run folder to content."""


def run_there(
    setup: WorkerSetup, job: Job, fetch_models: Callable[[], Files], progress: Progress
) -> tuple[Attempt | None, Files]:
    """Run a job; the files it made, where the run folder cannot be seen.

    ``fetch_models`` gets the files of the models that the job needs, and of its own.

    Raises:
        RequestError: this machine would make other results than the one that runs the plan.
    """
    context = _context(setup)
    if (context.run.locks / setup.token).is_file():
        with working_in(context.run.root):
            return attempt_job(context, job, lambda _: progress), {}
    with tempfile.TemporaryDirectory(prefix="robust-ham-") as folder:
        own = dataclasses.replace(context, run=RunFolder(Path(folder)))
        fetched = fetch_models()
        write_signed(own.run, fetched)
        attempt = attempt_job(own, job, lambda _: progress)
        made = read_signed(own.run, _made(own.run, job))
        return attempt, {n: content for n, content in made.items() if fetched.get(n) != content}


def _made(run: RunFolder, job: Job) -> Iterable[Path]:
    model_id = job.spec.model_id
    if job.attack_id is None:
        return job.result(run), run.predictions(model_id)
    if job.num_shards > 1:
        return (run.shard(model_id, job.attack_id, job.shard),)
    return (job.result(run),)


@functools.lru_cache(maxsize=1)
def _context(setup: WorkerSetup) -> Context:
    """A worker's own; made once per worker."""
    if setup.own_code not in sys.path:
        sys.path.append(setup.own_code)
    config = parse_config(setup.config, origin="the run's configuration")
    torch.set_num_threads(config.evaluation.threads)
    plan = make_plan(config, Path(setup.data_root) if setup.data_root else None)
    context = Context(plan, RunFolder(Path(setup.folder)), torch.device(setup.device))
    if run_key(context) != setup.key:
        raise RequestError("this worker has other data, code or precision than here")
    return context
