"""One cell of a run: left alone if its result is there, else computed and written whole.

A result carries the key of everything that decides it; only a result with the right key counts.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from robust_ham.attack_cells import attack_model
from robust_ham.context import Context, Done
from robust_ham.model_cells import obtain_model
from robust_ham.perturbations import high_frequency_share
from robust_ham.plan import Cell
from robust_ham.progress import Progress
from robust_ham.run_folder import RunFolder
from robust_ham.splits import to_float
from robust_ham.store import read_rows, write_csv, write_table, writing


def run_cell(context: Context, cell: Cell, progress: Progress) -> Done:
    """Obtain a model, or attack one.

    Raises:
        RequestError: a checkpoint or an option is not what was asked for.
        TrainingError: the loss is no longer finite.
    """
    if cell.attack_id is None:
        return obtain_model(context, cell.spec, progress)
    return attack_model(context, cell.spec, cell.attack_id, progress)


def write_inputs(context: Context) -> None:
    """Write ``inputs.parquet`` and ``config.yaml`` of the run.

    Beside what identifies an image stands its share of high frequencies, and that before it was
    subsampled, where it was.
    """
    plan = context.plan
    table = context.inputs.copy()
    table["high_frequency"] = high_frequency_share(plan.attacked.images)
    stored = plan.dataset.test_before_subsampling()
    if stored is not None and plan.config.evaluation.split == "test":
        images = to_float(stored.images[table["sample_id"].tolist()])
        table["high_frequency_original"] = high_frequency_share(images)
    write_table(context.run.inputs, table, {"dataset": Path(plan.config.dataset.name).name})
    with writing(context.run.config) as temporary:
        temporary.write_text(plan.config.to_yaml(), encoding="utf-8")


def write_timings(run: RunFolder, name: str, seconds: float) -> None:
    """Note how long a cell took; a later run of the same cell replaces the line."""
    columns = ["cell", "seconds"]
    table = read_rows(run.timings, columns)
    line = pd.DataFrame([[name, round(seconds, 3)]], columns=columns)
    others = table[table["cell"] != name]
    write_csv(run.timings, pd.concat([others, line]) if len(others) else line)
