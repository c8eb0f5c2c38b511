"""Progress of a run on the command line: lines, or bars on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from robust_ham.errors import printable
from robust_ham.progress import Progress, no_progress

if TYPE_CHECKING:
    from rich.progress import TaskID


class Lines:
    """Print one line per finished job, through ``say``."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def started(self, num_jobs: int) -> None:
        """Set the number of jobs."""
        self.num_jobs, self.num_done = num_jobs, 0

    def job_started(self, name: str) -> Progress:
        """Ignore the start of a job."""
        return no_progress

    def job_ended(self, name: str, outcome: str, seconds: float) -> None:
        """Print the outcome of a job."""
        self.num_done += 1
        self.say(f"[{self.num_done}/{self.num_jobs}] {name}: {outcome} ({seconds:.1f} s)")

    def note(self, line: str) -> None:
        """Print a line."""
        self.say(line)


class Bars:
    """Show one bar for the run and one for each running job."""

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
        """Set the number of jobs."""
        self.progress.update(self.run, total=num_jobs)

    def job_started(self, name: str) -> Progress:
        """Add a bar for a job."""
        bar = self.jobs[name] = self.progress.add_task(printable(name), total=None)
        last = 0.0

        def step(done: int, total: int) -> None:
            nonlocal last
            if name in self.jobs and (done == total or time.monotonic() - last > 0.1):
                last = time.monotonic()
                self.progress.update(bar, completed=done, total=total)

        return step

    def job_ended(self, name: str, outcome: str, seconds: float) -> None:
        """Remove the bar of a job; print its failure."""
        self.progress.advance(self.run)
        if name in self.jobs:
            self.progress.remove_task(self.jobs.pop(name))
        if outcome.startswith("failed"):
            self.note(f"{name}: {outcome}")

    def note(self, line: str) -> None:
        """Print a line."""
        self.progress.console.print(printable(line), markup=False, highlight=False, emoji=False)
