"""A run from its first job to its last table; who runs the jobs: here, this process in turn.

Several processes may run the same plan in the same folder: each takes what no other is at.
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from robust_ham.errors import RequestError
from robust_ham.progress import Monitor, Silent
from robust_ham.regular_files import read_text
from robust_ham.runs.attempt import Attempt, already_there, attempt_job, run_key, write_inputs
from robust_ham.runs.cleanup import set_aside_stale
from robust_ham.runs.jobs.gate import write_gate
from robust_ham.runs.jobs.kernels import write_kernels
from robust_ham.runs.jobs.model import help_train
from robust_ham.runs.jobs.transfer import write_transfer
from robust_ham.runs.manifest import write_manifest
from robust_ham.runs.plan.context import Context
from robust_ham.runs.plan.job import Job
from robust_ham.runs.plan.plan import Plan
from robust_ham.runs.status import PROCESS, num_processes
from robust_ham.storage import signals
from robust_ham.storage.checksums import (
    check_present,
    forget_files,
    hash_files,
    read_checksums,
    record_run,
)
from robust_ham.storage.files import MAX_TEXT_BYTES, remove_leftovers, write_text
from robust_ham.storage.locks import locked, remove_dead, try_lock
from robust_ham.storage.ownership import claim, is_source, refuse_unusable, write_config
from robust_ham.storage.receipts import signed_hashes
from robust_ham.storage.run_folder import FILES, FOLDERS, RunFolder
from robust_ham.storage.run_logs import note_failure, note_timing
from robust_ham.storage.working_folder import check_unmoved, working_in
from robust_ham.training import distributed

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_STEP_LOCKS = re.compile(r"(start|tables|timings|failures|(process|ray)-[0-9a-f]+)\.lock")
"""Names of all locks of a run but those of jobs."""


def choose_device(name: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` (``cuda:1`` …).

    Raises:
        RequestError: unknown, or not present.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise RequestError(f"--device: expected auto, cpu or cuda, got {name}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RequestError("--device cuda: no CUDA device here")
    return device


@dataclass(frozen=True)
class Outcome:
    """How many jobs of a run failed, and what the gate says of models that cannot be trusted."""

    num_failed: int = 0
    distrusted: tuple[str, ...] = ()


class Ledger:
    """What has become of each job of a run."""

    def __init__(self, context: Context, monitor: Monitor) -> None:
        self.context = context
        self.monitor = monitor
        self.ended: dict[str, Attempt] = {}

    def is_ready(self, job: Job) -> bool:
        """Whether what comes before the job has ended."""
        return all(name in self.ended for name in job.needs)

    def fails_with(self, job: Job) -> Attempt | None:
        """How a job ends that needs one that failed."""
        for name in job.needs:
            if name in self.ended and self.ended[name].error is not None:
                return Attempt(f"failed: its model {name} failed", 0.0, "RuntimeError")
        return None

    def still_failed(self) -> set[str]:
        """Names of the jobs that failed here and that no other process has done since."""
        left = set[str]()
        for job in self.context.plan.jobs:  # a model stands before what needs it
            if self.ended[job.name].error is not None and (
                not left.isdisjoint(job.needs) or already_there(self.context, job) is None
            ):
                left.add(job.name)
        return left

    @property
    def seconds(self) -> float:
        """Spent in jobs that were computed here."""
        return sum(a.seconds for a in self.ended.values() if a.outcome == "done")

    @property
    def num_there(self) -> int:
        """Jobs whose results were there already; the log has one line for all of them."""
        return sum(a.outcome == "already there" for a in self.ended.values())

    def note(self, job: Job, attempt: Attempt) -> None:
        """A job has ended: write it down, and tell the user."""
        self.ended[job.name] = attempt
        run = self.context.run
        if attempt.error is not None:
            note_failure(run, job.name, attempt.error, attempt.outcome.removeprefix("failed: "))
        elif attempt.outcome == "done":
            note_timing(run, job.name, attempt.seconds)
        if attempt.outcome != "already there":
            log.info("%s: %s (%.1f s)", job.name, attempt.outcome, attempt.seconds)
        self.monitor.job_ended(job.name, attempt.outcome, attempt.seconds)


Executor = Callable[[Context, Ledger], None]
"""Sees to it that every job of the plan ends."""


def inline(context: Context, ledger: Ledger) -> None:
    """Run the jobs here, one after the other; what other processes are at is waited for."""
    waiting, told = list(context.plan.jobs), False
    while waiting:
        left = []
        for job in waiting:
            signals.check()
            attempt = ledger.fails_with(job)
            if attempt is None and ledger.is_ready(job):
                attempt = attempt_job(context, job, ledger.monitor.job_started)
            if attempt is None:
                left.append(job)
            else:
                ledger.note(job, attempt)
        if len(left) == len(waiting):
            if not told:
                ledger.monitor.note(f"{len(left)} jobs wait for another process")
                told = True
            time.sleep(_POLL_SECONDS)
        waiting = left


def run_plan(
    plan: Plan,
    folder: Path,
    device: torch.device,
    monitor: Monitor | None = None,
    executor: Executor = inline,
    source: Path | None = None,
) -> Outcome:
    """Run every job whose result is not there yet.

    A failed job is noted in ``failures.jsonl`` and the others go on; attacks on a model that
    failed fail too. Of several processes of torchrun, the first does all but its share of training.

    Where there are attacks, what is finished is measured for transfer and checked by the gate at
    the end, as the configuration asks for.

    Args:
        plan: what to do.
        folder: of the run; made where it is missing.
        device: that computes.
        monitor: is told how far the run is.
        executor: sees to it that every job ends.
        source: the file that the plan's configuration was read from; it is never written.

    Raises:
        RequestError: a checkpoint or an option is not what was asked for, or the folder holds
            files of others.
        OSError: the folder cannot be written, or is not as it was any more.
    """
    monitor = monitor or Silent()
    context = Context(plan, RunFolder(folder), device)
    torch.set_num_threads(plan.config.evaluation.threads)
    if distributed.rank() > 0:
        help_train(context)
        return Outcome()
    keeps_config = is_source(context.run, plan.config, source)
    claim(folder, plan.config.name)
    ledger = Ledger(context, monitor)
    with working_in(folder):
        try:
            return _run(ledger, executor, keeps_config=keeps_config)
        except OSError:  # because the folder is not the same any more?
            check_unmoved(folder)
            raise
        except RequestError:  # because of a file that somebody has just removed?
            check_unmoved(folder)
            failed = {name for name, attempt in ledger.ended.items() if attempt.error is not None}
            check_present(context.run, [*_results(ledger, failed), *signed_hashes(context.run)])
            raise


def _run(ledger: Ledger, executor: Executor, *, keeps_config: bool) -> Outcome:
    """Run every job, then write what is known once all have ended."""
    context, monitor, begin = ledger.context, ledger.monitor, time.monotonic()
    plan, run = context.plan, context.run
    with _joined(context, monitor, keeps_config=keeps_config):
        forget_files(run, run.written_by_run)
        write_inputs(context)
        write_manifest(context)
        attacked = any(job.attack_id is not None for job in plan.jobs)
        num_last = attacked * ((plan.config.transfer is not None) + plan.config.evaluation.gate)
        monitor.started(len(plan.jobs) + num_last)
        executor(context, ledger)
        log.info("%d of %d jobs were there already", ledger.num_there, len(plan.jobs))
        _tell_overhead(ledger, time.monotonic() - begin)
        with locked(run.lock("tables"), signals.check):
            failed = ledger.still_failed()
            distrusted = _write_tables(context, monitor, failed, attacked)
            write_manifest(context, time.monotonic() - begin)
            written = hash_files(run, run.written_by_run)
            record_run(run, signed_hashes(run) | written)
            check_present(run, [*_results(ledger, failed), *read_checksums(run)])
    return Outcome(len(failed), distrusted)


def _results(ledger: Ledger, failed: set[str]) -> Iterator[str]:
    """Paths inside the run folder that must be there once the jobs that ended well have ended."""
    run, places = ledger.context.run, dict[Path, None]()
    left = set[Path]()  # of several shards, one that failed is enough
    for job in ledger.context.plan.jobs:
        signed = run.predictions(job.spec.model_id) if job.attack_id is None else job.result(run)
        made = [job.result(run), run.receipt(signed)]
        if job.name in failed or job.name not in ledger.ended:
            left.update(made)
        places |= dict.fromkeys(made)
    for path in (run.config, run.inputs, *(path for path in places if path not in left)):
        yield path.relative_to(run.root).as_posix()


@contextlib.contextmanager
def _joined(context: Context, monitor: Monitor, *, keeps_config: bool) -> Iterator[None]:
    """Take part in the run of a folder; who finds nobody there puts it in order first.

    Raises:
        RequestError: others are at work there with another configuration, data, code or device.
    """
    run, asked, key = context.run, context.run.locks / "asked.key", run_key(context)
    with contextlib.ExitStack() as starting:
        starting.enter_context(locked(run.lock("start"), signals.check))
        if not num_processes(run):
            remove_leftovers(run.root, FOLDERS, FILES)
            remove_dead(run.locks, _STEP_LOCKS)
            run.failures.unlink(missing_ok=True)
            for line in set_aside_stale(context):
                monitor.note(f"{line}: computed again")
            if not keeps_config and (aside := write_config(run, context.plan.config)):
                monitor.note(f"{run.config}: was edited, and is kept as {aside}")
            write_text(asked, key)
        elif read_text(asked, MAX_TEXT_BYTES) != key:
            raise RequestError(
                f"{run.root}: another process runs another configuration there, or other data, "
                "code or precision"
            )
        refuse_unusable(run)  # others may have begun just now
        with locked(run.lock(f"{PROCESS}{secrets.token_hex(4)}")):
            if distributed.num_processes() == 1:  # else nobody may join
                starting.close()
            yield
    while (last := try_lock(run.lock("start"))) is None:
        if num_processes(run):  # the last of them puts the folder in order
            return
        time.sleep(_POLL_SECONDS)
    if not num_processes(run):
        remove_leftovers(run.root, FOLDERS, FILES)  # of others that were killed meanwhile
        remove_dead(run.locks, _STEP_LOCKS)
        asked.unlink(missing_ok=True)
    last.release()
    with contextlib.suppress(OSError):  # others are there
        run.locks.rmdir()


def _tell_overhead(ledger: Ledger, seconds: float) -> None:
    """Say what a job costs beside its own work."""
    num_done = sum(a.outcome == "done" for a in ledger.ended.values())
    beside = 1000 * (seconds - ledger.seconds) / max(1, len(ledger.ended))
    line = f"{num_done} jobs in {seconds:.1f} s, {ledger.seconds:.1f} s of work"
    if num_done:  # several at a time do more work than time passes
        ledger.monitor.note(line + (f", {beside:.0f} ms beside it per job" if beside > 0 else ""))


def _write_tables(
    context: Context, monitor: Monitor, failed: set[str], attacked: bool
) -> tuple[str, ...]:
    """Write what is known once all jobs have ended; a line for each model not to be trusted."""
    write_kernels(context, failed)
    asked = context.plan.config.transfer
    if attacked and asked is not None:
        start = time.monotonic()
        write_transfer(context, asked, failed, monitor.job_started("transfer"))
        _note_step(context, monitor, "transfer", "done", start)
    if not attacked or not context.plan.config.evaluation.gate:
        return ()
    start = time.monotonic()
    findings = write_gate(context, failed, monitor.job_started("gate"))
    fails = findings[findings["severity"] == "fail"]
    warns = int((findings["severity"] == "warn").sum())
    _note_step(context, monitor, "gate", f"{len(fails)} fail, {warns} warn", start)
    return tuple(
        f"{row['model_id']}{'/' if row['attack'] else ''}{row['attack']}: {row['reason']}"
        for row in fails.to_dict(orient="records")
    )


def _note_step(context: Context, monitor: Monitor, name: str, outcome: str, start: float) -> None:
    seconds = time.monotonic() - start
    note_timing(context.run, name, seconds)
    monitor.job_ended(name, outcome, seconds)
