"""All figures of a run, drawn, saved and captioned."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from robust_ham.analysis.mechanism import spectra, transfer_between_arms
from robust_ham.analysis.run import Run
from robust_ham.analysis.spatial_grids import spatial_grids
from robust_ham.analysis.tables import Tables
from robust_ham.regular_files import read_bytes
from robust_ham.report.figures import heat_maps, mechanism, robustness
from robust_ham.report.figures.gallery import gallery_figure
from robust_ham.report.figures.lines import AXES
from robust_ham.report.figures.panels import panels
from robust_ham.report.figures.rows import against
from robust_ham.report.figures.style import save_figure
from robust_ham.report.inline import inline_svg
from robust_ham.storage.checksums import record_files
from robust_ham.storage.files import MAX_CSV_BYTES

_NARROW = 7.2
"""Inches."""


class Section(enum.StrEnum):
    """Where on the page a figure stands; nowhere: the page shows the same in another way."""

    overview = "overview"
    curves = "curves"
    heat_maps = "heat maps"
    spectra = "spectra"
    causes = "causes"
    training = "training"
    nowhere = "nowhere"


class Drawing(NamedTuple):
    """A figure of a run; photographs have no SVG."""

    name: str
    figure: Figure
    caption: str
    section: Section
    description: str = ""
    """What it shows, for readers who do not see it; empty: the caption says enough."""
    svg: bool = True


@dataclass(frozen=True)
class Picture:
    """A figure on the page."""

    name: str
    caption: str
    description: str
    section: Section
    narrow: bool
    """Whether two can stand side by side."""
    content: Markup


def draw_pictures(tables: Tables) -> list[Picture]:
    """Write ``figures/`` of a run, and return what the page shows of it, in its order."""
    folder, pictures, files = tables.run.folder.figures, [], list[Path]()
    for drawn in drawings(tables):
        formats = ("png", "svg") if drawn.svg else ("png",)
        files += save_figure(drawn.figure, folder, drawn.name, formats)
        if drawn.section != Section.nowhere:
            content = inline_svg(read_bytes(folder / f"{drawn.name}.svg", MAX_CSV_BYTES))
            description = " ".join(filter(None, [drawn.caption, drawn.description]))
            narrow = drawn.figure.get_figwidth() <= _NARROW
            pictures.append(
                Picture(drawn.name, drawn.caption, description, drawn.section, narrow, content)
            )
    record_files(tables.run.folder, files)
    return pictures


def drawings(tables: Tables) -> Iterator[Drawing]:
    """All figures of a run, drawn."""
    run, curves = tables.run, tables.curves
    yield from _against_kernel_size(run, curves, tables.budgets)
    yield from _of_grids(run)
    yield from _of_causes(run, curves, tables.mechanisms)
    yield from _of_training_and_images(run)


def _against_kernel_size(
    run: Run, curves: pd.DataFrame, budgets: pd.DataFrame
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
        Section.overview,
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
            "The same figures against what else grows with k: the effective width of the nominal "
            "window and of the learned kernels, parameters, FLOPs. Numbers beside markers: k. A "
            "difference that vanishes on another axis is no effect of the window as such.",
            Section.nowhere,
        )
    for attack_id in run.attacks:
        title = robustness.attack_title(run, attack_id)
        if not (budgets["attack"] == attack_id).any():
            continue
        if (curves["attack"] == attack_id).any():  # else no arm is complete yet
            yield Drawing(
                f"metrics-{attack_id}",
                robustness.metrics_figure(run, curves, attack_id),
                f"{title}: all measures {across}. Intervals of medians, of ρ_adv and of the "
                "cosine are bootstrapped over seeds and images, approximate below 10 seeds. ρ_adv "
                "and the cosine are over fooled images only.",
                Section.nowhere,
            )
        yield Drawing(
            f"curves-{attack_id}",
            robustness.budget_figure(run, budgets, attack_id),
            f"{title}: share of all images still right within the budget. Lines: mean over seeds; "
            "bands: range of the seeds.",
            Section.curves,
            robustness.budgets_in_words(run, budgets, attack_id),
        )


def _of_grids(run: Run) -> Iterator[Drawing]:
    grids = spatial_grids(run)
    for attack_id in grids["attack"].unique():
        grid = grids[grids["attack"] == attack_id]
        what = (
            "by angle and by length of the shift (mean over its directions)"
            if heat_maps.turns(grid)
            else "by direction and length of the shift"
        )
        yield Drawing(
            f"grid-{attack_id}",
            heat_maps.heat_map_figure(grid),
            f"{robustness.attack_title(run, attack_id)}: share of the images right at first that a "
            f"transform fools, {what}. Means over seeds.",
            Section.heat_maps,
            heat_maps.in_words(grid),
        )


def _of_causes(run: Run, curves: pd.DataFrame, causes: pd.DataFrame) -> Iterator[Drawing]:
    by_band = mechanism.bands_figure(run, curves)
    if by_band is not None:
        yield Drawing(
            "bands",
            by_band,
            "Robust area under DeepFool whose steps are held to one band of frequencies; the bands "
            "are rings of the FFT of equal dimension. Farther: that band fools less. Clipping to "
            "[0, 1] moves a part of the energy out of the band (see the spectra).",
            Section.causes,
        )
    learned = mechanism.kernels_figure(run, causes)
    if learned is not None:
        yield Drawing(
            "kernels",
            learned,
            "Robustness of every model against what its learned kernels are like (means over "
            "layers of kernels.csv); larger marker: larger k. ρ: Spearman's rank correlation over "
            "all models, windows together; it describes, and proves no cause.",
            Section.causes,
        )
    spectrum = spectra(run)
    for attack_id in spectrum["attack"].unique():
        yield Drawing(
            f"spectra-{attack_id}",
            mechanism.spectra_figure(spectrum[spectrum["attack"] == attack_id]),
            f"{robustness.attack_title(run, attack_id)}: where in frequency the perturbations that "
            "fool lie. Mean over images and seeds of the energy per bin of the FFT; 1: white "
            "noise.",
            Section.spectra,
        )
    between_arms = transfer_between_arms(run)
    if len(between_arms):
        budget = run.transfer["budget"].iloc[0]
        yield Drawing(
            "transfer",
            mechanism.transfer_figure(between_arms),
            "Transfer: images made for the network of the row, rescaled to an L2 length of "
            f"{budget:g}, shown to the network of the column; share that fools it, of those that "
            "fooled the source and that the target gets right clean. Means over pairs of different "
            "seeds (with one seed: of different networks).",
            Section.causes,
        )


def _of_training_and_images(run: Run) -> Iterator[Drawing]:
    histories = _histories(run)
    if len(histories):
        yield Drawing(
            "training",
            robustness.training_figure(histories),
            "Loss and accuracy against epoch, means over seeds: on the augmented training images "
            "(mean over the epoch, dashed) and on the validation images (solid).",
            Section.training,
        )
    for attack_id in run.attacks:
        gallery = gallery_figure(run, attack_id)
        if gallery is not None:
            yield Drawing(
                f"gallery-{attack_id}",
                gallery,
                f"{robustness.attack_title(run, attack_id)}: fooled images. Above each: what the "
                "model sees; perturbations magnified as noted.",
                Section.nowhere,
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
