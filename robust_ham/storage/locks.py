"""Locks on files, for processes that share a folder.

The kernel frees a lock when its owner dies. On a file system without locks, the owner touches a
file every few seconds instead; a file that has not been touched for a minute counts as free.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from robust_ham.errors import RequestError, ending_with, naming
from robust_ham.regular_files import open_descriptor, open_regular, read_text
from robust_ham.storage.working_folder import make_folder

HEARTBEAT_SECONDS, SILENT_SECONDS = 5.0, 60.0
_TRIES = 100
_MAX_BYTES = 10_000
"""Limit of a lock file."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_held: set[int] = set()


def _close_in_child() -> None:
    """Close inherited locks, which would outlive the parent process."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


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
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except OSError as error:
                os.close(descriptor)
                if error.errno in _NO_LOCKS:
                    return _try_heartbeat(path)
                raise
            if _is_file(descriptor, path):
                break
            os.close(descriptor)  # its last owner has just removed it
    _held.add(descriptor)

    def release() -> None:
        with naming(path):
            try:
                if _is_file(descriptor, path):  # else its folder was moved
                    path.unlink(missing_ok=True)  # before it is released: nobody else can hold it
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
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _parsed(text)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
    except FileNotFoundError:
        return None
    place = _heartbeat_file(path)
    try:
        silent = _silence(place)
        return _parsed(_text(place)) if silent < SILENT_SECONDS else None
    except FileNotFoundError:
        return None


def remove_dead(folder: Path, names: re.Pattern[str]) -> None:
    """Remove the lock files of a folder that nobody holds.

    A lock file either records its owner or, if its process was killed before that, has a name that
    ``names`` matches. Other files stay.
    """
    for path in list(folder.glob("*.lock")):
        heartbeat = _heartbeat_file(path)
        is_lock = names.fullmatch(path.name) or _names_owner(path) or _names_owner(heartbeat)
        if is_lock and owner(path) is None:
            heartbeat.unlink(missing_ok=True)
            path.unlink(missing_ok=True)


def _names_owner(path: Path) -> bool:
    try:
        about = _parsed(_text(path))
    except (OSError, ValueError, RequestError):
        return False
    return set(about) == set(json.loads(_this_owner()))


def _text(path: Path) -> str:
    return read_text(path, _MAX_BYTES, errors="replace")


def _parsed(text: str) -> dict[str, Any]:
    try:
        about = json.loads(text)
    except ValueError:  # its owner has not written it yet
        about = None
    return about if isinstance(about, dict) else {}


# --- file systems without locks --------------------------------------------------------------


def _heartbeat_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.held")


def _silence(path: Path) -> float:
    """Return the seconds since a file was touched, by the clock of the file system."""
    touched = path.stat().st_mtime  # first: if it is missing, no probe is written
    probe = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    probe.touch()
    try:
        return probe.stat().st_mtime - touched
    finally:
        probe.unlink()


def _try_heartbeat(path: Path) -> Lock | None:
    place = _heartbeat_file(path)
    my_text = _this_owner()
    try:
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        _remove_if_silent(place)
        return None  # the next attempt may succeed
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(my_text)
    except OSError:  # no space left
        place.unlink(missing_ok=True)
        raise
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            try:
                if _text(place) != my_text:
                    return  # taken over by a process that took this one for dead
                os.utime(place)
            except OSError:
                return

    thread = threading.Thread(target=beat, daemon=True, name=f"heartbeat of {path.name}")
    thread.start()

    def release() -> None:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):
            if _text(place) == my_text:
                place.unlink()
        path.unlink(missing_ok=True)

    return Lock(release)


def _remove_if_silent(place: Path) -> None:
    """Remove the file of a dead owner; of several processes that try, one succeeds."""
    grave = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
    with contextlib.suppress(FileNotFoundError):
        before = _text(place)
        if _silence(place) < SILENT_SECONDS:
            return
        place.rename(grave)
        if _text(grave) != before:  # another process was faster, and a third holds it already
            with contextlib.suppress(FileExistsError):
                os.link(grave, place)
        grave.unlink()
