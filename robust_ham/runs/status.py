"""How far a run is: which of its jobs are done, at work, failed or left. Needs no torch."""

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
from robust_ham.progress import in_words
from robust_ham.regular_files import read_text
from robust_ham.runs.plan.job import Job, list_jobs
from robust_ham.storage.files import MAX_TEXT_BYTES
from robust_ham.storage.locks import owner
from robust_ham.storage.receipts import receipt_of
from robust_ham.storage.run_folder import RunFolder
from robust_ham.storage.run_logs import read_timings


@dataclass(frozen=True)
class Status:
    """Of a run folder, at one moment."""

    done: list[str]
    running: dict[str, dict[str, Any]]
    """Name of a job to ``host pid since`` of the process that is at it."""
    failed: dict[str, str]
    """Name of a job to why, in the last run."""
    left: list[str]
    seconds_left: float | None
    """Of one worker, by the time that like jobs took; None: no like job is done."""
    num_processes: int
    """That take part in the run; of a Ray cluster, the driver."""

    @property
    def num_jobs(self) -> int:
        """How many there are."""
        return len(self.done) + len(self.running) + len(self.failed) + len(self.left)

    def as_dict(self) -> dict[str, Any]:
        """For other programs."""
        return {
            "num_jobs": self.num_jobs,
            "done": self.done,
            "running": self.running,
            "failed": self.failed,
            "left": self.left,
            "seconds_left": self.seconds_left,
            "num_processes": self.num_processes,
        }

    def lines(self, root: Path) -> Iterator[str]:
        """The same for people."""
        rest = f"; about {in_words(self.seconds_left)} of one worker" if self.seconds_left else ""
        yield (
            f"{root}: {len(self.done)} of {self.num_jobs} jobs done, {len(self.running)} at "
            f"work, {len(self.failed)} failed, {len(self.left)} left{rest}"
        )
        for name, at_work in self.running.items():
            since = in_words(max(0.0, time.time() - at_work.get("since", time.time())))
            place = f"{at_work.get('host')} ({at_work.get('pid')})"
            yield f"  {name}: at work on {place} for {since}"
        for name, reason in self.failed.items():
            yield f"  {name}: failed: {reason}"


def read_status(root: Path) -> Status:
    """How far the run of a folder is.

    Raises:
        RequestError: not a run folder, or a link, a pipe or a device in it.
    """
    folder = RunFolder(root)
    folder.refuse_links()
    jobs = list_jobs(Run(folder).config)
    failures = _failures(folder)
    done, left = list[str](), list[str]()
    running, failed = dict[str, dict[str, Any]](), dict[str, str]()
    for job in jobs:
        at_work = owner(folder.lock(job.name))
        if is_done(folder, job):
            done.append(job.name)
        elif at_work is not None:
            running[job.name] = at_work
        elif job.name in failures:
            failed[job.name] = failures[job.name]
        else:
            left.append(job.name)
    times = Times(folder)
    waiting = [job for job in jobs if job.name in running or job.name in left]
    return Status(done, running, failed, left, times.expected(waiting), num_processes(folder))


PROCESS = "process-"
"""How the lock begins that every process holds as long as it takes part in a run."""


def num_processes(folder: RunFolder) -> int:
    """How many processes take part in the run of a folder."""
    try:
        names = fnmatch.filter(os.listdir(folder.locks), f"{PROCESS}*.lock")
    except FileNotFoundError:  # the last has removed it
        return 0
    return sum(owner(folder.locks / name) is not None for name in names)


def is_done(folder: RunFolder, job: Job) -> bool:
    """Whether a job has its receipt; with another configuration it may be made anew."""
    model_id, made = job.spec.model_id, receipt_of(folder, job.result(folder)) is not None
    if job.attack_id is not None:
        shard = folder.shard(model_id, job.attack_id, job.shard)
        return made or receipt_of(folder, shard) is not None
    predicted = receipt_of(folder, folder.predictions(model_id)) is not None
    return made and (predicted or isinstance(job.spec, TableGroup))


def _failures(folder: RunFolder) -> dict[str, str]:
    """Name of a job to why it failed; a line that makes no sense is passed over."""
    found = {}
    try:
        lines = read_text(folder.failures, MAX_TEXT_BYTES, errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    for line in lines:
        try:
            about = json.loads(line)
            found[str(about["cell"])] = str(about["reason"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


class Times:
    """What jobs of a run took, and what others will."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Name of a job to seconds."""
        try:
            texts = read_timings(self.folder)
        except (FileNotFoundError, ValueError):
            return {}
        return dict(zip(texts, pd.to_numeric([*texts.values()], errors="coerce"), strict=True))

    def expected(self, waiting: list[Job]) -> float | None:
        """Seconds that jobs will take together: as long as like ones took, on average.

        Like is the same step on a network of the same kernel size, else the same step.
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
    """From the likest jobs to all that do the same."""
    step = job.attack_id, job.num_shards
    return [(step, job.spec.family, job.spec.kernel_size), (step, job.spec.family), (step,)]
