"""The catalogue of a run's figures, with captions."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from robust_ham.analysis.mechanism import spatial_grids, spectra, transfer_between_arms
from robust_ham.analysis.run import Run
from robust_ham.analysis.tables import Tables
from robust_ham.report.figures import heat_maps, mechanism, robustness
from robust_ham.report.figures.gallery import gallery_figure
from robust_ham.report.figures.labels import attack_titles
from robust_ham.report.figures.lines import AXES
from robust_ham.report.figures.panels import panels
from robust_ham.report.figures.rows import against


class PageSection(enum.StrEnum):
    """The section of the page that shows a figure; nowhere: the page shows the data otherwise."""

    overview = "overview"
    curves = "curves"
    heat_maps = "heat maps"
    spectra = "spectra"
    causes = "causes"
    training = "training"
    nowhere = "nowhere"


class Drawing(NamedTuple):
    """A figure of a run; galleries of images have no SVG."""

    name: str
    figure: Figure
    caption: str
    section: PageSection
    description: str = ""
    """What the figure shows, for screen readers; empty: the caption is enough."""
    svg: bool = True


def drawings(tables: Tables) -> Iterator[Drawing]:
    """Draw all figures of a run."""
    run, curves, titles = tables.run, tables.curves, attack_titles(tables.run)
    yield from _draw_robustness(run, curves, tables.budgets, titles)
    yield from _draw_grids(run, titles)
    yield from _draw_explanations(run, curves, tables.mechanisms, titles)
    yield from _draw_training_and_images(run, titles)


def _draw_robustness(
    run: Run, curves: pd.DataFrame, budgets: pd.DataFrame, titles: dict[str, str]
) -> Iterator[Drawing]:
    headline = [panel[:2] for panel in robustness.primary_panels(run, curves)]
    if not headline:  # no arm is complete yet
        return
    across = against(run, "kernel_size")
    yield Drawing(
        "robustness",
        robustness.robustness_figure(run, curves),
        f"Clean accuracy and robustness {across}. Large markers: mean over seeds; small points: "
        "single seeds; bars: 95 % intervals over seeds and images together (with one seed: over "
        "images, for that one model).",
        PageSection.overview,
        " ".join(
            f"{p.caption}: {p.description}."
            for p in panels(run, curves)
            if p.axis == "kernel_size" and (p.attack, p.metric) in headline
        ),
    )
    if any(curves[name].notna().any() for name in AXES if name != "kernel_size"):
        yield Drawing(
            "axes",
            mechanism.axes_figure(run, curves),
            "The same measures against other quantities that grow with k: the effective widths of "
            "the nominal window and of the learned kernels, the number of parameters, and the "
            "FLOPs. Numbers beside markers: k. A difference that vanishes on another axis is not "
            "due to the window itself.",
            PageSection.nowhere,
        )
    for attack_id in run.attacks:
        title = titles[attack_id]
        if not (budgets["attack"] == attack_id).any():
            continue
        if (curves["attack"] == attack_id).any():  # else no arm is complete yet
            yield Drawing(
                f"metrics-{attack_id}",
                robustness.metrics_figure(run, curves, attack_id),
                f"{title}: all measures {across}. Intervals of medians, ρ_adv and the cosine are "
                "bootstrapped over seeds and images, and approximate for fewer than 10 seeds. "
                "ρ_adv and the cosine are over fooled images only.",
                PageSection.nowhere,
            )
        yield Drawing(
            f"curves-{attack_id}",
            robustness.budget_figure(run, budgets, attack_id),
            f"{title}: share of all images still correctly classified within the budget. Lines: "
            "mean over seeds; bands: range over seeds.",
            PageSection.curves,
            robustness.budgets_in_words(run, budgets, attack_id),
        )


def _draw_grids(run: Run, titles: dict[str, str]) -> Iterator[Drawing]:
    grids = spatial_grids(run)
    for attack_id in grids["attack"].unique():
        grid = grids[grids["attack"] == attack_id]
        axes = (
            "by angle and by length of the shift (mean over its directions)"
            if heat_maps.turns(grid)
            else "by direction and length of the shift"
        )
        yield Drawing(
            f"grid-{attack_id}",
            heat_maps.heat_map_figure(grid),
            f"{titles[attack_id]}: share of the correctly classified images "
            f"that a transform fools, {axes}. Means over seeds.",
            PageSection.heat_maps,
            heat_maps.grids_in_words(grid),
        )


def _draw_explanations(
    run: Run, curves: pd.DataFrame, mechanisms: pd.DataFrame, titles: dict[str, str]
) -> Iterator[Drawing]:
    by_band = mechanism.bands_figure(run, curves)
    if by_band is not None:
        yield Drawing(
            "bands",
            by_band,
            "Robust area under DeepFool with steps restricted to one band of frequencies; the "
            "bands are rings of the FFT of equal dimension. The larger the area, the less easily "
            "perturbations in the band fool the network. Clipping to [0, 1] moves part of the "
            "energy out of the band (see the spectra).",
            PageSection.causes,
        )
    by_kernels = mechanism.kernels_figure(run, mechanisms)
    if by_kernels is not None:
        yield Drawing(
            "kernels",
            by_kernels,
            "Robustness of every model against properties of its learned kernels (means over "
            "layers, kernels.csv). Larger marker: larger k. ρ: Spearman's rank correlation over "
            "all models and windows; a correlation does not prove a cause.",
            PageSection.causes,
        )
    spectrum = spectra(run)
    for attack_id in spectrum["attack"].unique():
        yield Drawing(
            f"spectra-{attack_id}",
            mechanism.spectra_figure(spectrum[spectrum["attack"] == attack_id]),
            f"{titles[attack_id]}: frequencies of the perturbations of "
            "fooled images. Mean energy per FFT bin over images and seeds; 1: white noise.",
            PageSection.spectra,
        )
    between_arms = transfer_between_arms(run)
    if len(between_arms):
        budget = run.transfer["budget"].iloc[0]
        yield Drawing(
            "transfer",
            mechanism.transfer_figure(between_arms),
            "Transfer: adversarial images of the row's network (source), with perturbations "
            f"rescaled to an L2 norm of {budget:g}, classified by the column's network (target). "
            "Share that fools the target, among the images that fooled the source and that the "
            "target classifies correctly when clean. Means over pairs of different seeds (with one "
            "seed: of different networks).",
            PageSection.causes,
        )


def _draw_training_and_images(run: Run, titles: dict[str, str]) -> Iterator[Drawing]:
    histories = _histories(run)
    if len(histories):
        yield Drawing(
            "training",
            robustness.training_figure(histories),
            "Loss and accuracy against epoch, means over seeds: on the augmented training images "
            "(mean over the epoch, dashed) and on the validation images (solid).",
            PageSection.training,
        )
    for attack_id in run.attacks:
        gallery = gallery_figure(run, attack_id)
        if gallery is not None:
            yield Drawing(
                f"gallery-{attack_id}",
                gallery,
                f"{titles[attack_id]}: fooled images. Above each: the "
                "predicted class; perturbations magnified as noted.",
                PageSection.nowhere,
                svg=False,
            )


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
