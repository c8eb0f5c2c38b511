"""Who runs the cells of a plan: here, this process, one after the other."""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from robust_ham import distributed, stopping
from robust_ham.cells import run_cell, write_inputs, write_timings
from robust_ham.config import RequestError, TransferConfig
from robust_ham.context import Context
from robust_ham.gate import write_gate
from robust_ham.kernels import write_kernels
from robust_ham.manifest import write_manifest
from robust_ham.model_cells import help_train
from robust_ham.plan import Plan
from robust_ham.progress import unseen
from robust_ham.run_folder import RunFolder
from robust_ham.stale import set_aside_stale
from robust_ham.transfer import write_transfer

log = logging.getLogger(__name__)


class Monitor(Protocol):
    """Is told what happens; the command line shows it."""

    def started(self, num_cells: int) -> None:
        """Before the first cell."""

    def cell_started(self, name: str) -> Callable[[int, int], None]:
        """Returns what is called with (steps done, steps in all) of this cell."""
        ...

    def cell_ended(self, name: str, outcome: str, seconds: float) -> None:
        """``outcome``: done, already there, or failed: reason."""


class Silent:
    """A monitor that shows nothing."""

    def started(self, num_cells: int) -> None:
        """Show nothing."""

    def cell_started(self, name: str) -> Callable[[int, int], None]:
        """Show nothing."""
        return unseen

    def cell_ended(self, name: str, outcome: str, seconds: float) -> None:
        """Show nothing."""


def choose_device(name: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` (``cuda:1`` …).

    Raises:
        RequestError: unknown, or not present.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise RequestError(f"--device: expected auto, cpu or cuda, got {name}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RequestError("--device cuda: no CUDA device here")
    return device


@dataclass(frozen=True)
class Outcome:
    """How many cells of a run failed, and what the gate says of models that cannot be trusted."""

    num_failed: int = 0
    distrusted: tuple[str, ...] = ()


def run_inline(
    plan: Plan,
    folder: Path,
    device: torch.device,
    monitor: Monitor | None = None,
) -> Outcome:
    """Run every cell whose result is not there yet.

    A failed cell is noted in ``failures.jsonl`` and the others go on; attacks on a model that
    failed fail too. Of several processes of torchrun, the first does all but its share of training.

    Where there are attacks, what is finished is measured for transfer and checked by the gate at
    the end, as the configuration asks for.

    Raises:
        RequestError: a checkpoint or an option is not what was asked for.
        OSError: the folder cannot be written.
    """
    monitor = monitor or Silent()
    run = RunFolder(folder)
    context = Context(plan, run, device)
    torch.set_num_threads(plan.config.evaluation.threads)
    if distributed.rank() > 0:
        help_train(context)
        return Outcome()
    run.refuse_links()
    set_aside_stale(context)
    write_inputs(context)
    write_manifest(context)
    run.failures.unlink(missing_ok=True)
    begin = time.monotonic()
    broken: set[str] = set()
    num_failed = 0
    attacked = any(cell.attack_id is not None for cell in plan.cells)
    asked = plan.config.transfer if attacked else None
    gate = attacked and plan.config.evaluation.gate
    monitor.started(len(plan.cells) + (asked is not None) + gate)
    for cell in plan.cells:
        stopping.check()
        start = time.monotonic()
        step = monitor.cell_started(cell.name)
        try:
            if cell.spec.model_id in broken:
                raise RuntimeError(f"its model {cell.spec.model_id} failed")
            outcome: str = run_cell(context, cell, step)
        except (RequestError, OSError):
            raise
        except Exception as error:  # one cell's fault is noted; the others go on
            reason = " ".join(str(error).split()) or type(error).__name__
            outcome = f"failed: {reason}"
            num_failed += 1
            if cell.attack_id is None:
                broken.add(cell.spec.model_id)
            with run.failures.open("a", encoding="utf-8") as file:
                line = {"cell": cell.name, "error": type(error).__name__, "reason": reason}
                file.write(json.dumps(line) + "\n")
            log.debug("%s", traceback.format_exc())
        seconds = time.monotonic() - start
        if outcome == "done":
            write_timings(run, cell.name, seconds)
        log.info("%s: %s (%.1f s)", cell.name, outcome, seconds)
        monitor.cell_ended(cell.name, outcome, seconds)
    write_kernels(context, broken)
    if asked is not None:
        _run_transfer(context, asked, broken, monitor)
    distrusted = _run_gate(context, broken, monitor) if gate else ()
    write_manifest(context, time.monotonic() - begin)
    return Outcome(num_failed, distrusted)


def _run_transfer(
    context: Context, asked: TransferConfig, broken: set[str], monitor: Monitor
) -> None:
    """Write ``transfer.csv``."""
    start = time.monotonic()
    write_transfer(context, asked, broken, monitor.cell_started("transfer"))
    seconds = time.monotonic() - start
    write_timings(context.run, "transfer", seconds)
    monitor.cell_ended("transfer", "done", seconds)


def _run_gate(context: Context, broken: set[str], monitor: Monitor) -> tuple[str, ...]:
    """Write ``gate.csv``; a line for each *fail*."""
    start = time.monotonic()
    findings = write_gate(context, broken, monitor.cell_started("gate"))
    fails = findings[findings["severity"] == "fail"]
    warns = int((findings["severity"] == "warn").sum())
    seconds = time.monotonic() - start
    write_timings(context.run, "gate", seconds)
    monitor.cell_ended("gate", f"{len(fails)} fail, {warns} warn", seconds)
    return tuple(
        f"{row['model_id']}{'/' if row['attack'] else ''}{row['attack']}: {row['reason']}"
        for row in fails.to_dict(orient="records")
    )
