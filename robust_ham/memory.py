"""The memory of this machine, and shares of it beyond which requests are refused.

A leaf. What a file unpacks to is limited here; what a run needs, in ``evaluation.memory``.
"""

from __future__ import annotations

import os
from pathlib import Path

from robust_ham.errors import RequestError

_SHARES = {2: "half", 3: "a third", 4: "a quarter", 8: "an eighth"}


def total_memory() -> int:
    """The memory of this machine, in bytes, or the limit of the control group, if it is smaller."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(place).read_text(encoding="ascii")))
        except (OSError, ValueError):  # none, or "max"
            continue
    return total


def memory_share(share: float) -> int:
    """That share of the memory of this machine, in bytes."""
    return int(share * total_memory())


def check_memory(what: str, num_bytes: int, *, part: int = 4, so_far: bool = False) -> None:
    """Refuse what would unpack to more than one ``part``-th of this machine's memory.

    Args:
        what: file or folder, for the message.
        num_bytes: that it takes when unpacked.
        part: 2, 3, 4 or 8.
        so_far: whether ``num_bytes`` is what has been unpacked up to now, and not yet all.

    Raises:
        RequestError: it would; the message says the limit.
    """
    limit = memory_share(1 / part)
    if num_bytes > limit:
        got = "more" if so_far else in_bytes(num_bytes)
        raise RequestError(
            f"{what}: expected at most {in_bytes(limit)} when unpacked ({_SHARES[part]} of this "
            f"machine's memory), got {got}"
        )


def in_bytes(count: int) -> str:
    """A number of bytes for people: ``12.5 GB``."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:,} bytes"


_SHARE = 0.8


def check_need(num_bytes: int, what: str) -> None:
    """Refuse what needs more than 80 % of this machine's memory.

    Raises:
        RequestError: it does; ``what`` names the key and what is to be held.
    """
    limit = memory_share(_SHARE)
    if num_bytes > limit:
        raise RequestError(
            f"{what} needs at least {in_bytes(num_bytes)} of memory, expected at most "
            f"{in_bytes(limit)}, {_SHARE:.0%} of this machine's"
        )


def size_of_images(image_shape: tuple[int, int, int]) -> str:
    """Height×width×channels of images (C, H, W)."""
    channels, height, width = image_shape
    return f"{height}×{width}×{channels}"
