"""The experiments of ``robust-ham explain``: a table and a figure each.

An experiment's module, and torch with it, is imported only when it runs. Each module has a
function ``explain``, which takes a run folder if ``takes_run`` is set. To add an experiment, add a
module and a line to ``EXPERIMENTS``.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Experiment:
    """What an experiment shows, its module, and whether it can use the networks of a run."""

    about: str
    module: str
    takes_run: bool = False


EXPERIMENTS = {
    "tapering": Experiment(
        "a learned 7×7 slice times the window, in space and in frequency", "tapering"
    ),
    "truncated-gabor": Experiment(
        "a band-pass filter cut to 49×49, to 7×7, and tapered", "truncated_gabor"
    ),
    "fft-prediction": Experiment(
        "one convolution learns an FFT's magnitude: spectral leakage", "fft_prediction"
    ),
    "kernels": Experiment(
        "learned first-layer kernels and their spectra, side by side", "first_layer", True
    ),
    "cost": Experiment("measured time and FLOPs against k, and the cost of a window", "cost"),
    "leakage": Experiment(
        "side lobes, bandwidth and edges of all learned kernels", "leakage", True
    ),
    "convergence": Experiment(
        "median DeepFool norm against steps, overshoot, candidates, pruning, precision",
        "convergence",
    ),
}


@dataclass(frozen=True)
class Explained:
    """The result of an experiment: its table, its figure, and a short table to print."""

    table: pd.DataFrame
    figure: Figure
    header: list[str]
    rows: list[list[str]]


def check(name: str, run: Path | None = None) -> None:
    """Check the name of an experiment, and that it takes a run if one is given.

    Raises:
        RequestError: unknown experiment, or it takes no run.
    """
    from robust_ham.config.suggestions import did_you_mean
    from robust_ham.errors import RequestError

    if name not in EXPERIMENTS:
        hint = did_you_mean(name, EXPERIMENTS)
        raise RequestError(f"explain: expected one of {', '.join(EXPERIMENTS)}, got {name!r}{hint}")
    if run is not None and not EXPERIMENTS[name].takes_run:
        names = " and ".join(other for other, e in EXPERIMENTS.items() if e.takes_run)
        raise RequestError(f"explain {name}: takes no --run; only {names} do")


def explain(name: str, folder: Path, run: Path | None = None) -> Explained:
    """Run an experiment and write ``name``.csv, .svg and .png into ``folder``.

    Write its answers to claims of the reference works, if any, to ``claims.csv``.

    Args:
        name: one of ``EXPERIMENTS``.
        folder: created if missing.
        run: the run folder whose networks to use; None: the zoo.

    Raises:
        RequestError: as ``check``; not a run folder, a damaged one, or one without networks; or
            ``folder`` holds files that are not this experiment's.
    """
    check(name, run)
    from robust_ham.analysis.claims.answers import answer_experiment
    from robust_ham.report.figures.style import save_figure
    from robust_ham.storage.files import write_csv
    from robust_ham.storage.output_folder import claim, refuse_strangers

    earlier = [f"{name}.{kind}" for kind in ("csv", "svg", "png")] + ["claims.csv"]
    refuse_strangers(folder, "explain", earlier)
    experiment = EXPERIMENTS[name]
    module = importlib.import_module(f"robust_ham.experiments.explain.{experiment.module}")
    result: Explained = module.explain(run) if experiment.takes_run else module.explain()
    claim(folder, name, "explain", earlier)
    write_csv(folder / f"{name}.csv", result.table)
    save_figure(result.figure, folder, name)
    answers = answer_experiment(name, result.table)
    if len(answers):
        write_csv(folder / "claims.csv", answers)
    return result
