"""Temporary files and folders: their names, their locks, and their removal after a kill."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from robust_ham.errors import naming
from robust_ham.storage.locks import locked, owner

_LOCK = ".tmp.lock"
_NAME = re.compile(
    r"(?P<stem>\.(?P<target>.+)\.[0-9a-f]{8})\.tmp(?P<ending>(\.[^.]+)?|\.lock\.held)"
)


@contextlib.contextmanager
def temporary_path(path: Path, suffix: str = "") -> Iterator[tuple[Path, int]]:
    """Yield a temporary path beside ``path``, locked inside the block, and the mode of new files.

    The mode is that of the lock: what the umask, or the folder's access control list, leaves of
    ``rw-rw-rw-``.

    Raises:
        OSError: the system's error, with the name of ``path``.
    """
    stem = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    lock = path.with_name(f"{stem.name}{_LOCK}")
    with naming(path, stem), locked(lock):
        yield path.with_name(f"{stem.name}.tmp{suffix}"), stat.S_IMODE(lock.stat().st_mode)


def temporary_target(name: str) -> str | None:
    """Return the final name for that of a temporary file or its lock; None: it is neither."""
    parts = _NAME.fullmatch(name)
    if parts is None:
        return None
    target = parts["target"]
    if parts["ending"] not in ("", ".lock", ".lock.held", Path(target).suffix):
        return None
    return temporary_target(target) or target  # the lock of a temporary file


def remove_leftovers(root: Path, folders: Collection[str], files: Collection[str]) -> None:
    """Remove temporary files of killed processes; those of live processes stay.

    Looks at everything below ``folders`` of ``root``, and beside them at the temporary names of
    ``files``. Does not follow links.
    """
    for name in os.listdir(root):
        if temporary_target(name) in files:
            _remove_leftover(root / name)
    for place in folders:
        if (root / place).is_symlink():
            continue
        for folder, subfolders, names in os.walk(root / place):  # skips what disappears meanwhile
            for name in (*subfolders, *names):
                if temporary_target(name) is not None:
                    _remove_leftover(Path(folder, name))
            subfolders[:] = (name for name in subfolders if not name.startswith("."))


def _remove_leftover(path: Path) -> None:
    parts = _NAME.fullmatch(path.name)
    assert parts is not None
    if path.is_symlink() or owner(path.with_name(f"{parts['stem']}{_LOCK}")) is not None:
        return
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_empty_parents(path: Path, root: Path) -> None:
    """Remove the empty folders between ``path`` and ``root``."""
    with contextlib.suppress(OSError):  # not empty, or removed by another process
        for folder in path.parents:
            if folder == root:
                return
            folder.rmdir()
