"""Open untrusted files: regular files only, up to a size limit.

May import ``errors`` only. Every reader of the suite opens files here, so that a pipe, a device or
an endless file cannot hang it or fill the memory.
"""

from __future__ import annotations

import errno
import os
import stat
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from robust_ham.errors import RequestError, naming


def open_regular(path: Path, limit: int | None = None, *, follow_links: bool = False) -> BinaryIO:
    """Open a regular file for reading; never wait for the writer of a pipe.

    Args:
        path: path of the file.
        limit: largest size in bytes; None: no limit.
        follow_links: whether the last part of the path may be a symbolic link, as in data sets
            and caches. Files of a run folder are never links.

    Raises:
        RequestError: it is a link, folder, pipe, socket or device, or larger than ``limit``.
        OSError: it is missing or unreadable.
    """
    descriptor = open_descriptor(path, os.O_RDONLY, follow_links=follow_links)
    try:
        size = os.fstat(descriptor).st_size
        if limit is not None and size > limit:
            raise RequestError(f"{path}: expected at most {limit:,} bytes, got {size:,}")
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def open_descriptor(path: Path, flags: int, *, follow_links: bool = False) -> int:
    """Open a regular file with the ``flags`` of ``os.open``, and return its descriptor.

    Raises:
        RequestError: it is a link, folder, pipe, socket or device.
        OSError: it is missing or cannot be opened.
    """
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if not follow_links:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags, 0o666)
    except IsADirectoryError:
        raise RequestError(f"{path}: expected a file, got a folder") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            got = "a loop of symbolic links" if follow_links else "a symbolic link"
            raise RequestError(f"{path}: expected a file, got {got}") from None
        if error.errno in (errno.ENXIO, errno.ENODEV):  # a socket, or a pipe without a reader
            raise RequestError(f"{path}: expected a file, got a pipe, socket or device") from None
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise RequestError(f"{path}: expected a file, got a {kind_of(mode)}")
    return descriptor


def kind_of(mode: int) -> str:
    """Name the type of a file that is not regular."""
    kinds = {
        stat.S_IFDIR: "folder",
        stat.S_IFLNK: "symbolic link",
        stat.S_IFIFO: "pipe (FIFO)",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")


def read_bytes(path: Path, limit: int, *, follow_links: bool = False) -> bytes:
    """Read a regular file of at most ``limit`` bytes.

    Raises:
        RequestError: it is not a regular file, or is or becomes larger than ``limit``.
        OSError: it is missing or unreadable.
    """
    with naming(path), open_regular(path, limit, follow_links=follow_links) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise RequestError(f"{path}: expected at most {limit:,} bytes, got more")
    return content


def read_text(path: Path, limit: int, *, follow_links: bool = False, errors: str = "strict") -> str:
    """Read a UTF-8 text file with line feeds as line ends; see ``read_bytes``.

    Raises:
        UnicodeDecodeError: it is not UTF-8 and ``errors`` is ``"strict"``.
    """
    text = read_bytes(path, limit, follow_links=follow_links).decode("utf-8", errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def open_to_append(path: Path) -> FileIO:
    """Open a file for unbuffered appending; create it if it is missing.

    Raises:
        RequestError: it is a link, folder, pipe, socket or device.
        OSError: it is not writable.
    """
    descriptor = open_descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    return os.fdopen(descriptor, "ab", buffering=0)


def is_regular(path: Path, *, follow_links: bool = False) -> bool:
    """Whether ``path`` is a regular file; False if it cannot be examined."""
    try:
        status = path.stat() if follow_links else path.lstat()
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(status.st_mode)
