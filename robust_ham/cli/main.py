"""The command line; the only module that prints."""

from __future__ import annotations

import contextlib
import enum
import importlib.util
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from robust_ham.cli.streams import (
    flush_streams,
    prepare_streams,
    show_lines_of_others,
    standard_output,
)
from robust_ham.config.bounds import MAX_GPUS, MAX_JOBS, MAX_ROUNDS, MAX_THREADS, MAX_WORKERS
from robust_ham.errors import printable
from robust_ham.experiments.explain import EXPERIMENTS
from robust_ham.storage import signals

if TYPE_CHECKING:
    import torch

    from robust_ham.config.experiment import Config
    from robust_ham.progress import Monitor
    from robust_ham.runs.plan.plan import Plan
    from robust_ham.runs.runner import Executor

EXIT_ENVIRONMENT, EXIT_REQUEST, EXIT_JOBS, EXIT_GATE = 1, 2, 3, 4

app = typer.Typer(
    name="robust-ham",
    help="Adversarial robustness of baseline and Hamming-windowed CNNs across kernel sizes.\n\n"
    "\b\n"
    "  robust-ham run quickstart               attack 30 trained networks, write a report page\n"
    "  robust-ham list configs                 what else is there to run, and how long it takes\n"
    "  robust-ham run my.yaml --dry-run        check one of your own; how long will it take?\n"
    "  robust-ham run my.yaml                  run it; the same command goes on after a stop\n"
    "  robust-ham status results/my            how far it is, from another terminal\n"
    "  robust-ham report results/my --export pdf   figures for a paper\n\n"
    "Every verb has its own --help.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class StopAfter(enum.StrEnum):
    """Last stage of a run."""

    train = "train"
    attack = "attack"


class ExecutorName(enum.StrEnum):
    """Who runs the jobs."""

    inline = "inline"
    ray = "ray"


class Topic(enum.StrEnum):
    """What ``list`` lists."""

    attacks = "attacks"
    models = "models"
    windows = "windows"
    datasets = "datasets"
    configs = "configs"
    explain = "explain"
    keys = "keys"
    schema = "schema"


_debug = False


def _set_debug(value: bool) -> None:
    global _debug  # noqa: PLW0603 - one switch, set once while options are parsed
    _debug = _debug or value


Debug = Annotated[
    bool, typer.Option("--debug", callback=_set_debug, help="Show tracebacks and debug messages.")
]


def _is_number(value: float | None) -> float | None:
    """Refuse nan, which is neither below a range nor above it."""
    if value is not None and math.isnan(value):
        raise typer.BadParameter("expected a number, got nan")
    return value


def _complete_config(incomplete: str) -> list[str]:
    """Names of shipped configs, for the shell."""
    from robust_ham.config.files import shipped_configs

    return [name for name in shipped_configs() if name.startswith(incomplete)]


ConfigName = Annotated[
    str,
    typer.Argument(
        help="A YAML file, or the name of a shipped config.", autocompletion=_complete_config
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Option("-o", help="Override a key, as in training.epochs=5.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Threads = Annotated[
    int | None, typer.Option(min=1, max=MAX_THREADS, help="Sets evaluation.threads.")
]
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", help="Folder of data sets; before ROBUST_HAM_DATA.")
]


@app.command()
def run(
    config: ConfigName,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the run; default results/<name>.")
    ] = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    threads: Threads = None,
    executor: Annotated[
        ExecutorName, typer.Option(help="This process, or workers on a Ray cluster.")
    ] = ExecutorName.inline,
    address: Annotated[
        str | None, typer.Option(help="Of a running Ray cluster; default: Ray on this machine.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_WORKERS, help="Jobs at a time on Ray; default: all there is room."
        ),
    ] = None,
    gpus_per_cell: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=MAX_GPUS,
            callback=_is_number,
            help="On Ray and CUDA; a fraction shares a GPU.",
        ),
    ] = None,
    stop_after: Annotated[
        StopAfter | None, typer.Option(help="Stop after training, or before the report.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, show the plan and how long it will take.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The plan, for other programs.")] = False,
    debug: Debug = False,
) -> int:
    """Train or load the models, attack them, and write tables, figures and a report page.

    Run the same command again to go on after an interruption: what is done is not done again.
    """
    from robust_ham.errors import RequestError

    loaded = _load_config(config, overrides, threads)
    folder = out or Path("results") / loaded.name
    _check_attacks_package()
    from robust_ham.runs.plan.plan import make_plan
    from robust_ham.runs.runner import choose_device, run_plan
    from robust_ham.storage.ownership import refuse_strangers
    from robust_ham.training import distributed

    if as_json and not dry_run:
        raise RequestError("--json: with --dry-run; `robust-ham status --json` tells of a run")
    refuse_strangers(folder)
    execute = _executor(executor, data_root, address, workers, gpus_per_cell)
    if distributed.launched() and stop_after != StopAfter.train:
        raise RequestError("torchrun is for training: add --stop-after train, then run without it")
    if not sys.stdout.isatty() and not distributed.launched() and not as_json:
        _say(f"{loaded.name}: {len(loaded.model_specs())} models, {len(loaded.attacks)} attacks")
    chosen = choose_device(device)
    plan = make_plan(loaded, data_root, attack=stop_after != StopAfter.train)
    if dry_run:
        _show_plan(plan, folder, chosen, as_json=as_json)
        return 0
    with distributed.joined(chosen) as own:
        if distributed.rank() > 0:
            run_plan(plan, folder, own)
            return 0
        return _run(plan, folder, own, execute, Path(config), report=stop_after is None)


