"""Find the files of a split in a folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from robust_ham.data.splits import SplitName
from robust_ham.errors import RequestError

_NAMES: dict[SplitName, tuple[tuple[str, ...], ...]] = {
    "train": (("train",),),
    "test": (("test",), ("validation", "valid", "val")),
}
"""Names of a split, preferred first; names in a group are synonyms."""
_SHARD = re.compile(r"(?:-(\d+)(?:-of-(\d+))?(?:-[0-9a-f]{8,})?)?\.parquet")
"""After the name of a split: nothing, ``-0`` or ``-00000-of-00003``, perhaps with a hash."""

SplitFiles = list[Path] | Path
"""The parquet files of a split, sorted by name, or its folder of class folders."""


def find_split_files(folder: Path, split: SplitName) -> Iterator[SplitFiles]:
    """Find the files of a split, preferred first: ``test``, then ``validation`` for the test split.

    Parquet files are looked for in the folder, in ``data/``, or, if neither has a split, in the
    only sub-folder that has one; in each of these, also in a folder per split.

    Nothing is yielded if there is no such folder.

    Raises:
        RequestError: a split exists twice, in two layouts or sub-folders, or a shard is missing.
    """
    places = _parquet_folders(folder) if folder.is_dir() else []
    for names in _NAMES[split]:
        candidates: list[SplitFiles] = []
        for name in names:
            for place in places:
                candidates += [s for s in (_shards(place, name), _split_folder(place / name)) if s]
            if (folder / name).is_dir() and not _split_folder(folder / name):
                candidates.append(folder / name)
        if len(candidates) > 1:
            first, second = (_name(files, folder) for files in candidates[:2])
            raise RequestError(
                f"{folder}: {first} and {second} both contain the {split} images; keep one of them"
            )
        yield from candidates


def _parquet_folders(folder: Path) -> list[Path]:
    """List where parquet files may be; Hugging Face has data/ or a folder per configuration."""
    places = [folder, folder / "data"]
    if any(map(_holds_splits, places)):
        return places
    split_names = {name for groups in _NAMES.values() for names in groups for name in names}
    others = [
        entry
        for entry in sorted(folder.iterdir())
        if entry.name not in split_names and not entry.name.startswith(".") and _holds_splits(entry)
    ]
    if len(others) > 1:
        first, second = (entry.name for entry in others[:2])
        raise RequestError(
            f"{folder}: {first}/ and {second}/ both contain parquet files; keep one of them"
        )
    return places + others


def _holds_splits(folder: Path) -> bool:
    """Whether a folder, or a folder of a split in it, contains parquet files of any split."""
    return any(
        any(folder.glob(f"{name}.parquet"))
        or any(folder.glob(f"{name}-*.parquet"))
        or _parquet_files(folder / name)
        for groups in _NAMES.values()
        for names in groups
        for name in names
    )


def _parquet_files(folder: Path) -> list[Path]:
    """List the parquet files in the folder of a split; none if it has class folders."""
    if not folder.is_dir():
        return []
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    if any(entry.is_dir() for entry in entries):
        return []
    return [entry for entry in entries if entry.suffix == ".parquet"]


def _split_folder(folder: Path) -> list[Path]:
    """List the shards in a split's folder: ``test/0000.parquet`` or ``test/test-….parquet``."""
    files = _parquet_files(folder)
    numbered = [file for file in files if file.stem.isdecimal()]
    other = next((file for file in files if file not in numbered), None)
    if not numbered:
        return _shards(folder, folder.name) if files else []
    if other is not None:
        raise RequestError(
            f"{folder}: {numbered[0].name} and {other.name} are named differently; keep one kind"
        )
    _check_complete(folder, "", [_Shard(file, int(file.stem), None) for file in numbered])
    return numbered


def _name(files: SplitFiles, folder: Path) -> str:
    if isinstance(files, Path):
        return f"{files.name}/"
    return str(files[0].relative_to(folder))


@dataclass(frozen=True)
class _Shard:
    """A parquet file, with its number and the total number if its name has them."""

    file: Path
    number: int | None
    total: int | None


def _shards(folder: Path, name: str) -> list[Path]:
    """List all parquet files of the split ``name``; ``name_small`` is another split."""
    shards = []
    for file in sorted(folder.glob(f"{name}*.parquet")):
        rest = file.name.removeprefix(name)
        match = _SHARD.fullmatch(rest)
        if match is not None:
            number, total = (int(group) if group else None for group in match.groups())
            shards.append(_Shard(file, number, total))
        elif rest.startswith("-"):
            raise RequestError(
                f"{file}: expected {name}.parquet, {name}-0.parquet or "
                f"{name}-00000-of-00001.parquet; rename it, or move it to another folder"
            )
    if shards:
        _check_complete(folder, name, shards)
    return [shard.file for shard in shards]


def _check_complete(folder: Path, name: str, shards: list[_Shard]) -> None:
    """Check that shards are numbered consistently and that none is missing."""
    first = shards[0]
    file_of: dict[int | None, Path] = {}
    for shard in shards:
        is_like_first = (shard.number is None, shard.total) == (first.number is None, first.total)
        if not is_like_first or shard.number in file_of:
            other = file_of.get(shard.number, first.file)
            raise RequestError(
                f"{folder}: {other.name} and {shard.file.name} are from two exports; remove one"
            )
        file_of[shard.number] = shard.file
    if first.number is None:
        return
    count = len(shards) if first.total is None else first.total
    if first.total in file_of and 0 not in file_of:  # counted from 1
        file_of[0] = file_of.pop(first.total)
    missing = next((number for number in range(count) if number not in file_of), None)
    if missing is not None:
        ending = "" if first.total is None else f"-of-{first.total:05}"
        number = str(missing) if first.total is None else f"{missing:05}"
        if not name:  # 0000.parquet
            number = str(missing).zfill(len(first.file.stem))
        start = f"{name}-" if name else ""
        raise RequestError(
            f"{folder}: {start}{number}{ending}.parquet is missing beside {first.file.name}"
        )
    if len(shards) > count:
        raise RequestError(f"{folder}: expected {count} files {name}-*, got {len(shards)}")
