"""Read the results of a run in Python: ``open_run``."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from robust_ham.analysis.contrasts import compare_windows, contrasts, measures
from robust_ham.analysis.curves import budget_curves, kernel_size_curves
from robust_ham.analysis.run import Run
from robust_ham.analysis.summary import summarise
from robust_ham.config.experiment import Config
from robust_ham.config.suggestions import did_you_mean
from robust_ham.errors import RequestError, list_names
from robust_ham.report.figures.robustness import metric_figure
from robust_ham.storage.run_folder import RunFolder


def open_run(folder: str | Path) -> Results:
    """Open the folder of a run, finished or not, to read its results.

    Args:
        folder: the run folder, for instance ``results/quickstart``.

    Returns:
        The ``Results`` of the run.

    Raises:
        RequestError: not a run folder.

    Example:
        >>> from robust_ham import open_run
        >>> run = open_run("results/fashion_mnist_zoo")
        >>> len(run.samples)  # 30 models, 1,000 images, several attacks
        138000
        >>> rows = run.compare("hamming", "none", "robust_area", "deepfool_l2")
        >>> dict(zip(rows["kernel_size"], rows["verdict"]))
        {3: 'undecided', 5: 'worse', 7: 'worse', 9: 'worse', 11: 'worse'}
    """
    run = Run(RunFolder(Path(folder)))
    _ = run.config  # raises if this is not a run folder
    return Results(run)


class Results:
    """The results of a run as tables, of models and attacks whose jobs are finished.

    Everything is read, checked and computed when it is first used, and then kept. Properties raise
    ``RequestError`` if a file is damaged.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def __repr__(self) -> str:
        return f"open_run({str(self._run.folder.root)!r})"

    @property
    def config(self) -> Config:
        """The configuration."""
        return self._run.config

    @cached_property
    def models(self) -> pd.DataFrame:
        """A row per model: ``model_id family window kernel_size seed test_accuracy params flops``.

        ``test_accuracy`` is over the whole test split; ``flops`` are of one image.
        """
        measured = ["test_accuracy", "params", "flops"]
        rows = [
            {
                "model_id": spec.model_id,
                "family": spec.family,
                "window": spec.window,
                "kernel_size": spec.kernel_size,
                "seed": spec.seed,
                **{name: self._run.cards[spec.model_id].get(name) for name in measured},
            }
            for spec in self._run.specs
        ]
        columns = ["model_id", "family", "window", "kernel_size", "seed", *measured]
        return pd.DataFrame(rows, columns=columns).fillna(np.nan).infer_objects()  # None: unknown

    @cached_property
    def samples(self) -> pd.DataFrame:
        """A row per model, attack and image, as ``evaluate`` returns them, with ``attack``.

        Distances ``l2`` and ``linf`` are in units of pixel values in [0, 1]; 0: misclassified
        without attack; ∞: survived an attack that looks for the smallest distance.
        """
        tables = [
            table.assign(model_id=model_id, attack=attack_id)
            for (model_id, attack_id), table in self._run.samples.items()
            if attack_id in self.config.attacks  # not the best of several
        ]
        if not tables:
            return pd.DataFrame(columns=["model_id", "attack"])
        joined = pd.concat(tables, ignore_index=True)
        first = ["model_id", "attack"]
        return joined[[*first, *(name for name in joined if name not in first)]]

    @cached_property
    def summary(self) -> pd.DataFrame:
        """A row per model and attack: ``summary.csv``."""
        return summarise(self._run)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """Robust accuracy against budget: ``curves.csv``."""
        return budget_curves(self._run)

    @cached_property
    def contrasts(self) -> pd.DataFrame:
        """Effects of windows, with intervals and verdicts: ``contrasts.csv``."""
        return contrasts(self._run)

    @property
    def gate(self) -> pd.DataFrame:
        """The findings of the reliability checks: ``gate.csv``; empty if they have not run."""
        return self._run.gate

    def plot(self, metric: str, attack: str = "") -> Figure:
        """Draw a metric against kernel size, with 95 % intervals over seeds and images.

        Args:
            metric: such as ``robust_area``, ``robust_accuracy`` or ``median_l2``.
            attack: its id in the configuration, or ``best`` or ``best_linf``, the best of several
                minimum-norm attacks; empty for ``clean_accuracy``, which is without an attack.

        Returns:
            The figure: ``figure.savefig("robust_area.pdf")``.

        Raises:
            RequestError: no model has this metric, or the run has no such attack.
        """
        curves = self._by_kernel_size
        _check_measured(set(zip(curves["attack"], curves["metric"], strict=True)), attack, metric)
        return metric_figure(self._run, curves, attack, metric)

    def compare(
        self,
        window: str,
        baseline: str,
        metric: str,
        attack: str = "",
        *,
        budget: float | None = None,
    ) -> pd.DataFrame:
        """Compare two windows at every kernel size, paired by seed and image.

        Args:
            window: name of a window; ``none``: no window.
            baseline: name of the window to compare with.
            metric: a value of the column ``metric`` of ``contrasts``.
            attack: as for ``plot``.
            budget: distance at which robust accuracy is compared; None: the attack's ``budget``.

        Returns:
            A row per family and kernel size that both windows have, in the columns of
            ``contrasts``. Intervals ``low`` and ``high`` are at 95 %; simultaneous intervals and
            Holm's p cover the kernel sizes of a family.

        Raises:
            RequestError: the run has no such window, metric or attack.
        """
        for name in (window, baseline):
            _check_name("window", name, set(self.models["window"]))
        if window == baseline:
            raise RequestError(f"window: expected two different windows, got {window!r} twice")
        known = {(measure.attack_id, measure.metric.id) for measure in measures(self._run)}
        _check_measured(known, attack, metric)
        return compare_windows(self._run, window, baseline, metric, attack, budget)

    @cached_property
    def _by_kernel_size(self) -> pd.DataFrame:
        return kernel_size_curves(self._run)


def _check_measured(known: set[tuple[str, str]], attack: str, metric: str) -> None:
    """Refuse an attack or metric that is not among the ``known`` (attack, metric)."""
    attacks = sorted(name for name, other in known if other == metric)
    if attack:
        _check_name("attack", attack, {name for name, _ in known} - {""})
        if attacks == [""]:
            raise RequestError(f"{metric}: expected no attack, got {attack!r}")
    elif attacks and "" not in attacks:
        raise RequestError(f"{metric}: expected an attack too: {list_names(attacks)}")
    _check_name("metric", metric, {other for name, other in known if name == attack})


def _check_name(what: str, name: object, known: Collection[str]) -> None:
    if name in known:
        return
    if not known:
        raise RequestError(f"{what}: got {name!r}, but this run has no results yet")
    hint = did_you_mean(name, known) or f"; expected {list_names(sorted(known))}"
    raise RequestError(f"{what}: not available here: {name!r}{hint}")