def _run(
    plan: Plan,
    folder: Path,
    device: torch.device,
    execute: Executor,
    source: Path,
    *,
    report: bool,
) -> int:
    """Run a plan and say what came of it; the exit code."""
    from robust_ham.errors import RequestError
    from robust_ham.runs.runner import run_plan
    from robust_ham.storage.checksums import check_present, read_checksums
    from robust_ham.storage.run_folder import RunFolder
    from robust_ham.storage.run_logs import log_file

    run_folder = RunFolder(folder)
    with _work_folder(folder, plan.config.name):
        with log_file(run_folder.log), _monitor() as monitor:
            outcome = run_plan(plan, folder, device, monitor, execute, source)
        if outcome.num_failed:
            failed = f"{outcome.num_failed} of {len(plan.jobs)} jobs failed"
            _complain(f"{failed}: {run_folder.failures}")
        for line in outcome.distrusted:
            _complain(f"not to be trusted: {line}")
        try:
            if report:
                _report(folder)
        except RequestError:
            if not outcome.num_failed:  # else there is nothing to report, as just said
                raise
        finally:
            check_present(run_folder, ["config.yaml", *read_checksums(run_folder)])
    if outcome.num_failed:
        return EXIT_JOBS
    return EXIT_GATE if outcome.distrusted else 0


@app.command()
def report(
    run_dirs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders that `run` has written, or that hold such folders; or somebody else's "
            "per-image tables, .csv, .parquet or AttackBench's info.json, which make one folder "
            "together."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of tables; default results/<name>.")
    ] = None,
    export: Annotated[
        str | None,
        typer.Option(
            help="Also write, into the folder's export/, every figure as pdf, svg or png, or every "
            "table as latex or markdown."
        ),
    ] = None,
    width: Annotated[
        float | None,
        typer.Option(help="Of exported figures, in inches; default: what suits each."),
    ] = None,
    debug: Debug = False,
) -> int:
    """Rebuild summary, curves, figures and report.html from the per-image tables."""
    from robust_ham.analysis.importing.convert import folders_to_report
    from robust_ham.errors import RequestError
    from robust_ham.report.export import check_export
    from robust_ham.storage.run_folder import runs_below

    check_export(export, width)
    folders = folders_to_report(run_dirs, out)
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise RequestError(f"{missing[0]}: not a run folder (no such folder)")
    code = 0
    for folder in folders:
        runs = runs_below(folder)
        if not runs and len(folders) > 1:
            _complain(f"{folder}: no run with rows of attacks in it, left out")
            continue
        for run in runs or [folder]:  # a folder by itself is told what it lacks
            try:
                _report(run, export, width)
            except RequestError as error:
                code = _explain(error)
    return code


