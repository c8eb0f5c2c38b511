"""Read the tables and arrays of a run folder, and refuse those with unexpected content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robust_ham.storage.array_files import read_arrays
from robust_ham.storage.files import read_csv, read_json, reading
from robust_ham.storage.parquet_tables import read_table

HISTORY_COLUMNS = "train_loss train_accuracy validation_loss validation_accuracy".split()
MEASURED = "effective_width effective_width_learned params flops test_accuracy".split()
"""Numbers on a card."""
KERNEL_MEASURES = "effective_taps bandwidth side_lobe_energy edge_energy".split()
GATE_COLUMNS = "model_id attack check severity reason".split()
INPUT_COLUMNS = (
    *("sample_id", "label", "sample", "sha256"),
    *("high_frequency", "high_frequency_original"),
)
"""Columns read from ``inputs.parquet``."""
_SAMPLE_COLUMNS = (
    "model_id dataset split sample_id label clean_prediction clean_margin adversarial_prediction "
    "status l2 linf l2_relative forwards backwards angle dx dy margin normal_cosine best_distance"
).split()
"""Columns read from a table of attacked images."""
_SAMPLE_NUMBERS = (
    "sample_id label clean_prediction adversarial_prediction l2 linf l2_relative forwards backwards"
).split()
"""Columns of numbers that every table of attacked images has."""
_ARRAY_KINDS = {
    **dict.fromkeys(("label", "clean_prediction", "adversarial_prediction"), "iu"),
    **dict.fromkeys(("l2", "transform", "adversarial", "perturbation"), "f"),
    "fooled": "b",
    "clean": "u",
}
_MAX_IMAGES, _MAX_GALLERY_BYTES = 64, 1 << 30

Arrays = dict[str, np.ndarray[Any, Any]]


def read_numbers(
    path: Path, numbers: list[str], columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Read a parquet table with rows whose columns ``numbers`` hold numbers.

    Args:
        path: path of the table.
        numbers: columns that it must have.
        columns: columns to read; None: ``numbers``.
    """
    with reading(path):
        table = with_numbers(read_table(path, columns or numbers), numbers)
        if table.empty:
            raise ValueError("no rows")
    return table


def read_samples(path: Path) -> pd.DataFrame:
    """Read the per-image rows of one model and attack."""
    table = read_numbers(path, _SAMPLE_NUMBERS, _SAMPLE_COLUMNS)
    with reading(path):
        if not table["status"].map(lambda s: isinstance(s, str)).all():
            raise TypeError("status is not text")
        return with_numbers(table, [name for name in ("clean_margin",) if name in table])


def read_csv_numbers(path: Path, numbers: list[str], **options: Any) -> pd.DataFrame:  # noqa: ANN401
    """Read a CSV table whose columns ``numbers`` hold numbers."""
    with reading(path):
        return with_numbers(read_csv(path, **options), numbers)


def memory_of(table: pd.DataFrame) -> int:
    """Return about how many bytes a table needs, faster than ``DataFrame.memory_usage``."""
    kinds = zip(table.columns, table.dtypes, strict=True)
    texts = [name for name, kind in kinds if kind.kind not in "iufb"]
    return 8 * table.size + sum(table[name].memory_usage(index=False) for name in texts)


def with_numbers(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Return the table if these columns hold numbers.

    Raises:
        KeyError: a column is missing.
        TypeError: a column holds something else.
    """
    kinds = {name: kind.kind for name, kind in zip(table.columns, table.dtypes, strict=True)}
    others = [name for name in columns if kinds[name] not in "iuf"]
    if others and not table.empty:
        raise TypeError(f"no numbers in {others}")
    return table


def read_card(path: Path) -> dict[str, Any]:
    """Read a model's card if its architecture is text and its measures are numbers."""
    with reading(path):
        card = read_json(path)
        model = card["model"]
        measured = (card.get(name) for name in MEASURED)
        if not isinstance(model["architecture"], str) or not all(
            value is None or type(value) in (int, float) for value in measured
        ):
            raise TypeError("expected numbers")
        return card


def read_gallery(path: Path) -> Arrays:
    """Read stored images if they have the names, shapes and kinds of a gallery."""
    with reading(path):
        arrays = read_arrays(path, _MAX_GALLERY_BYTES)
        shape = arrays["clean"].shape
        if len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape or shape[0] > _MAX_IMAGES:
            raise ValueError("not images")
        shapes = dict.fromkeys(("clean", "adversarial", "perturbation"), shape)
        shapes["transform"] = (shape[0], 3)
        for name, kinds in _ARRAY_KINDS.items():
            array = arrays[name]
            if array.dtype.kind not in kinds or array.shape != shapes.get(name, shape[:1]):
                raise ValueError(f"{name}: unexpected kind or shape")
        return arrays
