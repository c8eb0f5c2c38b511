"""Run all jobs of a plan, then write the tables of the run.

Several processes may run the same plan in the same folder: each takes jobs that no other is
running.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from robust_ham.analysis.run import gate_failures
from robust_ham.errors import RequestError, plural
from robust_ham.progress import Monitor, Silent
from robust_ham.runs.attempt import Attempt, already_there, attempt_job
from robust_ham.runs.inputs import write_inputs
from robust_ham.runs.jobs.gate import write_gate
from robust_ham.runs.jobs.kernels import write_kernels
from robust_ham.runs.jobs.model import help_train
from robust_ham.runs.jobs.transfer import write_transfer
from robust_ham.runs.manifest import write_manifest
from robust_ham.runs.plan.context import Context
from robust_ham.runs.plan.job import Job
from robust_ham.runs.plan.plan import Plan
from robust_ham.runs.shared_folder import SharedFolder
from robust_ham.storage import signals
from robust_ham.storage.checksums import (
    check_present,
    forget_files,
    hash_files,
    read_checksums,
    record_run,
)
from robust_ham.storage.locks import locked
from robust_ham.storage.output_folder import claim, is_source
from robust_ham.storage.receipts import signed_hashes
from robust_ham.storage.run_folder import RunFolder
from robust_ham.storage.run_logs import note_failure, note_timing
from robust_ham.storage.working_folder import check_unmoved, working_in
from robust_ham.training import distributed

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2


def choose_device(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu`` or ``cuda`` (``cuda:1`` …) names.

    Raises:
        RequestError: unknown, or not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise RequestError(f"--device: expected auto, cpu, cuda or cuda:N, got {name}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RequestError("--device cuda: no CUDA device on this machine")
    return device


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    num_failed: int = 0
    """Failed jobs."""
    distrusted: tuple[str, ...] = ()
    """A line for each model or attack that the gate failed."""


class Ledger:
    """How the jobs of a run have ended so far."""

    def __init__(self, context: Context, monitor: Monitor) -> None:
        self.context = context
        self.monitor = monitor
        self.ended: dict[str, Attempt] = {}

    def is_ready(self, job: Job) -> bool:
        """Whether the jobs that must end first have ended."""
        return all(name in self.ended for name in job.needs)

    def fails_with(self, job: Job) -> Attempt | None:
        """Return the failed attempt of a job that needs a failed one; None: it needs none."""
        for name in job.needs:
            if name in self.ended and self.ended[name].error is not None:
                return Attempt(f"failed: its model {name} failed", 0.0, "RuntimeError")
        return None

    def still_failed(self) -> set[str]:
        """Return the names of jobs that failed here and that no other process has finished."""
        failed = set[str]()
        for job in self.context.plan.jobs:  # a model precedes the jobs that need it
            if self.ended[job.name].error is not None and (
                not failed.isdisjoint(job.needs) or already_there(self.context, job) is None
            ):
                failed.add(job.name)
        return failed

    @property
    def num_done(self) -> int:
        """Number of jobs computed in this run."""
        return self._count("done")

    @property
    def num_there(self) -> int:
        """Number of jobs that were finished before; the log has one line for all of them."""
        return self._count("already there")

    def _count(self, outcome: str) -> int:
        return sum(attempt.outcome == outcome for attempt in self.ended.values())

    @property
    def seconds(self) -> float:
        """Total time of the jobs computed in this run."""
        return sum(a.seconds for a in self.ended.values() if a.outcome == "done")

    def note(self, job: Job, attempt: Attempt) -> None:
        """Record the end of a job and show it to the user."""
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
"""Runs the jobs of a plan until all have ended; notes each in the ledger."""


def inline(context: Context, ledger: Ledger) -> None:
    """Run the jobs one after the other in this process; wait for those of other processes."""
    waiting, is_announced = list(context.plan.jobs), False
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
            if not is_announced:
                jobs = plural(len(left), "job")
                ledger.monitor.note(f"waiting for another process: {jobs} left")
                is_announced = True
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
    """Run every job that is not finished, then write the tables of the run.

    A failed job is recorded in ``failures.jsonl`` and the others continue; attacks on a failed
    model fail too. If there are attacks, ``transfer.csv`` and ``gate.csv`` follow, as configured.
    Under torchrun, all processes but the first only compute their share of the training.

    Args:
        plan: what to do.
        folder: run folder; created if missing.
        device: where to compute.
        monitor: shows the progress.
        executor: runs the jobs.
        source: file from which the plan's configuration was read; it is never written.

    Raises:
        RequestError: a checkpoint or an option does not match the configuration, or the folder
            holds files that are not ours.
        OSError: the folder cannot be written, or was moved during the run.
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
        except OSError:  # perhaps because the folder was moved
            check_unmoved(folder)
            raise
        except RequestError:  # perhaps because a file was removed during the run
            check_unmoved(folder)
            failed = {name for name, attempt in ledger.ended.items() if attempt.error is not None}
            check_present(context.run, [*_results(ledger, failed), *signed_hashes(context.run)])
            raise


