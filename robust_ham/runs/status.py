"""Progress of a run: which jobs are done, running, failed or left. Without torch."""

from __future__ import annotations

import fnmatch
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from robust_ham.analysis.run import Run
from robust_ham.config.models import TableGroup
from robust_ham.progress import format_duration
from robust_ham.regular_files import read_text
from robust_ham.runs.plan.job import Job, list_jobs
from robust_ham.storage.files import MAX_TEXT_BYTES
from robust_ham.storage.locks import owner
from robust_ham.storage.receipts import receipt_of
from robust_ham.storage.run_folder import RunFolder
from robust_ham.storage.run_logs import read_timings


@dataclass(frozen=True)
class Status:
    """Progress of a run folder at one moment."""

    done: list[str]
    running: dict[str, dict[str, Any]]
    """Name of a job to ``host pid since`` of the process that runs it."""
    failed: dict[str, str]
    """Name of a job to the reason, in the last run."""
    left: list[str]
    seconds_left: float | None
    """Estimate for one worker from similar jobs; None: no similar job is done."""
    num_processes: int
    """Processes that take part in the run; on a Ray cluster, only the driver."""

    @property
    def num_jobs(self) -> int:
        """Number of all jobs."""
        return len(self.done) + len(self.running) + len(self.failed) + len(self.left)

    def as_dict(self) -> dict[str, Any]:
        """Return the content of ``--json``."""
        return {
            "num_cells": self.num_jobs,
            "done": self.done,
            "running": self.running,
            "failed": self.failed,
            "left": self.left,
            "seconds_left": self.seconds_left,
            "num_processes": self.num_processes,
        }

    def lines(self, root: Path) -> Iterator[str]:
        """Yield the lines to print."""
        rest = ""
        if self.seconds_left:
            rest = f"; about {format_duration(self.seconds_left)} left on one worker"
        yield (
            f"{root}: {len(self.done)} of {self.num_jobs} jobs done, {len(self.running)} running, "
            f"{len(self.failed)} failed, {len(self.left)} left{rest}"
        )
        for name, holder in self.running.items():
            duration = format_duration(max(0.0, time.time() - holder.get("since", time.time())))
            process = f"{holder.get('host')} (process {holder.get('pid')})"
            yield f"  {name}: running on {process} for {duration}"
        for name, reason in self.failed.items():
            yield f"  {name}: failed: {reason}"


def read_status(root: Path) -> Status:
    """Read the progress of a run folder.

    Raises:
        RequestError: not a run folder, or it contains a link, a pipe or a device.
    """
    folder = RunFolder(root)
    folder.refuse_links()
    jobs = list_jobs(Run(folder).config)
    failures = _failures(folder)
    done, left = list[str](), list[str]()
    running, failed = dict[str, dict[str, Any]](), dict[str, str]()
    for job in jobs:
        holder = owner(folder.lock(job.name))
        if is_done(folder, job):
            done.append(job.name)
        elif holder is not None:
            running[job.name] = holder
        elif job.name in failures:
            failed[job.name] = failures[job.name]
        else:
            left.append(job.name)
    times = Times(folder)
    waiting = [job for job in jobs if job.name in running or job.name in left]
    return Status(done, running, failed, left, times.expected(waiting), num_processes(folder))


PROCESS = "process-"
"""Prefix of the lock that every process holds while it takes part in a run."""


def num_processes(folder: RunFolder) -> int:
    """Return the number of processes that take part in a run."""
    try:
        names = fnmatch.filter(os.listdir(folder.locks), f"{PROCESS}*.lock")
    except FileNotFoundError:  # removed by the last one
        return 0
    return sum(owner(folder.locks / name) is not None for name in names)


def is_done(folder: RunFolder, job: Job) -> bool:
    """Whether a job has a receipt; under another configuration it may still be recomputed."""
    model_id, finished = job.spec.model_id, receipt_of(folder, job.result(folder)) is not None
    if job.attack_id is not None:
        shard = folder.shard(model_id, job.attack_id, job.shard)
        return finished or receipt_of(folder, shard) is not None
    predicted = receipt_of(folder, folder.predictions(model_id)) is not None
    return finished and (predicted or isinstance(job.spec, TableGroup))


def _failures(folder: RunFolder) -> dict[str, str]:
    """Return name of a failed job to the reason; skip invalid lines."""
    reasons = {}
    try:
        lines = read_text(folder.failures, MAX_TEXT_BYTES, errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    for line in lines:
        try:
            entry = json.loads(line)
            reasons[str(entry["cell"])] = str(entry["reason"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return reasons


class Times:
    """Times of finished jobs, and estimates for others."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Name of a finished job to its seconds."""
        try:
            texts = read_timings(self.folder)
        except (FileNotFoundError, ValueError):
            return {}
        return dict(zip(texts, pd.to_numeric([*texts.values()], errors="coerce"), strict=True))

    def expected(self, waiting: list[Job]) -> float | None:
        """Estimate the total seconds of jobs from the mean of similar ones; None: none is done.

        Similar is the same step on a network of the same family and kernel size, else of the same
        family, else the same step.
        """
        if not waiting:
            return 0.0
        groups: dict[tuple[object, ...], list[float]] = {}
        for job in list_jobs(Run(self.folder).config):
            seconds = self.seconds.get(job.name)
            if seconds is not None and seconds >= 0:
                for group in _groups(job):
                    groups.setdefault(group, []).append(seconds)
        total = 0.0
        for job in waiting:
            known = next((groups[group] for group in _groups(job) if group in groups), None)
            if known is None:
                return None
            total += sum(known) / len(known)
        return total


def _groups(job: Job) -> list[tuple[object, ...]]:
    """Return groups of similar jobs, the most similar first."""
    step = job.attack_id, job.num_shards
    return [(step, job.spec.family, job.spec.kernel_size), (step, job.spec.family), (step,)]
