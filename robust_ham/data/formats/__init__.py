"""Readers of each layout of data sets; they return None if a folder does not have it."""

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
    """Read ``<split>-*.parquet`` (Hugging Face), or image files in ``<split>/<class>/``.

    If the test split has no labels, the validation split is read.

    Raises:
        RequestError: the folder has another layout, or a file is damaged.
    """
    if not folder.is_dir():
        return None
    files = _labelled_files(folder, config, split)
    if isinstance(files, Path):
        limit = config.num_test if split == "test" else None
        return find_class_folders(files, config.name).read(config, limit)
    return read_parquet(files, config) if files else None


def read_files(folder: Path, config: DatasetConfig) -> FileSplit | None:
    """List the training images under ``folder/train/<class>/``; None if there are none.

    Raises:
        RequestError: the folder has another layout.
    """
    files = next(find_split_files(folder, "train"), None)
    if not isinstance(files, Path):
        return None
    return find_class_folders(files, config.name).as_files(config)


def describe_test_files(folder: Path) -> str | None:
    """Return the folder of the test split, or why it is unreadable; None if there is none."""
    try:
        files = next(find_split_files(folder, "test"), None)
    except RequestError as error:
        return str(error)
    return None if files is None else str(folder)


def _labelled_files(folder: Path, config: DatasetConfig, split: SplitName) -> SplitFiles | None:
    without_labels: SplitFiles | None = None
    for files in find_split_files(folder, split):
        if _has_no_labels(files, config.name):
            without_labels = without_labels or files
            continue
        if without_labels is not None:
            line = f"{_first(without_labels)}: no labels; using {_first(files)}"
            log.warning("%s", printable(line))
        return files
    if without_labels is not None:
        raise RequestError(
            f"{_first(without_labels)}: no labels; expected {split} images with labels"
            + (", or a validation split with labels beside them" if split == "test" else "")
        )
    if any(folder.iterdir()):
        raise RequestError(
            f"{folder}: expected {split}-*.parquet or class folders {split}/<class>/"
        )
    return None


def _has_no_labels(files: SplitFiles, data_set: str) -> bool:
    if isinstance(files, Path):
        return holds_images_only(files)
    return has_no_labels(files, data_set)


def _first(files: SplitFiles) -> Path:
    return files if isinstance(files, Path) else files[0]
