"""Readers of the layouts in which users have data sets; each returns a split, or None: not here."""

from __future__ import annotations

import logging
from pathlib import Path

from robust_ham.config.experiment import DatasetConfig
from robust_ham.data.formats.class_folders import find_class_folders, holds_images_only
from robust_ham.data.formats.parquet import has_no_labels, read_parquet
from robust_ham.data.formats.split_files import SplitFiles, find_split_files
from robust_ham.data.splits import FileSplit, Split, SplitName
from robust_ham.errors import RequestError, printable

log = logging.getLogger(__name__)


def read_parquet_or_folders(folder: Path, config: DatasetConfig, split: SplitName) -> Split | None:
    """``<split>-*.parquet`` as Hugging Face has it, or ``<split>/<class>/`` with image files.

    A test split without labels gives way to a validation split that has them.

    Raises:
        RequestError: another layout, or a damaged file.
    """
    if not folder.is_dir():
        return None
    files = _labelled_files(folder, config, split)
    if isinstance(files, Path):
        limit = config.num_test if split == "test" else None
        return find_class_folders(files, config.name).read(config, limit)
    return read_parquet(files, config) if files else None


def read_files(folder: Path, config: DatasetConfig) -> FileSplit | None:
    """The training images as files under ``folder/train/<class>/``; None: not here.

    Raises:
        RequestError: another layout.
    """
    files = next(find_split_files(folder, "train"), None)
    if not isinstance(files, Path):
        return None
    return find_class_folders(files, config.name).as_files(config)


def describe_test_files(folder: Path) -> str | None:
    """Where the test split is, or why it cannot be read; nothing is decoded. None: not here."""
    try:
        found = next(find_split_files(folder, "test"), None)
    except RequestError as error:
        return str(error)
    return None if found is None else str(folder)


def _labelled_files(folder: Path, config: DatasetConfig, split: SplitName) -> SplitFiles | None:
    without_labels: SplitFiles | None = None
    for files in find_split_files(folder, split):
        if _has_no_labels(files, config.name):
            without_labels = without_labels or files
            continue
        if without_labels is not None:
            line = f"{_first(without_labels)}: no labels; {_first(files)} is used"
            log.warning("%s", printable(line))
        return files
    if without_labels is not None:
        raise RequestError(
            f"{_first(without_labels)}: no labels; expected {split} images with labels"
            + (", or a validation split with labels beside them" if split == "test" else "")
        )
    if any(folder.iterdir()):
        raise RequestError(
            f"{folder}: wrong layout: expected {split}-*.parquet or {split}/<class>/"
        )
    return None


def _has_no_labels(files: SplitFiles, data_set: str) -> bool:
    if isinstance(files, Path):
        return holds_images_only(files)
    return has_no_labels(files, data_set)


def _first(files: SplitFiles) -> Path:
    return files if isinstance(files, Path) else files[0]
