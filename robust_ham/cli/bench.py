"""``robust-ham bench``: time the attacks against those in other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robust_ham.cli.options import ConfigName, DataRoot, Debug, Device, Overrides, Threads
from robust_ham.cli.output import print_table, say
from robust_ham.cli.preparation import (
    check_attacks_package,
    claimed_folder,
    load_experiment,
    progress_monitor,
)
from robust_ham.config.bounds import MAX_ROUNDS
from robust_ham.errors import RequestError


def bench(
    config: ConfigName,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Output folder (default: results/bench/<name>).")
    ] = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    threads: Threads = None,
    rounds: Annotated[
        int, typer.Option(min=1, max=MAX_ROUNDS, help="Number of times each library is timed.")
    ] = 3,
    libraries: Annotated[
        str | None,
        typer.Option(help="Comma-separated libraries (default: all installed ones)."),
    ] = None,
    with_scaling: Annotated[
        bool,
        typer.Option(
            "--scaling", help="Also time DeepFool on 100 to 5,000 images and 10 to 1,000 classes."
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Time the attacks against those in other libraries.

    Trains or loads the models of the config, then times each attack that another library also has:
    same models, images, threads and process.
    To resume after an interruption, run the same command again.
    """
    experiment = load_experiment(config, overrides, threads)
    name = experiment.name.removeprefix("bench_") or experiment.name
    folder = out or Path("results") / "bench" / name
    check_attacks_package()
    from robust_ham.experiments.benchmark import peer_libraries
    from robust_ham.experiments.benchmark.measure import measure_all
    from robust_ham.runs.plan.plan import make_plan
    from robust_ham.runs.runner import choose_device
    from robust_ham.storage.output_folder import refuse_strangers
    from robust_ham.storage.run_folder import RunFolder
    from robust_ham.storage.run_logs import log_file

    refuse_strangers(folder)
    if RunFolder(folder).has_rows and not (folder / "bench.csv").is_file():
        raise RequestError(f"{folder}: contains results of a run; `bench` needs another folder")
    chosen_device = choose_device(device)
    versions = peer_libraries.installed()
    chosen_libraries = libraries.split(",") if libraries else list(versions)
    for library, hint in peer_libraries.INSTALL.items():
        if library not in versions and not libraries:
            say(f"{library} is not installed and is skipped: {hint}")
    plan = make_plan(experiment, data_root, attack=False)
    with claimed_folder(folder, experiment.name):
        RunFolder(folder).remove_leftovers()
        with log_file(RunFolder(folder).log), progress_monitor() as monitor:
            measurements = measure_all(
                plan,
                folder,
                chosen_device,
                chosen_libraries,
                rounds,
                monitor,
                say,
                source=Path(config),
                with_scaling=with_scaling,
            )
        from robust_ham.experiments.benchmark.report import build_benchmark

        benchmark = build_benchmark(folder, measurements)
    print_table(benchmark.table.header, benchmark.table.rows)
    say("", f"benchmark: {benchmark.page}")
