"""Run the jobs of a plan on a Ray cluster; a job whose worker dies is retried elsewhere."""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from robust_ham.errors import RequestError
from robust_ham.progress import Progress
from robust_ham.runs.attempt import Attempt, already_there
from robust_ham.runs.jobs.attack import join_shards
from robust_ham.runs.plan.context import Context
from robust_ham.runs.plan.job import Job
from robust_ham.runs.ray_driver import AUTO, LOCAL, Answer, drive
from robust_ham.runs.runner import Executor, Ledger
from robust_ham.runs.worker_setup import WorkerSetup
from robust_ham.storage import signals
from robust_ham.storage.receipts import write_signed

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_JOIN_SECONDS = 30.0
_START_SECONDS = 120.0  # of Ray on this machine
_SILENT_SECONDS = 90.0  # Ray itself waits a minute for its head to come back
_CLOSE_SECONDS = 10.0
_ENDED = "Ray ended its process on this machine"
_NO_START = "cannot start Ray on this machine"
_ADDRESS = re.compile(r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})", re.ASCII)


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
    address = LOCAL if address is None else _check_address("--address", address)
    if address == AUTO and (named := os.environ.get("RAY_ADDRESS")):
        address = _check_address("RAY_ADDRESS", named)
    if importlib.util.find_spec("ray") is None:
        raise ModuleNotFoundError("ray is not installed", name="ray")

    def execute(context: Context, ledger: Ledger) -> None:
        token = context.run.lock(f"ray-{secrets.token_hex(8)}")
        gpus = 0.0 if context.device.type == "cpu" else gpus_per_cell or 1.0
        ray = _Ray(address, context, gpus)
        try:
            token.touch()
            _note_cluster(ray.join(), address, ledger)
            ray.note_if_none_fits(ledger)
            _Jobs(context, ledger, WorkerSetup.of(context, data_root, token.name), ray).run(
                num_workers
            )
        finally:
            with signals.uninterrupted():
                token.unlink(missing_ok=True)
                ray.close()

    return execute


def _check_address(key: str, address: str) -> str:
    """Return a valid address.

    Raises:
        RequestError: it is invalid.
    """
    port = _ADDRESS.fullmatch(address)
    if address in (AUTO, LOCAL) or (port and 0 < int(port[1]) < 2**16):
        return address
    raise RequestError(
        f"{key}: expected host:port of a Ray cluster's head, as `ray start --head` prints it, "
        f"auto or local, got {address!r}"
    )


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


class _Ray:
    """A Ray cluster, through the process that talks to it (``ray_driver.drive``)."""

    def __init__(self, address: str, context: Context, gpus: float) -> None:
        cpus = context.plan.config.evaluation.threads
        self.address, self.needed = address, {"CPU": cpus, "GPU": gpus}
        spawn = multiprocessing.get_context("spawn")
        self.link, theirs = spawn.Pipe()
        folder = str(context.run.root.resolve())
        self.process = spawn.Process(target=drive, args=(theirs, address, folder, cpus, gpus))
        with signals.uninterrupted():
            self.process.start()
            theirs.close()
        self.answers, self.heard = False, time.monotonic()

    def join(self) -> str:
        """Wait for the cluster and return its address.

        Raises:
            ConnectionError: the cluster cannot be joined.
        """
        is_local = self.address == LOCAL
        limit = _START_SECONDS if is_local else _JOIN_SECONDS
        answer = self._receive(limit) or ("refused", f"no answer within {limit:g} s")
        if answer[0] != "joined":
            failure = f"the Ray cluster at {self.address} cannot be joined"
            raise ConnectionError(f"{_NO_START if is_local else failure}: {answer[1]}")
        _, joined, self.nodes = answer
        self.answers, self.heard = True, time.monotonic()
        return str(joined)

    def note_if_none_fits(self, ledger: Ledger) -> None:
        """Show a note if no node of the cluster is large enough for a job."""
        if not any(all(node.get(k, 0) >= v for k, v in self.needed.items()) for node in self.nodes):
            needed = " and ".join(
                f"{count:g} {name}" for name, count in self.needed.items() if count
            )
            ledger.monitor.note(f"no node of the cluster has {needed} for a job: waiting")

    def start(self, setup: WorkerSetup, job: Job) -> None:
        """Submit a job."""
        try:
            self.link.send((setup, job))
        except OSError:
            self._raise_lost(_ENDED)

    def receive(self) -> tuple[Any, ...]:
        """Return the next message of ``drive``; empty if none comes within half a second.

        Raises:
            ConnectionError: the cluster is lost.
        """
        message = self._receive(_POLL_SECONDS)
        if message and message[0] == "lost":
            self._raise_lost(message[1])
        if message:
            self.heard = time.monotonic()
        elif time.monotonic() - self.heard > _SILENT_SECONDS:
            self._raise_lost(f"no message for {_SILENT_SECONDS:g} s")
        return message

    def close(self) -> None:
        """End the process; if it still answers, give it time to end its tasks on Ray."""
        self.link.close()
        self.process.join(_CLOSE_SECONDS if self.answers else 0)
        self.process.kill()
        self.process.join()

    def _receive(self, seconds: float) -> tuple[Any, ...]:
        try:
            return self.link.recv() if self.link.poll(seconds) else ()
        except (EOFError, OSError):
            return "lost", _ENDED

    def _raise_lost(self, reason: str) -> NoReturn:
        self.answers = False
        raise ConnectionError(
            f"the Ray cluster is lost ({reason}); finished jobs are kept: rerun the same command "
            "to resume"
        )


class _Jobs:
    """Submits jobs, records how they end, and shows their progress."""

    def __init__(self, context: Context, ledger: Ledger, setup: WorkerSetup, ray: _Ray) -> None:
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
        elif (attempt := self._result(job, content)) is not None:
            self.ledger.note(job, attempt)
        else:
            time.sleep(_POLL_SECONDS)
            yield job

    def _result(self, job: Job, answer: Answer) -> Attempt | None:
        """Return the attempt of a worker's answer; write its files into the run folder."""
        if isinstance(answer, RequestError):
            raise answer
        fields, files = answer
        if files and (finished := already_there(self.context, job)):
            return finished  # by another process
        write_signed(self.context.run, files)
        if files and job.attack_id is not None and job.num_shards > 1:
            join_shards(self.context, job, job.attack_id)
        return Attempt(*fields) if fields else None

    def _show(self, news: dict[str, tuple[int, int]]) -> None:
        for name, (done, total) in news.items():
            if name not in self.running:
                continue
            if name not in self.progress:
                self.progress[name] = self.ledger.monitor.job_started(name)
            self.progress[name](done, total)
