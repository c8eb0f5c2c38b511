"""Locks on files, for processes that share a folder: ``filelock``, and who holds each lock.

The system frees a lock when its owner dies. On a file system without locks, the owner renews a
lease every few seconds instead; a lease that is not renewed for a minute ends. ``FileLock`` itself
is not used: it creates missing folders, but a run folder that was moved must not be created again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import SoftFileLease, Timeout, lock_descriptor

from robust_ham.errors import RequestError, ending_with, naming
from robust_ham.regular_files import open_descriptor, open_regular, read_text
from robust_ham.storage.working_folder import make_folder

RENEWAL_SECONDS, LEASE_SECONDS = 5.0, 60.0
_TRIES = 100
_MAX_BYTES = 10_000
"""Limit of a lock file."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_held: set[int] = set()
_contenders: dict[Path, SoftFileLease] = {}
"""Leases that this process waits for: each has measured how long its owner has been silent."""
_leases: set[SoftFileLease] = set()
"""Leases that this process holds; one that is forgotten would end."""


def _close_in_child() -> None:
    """Close inherited locks, which would outlive the parent process."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


class Lock:
    """A lock that this process holds until it releases it or dies."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release

    def release(self) -> None:
        """Release the lock and remove its file."""
        self._release()


def try_lock(path: Path) -> Lock | None:
    """Lock a file, creating it if missing; return None if another process holds the lock.

    The file records the owner: host, process, and since when.
    """
    with naming(path):
        while True:
            descriptor = _open(path)
            try:
                is_free = lock_descriptor(descriptor, blocking=False)
            except OSError as error:
                os.close(descriptor)
                if error.errno in _NO_LOCKS:
                    return _try_lease(path)
                raise
            if is_free and _is_file(descriptor, path):
                break
            os.close(descriptor)
            if not is_free:
                return None  # else its last owner has just removed it
    _held.add(descriptor)

    def release() -> None:
        with naming(path):
            try:
                if _is_file(descriptor, path):  # else its folder was moved
                    _unlink(path)  # before it is released: nobody else can hold it
            finally:  # even if the disk has become read-only
                _held.discard(descriptor)
                os.close(descriptor)

    try:
        with naming(path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, _this_owner().encode())
    except OSError:  # no space left
        release()
        raise
    return Lock(release)


def _open(path: Path) -> int:
    """Open a file, creating its folder; retry if another process removes the folder."""
    for i in range(_TRIES):
        try:
            make_folder(path.parent)
            return open_descriptor(path, os.O_RDWR | os.O_CREAT)
        except (FileNotFoundError, FileExistsError):
            if i == _TRIES - 1:
                raise
    raise AssertionError


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        present = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return os.path.samestat(os.fstat(descriptor), present)


def _unlink(path: Path) -> None:
    if os.name != "nt":  # Windows keeps open files; `remove_dead` removes them later
        path.unlink(missing_ok=True)


def _this_owner() -> str:
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()})


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock inside the block; call ``waiting`` repeatedly until it is free."""
    while (lock := try_lock(path)) is None:
        waiting()
        time.sleep(0.05)
    with ending_with(lock.release):
        yield


def owner(path: Path) -> dict[str, Any] | None:
    """Return the holder of a lock, ``host pid since``; None if nobody holds it."""
    try:
        with naming(path), open_regular(path) as file:
            text = file.read(_MAX_BYTES).decode(errors="replace")
            try:
                return None if _is_free(file.fileno()) else _parsed(text)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
        holder = SoftFileLease(_lease_file(path)).owner
        if holder is None or _silence(_lease_file(path)) >= LEASE_SECONDS:
            return None
    except FileNotFoundError:
        return None
    return _parsed(text) or {"host": holder.hostname, "pid": holder.pid}


def _is_free(descriptor: int) -> bool:
    """Whether nobody holds the lock of a file that is open for reading.

    A shared lock does not disturb others that ask, and needs no permission to write.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return lock_descriptor(descriptor, blocking=False)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove_dead(folder: Path, names: re.Pattern[str]) -> None:
    """Remove the lock files of a folder that nobody holds.

    A lock file either records its owner or, if its process was killed before that, has a name that
    ``names`` matches. Other files stay.
    """
    for path in list(folder.glob("*.lock")):
        is_lock = names.fullmatch(path.name) or _names_owner(path)
        if is_lock and owner(path) is None:
            _lease_file(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    for lease_file in list(folder.glob("*.lock.held")):
        if not lease_file.with_suffix("").exists() and _silence(lease_file) >= LEASE_SECONDS:
            lease_file.unlink(missing_ok=True)


def _names_owner(path: Path) -> bool:
    try:
        about = _parsed(read_text(path, _MAX_BYTES, errors="replace"))
    except (OSError, ValueError, RequestError):
        return False
    return set(about) == set(json.loads(_this_owner()))


def _parsed(text: str) -> dict[str, Any]:
    try:
        about = json.loads(text)
    except ValueError:  # its owner has not written it yet
        about = None
    return about if isinstance(about, dict) else {}


# --- file systems without locks --------------------------------------------------------------


def _lease_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.held")


def _try_lease(path: Path) -> Lock | None:
    """Take a lease; a dead owner's ends when this process has seen no renewal for a minute."""
    place = _lease_file(path)
    lease = _contenders.pop(path, None) or SoftFileLease(
        place,
        lease_duration=LEASE_SECONDS,
        heartbeat_interval=RENEWAL_SECONDS,
        thread_local=False,
    )
    try:
        lease.acquire(blocking=False)
    except Timeout:
        _contenders[path] = lease
        return None

    _leases.add(lease)
    record = _this_owner()

    def release() -> None:
        _leases.discard(lease)
        with contextlib.suppress(OSError, RequestError):
            if read_text(path, _MAX_BYTES) in (record, ""):  # else another process took over
                path.unlink()
        lease.release()

    try:
        path.write_text(record)
    except OSError:  # no space left
        release()
        raise
    return Lock(release)


def _silence(path: Path) -> float:
    """Return the seconds since a file was touched, by the clock of the file system."""
    touched = path.stat().st_mtime  # first: if it is missing, no probe is written
    probe = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    probe.touch()
    try:
        return probe.stat().st_mtime - touched
    finally:
        probe.unlink()
