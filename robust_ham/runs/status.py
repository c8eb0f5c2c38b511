"""How far a run is: which of its cells are done, at work, failed or left. Needs no torch."""

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
from robust_ham.runs.plan.job import Cell, list_cells
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
    """Name of a cell to ``host pid since`` of the process that is at it."""
    failed: dict[str, str]
    """Name of a cell to why, in the last run."""
    left: list[str]
    seconds_left: float | None
    """Of one worker, by the time that like cells took; None: no like cell is done."""
    num_processes: int
    """That take part in the run; of a Ray cluster, the driver."""

    @property
    def num_cells(self) -> int:
        """How many there are."""
        return len(self.done) + len(self.running) + len(self.failed) + len(self.left)

    def as_dict(self) -> dict[str, Any]:
        """For other programs."""
        return {
            "num_cells": self.num_cells,
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
            f"{root}: {len(self.done)} of {self.num_cells} cells done, {len(self.running)} at "
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
    cells = list_cells(Run(folder).config)
    failures = _failures(folder)
    done, left = list[str](), list[str]()
    running, failed = dict[str, dict[str, Any]](), dict[str, str]()
    for cell in cells:
        at_work = owner(folder.lock(cell.name))
        if is_done(folder, cell):
            done.append(cell.name)
        elif at_work is not None:
            running[cell.name] = at_work
        elif cell.name in failures:
            failed[cell.name] = failures[cell.name]
        else:
            left.append(cell.name)
    times = Times(folder)
    waiting = [cell for cell in cells if cell.name in running or cell.name in left]
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


def is_done(folder: RunFolder, cell: Cell) -> bool:
    """Whether a cell has its receipt; with another configuration it may be made anew."""
    model_id, made = cell.spec.model_id, receipt_of(folder, cell.result(folder)) is not None
    if cell.attack_id is not None:
        shard = folder.shard(model_id, cell.attack_id, cell.shard)
        return made or receipt_of(folder, shard) is not None
    predicted = receipt_of(folder, folder.predictions(model_id)) is not None
    return made and (predicted or isinstance(cell.spec, TableGroup))


def _failures(folder: RunFolder) -> dict[str, str]:
    """Name of a cell to why it failed; a line that makes no sense is passed over."""
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
    """What cells of a run took, and what others will."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Name of a cell to seconds."""
        try:
            texts = read_timings(self.folder)
        except (FileNotFoundError, ValueError):
            return {}
        return dict(zip(texts, pd.to_numeric([*texts.values()], errors="coerce"), strict=True))

    def expected(self, waiting: list[Cell]) -> float | None:
        """Seconds that cells will take together: as long as like ones took, on average.

        Like is the same step on a network of the same kernel size, else the same step.
        """
        if not waiting:
            return 0.0
        groups: dict[tuple[object, ...], list[float]] = {}
        for cell in list_cells(Run(self.folder).config):
            seconds = self.seconds.get(cell.name)
            if seconds is not None and seconds >= 0:
                for group in _groups(cell):
                    groups.setdefault(group, []).append(seconds)
        total = 0.0
        for cell in waiting:
            known = next((groups[group] for group in _groups(cell) if group in groups), None)
            if known is None:
                return None
            total += sum(known) / len(known)
        return total


def _groups(cell: Cell) -> list[tuple[object, ...]]:
    """From the likest cells to all that do the same."""
    step = cell.attack_id, cell.num_shards
    return [(step, cell.spec.family, cell.spec.kernel_size), (step, cell.spec.family), (step,)]
