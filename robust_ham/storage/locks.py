"""Locks on files: who works on what where several processes share a folder.

The kernel frees a lock when its owner dies. Where a file system knows no locks, an owner touches
its file every few seconds instead, and a file that has not been touched for a minute may be taken.
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
"""Of what a lock says of its owner."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_held: set[int] = set()


def _close_in_child() -> None:
    """A forked child would keep its parent's locks alive after the parent's death."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


class Lock:
    """A lock that this process holds until it lets it go or dies."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release

    def release(self) -> None:
        """Let it go; the file disappears."""
        self._release()


def try_lock(path: Path) -> Lock | None:
    """Lock a file, which is made where it is missing; None: somebody else holds it.

    The file says who holds it: host, process, and since when.
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
            os.close(descriptor)  # its last owner has removed it in between
    _held.add(descriptor)

    def release() -> None:
        with naming(path):
            try:
                if _is_file(descriptor, path):  # else its folder is not the same any more
                    path.unlink(missing_ok=True)  # before it is free: nobody can hold it then
            finally:  # also on a disk that may no longer be written
                _held.discard(descriptor)
                os.close(descriptor)

    try:
        with naming(path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, _about().encode())
    except OSError:  # no space left
        release()
        raise
    return Lock(release)


def _open(path: Path) -> int:
    """A descriptor of a file; its folder is made, and again where others just remove it."""
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
        there = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return os.path.samestat(os.fstat(descriptor), there)


def _about() -> str:
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()})


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock; ``waiting`` is called again and again while somebody else does."""
    while (lock := try_lock(path)) is None:
        waiting()
        time.sleep(0.05)
    with ending_with(lock.release):
        yield


def owner(path: Path) -> dict[str, Any] | None:
    """Who holds a lock: ``host pid since``; None: nobody. The lock is left as it is."""
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
    """Remove the locks of a folder that nobody holds: those that say who held them.

    One that was killed before it could write that leaves an empty file, which is removed where
    ``names`` matches its whole name; other people's files stay.
    """
    for path in list(folder.glob("*.lock")):
        heartbeat = _heartbeat_file(path)
        ours = names.fullmatch(path.name) or _says_owner(path) or _says_owner(heartbeat)
        if ours and owner(path) is None:
            heartbeat.unlink(missing_ok=True)
            path.unlink(missing_ok=True)


def _says_owner(path: Path) -> bool:
    try:
        about = _parsed(_text(path))
    except (OSError, ValueError, RequestError):
        return False
    return set(about) == set(json.loads(_about()))


def _text(path: Path) -> str:
    return read_text(path, _MAX_BYTES, errors="replace")


def _parsed(text: str) -> dict[str, Any]:
    try:
        about = json.loads(text)
    except ValueError:  # its owner is just about to write it
        about = None
    return about if isinstance(about, dict) else {}


# --- file systems without locks --------------------------------------------------------------


def _heartbeat_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.held")


def _silence(path: Path) -> float:
    """Seconds since a file was touched, by the clock of the file system, not of this machine."""
    touched = path.stat().st_mtime  # first: where there is no such file, nothing is written
    probe = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    probe.touch()
    try:
        return probe.stat().st_mtime - touched
    finally:
        probe.unlink()


def _try_heartbeat(path: Path) -> Lock | None:
    place = _heartbeat_file(path)
    mine = _about()
    try:
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        _remove_if_silent(place)
        return None  # free from now on, perhaps
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(mine)
    except OSError:  # no space left
        place.unlink(missing_ok=True)
        raise
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            try:
                if _text(place) != mine:
                    return  # taken over: this process was thought dead
                os.utime(place)
            except OSError:
                return

    thread = threading.Thread(target=beat, daemon=True, name=f"heartbeat of {path.name}")
    thread.start()

    def release() -> None:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):
            if _text(place) == mine:
                place.unlink()
        path.unlink(missing_ok=True)

    return Lock(release)


def _remove_if_silent(place: Path) -> None:
    """Remove the file of an owner that is dead; of several that try, one does."""
    grave = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
    with contextlib.suppress(FileNotFoundError):
        before = _text(place)
        if _silence(place) < SILENT_SECONDS:
            return
        place.rename(grave)
        if _text(grave) != before:  # another was quicker, and a third has it already
            with contextlib.suppress(FileExistsError):
                os.link(grave, place)
        grave.unlink()
