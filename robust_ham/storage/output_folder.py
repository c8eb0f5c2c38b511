"""Check that a folder may be written: an empty one, or one that robust-ham made.

Our folders hold our ``manifest.json``. It is written first, so that a process that is killed at any
moment leaves a folder that the same command can resume.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import robust_ham
from robust_ham.config.experiment import SCHEMA, Config
from robust_ham.config.fields import shown
from robust_ham.config.files import config_text, parse_config
from robust_ham.errors import RequestError
from robust_ham.regular_files import read_bytes
from robust_ham.storage.files import (
    MAX_TEXT_BYTES,
    parse_json,
    read_json,
    write_json,
    write_text,
)
from robust_ham.storage.locks import owner
from robust_ham.storage.run_folder import FILES, FOLDERS, LOGS, RunFolder
from robust_ham.storage.temporary_files import remove_leftovers, temporary_target

_NO_CONTENT = (".ds_store", ".gitkeep", "thumbs.db", "desktop.ini")
"""Files that count as no content."""
_SHARED_FILES = (*LOGS, "failures.jsonl")
"""Files to which every process of a run writes."""


def refuse_strangers(folder: Path, verb: str = "run", earlier: Collection[str] = ()) -> None:
    """Refuse a folder with files that ``verb`` did not write. Changes nothing.

    A run without a valid ``manifest.json`` is recognised by the receipts of its results.

    Args:
        folder: folder to write.
        verb: verb that will write.
        earlier: names of all files that the verb wrote before folders had a manifest.

    Raises:
        RequestError: not a folder, or not empty and without our ``manifest.json``.
        OSError: the folder cannot be read.
    """
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        culprit = next(path for path in (folder, *folder.parents) if path.exists())
        raise RequestError(f"{culprit}: expected a folder, got a file") from None
    manifest = RunFolder(folder).manifest
    strange = [
        n for n in names if n.lower() not in _NO_CONTENT and temporary_target(n) != manifest.name
    ]
    for name in strange:
        if (folder / name).is_symlink():
            raise RequestError(f"{folder / name}: a symbolic link; a run folder must not hold any")
    if not strange:
        return
    written_by = _written_by(manifest)
    if written_by is None and set(strange) <= {*earlier}:
        written_by = verb
    if written_by is None and _has_receipts(folder):
        written_by = "run"
    if written_by is None:
        raise RequestError(
            f"{folder}: expected an empty folder or one made by `robust-ham {verb}`, got "
            f"{strange[0]} without robust-ham's {manifest.name}"
        )
    if written_by != verb:
        raise RequestError(
            f"{folder}: made by `robust-ham {written_by}`; `robust-ham {verb}` needs another folder"
        )


def _has_receipts(folder: Path) -> bool:
    """Whether the folder holds a receipt of a run."""
    receipts = RunFolder(folder).receipts
    for path in receipts.rglob("*.json") if not receipts.is_symlink() else ():
        try:
            receipt = read_json(path)
        except (OSError, ValueError, RequestError):
            continue
        if isinstance(receipt.get("key"), str) and isinstance(receipt.get("files"), dict):
            return True
    return False


def _written_by(manifest: Path) -> str | None:
    """Return the verb that made a folder, from its manifest; None if it has no valid manifest.

    Raises:
        RequestError: another version of robust-ham made it.
    """
    try:
        content: Any = parse_json(read_bytes(manifest, MAX_TEXT_BYTES).decode())
    except (FileNotFoundError, ValueError, RecursionError, RequestError):
        return None
    versions = content.get("versions") if isinstance(content, dict) else None
    if not isinstance(versions, dict) or "robust-ham" not in versions or "name" not in content:
        return None
    if content.get("schema") != SCHEMA:
        schema = shown(content.get("schema"))
        raise RequestError(
            f"{manifest}: expected schema {SCHEMA}, got {schema}: another version of robust-ham "
            "made this folder"
        )
    return str(content.get("verb", "run"))


def claim(folder: Path, name: str, verb: str = "run", earlier: Collection[str] = ()) -> None:
    """Create a folder if missing, write a first ``manifest.json``, remove temporary files.

    Raises:
        RequestError: the folder holds files that are not ours, or links.
        OSError: it cannot be written, or cannot be shared with the other users of its files.
    """
    refuse_strangers(folder, verb, earlier)
    run = RunFolder(folder)
    if folder.is_dir():
        run.refuse_links()
        _refuse_unshared(run)
        if verb != "run":  # a run tidies its folder while no other process takes part
            remove_leftovers(folder, (), earlier)
    folder.mkdir(parents=True, exist_ok=True)
    if not run.manifest.is_file():
        made_by = {} if verb == "run" else {"verb": verb}
        versions = {"robust-ham": robust_ham.__version__}
        write_json(run.manifest, {"name": name} | made_by | {"versions": versions})


# --- the configuration -----------------------------------------------------------------------


def is_source(run: RunFolder, config: Config, source: Path | None) -> bool:
    """Whether ``source``, the file ``config`` was read from, is the run's own ``config.yaml``.

    Raises:
        RequestError: it is, but options change the configuration, so it would be overwritten.
    """
    try:
        is_own = source is not None and source.samefile(run.config)
    except FileNotFoundError:
        return False
    if is_own and parse_config(config_text(run.config), origin=str(run.config)) != config:
        raise RequestError(
            f"{run.config}: the record of this run, which the options would change; copy the file "
            "elsewhere and run the copy"
        )
    return is_own


def write_config(run: RunFolder, config: Config) -> Path | None:
    """Write the complete, resolved configuration; return where an edited file was set aside.

    A file that differs from what we write, if only by comments, was edited or damaged.
    """
    text, aside = config.to_yaml(), None
    try:
        present = config_text(run.config)
        if present == text:
            return None
        is_edited = parse_config(present).to_yaml() != present
    except FileNotFoundError:
        is_edited = False
    except RequestError:
        is_edited = True
    if is_edited:
        aside = run.set_aside(run.config)
    write_text(run.config, text)
    return aside


# --- other users -----------------------------------------------------------------------------


def _refuse_unshared(run: RunFolder) -> None:
    """Refuse a folder that this user cannot use, or would make unusable for another.

    Raises:
        PermissionError: a file cannot be read, or a folder cannot be written.
    """
    for path, needed in _needed_access(run):
        if not os.access(path, needed) and path.exists():
            if needed & os.W_OK and _is_read_only(path):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            what = "write" if needed & os.W_OK else "read"
            raise _refusal(path, f"this user may not {what} it, so the run cannot be shared")
    refuse_unusable(run)


def _needed_access(run: RunFolder) -> Iterator[tuple[Path, int]]:
    """Yield each file and folder of a run and the access that a process needs to it."""
    everything, read_and_write = os.R_OK | os.W_OK | os.X_OK, os.R_OK | os.W_OK
    yield run.root, everything
    for name in FILES:
        yield run.root / name, read_and_write if name in _SHARED_FILES else os.R_OK
    for place in FOLDERS:
        for folder, _, names in os.walk(run.root / place):
            yield Path(folder), everything
            needed = read_and_write if place == run.locks.name else os.R_OK
            yield from ((Path(folder, name), needed) for name in names)


def refuse_unusable(run: RunFolder) -> None:
    """Refuse to share a running run if another user could not write this user's files.

    Raises:
        PermissionError: because of the umask, or without a common group.
    """
    if not hasattr(os, "geteuid"):  # Windows has access lists instead
        return
    mask = os.umask(0o022)  # the only way to read it
    os.umask(mask)
    about = run.root.stat()
    group = about.st_gid if about.st_mode & stat.S_ISGID else os.getegid()
    if _has_access_list(run.root):  # it overrides the umask
        return
    for path in run.locks.glob("*.lock"):
        try:
            other = path.stat()
        except FileNotFoundError:  # just released
            continue
        everybody = mask & 0o006 == 0
        common_group = mask & 0o060 == 0 and other.st_gid == group
        if other.st_uid in (0, os.geteuid()) or everybody or common_group or owner(path) is None:
            continue
        raise _refusal(
            run.root,
            "another user is running it and could not write this user's files: expected a common "
            f"group and umask 0002, got umask {mask:04o}",
        )


def _is_read_only(path: Path) -> bool:
    """Whether the file system is mounted read-only."""
    return hasattr(os, "statvfs") and bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _has_access_list(folder: Path) -> bool:
    with contextlib.suppress(OSError, AttributeError):  # not supported here
        return "system.posix_acl_default" in os.listxattr(folder)
    return False


def _refusal(path: Path, reason: str) -> PermissionError:
    return PermissionError(errno.EACCES, reason, str(path))
