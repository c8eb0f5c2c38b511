"""How work that takes long says how far it is, and how long it takes."""

from collections.abc import Callable
from typing import Protocol

Progress = Callable[[int, int], None]
"""Is called with how much is done and how much there is."""


def unseen(done: int, total: int) -> None:
    """Progress that nobody is told of."""


def in_words(seconds: float) -> str:
    """A duration as people say it: 40 s, 12 min, 3 h 5 min."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


class Monitor(Protocol):
    """Is told what happens."""

    def started(self, num_jobs: int) -> None:
        """Before the first job."""

    def job_started(self, name: str) -> Progress:
        """Returns what is called with (steps done, steps in all) of this job."""
        ...

    def job_ended(self, name: str, outcome: str, seconds: float) -> None:
        """``outcome``: done, already there, or failed: reason."""

    def note(self, line: str) -> None:
        """Something that a user wants to know."""


class Silent:
    """A monitor that shows nothing."""

    def started(self, num_jobs: int) -> None:
        """Show nothing."""

    def job_started(self, name: str) -> Progress:
        """Show nothing."""
        return unseen

    def job_ended(self, name: str, outcome: str, seconds: float) -> None:
        """Show nothing."""

    def note(self, line: str) -> None:
        """Show nothing."""
