"""Read parquet files with a column of images and a column of labels, as on Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from robust_ham.config.datasets import DATASETS
from robust_ham.config.experiment import DatasetConfig
from robust_ham.data.formats.class_names import check_class_names
from robust_ham.data.formats.images import Pixels, open_image, pixels_of
from robust_ham.data.label_checks import check_labels
from robust_ham.data.splits import Split
from robust_ham.errors import RequestError
from robust_ham.storage.parquet_tables import check_decoded, opened_parquet, value_type

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "coarse_label")
_ROWS_AT_ONCE = 256


def read_parquet(files: list[Path], config: DatasetConfig) -> Split:
    """Read all rows of some files, in order.

    Raises:
        RequestError: a file is damaged, too large, or has other columns, or labels are invalid.
    """
    folder = files[0].parent
    labels: list[NDArray[np.int64]] = []
    class_names = _class_names_of(files, config.name)
    count = sum(map(_num_rows, files))
    if not count:
        raise RequestError(f"{files[0]}: no images")
    pixels = Pixels(folder, count)
    for file in files:
        row = 0
        for cells, targets in _rows(file, config.name):
            labels.append(targets)
            for cell in cells:
                content = cell.as_py()
                if not isinstance(content, bytes):
                    raise RequestError(f"{file} row {row}: expected the image as bytes")
                pixels.add(pixels_of(open_image(content, f"{file} row {row}"), config))
                row += 1
        if row != _num_rows(file):
            raise RequestError(f"{file}: damaged: expected {_num_rows(file):,} rows, got {row:,}")
    targets = np.concatenate(labels)
    num_classes = check_labels(targets, config.name, folder, len(class_names) or None)
    return Split(pixels.tensor(), torch.from_numpy(targets), num_classes, str(folder))


def _num_rows(file: Path) -> int:
    with _opened(file) as table:
        return int(table.metadata.num_rows)


def _class_names_of(files: list[Path], data_set: str) -> list[str]:
    """Read the class names in the order of their labels; empty if no file has them.

    Raises:
        RequestError: two files differ in them, or they are not those of a named data set.
    """
    named: tuple[Path, list[str]] | None = None
    for file in files:
        with _opened(file) as table:
            schema = table.schema_arrow
        names = _class_names(schema, _columns(schema, file, data_set)[1])
        check_class_names(data_set, names, file)
        if named and names and names != named[1]:
            raise RequestError(f"{file}: its class names differ from those of {named[0].name}")
        if names:
            named = named or (file, names)
    return named[1] if named else []


def has_no_labels(files: list[Path], data_set: str) -> bool:
    """Whether all labels are −1 or empty, as in test splits with secret labels.

    Raises:
        RequestError: a file is damaged or has other columns.
    """
    num_rows = 0
    for file in files:
        with _opened(file) as table:
            _, column = _columns(table.schema_arrow, file, data_set)
            check_decoded(file, table, [column])
            for batch in table.iter_batches(columns=[column]):
                labels = batch[column]
                num_rows += len(labels)
                if pa.types.is_null(labels.type) or labels.null_count == len(labels):
                    continue
                known = labels.drop_null()
                if not pa.types.is_integer(labels.type) or known.to_numpy().max() != -1:
                    return False
                if known.to_numpy().min() != -1:
                    return False
    return num_rows > 0


@contextmanager
def _opened(file: Path) -> Iterator[pq.ParquetFile]:
    try:
        with opened_parquet(file, follow_links=True) as table:
            yield table
    except (ValueError, OSError):
        raise RequestError(f"{file}: damaged or unreadable parquet file") from None


def _rows(file: Path, data_set: str) -> Iterator[tuple[pa.Array, NDArray[np.int64]]]:
    """Read image files and labels, some rows at a time; repeated images share memory."""
    with _opened(file) as table:
        schema = table.schema_arrow
        image, label = _columns(schema, file, data_set)
        kind = schema.field(image).type
        if not _holds_bytes(kind):
            raise RequestError(f"{file} row 0: expected the image as bytes")
        label_type = value_type(schema.field(label).type)
        if not pa.types.is_integer(label_type):
            raise RequestError(f"{file}: {label}: expected whole numbers, got {label_type}")
        content = f"{image}.bytes" if pa.types.is_struct(kind) else image
        check_decoded(file, table, [content, label])
        for batch in table.iter_batches(_ROWS_AT_ONCE, columns=[content, label]):
            if batch[label].null_count:
                raise RequestError(f"{file}: {label}: expected a label in every row")
            cells = batch[image]
            contents = pc.struct_field(cells, "bytes") if pa.types.is_struct(kind) else cells
            yield contents, batch[label].to_numpy().astype(np.int64)


def _columns(schema: pa.Schema, file: Path, data_set: str) -> tuple[str, str]:
    """Return the names of the column of images and the column of labels."""
    known = DATASETS.get(data_set)
    ignored = known.ignored_labels if known else ()
    images = [column for column in _IMAGE_COLUMNS if column in schema.names]
    labels = [column for column in _LABEL_COLUMNS if column in schema.names]
    labels = [column for column in labels if column not in ignored]
    if not images or not labels:
        raise RequestError(
            f"{file}: expected columns image (or img) and label (or labels), got "
            f"{', '.join(schema.names)[:200]}"
        )
    for columns in (images, labels):
        if len(columns) > 1 or schema.names.count(columns[0]) > 1:
            raise RequestError(
                f"{file}: expected one column, got {' and '.join(columns)}; drop or rename one"
            )
    return images[0], labels[0]


def _class_names(schema: pa.Schema, label: str) -> list[str]:
    """Read the class names in the order of their labels from Hugging Face's metadata."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        names = info["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column contains bytes, or ``{bytes, path}`` as on Hugging Face."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    kind = value_type(kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
