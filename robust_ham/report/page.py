"""Everything that is made from a run's tables: summary, curves, figures and one HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from robust_ham.analysis.run import Run
from robust_ham.analysis.tables import make_tables
from robust_ham.report import figures
from robust_ham.report.pictures import Picture, draw_pictures
from robust_ham.report.style import WINDOW_LABELS, size_label
from robust_ham.report.verdict_table import claim_table, verdict_table
from robust_ham.run_folder import RunFolder
from robust_ham.store import (
    MAX_TEXT_BYTES,
    check_size,
    parse_json,
    read_json,
    reading,
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
class Report:
    """What ``build_report`` has made: the page, and its headline table."""

    page: Path
    header: list[str]
    rows: list[list[str]]


def build_report(folder: Path) -> Report:
    """Write the tables that are made from others, ``figures/`` and ``report.html``.

    Raises:
        RequestError: not a run folder, a damaged table, or nothing to report yet.
    """
    run = Run(RunFolder(folder))
    run.folder.refuse_links()
    tables = make_tables(run)
    tables.write()
    pictures = draw_pictures(run, tables.curves, tables.budgets, tables.mechanisms)
    made = Report(run.folder.report, *_arm_table(run, tables.curves))
    verdicts, answers = verdict_table(run, tables.contrasts), claim_table(tables.claims)
    write_text(made.page, _page(run, tables.summary, made, verdicts, answers, pictures))
    return made


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
        row = [
            str(family),
            size_label(int(str(size))),
            WINDOW_LABELS[str(window)],
            str(arm["num_seeds"].iloc[0]),
        ]
        for attack_id, metric in wanted:
            found = arm[(arm["attack"] == attack_id) & (arm["metric"] == metric)]
            row.append(_interval(found.iloc[0], metric) if len(found) else "–")
        rows.append(row)
    return header, rows


def _interval(row: pd.Series[Any], metric: str) -> str:
    if metric in _PERCENT:
        return f"{100 * row['estimate']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    return f"{row['estimate']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"
