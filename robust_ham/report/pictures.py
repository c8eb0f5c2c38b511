"""All figures of a run, drawn, saved and captioned."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from robust_ham.analysis.mechanism import spectra, transfer_between_arms
from robust_ham.analysis.run import Run
from robust_ham.report import figures, mechanism
from robust_ham.report.gallery import gallery_figure
from robust_ham.report.style import save_figure


@dataclass(frozen=True)
class Picture:
    """A figure on the page."""

    name: str
    caption: str
    content: Markup


class _Drawn(NamedTuple):
    """A figure that is not saved yet; galleries have no SVG."""

    name: str
    figure: Figure
    caption: str
    svg: bool = True


def draw_pictures(
    run: Run, curves: pd.DataFrame, budgets: pd.DataFrame, causes: pd.DataFrame
) -> list[Picture]:
    """Write ``figures/`` of a run, and return what the page shows of it, in its order.

    ``curves`` are those against kernel size, ``budgets`` those against budget, ``causes`` what
    ``mechanisms.csv`` holds.
    """
    folder, pictures = run.folder.figures, []
    for drawn in (
        *_against_kernel_size(run, curves, budgets),
        *_of_causes(run, curves, causes),
        *_of_training_and_images(run),
    ):
        save_figure(drawn.figure, folder, drawn.name, svg=drawn.svg)
        content = _inline(folder, drawn.name, svg=drawn.svg)
        pictures.append(Picture(drawn.name, drawn.caption, content))
    return pictures


def _against_kernel_size(run: Run, curves: pd.DataFrame, budgets: pd.DataFrame) -> Iterator[_Drawn]:
    yield _Drawn(
        "robustness",
        figures.robustness_figure(run, curves),
        "Clean accuracy and robustness against kernel size. Large markers: mean over seeds; small "
        "points: single seeds; bars: 95 % intervals over seeds and images together (with one "
        "seed: over images, for that one model).",
    )
    if any(curves[name].notna().any() for name in mechanism.AXES if name != "kernel_size"):
        yield _Drawn(
            "axes",
            mechanism.axes_figure(run, curves),
            "The same figures against what else grows with k: the effective width of the nominal "
            "window and of the learned kernels, parameters, FLOPs. Numbers beside markers: k. A "
            "difference that vanishes on another axis is no effect of the window as such.",
        )
    for attack_id in run.attacks:
        title = figures.attack_title(run, attack_id)
        if not (budgets["attack"] == attack_id).any():
            continue
        if (curves["attack"] == attack_id).any():  # else no arm is complete yet
            yield _Drawn(
                f"metrics-{attack_id}",
                figures.metrics_figure(run, curves, attack_id),
                f"{title}: all measures against kernel size. Intervals of medians, of ρ_adv and of "
                "the cosine are bootstrapped over seeds and images, approximate below 10 seeds. "
                "ρ_adv and the cosine are over fooled images only.",
            )
        yield _Drawn(
            f"curves-{attack_id}",
            figures.budget_figure(run, budgets, attack_id),
            f"{title}: share of all images still right within the budget. Lines: mean over seeds; "
            "bands: range of the seeds.",
        )


def _of_causes(run: Run, curves: pd.DataFrame, causes: pd.DataFrame) -> Iterator[_Drawn]:
    by_band = mechanism.bands_figure(run, curves)
    if by_band is not None:
        yield _Drawn(
            "bands",
            by_band,
            "Robust area under DeepFool whose steps are held to one band of frequencies; the bands "
            "are rings of the FFT of equal dimension. Farther: that band fools less. Clipping to "
            "[0, 1] moves a part of the energy out of the band (spectra below).",
        )
    learned = mechanism.kernels_figure(run, causes)
    if learned is not None:
        yield _Drawn(
            "kernels",
            learned,
            "Robustness of every model against what its learned kernels are like (means over "
            "layers of kernels.csv); larger marker: larger k. ρ: Spearman's rank correlation over "
            "all models, windows together; it describes, and proves no cause.",
        )
    spectrum = spectra(run)
    for attack_id in spectrum["attack"].unique():
        yield _Drawn(
            f"spectra-{attack_id}",
            mechanism.spectra_figure(spectrum[spectrum["attack"] == attack_id]),
            f"{figures.attack_title(run, attack_id)}: where in frequency the perturbations that "
            "fool lie. Mean over images and seeds of the energy per bin of the FFT; 1: white "
            "noise.",
        )
    between_arms = transfer_between_arms(run)
    if len(between_arms):
        budget = run.transfer["budget"].iloc[0]
        yield _Drawn(
            "transfer",
            mechanism.transfer_figure(between_arms),
            "Transfer: images made for the network of the row, rescaled to an L2 length of "
            f"{budget:g}, shown to the network of the column; share that fools it, of those that "
            "fooled the source and that the target gets right clean. Means over pairs of different "
            "seeds (with one seed: of different networks).",
        )


def _of_training_and_images(run: Run) -> Iterator[_Drawn]:
    histories = _histories(run)
    if len(histories):
        yield _Drawn(
            "training",
            figures.training_figure(histories),
            "Loss and accuracy against epoch, means over seeds: on the augmented training images "
            "(mean over the epoch, dashed) and on the validation images (solid).",
        )
    for attack_id in run.attacks:
        gallery = gallery_figure(run, attack_id)
        if gallery is not None:
            yield _Drawn(
                f"gallery-{attack_id}",
                gallery,
                f"{figures.attack_title(run, attack_id)}: fooled images. Above each: what the "
                "model sees; perturbations magnified as noted.",
                svg=False,
            )


def _inline(folder: Path, name: str, *, svg: bool) -> Markup:
    """A figure as part of the page: SVG as it is, PNG in base64."""
    if svg:
        text = (folder / f"{name}.svg").read_text(encoding="utf-8")
        return Markup(text[text.index("<svg") :])
    content = base64.b64encode((folder / f"{name}.png").read_bytes()).decode()
    return Markup('<img alt="" src="data:image/png;base64,{}">').format(content)


def _histories(run: Run) -> pd.DataFrame:
    tables = []
    for spec in run.specs:
        table = run.history(spec.model_id)
        if table is not None:
            tables.append(
                table.assign(
                    family=spec.family,
                    window=spec.window,
                    kernel_size=spec.kernel_size,
                    seed=spec.seed,
                )
            )
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
