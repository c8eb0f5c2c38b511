"""Which files of a folder make up a split."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from robust_ham.config import RequestError
from robust_ham.splits import SplitName

_NAMES: dict[SplitName, tuple[tuple[str, ...], ...]] = {
    "train": (("train",),),
    "test": (("test",), ("validation", "valid", "val")),
}
"""Names of a split, preferred first; names in one group mean the same."""
_SHARD = re.compile(r"(?:-(\d+)(?:-of-(\d+))?(?:-[0-9a-f]{8,})?)?\.parquet")
"""What follows the split's name: nothing, ``-0``, ``-00000-of-00003``, with or without a hash."""

SplitFiles = list[Path] | Path
"""The parquet files of a split in the order of their names, or its folder of class folders."""


def find_split_files(folder: Path, split: SplitName) -> Iterator[SplitFiles]:
    """The files of a split, preferred first: ``test``, then ``validation`` for the test split.

    Raises:
        RequestError: files of two kinds or generations, or a shard is missing.
    """
    for names in _NAMES[split]:
        found: list[SplitFiles] = []
        for name in names:
            found += [s for s in (_shards(folder, name), _shards(folder / "data", name)) if s]
            found += [folder / name] if (folder / name).is_dir() else []
        if len(found) > 1:
            first, second = (_name(files, folder) for files in found[:2])
            raise RequestError(
                f"{folder}: {first} and {second} both hold the {split} images; keep one of them"
            )
        yield from found


def _name(files: SplitFiles, folder: Path) -> str:
    if isinstance(files, Path):
        return f"{files.name}/"
    return str(files[0].relative_to(folder))


@dataclass(frozen=True)
class _Shard:
    """A parquet file, its number, and how many there are, where its name says so."""

    file: Path
    number: int | None
    total: int | None


def _shards(folder: Path, name: str) -> list[Path]:
    """All parquet files of the split ``name`` in ``folder``; ``name_small`` is another split."""
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
                f"{name}-00000-of-00001.parquet; rename it or move it to a folder of its own"
            )
    if shards:
        _check_complete(folder, name, shards)
    return [shard.file for shard in shards]


def _check_complete(folder: Path, name: str, shards: list[_Shard]) -> None:
    """Check that shards are of one generation, and that none is missing."""
    first = shards[0]
    file_of: dict[int | None, Path] = {}
    for shard in shards:
        is_like_first = (shard.number is None, shard.total) == (first.number is None, first.total)
        if not is_like_first or shard.number in file_of:
            other = file_of.get(shard.number, first.file)
            raise RequestError(
                f"{folder}: {other.name} and {shard.file.name} are of two generations; remove one"
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
        raise RequestError(
            f"{folder}: {name}-{number}{ending}.parquet is missing beside {first.file.name}"
        )
    if len(shards) > count:
        raise RequestError(f"{folder}: expected {count} files {name}-*, got {len(shards)}")