def _run(ledger: Ledger, executor: Executor, *, keeps_config: bool) -> Outcome:
    context, monitor, start = ledger.context, ledger.monitor, time.monotonic()
    plan, run = context.plan, context.run
    with SharedFolder(context, monitor, keeps_config=keeps_config).joined():
        forget_files(run, run.written_by_run)
        write_inputs(context)
        write_manifest(context)
        has_attacks = any(job.attack_id is not None for job in plan.jobs)
        num_steps = has_attacks * ((plan.config.transfer is not None) + plan.config.evaluation.gate)
        monitor.started(len(plan.jobs) + num_steps)
        executor(context, ledger)
        log.info("%d of %d jobs were already finished", ledger.num_there, len(plan.jobs))
        _note_overhead(ledger, time.monotonic() - start)
        with locked(run.lock("tables"), signals.check):
            failed = ledger.still_failed()
            distrusted = _write_tables(context, monitor, failed, has_attacks)
            write_manifest(context, time.monotonic() - start)
            written = hash_files(run, run.written_by_run)
            record_run(run, signed_hashes(run) | written)
            check_present(run, [*_results(ledger, failed), *read_checksums(run)])
    return Outcome(len(failed), distrusted)


def _results(ledger: Ledger, failed: set[str]) -> Iterator[str]:
    """Yield the paths, relative to the run folder, that must exist now that the jobs have ended."""
    run, expected = ledger.context.run, dict[Path, None]()
    unfinished = set[Path]()  # one failed shard is enough
    for job in ledger.context.plan.jobs:
        signed = run.predictions(job.spec.model_id) if job.attack_id is None else job.result(run)
        paths = [job.result(run), run.receipt(signed)]
        if job.name in failed or job.name not in ledger.ended:
            unfinished.update(paths)
        expected |= dict.fromkeys(paths)
    for path in (run.config, run.inputs, *(path for path in expected if path not in unfinished)):
        yield path.relative_to(run.root).as_posix()


def _note_overhead(ledger: Ledger, seconds: float) -> None:
    """Show the overhead per job, for example ``120 jobs in 20.5 s (20.4 s of work; …)``."""
    if not ledger.num_done:
        return
    overhead = 1000 * (seconds - ledger.seconds) / max(1, len(ledger.ended))
    per_job = f"; overhead {overhead:.0f} ms per job" if overhead > 0 else ""  # else concurrent
    jobs = plural(ledger.num_done, "job")
    ledger.monitor.note(f"{jobs} in {seconds:.1f} s ({ledger.seconds:.1f} s of work{per_job})")


def _write_tables(
    context: Context, monitor: Monitor, failed: set[str], has_attacks: bool
) -> tuple[str, ...]:
    """Write the tables that need all jobs; return a line for each model the gate failed."""
    write_kernels(context, failed)
    transfer = context.plan.config.transfer
    if has_attacks and transfer is not None:
        start = time.monotonic()
        write_transfer(context, transfer, failed, monitor.job_started("transfer"))
        _note_step(context, monitor, "transfer", "done", start)
    if not has_attacks or not context.plan.config.evaluation.gate:
        return ()
    start = time.monotonic()
    findings = write_gate(context, failed, monitor.job_started("gate"))
    failures, num_warnings = gate_failures(findings), int((findings["severity"] == "warn").sum())
    _note_step(context, monitor, "gate", f"{len(failures)} fail, {num_warnings} warn", start)
    return failures


def _note_step(context: Context, monitor: Monitor, name: str, outcome: str, start: float) -> None:
    seconds = time.monotonic() - start
    note_timing(context.run, name, seconds)
    monitor.job_ended(name, outcome, seconds)
