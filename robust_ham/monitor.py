"""Who is told what happens in a run: the command line shows it."""

from __future__ import annotations

from typing import Protocol

from robust_ham.progress import Progress, unseen


class Monitor(Protocol):
    """Is told what happens."""

    def started(self, num_cells: int) -> None:
        """Before the first cell."""

    def cell_started(self, name: str) -> Progress:
        """Returns what is called with (steps done, steps in all) of this cell."""
        ...

    def cell_ended(self, name: str, outcome: str, seconds: float) -> None:
        """``outcome``: done, already there, or failed: reason."""

    def note(self, line: str) -> None:
        """Something that a user wants to know."""


class Silent:
    """A monitor that shows nothing."""

    def started(self, num_cells: int) -> None:
        """Show nothing."""

    def cell_started(self, name: str) -> Progress:
        """Show nothing."""
        return unseen

    def cell_ended(self, name: str, outcome: str, seconds: float) -> None:
        """Show nothing."""

    def note(self, line: str) -> None:
        """Show nothing."""
