"""One cell on another machine, whichever engine has brought it there.

Where the run folder can be seen, the cell writes into it; elsewhere it works in a folder of its
own and hands its files back.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from robust_ham.cell import Cell
from robust_ham.cells import Attempt, attempt_cell
from robust_ham.config_files import parse_config
from robust_ham.context import Context
from robust_ham.plan import make_plan
from robust_ham.progress import Progress
from robust_ham.receipts import read_signed, write_signed
from robust_ham.run_folder import RunFolder

Files = dict[str, bytes]
"""Path inside a run folder to content."""


@dataclass(frozen=True)
class Job:
    """What a worker has to know to run any cell of a run."""

    config: str
    data_root: str | None
    folder: str
    device: str
    token: str
    """Name of a file among the locks: who does not see it does not see the folder."""


def run_there(
    job: Job, name: str, needed: Files, progress: Progress
) -> tuple[Attempt | None, Files]:
    """Run a cell by its name; the files it made, where the run folder cannot be seen.

    ``needed``: files of the models that the cell needs.
    """
    context, shared = _context(job)
    cell = _cells(job)[name]
    if not shared:
        write_signed(context.run, needed)
    attempt = attempt_cell(context, cell, progress)
    if shared or attempt is None or attempt.error is not None:
        return attempt, {}
    return attempt, read_signed(context.run, _made(context.run, cell))


def _made(run: RunFolder, cell: Cell) -> Iterable[Path]:
    model_id = cell.spec.model_id
    if cell.attack_id is None:
        return run.model(model_id), run.predictions(model_id)
    if cell.num_shards > 1:
        return (run.shard(model_id, cell.attack_id, cell.shard),)
    return (run.samples(model_id, cell.attack_id),)


@functools.lru_cache(maxsize=1)
def _context(job: Job) -> tuple[Context, bool]:
    """A worker's own context, and whether it sees the run folder; made once per worker."""
    config = parse_config(job.config, origin="the run's configuration")
    torch.set_num_threads(config.evaluation.threads)
    plan = make_plan(config, Path(job.data_root) if job.data_root else None)
    shared = (RunFolder(Path(job.folder)).locks / job.token).is_file()
    folder = job.folder if shared else tempfile.mkdtemp(prefix="robust-ham-")
    return Context(plan, RunFolder(Path(folder)), torch.device(job.device)), shared


@functools.lru_cache(maxsize=1)
def _cells(job: Job) -> dict[str, Cell]:
    return {cell.name: cell for cell in _context(job)[0].plan.cells}
