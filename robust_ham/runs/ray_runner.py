"""Run the jobs of a plan on a Ray cluster; a job whose worker dies is retried elsewhere."""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robust_ham.errors import RequestError
from robust_ham.progress import Progress
from robust_ham.runs.attempt import Attempt, already_there
from robust_ham.runs.plan.context import Context
from robust_ham.runs.plan.job import Job
from robust_ham.runs.ray_driver import AUTO, LOCAL
from robust_ham.runs.ray_link import POLL_SECONDS, RayLink, check_address
from robust_ham.runs.runner import Executor, Ledger
from robust_ham.runs.worker_setup import WorkerSetup
from robust_ham.storage import signals

log = logging.getLogger(__name__)


def on_ray(
    data_root: Path | None,
    address: str | None = None,
    num_workers: int | None = None,
    gpus_per_cell: float | None = None,
) -> Executor:
    """Return an executor that runs at most ``num_workers`` jobs at a time (None: as many as fit).

    A job reserves ``evaluation.threads`` CPUs and, on CUDA, ``gpus_per_cell`` GPUs (default 1).
    ``address``: of a running cluster; None: Ray on this machine, even if ``RAY_ADDRESS`` is set.

    Raises:
        RequestError: the address is invalid.
        ModuleNotFoundError: Ray is not installed.
    """
    address = LOCAL if address is None else check_address("--address", address)
    if address == AUTO and (named := os.environ.get("RAY_ADDRESS")):
        address = check_address("RAY_ADDRESS", named)
    if importlib.util.find_spec("ray") is None:
        raise ModuleNotFoundError("ray is not installed", name="ray")

    def execute(context: Context, ledger: Ledger) -> None:
        token = context.run.lock(f"ray-{secrets.token_hex(8)}")
        gpus = 0.0 if context.device.type == "cpu" else gpus_per_cell or 1.0
        ray = RayLink(address, context.plan.config.evaluation.threads, gpus)
        try:
            token.touch()
            _note_cluster(ray.join(), address, ledger)
            if too_small := ray.too_small():
                ledger.monitor.note(too_small)
            _Jobs(context, ledger, WorkerSetup.of(context, data_root, token.name), ray).run(
                num_workers
            )
        finally:
            with signals.uninterrupted():
                token.unlink(missing_ok=True)
                ray.close()

    return execute


def _note_cluster(joined: str, address: str, ledger: Ledger) -> None:
    """Show which cluster is used if the command line does not name it."""
    ignored = os.environ.get("RAY_ADDRESS") if address == LOCAL else None
    if ignored:
        ledger.monitor.note(
            f"RAY_ADDRESS={ignored} is ignored: Ray runs on this machine; to join that cluster, "
            "add --address auto"
        )
    if address != LOCAL:
        ledger.monitor.note(f"joined the Ray cluster at {joined}")


class _Jobs:
    """Submits jobs, records how they end, and shows their progress."""

    def __init__(self, context: Context, ledger: Ledger, setup: WorkerSetup, ray: RayLink) -> None:
        self.context, self.ledger, self.setup, self.ray = context, ledger, setup, ray
        self.running: dict[str, Job] = {}
        self.progress: dict[str, Progress] = {}

    def run(self, num_workers: int | None) -> None:
        """Run all jobs to their end.

        Raises:
            ConnectionError: the cluster is lost, or its Python cannot run jobs.
            RequestError: a worker would compute other results than this process.
        """
        waiting = list(self.context.plan.jobs)
        while waiting or self.running:
            with signals.uninterrupted():
                waiting = [job for job in waiting if not self._take(job, num_workers)]
            message = self.ray.receive()
            with signals.uninterrupted():
                waiting += self._handle(message)

    def _take(self, job: Job, num_workers: int | None) -> bool:
        """Submit a job if it is ready, or record its end if it need not run; False: it waits."""
        full = num_workers is not None and len(self.running) >= num_workers
        if full or not self.ledger.is_ready(job):
            return False
        attempt = self.ledger.fails_with(job) or already_there(self.context, job)
        if attempt is not None:
            self.ledger.note(job, attempt)
            return True
        self.running[job.name] = job
        self.ray.start(self.setup, job)
        return True

    def _handle(self, message: tuple[Any, ...]) -> Iterator[Job]:
        """Handle a message; yield its job if another process is running it."""
        if not message:
            return
        if message[0] == "news":
            self._show(message[1])
            return
        kind, name, content = message
        if kind == "failed":
            raise ConnectionError(f"a worker of the Ray cluster cannot run {name}: {content}")
        job = self.running.pop(name)
        if kind == "died":
            self.ledger.note(job, Attempt(f"failed: {content}", 0.0, content))
        elif isinstance(content, RequestError):
            raise content
        elif content is not None:
            self.ledger.note(job, Attempt(*content))
        else:
            time.sleep(POLL_SECONDS)
            yield job

    def _show(self, news: dict[str, tuple[int, int]]) -> None:
        for name, (done, total) in news.items():
            if name not in self.running:
                continue
            if name not in self.progress:
                self.progress[name] = self.ledger.monitor.job_started(name)
            self.progress[name](done, total)
