"""Read third-party tables as rows of text: CSV, parquet and AttackBench's results."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robust_ham.analysis.importing.attackbench import read_result
from robust_ham.config.suggestions import did_you_mean
from robust_ham.errors import RequestError, printable
from robust_ham.regular_files import read_bytes
from robust_ham.storage.files import MAX_CSV_BYTES, reading
from robust_ham.storage.parquet_tables import opened_parquet, read_table

COLUMNS = {
    "model": "name of the network, the same for all its seeds, windows and kernel sizes",
    "attack": "name of the attack",
    "sample_id": "number or name of the image",
    "l2": "L2 distance in pixel space; 0: misclassified without attack; inf or empty: survived",
    "linf": "the same in L∞; l2 or linf is enough",
    "fooled": "true or false, for attacks without distances",
    "correct": "whether the clean image is correctly classified; required with fooled",
    "invalid": "whether the attack returned an invalid image; counts as survived",
    "crashed": "whether the attack failed with an error; counts as survived",
    "norm": "l2 or linf: norm of an attack that has both distances (l2)",
    "window": "window of the kernels (none)",
    "kernel_size": "k of the k×k convolutions, odd",
    "seed": "seed of the training (0)",
    "label": "class of the image",
    "clean_prediction": "predicted class of the clean image",
    "adversarial_prediction": "predicted class of the attacked image",
    "forwards": "forward passes spent on the image",
    "backwards": "backward passes",
    "dataset": "name of the data set, the same in all rows",
    "sha256": "SHA-256 of the image's 8-bit pixels; identifies the image",
    "best_distance": "least distance of a fooling image on the attack's path, in the attack's norm",
}
"""Column to its content; in brackets the default if it is empty or missing."""

REQUIRED = ["model", "attack", "sample_id"]
MAX_ROWS, _MAX_LENGTH = 2_000_000, 1_000
_INDEX = re.compile(r"|Unnamed: [0-9]+|__index_level_[0-9]+__")
"""Names under which pandas writes the index of a table."""
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def read_rows(paths: list[Path]) -> pd.DataFrame:
    """Read the rows of all tables as text, in order; missing columns are empty."""
    tables, repeats = [], dict[tuple[str, str], list[dict[str, Any]]]()
    for i, path in enumerate(paths):
        if not path.exists():
            raise RequestError(f"{path}: no such file")
        if path.resolve() in [other.resolve() for other in paths[:i]]:
            raise RequestError(f"{path}: expected each table once")
        suffix = path.suffix.lower()
        table = READERS[suffix](path)
        if table.empty:
            raise RequestError(f"{path}: no rows")
        for name in table:
            _check_lengths(path, table[name])
        if suffix == ".json":
            table = _name_repeat(path, table, repeats)
        tables.append(table.assign(file=printable(str(path)), row=range(1, len(table) + 1)))
    together = pd.concat(tables, ignore_index=True)
    if len(together) > MAX_ROWS:
        raise RequestError(f"{paths[0]}: expected at most {MAX_ROWS:,} rows, got {len(together):,}")
    rows = together.fillna("").reindex(columns=["file", "row", *COLUMNS], fill_value="")
    # pandas turns whole numbers into floats if one is missing: 7.0 is image 7, v7.0 is a name
    rows["sample_id"] = rows["sample_id"].str.replace(r"^(-?[0-9]+)\.0$", r"\1", regex=True)
    return rows


def _check_lengths(path: Path, column: pd.Series[Any]) -> None:
    """Refuse texts longer than any name, which could fill the memory."""
    lengths = column.map(len).to_numpy()
    if lengths.max() > _MAX_LENGTH:
        raise RequestError(
            f"{path}: row {int(lengths.argmax()) + 1}: {column.name}: expected at most "
            f"{_MAX_LENGTH:,} characters, got {lengths.max():,}"
        )


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        content = io.BytesIO(read_bytes(path, MAX_CSV_BYTES, follow_links=True))
        with io.TextIOWrapper(content, encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            header = [name.strip() for name in next(lines, [])]
            for mark, name in _SEPARATORS.items():
                if len(header) == 1 and mark in header[0]:
                    raise RequestError(f"{path}: expected values separated by commas, got {name}")
            _check_columns(path, header)
            columns = _csv_columns(path, lines, len(header))
            return pd.DataFrame(dict(zip(header, columns, strict=True)), dtype=object)
    except (csv.Error, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: not a CSV file ({error})") from None


def _csv_columns(path: Path, lines: Any, count: int) -> list[list[str]]:  # noqa: ANN401
    """Return the values of each column; equal values share one object."""
    columns: list[list[str]] = [[] for _ in range(count)]
    known: dict[str, str] = {}
    for i, row in enumerate(lines):
        if i == MAX_ROWS:
            raise RequestError(f"{path}: expected at most {MAX_ROWS:,} rows")
        if len(row) not in (0, count):
            place = f"{path}: line {lines.line_num}"
            raise RequestError(f"{place}: expected {count} values, got {len(row)}")
        for column, value in zip(columns, row, strict=bool(row)):
            text = value.strip()
            column.append(known.setdefault(text, text))
    return columns


def _read_parquet(path: Path) -> pd.DataFrame:
    with reading(path):
        with opened_parquet(path, follow_links=True) as file:
            _check_columns(path, file.schema_arrow.names)
            if file.metadata.num_rows > MAX_ROWS:
                raise RequestError(f"{path}: expected at most {MAX_ROWS:,} rows")
        table = read_table(path, follow_links=True)
        return pd.DataFrame({name: _as_texts(table[name]) for name in table}, dtype=object)


def _as_texts(column: pd.Series[Any]) -> NDArray[np.object_]:
    """Convert a column to text, (n,); equal values share one object."""
    codes, values = pd.factorize(column)
    texts = np.array([*map(_as_text, values), ""], dtype=object)
    return texts[codes]  # −1: missing


def _as_text(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, float | np.floating):
        return "" if math.isnan(value) else repr(float(value))
    return "" if value is None or value is pd.NA else str(value).strip()


def _read_attackbench(path: Path) -> pd.DataFrame:
    result = read_result(path)
    table = pd.DataFrame(result.columns, dtype=object)
    table.attrs["settings"] = {k: v for k, v in result.settings.items() if k != "seed"}
    return table


def _name_repeat(
    path: Path, table: pd.DataFrame, before: dict[tuple[str, str], list[dict[str, Any]]]
) -> pd.DataFrame:
    """Name an AttackBench result that repeats an attack on a model: ``NAME_run2``.

    Args:
        path: path of the result.
        table: its rows, all of one model and attack.
        before: model and attack to the settings of earlier results; this result's are added.

    Raises:
        RequestError: the settings differ, so it is not a repeat.
    """
    model, attack = table["model"].iloc[0], table["attack"].iloc[0]
    settings = table.attrs["settings"]
    earlier = before.setdefault((model, attack), [])
    for key in {**settings, **earlier[0]} if earlier else ():
        if settings.get(key) != earlier[0].get(key):
            raise RequestError(
                f"{path}: attack.{key}: expected {earlier[0].get(key)!r:.60} as in the other "
                f"results of {attack} on {model}, got {settings.get(key)!r:.60}; report "
                "them separately"
            )
    earlier.append(settings)
    return table if len(earlier) == 1 else table.assign(attack=f"{attack}_run{len(earlier)}")


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".json": _read_attackbench,
}


def _check_columns(path: Path, columns: list[str]) -> None:
    """Refuse a table with a missing, repeated or unknown column."""
    if columns and _INDEX.fullmatch(columns[0]):
        raise RequestError(
            f"{path}: the first column, {columns[0]!r}, is an unnamed index: "
            "write the table with index=False"
        )
    problems = [
        f"unknown column {name!r:.60}{did_you_mean(name, COLUMNS)}"
        for name in columns
        if name not in COLUMNS
    ]
    problems += [f"no column {name}" for name in REQUIRED if name not in columns]
    problems += [f"two columns {name}" for name in COLUMNS if columns.count(name) > 1]
    if not {"l2", "linf", "fooled"} & set(columns):
        problems.append("no column l2, linf or fooled")
    if problems:
        raise RequestError(f"{path}: {problems[0]}; known columns: {', '.join(COLUMNS)}")
