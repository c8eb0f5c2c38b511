"""Parquet tables: atomic writes, bounded reads.

A file of a few bytes can unpack to a huge table (a repeated text, a number in ten million rows).
Texts are therefore read as dictionaries, each once, and everything else is counted before memory
is allocated.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from robust_ham.config.experiment import SCHEMA
from robust_ham.errors import RequestError, naming
from robust_ham.memory import check_memory
from robust_ham.regular_files import open_regular
from robust_ham.storage.files import MAX_COLUMNS, MAX_ROWS, is_missing_or_damaged, write_bytes

_ROWS_AT_ONCE = 65_536
_NUMBER_BYTES, _TEXT_BYTES = 8, 16
"""Size of one value in memory; the texts themselves are counted as they are read."""
_NO_TABLE = (
    *(pa.ArrowException, OSError, ValueError, LookupError, TypeError, ArithmeticError),
    *(RuntimeError, MemoryError),
)
"""What pyarrow and pandas raise for damaged tables; their ``OSError`` has no number."""


def write_table(path: Path, table: pd.DataFrame, metadata: dict[str, Any]) -> None:
    """Write a table as parquet (zstd) with ``metadata`` in its schema."""
    write_bytes(path, table_bytes(table, metadata))


def table_bytes(table: pd.DataFrame, metadata: dict[str, Any]) -> bytes:
    """Return the bytes that ``write_table`` writes."""
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    content = json.dumps({"schema": SCHEMA} | metadata, sort_keys=True)
    arrow = arrow.replace_schema_metadata(
        {**(arrow.schema.metadata or {}), b"robust_ham": content.encode()}
    )
    file = io.BytesIO()
    pq.write_table(arrow, file, compression="zstd")
    return file.getvalue()


def read_metadata(path: Path) -> dict[str, Any] | None:
    """Return the metadata that ``write_table`` wrote; None if the table is missing or damaged.

    Raises:
        OSError: the file exists but cannot be read.
    """
    try:
        with naming(path), open_regular(path) as file:
            metadata = pq.read_schema(file).metadata or {}
        content = json.loads(metadata[b"robust_ham"])
    except OSError as error:
        if not is_missing_or_damaged(error):
            raise
        return None
    except (RequestError, pa.ArrowException, KeyError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def read_table(
    path: Path, columns: Collection[str] | None = None, *, follow_links: bool = False
) -> pd.DataFrame:
    """Read a parquet table of numbers and texts.

    Args:
        path: path of the table.
        columns: read only these, if present; None: all.
        follow_links: see ``open_regular``.

    Raises:
        ValueError: the file is damaged.
        RequestError: not a regular file, too large, or a column of another type.
    """
    with opened_parquet(path, follow_links=follow_links) as table:
        schema = table.schema_arrow
        names = [name for name in schema.names if columns is None or name in columns]
        for name in names:
            kind = schema.field(schema.names.index(name)).type
            if pa.types.is_nested(kind):
                raise RequestError(f"{path}: {name}: expected numbers or text, got {kind}")
        check_decoded(path, table, names)
        batches, text_bytes = list[pa.RecordBatch](), 0
        for batch in table.iter_batches(_ROWS_AT_ONCE, columns=names):
            text_bytes += sum(map(_text_bytes, batch.columns))
            check_memory(str(path), text_bytes, part=8, so_far=True)
            batches.append(batch)
        arrow = pa.Table.from_batches(batches, table.schema_arrow if not batches else None)
        texts = [field for field in arrow.schema if pa.types.is_dictionary(field.type)]
        for field in texts:
            place = arrow.schema.names.index(field.name)
            arrow = arrow.set_column(place, field.name, arrow[place].cast(field.type.value_type))
        frame: pd.DataFrame = arrow.to_pandas()
        return _with_plain_numbers(frame)


def _with_plain_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Convert nullable columns of numbers to numpy's types; a missing number is NaN."""
    for name, kind in frame.dtypes.items():
        is_number = pd.api.types.is_integer_dtype(kind) or pd.api.types.is_float_dtype(kind)
        if is_number and pd.api.types.is_extension_array_dtype(kind):
            column = frame[name]
            frame[name] = (
                column.to_numpy(np.float64, na_value=np.nan)
                if column.hasnans
                else column.to_numpy(kind.numpy_dtype)
            )
    return frame


@contextlib.contextmanager
def opened_parquet(path: Path, *, follow_links: bool = False) -> Iterator[pq.ParquetFile]:
    """Open a parquet file so that texts and bytes are read as dictionaries, each value once.

    Raises:
        ValueError: the file is damaged.
        RequestError: not a regular file, or too many rows or columns.
        OSError: missing, or not readable.
    """
    try:
        with naming(path), open_regular(path, follow_links=follow_links) as file:
            about = pq.read_metadata(file)
            for what, limit, count in (
                ("rows", MAX_ROWS, about.num_rows),
                ("columns", MAX_COLUMNS, about.num_columns),
            ):
                if count > limit:
                    raise RequestError(f"{path}: expected at most {limit:,} {what}, got {count:,}")
            leaves = (about.schema.column(i) for i in range(about.num_columns))
            texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
            with pq.ParquetFile(file, metadata=about, read_dictionary=texts) as table:
                yield table
    except _NO_TABLE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path}: damaged table ({reason})") from None


def value_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column's values, whether read as a dictionary or not."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def check_decoded(path: Path, table: pq.ParquetFile, columns: Collection[str]) -> None:
    """Refuse columns, nested ones included, that would need too much memory.

    Counts all values, those of lists included, and the largest row group as stored.

    Raises:
        RequestError: they would need too much memory.
    """
    about, values_bytes = table.metadata, 0
    stored = [0] * about.num_row_groups
    for i in range(about.num_columns):
        leaf = about.schema.column(i)
        if leaf.path.partition(".")[0] not in columns and leaf.path not in columns:
            continue
        chunks = [about.row_group(g).column(i) for g in range(about.num_row_groups)]
        stored = [a + c.total_uncompressed_size for a, c in zip(stored, chunks, strict=True)]
        each = _TEXT_BYTES if leaf.physical_type == "BYTE_ARRAY" else _NUMBER_BYTES
        num_values = max(about.num_rows, sum(chunk.num_values for chunk in chunks))
        values_bytes += num_values * max(each, leaf.length or 0)
    check_memory(str(path), values_bytes + max(stored, default=0))


def _text_bytes(column: pa.Array) -> int:
    """Return the size of a column's texts once every row has its own copy."""
    if not pa.types.is_dictionary(column.type):
        return 0
    lengths = pc.take(pc.binary_length(column.dictionary), column.indices)
    return pc.sum(lengths).as_py() or 0
