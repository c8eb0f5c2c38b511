"""Refuse requests that need too large a share of this machine's memory.

May import ``errors`` only. ``evaluation.memory`` estimates what a run needs.
"""

from __future__ import annotations

import os
from pathlib import Path

from robust_ham.errors import RequestError

_MAX_SHARE = 0.8
_ASSUMED_BYTES = 8 * 10**9
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),  # version 2
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),  # version 1
)
_SHARES = {2: "half", 3: "a third", 4: "a quarter", 8: "an eighth"}


def total_memory() -> int:
    """Return the memory of this machine in bytes, or the limit of its control group if smaller.

    8 GB are assumed where Python cannot tell.
    """
    if not hasattr(os, "sysconf"):  # Windows
        return _ASSUMED_BYTES
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_LIMITS:
        try:
            total = min(total, int(path.read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return total


def memory_share(share: float) -> int:
    """Return a share of this machine's memory, in bytes."""
    return int(share * total_memory())


def check_memory(what: str, num_bytes: int, *, part: int = 4, so_far: bool = False) -> None:
    """Refuse data that unpack to more than 1 / ``part`` of this machine's memory.

    Args:
        what: file or folder, for the message.
        num_bytes: size when unpacked.
        part: 2, 3, 4 or 8.
        so_far: whether ``num_bytes`` counts only the part that is unpacked so far.

    Raises:
        RequestError: the data are too large; the message states the limit.
    """
    limit = memory_share(1 / part)
    if num_bytes > limit:
        got = "more" if so_far else format_bytes(num_bytes)
        raise RequestError(
            f"{what}: expected at most {format_bytes(limit)} when unpacked ({_SHARES[part]} of "
            f"this machine's memory), got {got}"
        )


def format_bytes(count: int) -> str:
    """Format a number of bytes: ``12.5 GB``."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:,} bytes"


def check_need(num_bytes: int, what: str) -> None:
    """Refuse a request that needs more than 80 % of this machine's memory.

    Raises:
        RequestError: it does; ``what`` names the key and the data.
    """
    limit = memory_share(_MAX_SHARE)
    if num_bytes > limit:
        raise RequestError(
            f"{what} needs at least {format_bytes(num_bytes)} of memory, expected at most "
            f"{format_bytes(limit)}, {_MAX_SHARE:.0%} of this machine's"
        )


def format_image_shape(image_shape: tuple[int, int, int]) -> str:
    """Format the size of images (C, H, W) as height×width×channels."""
    channels, height, width = image_shape
    return f"{height}×{width}×{channels}"
