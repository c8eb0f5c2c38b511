"""Everything that is made from a run's tables: summary, curves, figures and one HTML page."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from robust_ham.analysis.checkpoint_pairs import checkpoint_pairs
from robust_ham.analysis.claims import answer_claims
from robust_ham.analysis.contrasts import contrasts
from robust_ham.analysis.curves import budget_curves, kernel_size_curves, summarise
from robust_ham.analysis.mechanism import mechanisms, spectra, transfer_between_arms
from robust_ham.analysis.run import Run
from robust_ham.config import RequestError
from robust_ham.report import figures, mechanism
from robust_ham.report.gallery import gallery_figure
from robust_ham.report.style import WINDOW_LABELS, save_figure
from robust_ham.report.verdict_table import claim_table, verdict_table
from robust_ham.store import (
    MAX_TEXT_BYTES,
    RunFolder,
    check_size,
    parse_json,
    read_json,
    reading,
    write_csv,
    write_text,
)

_TABLE_COLUMNS = {
    "model_id": "model",
    "attack": "attack",
    "n": "n",
    "test_accuracy": "test accuracy",
    "clean_accuracy": "clean accuracy (n)",
    "budget": "budget",
    "robust_accuracy": "robust accuracy",
    "robust_area": "robust area",
    "fooled_rate": "fooled rate",
    "median_l2": "median L2",
    "rho_adv": "ρ_adv",
    "normal_cosine": "cosine to the normal",
    "optimality": "optimality",
    "effective_width_learned": "learned width",
    "params": "parameters",
    "forwards": "forwards",
    "backwards": "backwards",
    "gate": "gate",
}
_PERCENT = {"test_accuracy", "clean_accuracy", "robust_accuracy", "fooled_rate"}


@dataclass(frozen=True)
class Picture:
    """A figure on the page."""

    name: str
    caption: str
    content: Markup


@dataclass(frozen=True)
class Report:
    """What ``build_report`` has made: the page, and its headline table."""

    page: Path
    header: list[str]
    rows: list[list[str]]


def build_report(folder: Path) -> Report:
    """Write the tables that are made from others, ``figures/`` and ``report.html``.

    These are ``summary.csv``, ``curves.csv``, ``contrasts.csv``, ``checkpoints.csv``,
    ``claims.csv`` and ``mechanisms.csv``.

    Raises:
        RequestError: not a run folder, a damaged table, or nothing to report yet.
    """
    run = Run(RunFolder(folder))
    run.folder.refuse_links()
    summary = summarise(run)
    if summary.empty:
        raise RequestError(f"{folder}: no attack has been evaluated yet; run it first")
    budgets = budget_curves(run)
    curves = kernel_size_curves(run)
    write_csv(run.folder.summary, summary)
    write_csv(run.folder.curves, budgets)
    effects = contrasts(run)
    write_csv(run.folder.contrasts, effects)
    write_csv(run.folder.checkpoints, checkpoint_pairs(run))
    answers = answer_claims(run)
    write_csv(run.folder.claims, answers)
    causes = mechanisms(run)
    write_csv(run.folder.mechanisms, causes)
    pictures = _pictures(run, curves, budgets, causes)
    made = Report(run.folder.report, *_arm_table(run, curves))
    verdicts = verdict_table(run, effects)
    write_text(made.page, _page(run, summary, made, verdicts, claim_table(answers), pictures))
    return made


def _pictures(
    run: Run, curves: pd.DataFrame, budgets: pd.DataFrame, causes: pd.DataFrame
) -> list[Picture]:
    folder = run.folder.figures
    pictures = []

    def keep(figure: Figure, name: str, caption: str, *, svg: bool = True) -> None:
        save_figure(figure, folder, name, svg=svg)
        pictures.append(Picture(name, caption, _inline(folder, name, svg=svg)))

    keep(
        figures.robustness_figure(run, curves),
        "robustness",
        "Clean accuracy and robustness against kernel size. Large markers: mean over seeds; small "
        "points: single seeds; bars: 95 % intervals over seeds and images together (with one "
        "seed: over images, for that one model).",
    )
    keep(
        mechanism.axes_figure(run, curves),
        "axes",
        "The same figures against what else grows with k: the effective width of the nominal "
        "window and of the learned kernels, parameters, FLOPs. Numbers beside markers: k. A "
        "difference that vanishes on another axis is no effect of the window as such.",
    )
    distance_attacks = [a for a in run.attacks if (budgets["attack"] == a).any()]
    for attack_id in distance_attacks:
        title = figures.attack_title(run, attack_id)
        if (curves["attack"] == attack_id).any():  # else no arm is complete yet
            keep(
                figures.metrics_figure(run, curves, attack_id),
                f"metrics-{attack_id}",
                f"{title}: all measures against kernel size. Intervals of medians, of ρ_adv and of "
                "the cosine are bootstrapped over seeds and images, approximate below 10 seeds. "
                "ρ_adv and the cosine are over fooled images only.",
            )
        keep(
            figures.budget_figure(run, budgets, attack_id),
            f"curves-{attack_id}",
            f"{title}: share of all images still right within the budget. Lines: mean over seeds; "
            "bands: range of the seeds.",
        )
    by_band = mechanism.bands_figure(run, curves)
    if by_band is not None:
        keep(
            by_band,
            "bands",
            "Robust area under DeepFool whose steps are held to one band of frequencies; the bands "
            "are rings of the FFT of equal dimension. Farther: that band fools less.",
        )
    learned = mechanism.kernels_figure(run, causes)
    if learned is not None:
        keep(
            learned,
            "kernels",
            "Robustness of every model against what its learned kernels are like (means over "
            "layers of kernels.csv); larger marker: larger k. ρ: Spearman's rank correlation over "
            "all models, windows together; it describes, and proves no cause.",
        )
    spectrum = spectra(run)
    for attack_id in spectrum["attack"].unique():
        keep(
            mechanism.spectra_figure(spectrum[spectrum["attack"] == attack_id]),
            f"spectra-{attack_id}",
            f"{figures.attack_title(run, attack_id)}: where in frequency the perturbations "
            "that fool lie. Mean over images and seeds of the energy per bin of the FFT; 1: white "
            "noise.",
        )
    passed_on = transfer_between_arms(run)
    if len(passed_on):
        budget = run.transfer["budget"].iloc[0]
        keep(
            mechanism.transfer_figure(passed_on),
            "transfer",
            f"Transfer: images made for the network of the row, rescaled to an L2 length of "
            f"{budget:g}, shown to the network of the column; share that fools it, of those that "
            "fooled the source and that the target gets right clean. Means over pairs of different "
            "seeds (with one seed: of different networks).",
        )
    histories = _histories(run)
    if len(histories):
        keep(
            figures.training_figure(histories),
            "training",
            "Loss and accuracy against epoch, means over seeds: on the augmented training images "
            "(mean over the epoch, dashed) and on the validation images (solid).",
        )
    for attack_id in run.attacks:
        figure = gallery_figure(run, attack_id)
        if figure is not None:
            caption = f"{figures.attack_title(run, attack_id)}: fooled images. "
            caption += "Above each: what the model sees; perturbations magnified as noted."
            keep(figure, f"gallery-{attack_id}", caption, svg=False)
    return pictures


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


def _page(
    run: Run,
    summary: pd.DataFrame,
    made: Report,
    verdicts: list[dict[str, str]],
    answers: list[dict[str, Any]],
    pictures: list[Picture],
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html.j2").render(
        config=run.config,
        config_yaml=run.config.to_yaml(),
        num_images=int(summary["n"].max()),
        num_models=summary["model_id"].nunique(),
        num_expected=sum(
            attack.attacks(spec)
            for spec in run.config.model_specs()
            for attack in run.config.attacks.values()
        ),
        num_found=sum(attack in run.config.attacks for _, attack in run.samples),
        arms=made,
        verdicts=verdicts,
        answers=[answer for answer in answers if answer["answer"] != "not run"],
        not_run=[answer["statement"] for answer in answers if answer["answer"] == "not run"],
        notes=list(dict.fromkeys(row["note"] for row in verdicts if row["note"])),
        interaction=run.config.interaction,
        has_endpoints=bool(run.config.endpoints),
        header=list(_TABLE_COLUMNS.values()),
        rows=[
            [_cell(row[name], name) for name in _TABLE_COLUMNS]
            for row in summary.to_dict(orient="records")
        ],
        pictures=pictures,
        manifest=_manifest(run.folder.manifest),
        failures=_failures(run.folder.failures),
        gate_ran=run.folder.gate.is_file(),
        distrusted=run.gate[run.gate["severity"] != "pass"].to_dict(orient="records"),
    )


def _manifest(path: Path) -> dict[str, Any] | None:
    """What the page says of a manifest, if there is one."""
    if not path.is_file():
        return None
    with reading(path):
        content = read_json(path)
        data = content["dataset"]
        return {
            "versions": dict(content["versions"]),
            "git_commit": content["git_commit"],
            "device": content["device"],
            "threads": content["threads"],
            "dataset": {"name": data["name"], "sha256": dict(data["sha256"])},
        }


def _failures(path: Path) -> list[dict[str, Any]]:
    """What the page says of cells that failed."""
    if not path.is_file():
        return []
    with reading(path):
        check_size(path, MAX_TEXT_BYTES)
        lines = path.read_text(encoding="utf-8").splitlines()
        return [{"cell": "", "reason": ""} | parse_json(line) for line in lines]


def _cell(value: Any, name: str) -> str:  # noqa: ANN401
    """A number as the page shows it."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "–"
    if isinstance(value, str):
        return value
    if np.isinf(value):
        return "∞" if value > 0 else "−∞"
    if name in _PERCENT:
        return f"{100 * value:.1f} %"
    if float(value).is_integer():
        return f"{int(value):,}".replace(",", "\u202f")
    return f"{value:.3g}"


def _arm_table(run: Run, curves: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the headline table: kernel size and window by primary metric."""
    wanted = [(attack_id, metric) for attack_id, metric, _ in figures.primary_panels(run, curves)]
    header = ["network", "k", "window", "seeds"]
    for attack_id, metric in wanted:
        title = figures.attack_title(run, attack_id) if attack_id else "clean images"
        header.append(f"{title}: {figures.metric_label(run, attack_id, metric)}")
    rows = []
    arms = curves.groupby(["family", "kernel_size", "window"], sort=False)
    for (family, size, window), arm in arms:
        row = [str(family), str(size), WINDOW_LABELS[str(window)], str(arm["num_seeds"].iloc[0])]
        for attack_id, metric in wanted:
            found = arm[(arm["attack"] == attack_id) & (arm["metric"] == metric)]
            row.append(_interval(found.iloc[0], metric) if len(found) else "–")
        rows.append(row)
    return header, rows


def _interval(row: pd.Series[Any], metric: str) -> str:
    if metric in _PERCENT:
        return f"{100 * row['estimate']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    return f"{row['estimate']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"
