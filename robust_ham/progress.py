"""How work that takes long says how far it is, and how long it takes."""

from collections.abc import Callable

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
