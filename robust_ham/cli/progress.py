"""Who is told what happens in a run: nobody, a file that is read later, or a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from robust_ham.errors import printable
from robust_ham.progress import Progress, unseen

if TYPE_CHECKING:
    from rich.progress import TaskID


class Lines:
    """A plain line per finished job; ``say`` prints it."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def started(self, num_jobs: int) -> None:
        """How many jobs there are."""
        self.num_jobs, self.num_done = num_jobs, 0

    def job_started(self, name: str) -> Progress:
        """A job is at work."""
        return unseen

    def job_ended(self, name: str, outcome: str, seconds: float) -> None:
        """A job has ended."""
        self.num_done += 1
        self.say(f"[{self.num_done}/{self.num_jobs}] {name}: {outcome} ({seconds:.1f} s)")

    def note(self, line: str) -> None:
        """Something that a user wants to know."""
        self.say(line)


class Bars:
    """One bar for the run, one for each job at work."""

    def __init__(self) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.run = self.progress.add_task("jobs")
        self.jobs: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def started(self, num_jobs: int) -> None:
        """How many jobs there are."""
        self.progress.update(self.run, total=num_jobs)

    def job_started(self, name: str) -> Progress:
        """A job is at work."""
        bar = self.jobs[name] = self.progress.add_task(printable(name), total=None)
        last = 0.0

        def step(done: int, total: int) -> None:
            nonlocal last
            if name in self.jobs and (done == total or time.monotonic() - last > 0.1):
                last = time.monotonic()
                self.progress.update(bar, completed=done, total=total)

        return step

    def job_ended(self, name: str, outcome: str, seconds: float) -> None:
        """A job has ended."""
        self.progress.advance(self.run)
        if name in self.jobs:
            self.progress.remove_task(self.jobs.pop(name))
        if outcome.startswith("failed"):
            self.note(f"{name}: {outcome}")

    def note(self, line: str) -> None:
        """Something that a user wants to know."""
        self.progress.console.print(printable(line), markup=False, highlight=False, emoji=False)
