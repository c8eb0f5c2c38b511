"""``inputs.parquet`` of a run: a row per attacked image."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from robust_ham.data.splits import to_float
from robust_ham.evaluation.perturbations import high_frequency_share
from robust_ham.runs.plan.context import Context
from robust_ham.storage.parquet_tables import write_table


def inputs_table(context: Context) -> pd.DataFrame:
    """Return identity, label and share of high frequencies of each attacked image.

    If the images were subsampled, the share before subsampling has a column of its own.
    """
    plan = context.plan
    table = context.inputs.copy()
    table["high_frequency"] = high_frequency_share(plan.attacked.images)
    original = plan.dataset.test_before_subsampling()
    if original is not None and plan.config.evaluation.split == "test":
        images = to_float(original.images[table["sample_id"].tolist()])
        table["high_frequency_original"] = high_frequency_share(images)
    return table


def write_inputs(context: Context) -> None:
    """Write ``inputs.parquet``."""
    metadata = {"dataset": Path(context.plan.config.dataset.name).name}
    write_table(context.run.inputs, inputs_table(context), metadata)
