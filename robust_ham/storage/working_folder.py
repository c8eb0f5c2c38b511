"""Folders that a process works in: each must stay the same folder until the work ends.

Below such a folder nothing is written once it has been renamed, removed or replaced, and its path
is never made again. Elsewhere missing folders are made as usual.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

_identities: dict[Path, tuple[int, int]] = {}
"""Device and inode of each folder that this process works in."""


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Work in a folder that is there; inside the block, it must stay the same one."""
    if folder in _identities:  # a step of work that has begun
        check_unmoved(folder)
        yield
        return
    _identities[folder] = _identity(folder)
    try:
        yield
    finally:
        del _identities[folder]


def check_unmoved(path: Path) -> None:
    """Refuse to go on where the folder that ``path`` is in, or below, is not the same any more.

    Raises:
        OSError: it was renamed, removed or replaced.
    """
    folder = _worked_in(path)
    if folder is not None:
        try:
            unmoved = _identity(folder) == _identities[folder]
        except (FileNotFoundError, NotADirectoryError):
            unmoved = False
        if not unmoved:
            raise OSError(
                errno.ESTALE, "renamed, removed or replaced during the work in it", str(folder)
            )


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing; of the one worked in, none above.

    Raises:
        OSError: as ``check_unmoved``; or a folder cannot be made.
    """
    root = _worked_in(folder)
    if root is None:
        folder.mkdir(parents=True, exist_ok=True)
        return
    check_unmoved(root)
    if folder == root:
        return
    try:
        folder.mkdir(exist_ok=True)
    except FileNotFoundError:
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(
            errno.ENOTDIR, "expected a folder, got a file", str(folder)
        ) from None


def _worked_in(path: Path) -> Path | None:
    """The folder that is worked in and that ``path`` is, or lies below."""
    if not _identities:
        return None
    return next((place for place in (path, *path.parents) if place in _identities), None)


def _identity(folder: Path) -> tuple[int, int]:
    about = os.stat(folder)
    return about.st_dev, about.st_ino
