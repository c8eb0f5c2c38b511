"""Spectra of a run's learned kernels: ``kernels.csv``, a row per model and layer."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd
from torch import nn

from robust_ham.config.models import ModelGroup
from robust_ham.models.checkpoints import read_card
from robust_ham.models.kernel_spectra import TABLE_COLUMNS, kernel_table
from robust_ham.runs.jobs.model import finished_models, load_model
from robust_ham.runs.plan.context import Context
from robust_ham.storage.receipts import kept_rows, write_kept

COLUMNS = ["model_id", "window", "kernel_size", "seed", *TABLE_COLUMNS, "weights"]
"""``weights``: SHA-256 of the weights, from the model's card."""


def write_kernels(context: Context, failed: Collection[str] = ()) -> None:
    """Write ``kernels.csv`` of a run; keep rows of models with unchanged weights.

    Skips models in ``failed`` or without a card, and convolutions of 1×1.
    """
    path = context.run.kernels
    before = dict(list(kept_rows(context.run, path, COLUMNS).groupby(["model_id", "weights"])))
    tables = [pd.DataFrame(columns=COLUMNS)]
    for spec in finished_models(context, failed):
        weights = read_card(context.run.model(spec.model_id))["weights_sha256"]
        kept = before.get((spec.model_id, weights))
        if kept is None:
            kept = kernel_rows(spec, load_model(context, spec)[0], weights)
        tables.append(kept)
    kept = pd.concat([table for table in tables if len(table)] or tables)
    write_kept(context.run, path, kept)


def kernel_rows(spec: ModelGroup, model: nn.Module, weights: str) -> pd.DataFrame:
    """Return a row of ``COLUMNS`` per convolution above 1×1; ``weights``: SHA-256."""
    table = kernel_table(model).assign(
        model_id=spec.model_id,
        window=spec.window,
        kernel_size=spec.kernel_size,
        seed=spec.seed,
        weights=weights,
    )
    return table[COLUMNS]
