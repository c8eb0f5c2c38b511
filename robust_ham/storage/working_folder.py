"""Working folders: each must stay the same folder until the work in it ends.

If a working folder is renamed, removed or replaced, nothing is written at its path any more and the
path is not created again. Elsewhere, missing folders are created as usual.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

_identities: dict[Path, tuple[int, int]] = {}
"""Device and inode of each working folder of this process."""


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Make an existing folder a working folder inside the block."""
    if folder in _identities:  # nested
        check_unmoved(folder)
        yield
        return
    _identities[folder] = _identity(folder)
    try:
        yield
    finally:
        del _identities[folder]


def check_unmoved(path: Path) -> None:
    """Check that the working folder that holds ``path``, if any, is still the same.

    Raises:
        OSError: it was renamed, removed or replaced.
    """
    folder = _working_folder_of(path)
    if folder is not None:
        try:
            unmoved = _identity(folder) == _identities[folder]
        except (FileNotFoundError, NotADirectoryError):
            unmoved = False
        if not unmoved:
            raise OSError(errno.ESTALE, "renamed, removed or replaced during the run", str(folder))


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, but never a working folder or its parents.

    Raises:
        OSError: the working folder was moved, or a folder cannot be created.
    """
    root = _working_folder_of(folder)
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


def _working_folder_of(path: Path) -> Path | None:
    """Return the working folder at or above ``path``."""
    if not _identities:
        return None
    return next((place for place in (path, *path.parents) if place in _identities), None)


def _identity(folder: Path) -> tuple[int, int]:
    about = os.stat(folder)
    return about.st_dev, about.st_ino
