"""Whether a folder that a user names may be written into: an empty one, or one that we have made.

A folder of ours holds our ``manifest.json``, which is written before anything else, so that a
process that is killed at any moment leaves a folder that the same command takes up again.
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
    being_written,
    parse_json,
    read_json,
    write_json,
    write_text,
)
from robust_ham.storage.locks import owner
from robust_ham.storage.run_folder import FILES, FOLDERS, RunFolder

_NO_CONTENT = (".ds_store", ".gitkeep", "thumbs.db", "desktop.ini")
"""Files that an empty folder may hold."""
_SHARED_FILES = ("run.log", "timings.csv", "failures.jsonl")
"""Files of a run that every process writes into."""


def refuse_strangers(folder: Path, verb: str = "run", earlier: Collection[str] = ()) -> None:
    """Refuse a folder with files that ``verb`` has not written. Nothing is changed.

    A run whose ``manifest.json`` is damaged or missing is known by the receipts of its results.

    Args:
        folder: that is to be written into.
        verb: that will write.
        earlier: names of all files that it wrote before folders had a manifest.

    Raises:
        RequestError: it is no folder, or not empty, and has no ``manifest.json`` of ours.
        OSError: it cannot be read.
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
        n for n in names if n.lower() not in _NO_CONTENT and being_written(n) != manifest.name
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
            f"{folder}: expected an empty folder or one that `robust-ham {verb}` has made, got "
            f"{strange[0]} without our {manifest.name}"
        )
    if written_by != verb:
        raise RequestError(
            f"{folder}: made by `robust-ham {written_by}`; `robust-ham {verb}` needs another folder"
        )


def _has_receipts(folder: Path) -> bool:
    """Whether a result of a run is there with its receipt."""
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
    """The verb that has made a folder, from its manifest; None: another program has, or nobody.

    Raises:
        RequestError: another version of robust-ham has.
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
    """Make a folder ours: it is made where it is missing, and gets a first ``manifest.json``.

    Raises:
        RequestError: it holds files of others, or links.
        OSError: it cannot be written, or not be shared with other users who have files in it.
    """
    refuse_strangers(folder, verb, earlier)
    run = RunFolder(folder)
    if folder.is_dir():
        run.refuse_links()
        _refuse_unshared(run)
    folder.mkdir(parents=True, exist_ok=True)
    if not run.manifest.is_file():
        made_by = {} if verb == "run" else {"verb": verb}
        versions = {"robust-ham": robust_ham.__version__}
        write_json(run.manifest, {"name": name} | made_by | {"versions": versions})


# --- the configuration -----------------------------------------------------------------------


def is_source(run: RunFolder, config: Config, source: Path | None) -> bool:
    """Whether ``source``, the file that ``config`` is from, is the run's own ``config.yaml``.

    Raises:
        RequestError: it is, and says something else, so that it would have to be written over.
    """
    try:
        is_own = source is not None and source.samefile(run.config)
    except FileNotFoundError:
        return False
    if is_own and parse_config(config_text(run.config), origin=str(run.config)) != config:
        raise RequestError(
            f"{run.config}: would be written over, for it is the run's own record and the options "
            "change it; copy it to another folder and run the copy"
        )
    return is_own


def write_config(run: RunFolder, config: Config) -> Path | None:
    """Write the complete, resolved configuration; where what was there has been set aside.

    A file that is not just as we write it, such as one with comments, has been edited, or damaged.
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
    """Refuse a folder in which this user cannot work, or would get in the way of another.

    Raises:
        PermissionError: a file cannot be read, or a folder not be written.
    """
    for path, needed in _needed_access(run):
        if not os.access(path, needed) and path.exists():
            if needed & os.W_OK and os.statvfs(path).f_flag & os.ST_RDONLY:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            what = "write" if needed & os.W_OK else "read"
            raise _refusal(path, f"this user may not {what} it, so the run cannot be shared")
    refuse_unusable(run)


def _needed_access(run: RunFolder) -> Iterator[tuple[Path, int]]:
    """Each file and folder of a run, and what a process that takes part must be able to do."""
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
    """Refuse to make files that another user who works in the folder now could not write.

    Raises:
        PermissionError: the umask, or the lack of a common group, is in the way.
    """
    mask = os.umask(0o022)  # there is no other way to ask for it
    os.umask(mask)
    about = run.root.stat()
    group = about.st_gid if about.st_mode & stat.S_ISGID else os.getegid()
    if _has_access_list(run.root):  # it decides, not the umask
        return
    for path in run.locks.glob("*.lock"):
        try:
            other = path.stat()
        except FileNotFoundError:  # its owner has just ended
            continue
        everybody = mask & 0o006 == 0
        common_group = mask & 0o060 == 0 and other.st_gid == group
        if other.st_uid in (0, os.geteuid()) or everybody or common_group or owner(path) is None:
            continue
        raise _refusal(
            run.root,
            "another user works in it, who could not write files of this one: that takes a common "
            f"group and umask 0002, got umask {mask:04o}",
        )


def _has_access_list(folder: Path) -> bool:
    with contextlib.suppress(OSError, AttributeError):  # not on this file system, or not on macOS
        return "system.posix_acl_default" in os.listxattr(folder)
    return False


def _refusal(path: Path, reason: str) -> PermissionError:
    return PermissionError(errno.EACCES, reason, str(path))