@app.command()
def status(
    run_dir: Annotated[Path, typer.Argument(help="Folder that `run` writes.")],
    watch: Annotated[bool, typer.Option("--watch", help="Until nobody is at work.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For other programs.")] = False,
    debug: Debug = False,
) -> None:
    """Jobs of a run: done, at work, failed, left; and how long the rest will take."""
    from robust_ham.runs.status import read_status

    before: list[str] = []
    while True:
        found = read_status(run_dir)
        if as_json:
            _say_json({"run": str(run_dir)} | found.as_dict())
        else:
            lines = list(found.lines(run_dir))
            if lines != before:
                _say(*lines)
            before = lines
        if not watch or not found.num_processes:
            return
        time.sleep(2)


@app.command()
def verify(
    run_dir: Annotated[Path, typer.Argument(help="Folder that `run` has written.")],
    cells: Annotated[int, typer.Option(min=0, max=MAX_JOBS, help="Attacks made once more.")] = 3,
    data_root: DataRoot = None,
    device: Device = "auto",
    debug: Debug = False,
) -> int:
    """Check files, tables and inputs, judge stored images again, make some attacks once more.

    Files are compared with the checksums in SHA256SUMS and in receipts; one that has changed, is
    missing or was added is a fault. Logs (run.log, timings.csv) have no checksum.
    """
    _check_attacks_package()
    import torch

    from robust_ham.analysis.run import Run
    from robust_ham.errors import RequestError
    from robust_ham.runs.plan.context import Context
    from robust_ham.runs.plan.plan import make_plan
    from robust_ham.runs.runner import choose_device
    from robust_ham.runs.verify import verify as checks
    from robust_ham.storage.run_folder import RunFolder

    chosen, folder = choose_device(device), RunFolder(run_dir)

    def context() -> Context:
        config = Run(folder).config
        torch.set_num_threads(config.evaluation.threads)
        return Context(make_plan(config, data_root), folder, chosen)

    code = 0
    try:
        for check in checks(folder, context, cells, _say):
            for line in check.lines():
                _say(line)
            for fault in check.faults:
                _complain(fault)
                code = EXIT_JOBS
    except RequestError as error:  # the data are not here: what has been found still counts
        explained = _explain(error)
        code = code or explained
    return code


@app.command()
def compare(
    run_dirs: Annotated[list[Path], typer.Argument(help="Two or more folders; the first is it.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; default results/compare/<names>.")
    ] = None,
    debug: Debug = False,
) -> None:
    """What changed between runs: configurations, and every network that both have."""
    from robust_ham.report.comparison import write_comparison

    names = "_".join(folder.resolve().name for folder in run_dirs)
    made = write_comparison(run_dirs, out or Path("results") / "compare" / names)
    _print_table(made.header, made.rows)
    _say("", f"comparison: {made.page}")


@app.command("list")
def list_(
    topic: Annotated[Topic | None, typer.Argument(help="Only this.")] = None,
    debug: Debug = False,
) -> None:
    """What there is: attacks, models, windows, data sets, configs, experiments, config keys."""
    if topic == Topic.schema:
        from robust_ham.config.experiment import Config

        _say_json(Config.model_json_schema(by_alias=True), indent=1)
        return
    _check_attacks_package()
    from robust_ham.cli.list import LISTINGS

    for name in [topic.value] if topic else [name for name in LISTINGS if name != Topic.keys]:
        rows = LISTINGS[name]()
        width = min(max((len(row[0]) for row in rows), default=0), 44)
        _say(name if topic is None else "")
        for left, right in rows:
            _say(f"  {left:<{width}}  {right}")
    if topic is None:
        _say("", "All config keys with their defaults: robust-ham list keys")


@app.command()
def doctor(data_root: DataRoot = None, debug: Debug = False) -> int:
    """Versions, devices and data sets; what is missing and how to get it."""
    _check_attacks_package()
    import torch

    from robust_ham.data.datasets import available
    from robust_ham.data.splits import KNOWN
    from robust_ham.runs.manifest import versions
    from robust_ham.training.train import resolve_precision

    for name, version in versions().items():
        _say(f"{name:<14}{version}")
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    _say(f"{'device':<14}{torch.cuda.get_device_name() if cuda else 'cpu (no CUDA device)'}")
    _say(f"{'threads':<14}{torch.get_num_threads()}")
    _say(f"{'precision':<14}{resolve_precision('auto', device)} for training, float32 for attacks")
    _say("data sets")
    for name, known in KNOWN.items():
        place = available(name, data_root)
        _say(f"  {name:<14}{place or 'not found; to get it: --data-root FOLDER, or ' + known.get}")
    return 0


