"""The explanatory experiments behind ``robust-ham explain``: a table and a figure each.

Light to import: an experiment's module, and torch with it, is imported when it is run. A module has
one function ``explain`` (with the run folder, where the experiment can take one); a new experiment
is a module and a line of ``EXPERIMENTS``.
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
    """What an experiment shows, and whether it can look at a run's networks."""

    about: str
    takes_run: bool = False


EXPERIMENTS = {
    "tapering": Experiment("a learned 7×7 slice times the window, in space and in frequency"),
    "truncated-gabor": Experiment("a band-pass filter cut to 49×49, to 7×7, and tapered"),
    "fft-prediction": Experiment("one convolution learns an FFT's magnitude: what leaks"),
    "kernels": Experiment("learned first-layer kernels and their spectra, side by side", True),
    "cost": Experiment("measured time and FLOPs against k, and what a window costs"),
    "leakage": Experiment("side lobes, bandwidth and edges of all learned kernels", True),
    "convergence": Experiment(
        "median DeepFool norm against steps, overshoot, candidates, pruning, precision"
    ),
}


@dataclass(frozen=True)
class Explained:
    """What an experiment has found: its table, its figure, and the short table to print."""

    table: pd.DataFrame
    figure: Figure
    header: list[str]
    rows: list[list[str]]


def check(name: str, run: Path | None = None) -> None:
    """Refuse a name that is none, and a run where the experiment takes none.

    Raises:
        RequestError: names what there is.
    """
    from robust_ham.errors import RequestError

    if name not in EXPERIMENTS:
        raise RequestError(f"explain: expected one of {', '.join(EXPERIMENTS)}, got {name!r}")
    if run is not None and not EXPERIMENTS[name].takes_run:
        able = " and ".join(other for other, e in EXPERIMENTS.items() if e.takes_run)
        raise RequestError(f"explain {name}: takes no --run; {able} do")


def explain(name: str, folder: Path, run: Path | None = None) -> Explained:
    """Run an experiment and write ``name``.csv, .svg and .png into ``folder``.

    What it says of a statement of the reference works is written to ``claims.csv``.

    Args:
        name: one of ``EXPERIMENTS``.
        folder: made if it is not there.
        run: a run folder whose networks are looked at; None: those of the zoo.

    Raises:
        RequestError: as ``check``; a run folder that is not one, is damaged, or holds nothing to
            look at; or ``folder`` holds files of others.
    """
    check(name, run)
    from robust_ham.analysis.claims.answers import answer_experiment
    from robust_ham.report.figures.style import save_figure
    from robust_ham.storage.files import write_csv
    from robust_ham.storage.ownership import claim, refuse_strangers

    earlier = [f"{name}.{kind}" for kind in ("csv", "svg", "png")] + ["claims.csv"]
    refuse_strangers(folder, "explain", earlier)
    module = importlib.import_module(f"robust_ham.experiments.explain.{name.replace('-', '_')}")
    made: Explained = module.explain(run) if EXPERIMENTS[name].takes_run else module.explain()
    claim(folder, name, "explain", earlier)
    write_csv(folder / f"{name}.csv", made.table)
    save_figure(made.figure, folder, name)
    answers = answer_experiment(name, made.table)
    if len(answers):
        write_csv(folder / "claims.csv", answers)
    return made
