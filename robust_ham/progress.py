"""How work that takes long says how far it is."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Is called with how much is done and how much there is."""


def unseen(done: int, total: int) -> None:
    """Progress that nobody is told of."""