@app.command()
def bench(
    config: ConfigName,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; default results/bench/<name>.")
    ] = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    threads: Threads = None,
    rounds: Annotated[
        int, typer.Option(min=1, max=MAX_ROUNDS, help="Times that each library is timed.")
    ] = 3,
    libraries: Annotated[
        str | None, typer.Option(help="Comma-separated; default: all that are installed.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Our attacks beside other libraries': same models, images, threads and process.

    Trains or loads the models of the config, then times each of its attacks that another library
    has too. Run the same command again to go on after an interruption.
    """
    loaded = _load_config(config, overrides, threads)
    folder = out or Path("results") / "bench" / (loaded.name.removeprefix("bench_") or loaded.name)
    _check_attacks_package()
    from robust_ham.errors import RequestError
    from robust_ham.experiments.benchmark import peer_libraries
    from robust_ham.experiments.benchmark.measure import measure_all
    from robust_ham.runs.plan.plan import make_plan
    from robust_ham.runs.runner import choose_device
    from robust_ham.storage.ownership import refuse_strangers
    from robust_ham.storage.run_folder import RunFolder
    from robust_ham.storage.run_logs import log_file

    refuse_strangers(folder)
    if RunFolder(folder).has_rows and not (folder / "bench.csv").is_file():
        raise RequestError(f"{folder}: holds attacks of a run; `bench` needs another folder")
    chosen_device = choose_device(device)
    versions = peer_libraries.installed()
    chosen = libraries.split(",") if libraries else list(versions)
    for name, hint in peer_libraries.INSTALL.items():
        if name not in versions and not libraries:
            _say(f"{name} is not installed, left out: {hint}")
    plan = make_plan(loaded, data_root, attack=False)
    with _work_folder(folder, loaded.name):
        with log_file(RunFolder(folder).log), _monitor() as monitor:
            table = measure_all(
                plan, folder, chosen_device, chosen, rounds, monitor, _say, Path(config)
            )
        from robust_ham.experiments.benchmark.report import build_benchmark

        made = build_benchmark(folder, table)
    _print_table(made.table.header, made.table.rows)
    _say("", f"benchmark: {made.page}")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A .pth, .pt, .ckpt or .safetensors file.")],
    network: Annotated[
        str,
        typer.Option(
            "--as",
            help="What it is, as a group under `models` of a config: cnn, or "
            "'{architecture: cnn, depth: 4, kernel_size: 7, window: hamming}'.",
        ),
    ],
    dataset: Annotated[
        str, typer.Option(help="Data of its clean accuracy: cifar10, or '{name: …, …}'.")
    ],
    key: Annotated[str | None, typer.Option(help="Which network of a file with several.")] = None,
    mean: Annotated[
        str | None, typer.Option(help="Normalisation it was trained with: 0.485,0.456,0.406.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="Same: 0.229,0.224,0.225.")] = None,
    accuracy: Annotated[
        float | None,
        typer.Option(min=0, max=1, callback=_is_number, help="As published; must be found again."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Collection; default results/imported/<dataset>.")
    ] = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Somebody else's checkpoint, in our layout: read without running its code, and measured.

    A config uses the network by `source: FOLDER`, the folder that this writes into.
    """
    from robust_ham.config.files import parse_dataset, parse_network, parse_numbers

    spec, data = parse_network("--as", network), parse_dataset("--dataset", dataset)
    folder = out or Path("results") / "imported" / Path(data.name).name
    _check_attacks_package()
    from robust_ham.data.datasets import Dataset
    from robust_ham.models.importing.convert import Request, import_checkpoint
    from robust_ham.runs.runner import choose_device

    request = Request(
        file,
        spec,
        key,
        parse_numbers("--mean", mean) if mean is not None else None,
        parse_numbers("--std", std) if std is not None else None,
        accuracy,
    )
    made = import_checkpoint(request, Dataset(data, data_root), folder, choose_device(device), _say)
    _say(f"{made.folder}: {'already there' if made.already_there else 'done'}")
    _say(f"in a config, under models: {made.group}")


_EXPERIMENT_LINES = "\n".join(f"  {name:<17}{e.about}" for name, e in EXPERIMENTS.items())


@app.command(
    help="An explanatory experiment: one figure and one table.\n\n"
    f"NAME is one of:\n\n\b\n{_EXPERIMENT_LINES}"
)
def explain(
    name: Annotated[str, typer.Argument(help="Which experiment.")],
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Look at a run's networks, not the zoo's: kernels, leakage."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; default results/explain/<name>.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=MAX_THREADS, help="CPU threads.")] = 2,
    debug: Debug = False,
) -> None:
    """Run one experiment, print its table and say where its figure is."""
    from robust_ham.experiments.explain import check
    from robust_ham.experiments.explain import explain as experiment

    check(name, run)
    _check_attacks_package()
    import torch

    torch.set_num_threads(threads)
    folder = out or Path("results") / "explain" / name
    made = experiment(name, folder, run)
    _print_table(made.header, made.rows)
    _say("", f"table and figure: {folder / name}.csv, .svg, .png")


def main() -> NoReturn:
    """Entry point: runs a verb and turns what it raises into one line and an exit code."""
    os.environ["PYTHONSAFEPATH"] = "1"  # processes that are started import nothing from here either
    prepare_streams()
    logging.raiseExceptions = False  # a log that cannot be written does not end in a traceback
    show_lines_of_others()
    try:
        signals.listen()
        try:
            code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        except Exception as error:
            if signals.exit_code() is not None:  # a library has turned a signal into an error
                raise
            code = _explain(error)
    except BaseException as error:
        code = error.code if isinstance(error, signals.Stopped) else signals.exit_code()
        if code is None:
            raise
        signals.end()
        _complain(signals.STOPPED)
    signals.end()
    code = code if isinstance(code, int) else 0
    if not flush_streams():
        code = code or EXIT_ENVIRONMENT
    sys.exit(code)


def _explain(error: Exception) -> int:
    """One line for what a user can mend, and its exit code; anything else is raised again."""
    from robust_ham.errors import RequestError

    if isinstance(error, RequestError) and not _debug:
        _complain(str(error))
        return EXIT_REQUEST
    if isinstance(error, ModuleNotFoundError) and not _debug:
        _complain(f"{error.name} is not installed: pip install {error.name}")
        return EXIT_ENVIRONMENT
    if isinstance(error, OSError) and not _debug:
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"{where}{error.strerror or error}")
        return EXIT_ENVIRONMENT
    usage = getattr(error, "format_message", None)  # wrong words on the command line
    if usage is None:
        raise error
    _complain(usage())
    return EXIT_REQUEST


def _say(*lines: str) -> None:
    """Print lines for people."""
    with standard_output():
        print("\n".join(map(printable, lines)), flush=True)


def _say_json(content: dict[str, Any], indent: int | None = None) -> None:
    """Print an object for other programs; JSON escapes all but printable ASCII."""
    with standard_output():
        print(json.dumps(content, indent=indent), flush=True)


def _complain(line: str) -> None:
    with contextlib.suppress(OSError):  # the exit code says it, too
        print(f"robust-ham: {printable(line)}", file=sys.stderr, flush=True)


def _check_attacks_package() -> None:
    """Refuse a foreign package called ``attacks``."""
    from robust_ham.errors import RequestError

    found = importlib.util.find_spec("attacks")
    origin = Path(found.origin).resolve() if found and found.origin else None
    expected = Path(__file__).resolve().parents[2] / "attacks" / "__init__.py"
    if origin != expected:
        raise RequestError(f"the package `attacks` is not robust-ham's: {origin or 'not found'}")


def _load_config(name: str, overrides: list[str] | None, threads: int | None) -> Config:
    from robust_ham.config.files import load_config

    extra = [f"evaluation.threads={threads}"] if threads else []
    return load_config(name, [*(overrides or []), *extra])


def _executor(
    name: ExecutorName,
    data_root: Path | None,
    address: str | None,
    workers: int | None,
    gpus_per_cell: float | None,
) -> Executor:
    from robust_ham.errors import RequestError
    from robust_ham.runs.runner import inline

    if gpus_per_cell is not None and gpus_per_cell > 1 and gpus_per_cell % 1:
        raise RequestError(f"--gpus-per-cell: above 1, a whole number, got {gpus_per_cell:g}")
    if name == ExecutorName.ray:
        from robust_ham.runs.ray_runner import on_ray

        return on_ray(data_root, address, workers, gpus_per_cell)
    if address is not None or workers or gpus_per_cell:
        raise RequestError(
            "--address, --workers, --gpus-per-cell: for --executor ray; without it, the same "
            "command in another terminal shares the work"
        )
    return inline


def _show_plan(plan: Plan, folder: Path, device: torch.device, *, as_json: bool) -> None:
    from robust_ham.progress import in_words
    from robust_ham.runs.estimate import expected_cost
    from robust_ham.runs.plan.context import Context
    from robust_ham.storage.run_folder import RunFolder

    config, context = plan.config, Context(plan, RunFolder(folder), device)
    if as_json:
        expected = expected_cost(context)
        content = {
            "run": str(folder),
            "cells": [job.name for job in plan.jobs],
            "seconds": {"training": expected.training, "attacks": expected.attacks},
            "training_flops": expected.training_flops,
        }
        _say_json(content)
        return
    for job in plan.jobs:
        _say(f"  {job.name}")
    _say(
        f"{len(plan.jobs)} jobs: {len(config.model_specs())} models, {len(config.attacks)} "
        f"attacks on {config.evaluation.num_images} images each, into {folder}"
    )
    expected = expected_cost(context)
    _say(
        f"what is left will take about {in_words(expected.training + expected.attacks)}: training "
        f"{in_words(expected.training)} ({expected.training_flops:.1e} floating-point operations), "
        f"attacks {in_words(expected.attacks)} (a short pass of each kind was measured now)"
    )


def _report(folder: Path, form: str | None = None, width: float | None = None) -> None:
    from robust_ham.analysis.tables import write_tables
    from robust_ham.report.export import export
    from robust_ham.report.page import write_page
    from robust_ham.report.verdict_table import claim_table
    from robust_ham.storage.working_folder import working_in

    with working_in(folder):
        tables = write_tables(folder)
        made = write_page(tables)
        exported = export(tables, form, width) if form is not None else []
    _print_table(made.header, made.rows)
    answers = [[claim["answer"], claim["statement"]] for claim in claim_table(tables.claims)]
    if answered := [row for row in answers if row[0] != "not run"]:
        _say("")
        _print_table(["answer", "statement"], answered)
    _say("", f"report: {made.page}")
    if form is not None:
        _say(f"export: {len(exported)} files in {folder / 'export'}")


_WORDS = (
    *("network", "window", "attack", "library", "layer", "filter", "measured", "contestant"),
    *("run", "measure", "note", "answer", "statement"),
)
"""Columns of words in printed tables; the others hold numbers."""


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def as_text(job: str) -> Text:  # rich reads markup and emoji in plain strings
        return Text(printable(job))

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        words = name in _WORDS
        table.add_column(as_text(name), justify="left" if words else "right")
    for row in rows:
        table.add_row(*map(as_text, row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    with standard_output():
        console.print(table)


@contextlib.contextmanager
def _work_folder(folder: Path, name: str) -> Iterator[None]:
    """Make a folder ours, unless it is somebody else's; it must stay the same one."""
    from robust_ham.storage.ownership import claim
    from robust_ham.storage.working_folder import working_in

    claim(folder, name)
    with working_in(folder):
        yield


@contextlib.contextmanager
def _monitor() -> Iterator[Monitor]:
    """Nested bars on a terminal, a line per job elsewhere."""
    from robust_ham.cli.progress import Bars, Lines

    if sys.stdout.isatty():
        with Bars() as bars:
            yield bars
    else:
        yield Lines(_say)
