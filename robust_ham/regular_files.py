"""Open files that other people or programs may have written: regular files only, within a limit.

A leaf. Every reader of the suite opens files here, so that a pipe, a device or an endless file in
a folder cannot hang it or fill the memory.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from robust_ham.errors import RequestError


def open_regular(path: Path, limit: int | None = None, *, follow_links: bool = False) -> BinaryIO:
    """Open a regular file for reading, without waiting for a pipe's writer.

    Args:
        path: of the file.
        limit: of its size, in bytes; None: any.
        follow_links: whether the last part of the path may be a symbolic link, as in data sets
            and caches; files of a run folder are never links.

    Raises:
        RequestError: a link, a folder, a pipe, a socket or a device; or larger than ``limit``.
        OSError: missing, or not readable.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if not follow_links:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RequestError(f"{path}: expected a file, got a symbolic link") from None
        if error.errno == errno.ENXIO:  # a socket
            raise RequestError(f"{path}: expected a file, got a socket or device") from None
        raise
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise RequestError(f"{path}: expected a file, got a {_kind(about.st_mode)}")
        if limit is not None and about.st_size > limit:
            raise RequestError(f"{path}: expected at most {limit:,} bytes, got {about.st_size:,}")
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "folder",
        stat.S_IFIFO: "pipe (FIFO)",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")


def read_bytes(path: Path, limit: int, *, follow_links: bool = False) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        RequestError: not a regular file, or larger, also one that grows while it is read.
        OSError: missing, or not readable.
    """
    with open_regular(path, limit, follow_links=follow_links) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise RequestError(f"{path}: expected at most {limit:,} bytes, got more")
    return content


def is_regular(path: Path, *, follow_links: bool = False) -> bool:
    """Whether a regular file is there; what cannot be looked at is none."""
    try:
        about = path.stat() if follow_links else path.lstat()
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(about.st_mode)


def memory_share(share: float) -> int:
    """That share of the memory of this machine, in bytes: the limit for what one file unpacks to.

    The smaller of the physical memory and the limit of the control group, where there is one.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(place).read_text(encoding="ascii")))
        except (OSError, ValueError):  # none, or "max"
            continue
    return int(share * total)
