"""Progress of long work, and durations as text."""

from collections.abc import Callable
from typing import Protocol

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


def no_progress(done: int, total: int) -> None:
    """Ignore the progress."""


def format_duration(seconds: float) -> str:
    """Format a duration: 40 s, 12 min, 3 h 5 min."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


class Monitor(Protocol):
    """Shows the progress of a run."""

    def started(self, num_jobs: int) -> None:
        """Announce a run before its first job."""

    def job_started(self, name: str) -> Progress:
        """Announce a job; return the callback for its progress."""
        ...

    def job_ended(self, name: str, outcome: str, seconds: float) -> None:
        """Announce the end of a job: ``done``, ``already there`` or ``failed: reason``."""

    def note(self, line: str) -> None:
        """Show a line to the user."""


class Silent:
    """A monitor that shows nothing."""

    def started(self, num_jobs: int) -> None:
        """Show nothing."""

    def job_started(self, name: str) -> Progress:
        """Show nothing."""
        return no_progress

    def job_ended(self, name: str, outcome: str, seconds: float) -> None:
        """Show nothing."""

    def note(self, line: str) -> None:
        """Show nothing."""
