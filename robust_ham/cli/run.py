"""``robust-ham run``: train or load, attack, tables, figures and a page."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robust_ham.cli import exit_codes
from robust_ham.cli.options import (
    ConfigName,
    DataRoot,
    Debug,
    Device,
    Overrides,
    Threads,
    refuse_nan,
)
from robust_ham.cli.output import complain, say, say_json
from robust_ham.cli.preparation import (
    check_attacks_package,
    claimed_folder,
    load_experiment,
    progress_monitor,
)
from robust_ham.cli.report import write_report
from robust_ham.config.bounds import MAX_GPUS, MAX_WORKERS
from robust_ham.errors import RequestError, plural

if TYPE_CHECKING:
    import torch

    from robust_ham.config.experiment import Config
    from robust_ham.runs.plan.plan import Plan
    from robust_ham.runs.runner import Executor


class StopAfter(enum.StrEnum):
    """Last stage of a run."""

    train = "train"
    attack = "attack"


class ExecutorName(enum.StrEnum):
    """Where jobs run: in this process or on Ray."""

    inline = "inline"
    ray = "ray"


def run(
    config: ConfigName,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder (default: results/<name>).")
    ] = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    threads: Threads = None,
    executor: Annotated[
        ExecutorName, typer.Option(help="Run jobs in this process or on a Ray cluster.")
    ] = ExecutorName.inline,
    address: Annotated[
        str | None,
        typer.Option(help="Address of a running Ray cluster (default: start Ray on this machine)."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_WORKERS,
            help="Maximum concurrent jobs on Ray (default: as many as fit).",
        ),
    ] = None,
    gpus_per_cell: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=MAX_GPUS,
            callback=refuse_nan,
            help="GPUs per job on Ray with CUDA; with a fraction, jobs share a GPU.",
        ),
    ] = None,
    stop_after: Annotated[
        StopAfter | None,
        typer.Option(help="Stop after training (train), or before the report (attack)."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the config, list its jobs, estimate the time.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --dry-run: print the plan as JSON.")
    ] = False,
    debug: Debug = False,
) -> int:
    """Train or load models, attack them, write tables and a report.

    To resume after an interruption, run the same command again. Finished jobs are kept.
    """
    experiment = load_experiment(config, overrides, threads)
    folder = out or Path("results") / experiment.name
    check_attacks_package()
    from robust_ham.runs.plan.plan import make_plan
    from robust_ham.runs.runner import choose_device, run_plan
    from robust_ham.storage.output_folder import refuse_strangers
    from robust_ham.training import distributed

    if as_json and not dry_run:
        raise RequestError("--json: needs --dry-run; for a run, use `robust-ham status --json`")
    refuse_strangers(folder)
    execute = _executor(executor, data_root, address, workers, gpus_per_cell)
    if distributed.launched() and stop_after != StopAfter.train:
        raise RequestError(
            "torchrun only trains: add --stop-after train, then run without torchrun"
        )
    if not sys.stdout.isatty() and not distributed.launched() and not as_json:
        say(f"{experiment.name}: {_models_and_attacks(experiment)}")
    chosen_device = choose_device(device)
    plan = make_plan(experiment, data_root, attack=stop_after != StopAfter.train)
    if dry_run:
        _show_plan(plan, folder, chosen_device, as_json=as_json)
        return 0
    with distributed.joined(chosen_device) as process_device:
        if distributed.rank() > 0:
            run_plan(plan, folder, process_device)
            return 0
        return _run(plan, folder, process_device, execute, Path(config), report=stop_after is None)


def _run(
    plan: Plan,
    folder: Path,
    device: torch.device,
    execute: Executor,
    source: Path,
    *,
    report: bool,
) -> int:
    """Run a plan, print its outcome and return the exit code."""
    from robust_ham.runs.runner import run_plan
    from robust_ham.storage.checksums import check_present, read_checksums
    from robust_ham.storage.run_folder import RunFolder
    from robust_ham.storage.run_logs import log_file

    run_folder = RunFolder(folder)
    with claimed_folder(folder, plan.config.name):
        with log_file(run_folder.log), progress_monitor() as monitor:
            outcome = run_plan(plan, folder, device, monitor, execute, source)
        if outcome.num_failed:
            num_failed = f"{outcome.num_failed} of {len(plan.jobs)} jobs failed"
            complain(f"{num_failed}: {run_folder.failures}")
        for line in outcome.distrusted:
            complain(f"not to be trusted: {line}")
        try:
            if report:
                write_report(folder)
        except RequestError:
            if not outcome.num_failed:  # otherwise the failures explain why nothing can be shown
                raise
        finally:
            check_present(run_folder, ["config.yaml", *read_checksums(run_folder)])
    if outcome.num_failed:
        return exit_codes.JOBS
    return exit_codes.GATE if outcome.distrusted else 0


def _models_and_attacks(config: Config) -> str:
    models, attacks = len(config.model_specs()), len(config.attacks)
    return f"{plural(models, 'model')}, {plural(attacks, 'attack')}"


def _executor(
    name: ExecutorName,
    data_root: Path | None,
    address: str | None,
    workers: int | None,
    gpus_per_cell: float | None,
) -> Executor:
    from robust_ham.runs.runner import inline

    if gpus_per_cell is not None and gpus_per_cell > 1 and gpus_per_cell % 1:
        raise RequestError(
            f"--gpus-per-cell: expected at most 1 or a whole number, got {gpus_per_cell:g}"
        )
    if name == ExecutorName.ray:
        from robust_ham.runs.ray_runner import on_ray

        return on_ray(data_root, address, workers, gpus_per_cell)
    if address is not None or workers or gpus_per_cell:
        raise RequestError(
            "--address, --workers, --gpus-per-cell: need --executor ray; without it, run the same "
            "command in another terminal to share the work"
        )
    return inline


def _show_plan(plan: Plan, folder: Path, device: torch.device, *, as_json: bool) -> None:
    from robust_ham.progress import format_duration
    from robust_ham.runs.estimate import expected_cost
    from robust_ham.runs.plan.context import Context
    from robust_ham.storage.run_folder import RunFolder

    config, context = plan.config, Context(plan, RunFolder(folder), device)
    if as_json:
        cost = expected_cost(context)
        content = {
            "run": str(folder),
            "cells": [job.name for job in plan.jobs],
            "seconds": {"training": cost.training, "attacks": cost.attacks},
            "training_flops": cost.training_flops,
        }
        say_json(content)
        return
    for job in plan.jobs:
        say(f"  {job.name}")
    say(
        f"{plural(len(plan.jobs), 'job')}: {_models_and_attacks(config)} on "
        f"{plural(config.evaluation.num_images, 'image')} each, into {folder}"
    )
    cost = expected_cost(context)
    say(
        f"estimated time left: {format_duration(cost.training + cost.attacks)} (training "
        f"{format_duration(cost.training)}, {cost.training_flops:.1e} floating-point operations; "
        f"attacks {format_duration(cost.attacks)}), from a short run of each kind of job"
    )
