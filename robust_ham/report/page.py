"""Write a run's page: one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from robust_ham.analysis.metrics import METRICS, correctly_classified
from robust_ham.analysis.run import Run
from robust_ham.analysis.tables import Tables, write_tables
from robust_ham.config.experiment import Config
from robust_ham.regular_files import is_regular, read_bytes, read_text
from robust_ham.report.figures.catalogue import PageSection, drawings
from robust_ham.report.figures.labels import attack_titles, window_label
from robust_ham.report.figures.panels import Panel, panel_figure, panels, swatches
from robust_ham.report.figures.rows import axis_name
from robust_ham.report.figures.style import render, save_figure
from robust_ham.report.formats import Table
from robust_ham.report.gallery import strips
from robust_ham.report.html import render_page
from robust_ham.report.inline import data_uri, inline_svg
from robust_ham.report.paged import MANY_MODELS, MANY_ROWS, rows_as_json, shorten_svgs
from robust_ham.report.tables import CHOICES, findings_table, headline_table, models_table
from robust_ham.report.verdict_table import (
    claim_table,
    verdict_matrix,
    verdict_table,
    verdicts_in_words,
)
from robust_ham.storage.checksums import record_files
from robust_ham.storage.files import (
    MAX_CSV_BYTES,
    MAX_TEXT_BYTES,
    parse_json,
    read_json,
    reading,
    write_text,
)
from robust_ham.storage.receipts import check

_NARROW = 7.2
"""Largest width, in inches, of figures that fit side by side."""


@dataclass(frozen=True)
class Report:
    """The path of a page, and its headline table."""

    page: Path
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class PageFigure:
    """A figure on the page; narrow figures fit side by side."""

    name: str
    caption: str
    description: str
    section: PageSection
    narrow: bool
    content: Markup


def build_report(folder: Path) -> Report:
    """Write the derived tables, ``figures/`` and ``report.html``.

    Raises:
        RequestError: not a run folder, a damaged table, or nothing to report yet.
    """
    return write_page(write_tables(folder))


def write_page(tables: Tables) -> Report:
    """Write ``figures/`` and ``report.html``."""
    headline = headline_table(tables.run, tables.curves)
    page = tables.run.folder.report
    write_text(page, _page(tables, headline, draw_figures(tables)))
    record_files(tables.run.folder, [page])
    return Report(page, headline.header, headline.rows)


def draw_figures(tables: Tables) -> list[PageFigure]:
    """Write ``figures/`` of a run, and return those that the page shows, in its order."""
    folder = tables.run.folder.figures
    page_figures, files = [], list[Path]()
    for drawing in drawings(tables):
        formats = ("png", "svg") if drawing.svg else ("png",)
        files += save_figure(drawing.figure, folder, drawing.name, formats)
        if drawing.section == PageSection.nowhere:
            continue
        svg = read_bytes(folder / f"{drawing.name}.svg", MAX_CSV_BYTES)
        page_figures.append(
            PageFigure(
                name=drawing.name,
                caption=drawing.caption,
                description=" ".join(filter(None, [drawing.caption, drawing.description])),
                section=drawing.section,
                narrow=drawing.figure.get_figwidth() <= _NARROW,
                content=inline_svg(svg),
            )
        )
    record_files(tables.run.folder, files)
    return page_figures


def _page(tables: Tables, headline: Table, page_figures: list[PageFigure]) -> str:
    models, findings = models_table(tables), findings_table(tables.run)
    many = tables.summary["model_id"].nunique() > MANY_MODELS
    long = {"models": many, "findings": len(findings.rows) > MANY_ROWS}
    page = render_page(
        "page.html.j2",
        paged=any(long.values()),
        **_about(tables),
        **_verdicts(tables),
        **_trust(tables.run),
        **_figures(tables, page_figures),
        arms=headline,
        models=_for_page(models, "summary.csv", paged=long["models"]),
        findings=_for_page(findings, "gate.csv", paged=long["findings"]),
        choices=CHOICES,
        **_gallery(tables.run),
    )
    return shorten_svgs(page) if many else page


def _for_page(table: Table, file: str, *, paged: bool) -> dict[str, Any]:
    """Return a table's values for the template, with its rows as JSON if it is paged."""
    return {
        "header": table.header,
        "numeric": table.numeric,
        "rows": table.rows,
        "file": file,
        "json": rows_as_json(table) if paged else None,
    }


def _about(tables: Tables) -> dict[str, Any]:
    """Return what was run, how much is done, and how to reproduce it."""
    run = tables.run
    config = run.config
    specs = config.model_specs()
    titles = attack_titles(run)
    expected = sum(attack.attacks(spec) for spec in specs for attack in config.attacks.values())
    config_yaml = config.to_yaml()
    for path in (run.folder.manifest, run.folder.failures):
        if is_regular(path):
            check(run.folder, path, path)
    return {
        "config": config,
        "config_yaml": config_yaml,
        "config_address": data_uri(config_yaml.encode(), "text/yaml"),
        "num_images": int(tables.summary["n"].max()),
        "images_are": _which_images(config, tables.summary["n"].nunique() > 1),
        "num_models": tables.summary["model_id"].nunique(),
        "sizes": sorted({spec.kernel_size for spec in run.specs} - {0}),
        "windows": [window_label(w) for w in dict.fromkeys(spec.window for spec in run.specs)],
        "num_seeds": len({spec.seed for spec in run.specs}),
        "attack_titles": [titles[attack_id] for attack_id in config.attacks],
        "num_expected": expected,
        "num_found": sum(attack in config.attacks for _, attack in run.samples),
        "manifest": _manifest(run.folder.manifest),
        "failures": _failures(run.folder.failures),
        "most_failures": MANY_MODELS,
    }


def _which_images(config: Config, numbers_differ: bool) -> str:
    """Return where the attacked images are from, and whether every attack has all of them."""
    if config.is_of_tables:
        return ("at most; " if numbers_differ else "") + config.dataset.name
    number = "at most" if numbers_differ else "the same for every model and attack"
    return f"{number}; {config.dataset.name}, {config.evaluation.split} split"


def _verdicts(tables: Tables) -> dict[str, Any]:
    """Return the verdicts on windows, and the answers to claims."""
    config = tables.run.config
    verdicts = verdict_table(tables.run, tables.contrasts)
    answers = claim_table(tables.claims)
    return {
        "verdicts": verdicts,
        "sentences": verdicts_in_words(verdicts),
        "matrix": verdict_matrix(verdicts),
        "notes": list(dict.fromkeys(row["note"] for row in verdicts if row["note"])),
        "interaction": config.interaction,
        "has_endpoints": bool(config.endpoints),
        "answers": [answer for answer in answers if answer["answer"] != "not run"],
        "num_claims": len(answers),
    }


def _trust(run: Run) -> dict[str, Any]:
    """Return the results of the reliability checks."""
    severities = list(run.gate["severity"])
    return {
        "gate_ran": is_regular(run.folder.gate),
        "gate_counts": {name: severities.count(name) for name in ("pass", "warn", "fail")},
        "distrusted": run.gate[run.gate["severity"] != "pass"].to_dict(orient="records"),
        "invalid": list(_invalid(run)),
    }


def _invalid(run: Run) -> Iterator[dict[str, Any]]:
    """Yield the models and attacks that returned invalid images, and how many."""
    for (model_id, attack_id), samples in run.samples.items():
        invalid = (samples["status"] == "invalid") & correctly_classified(samples)
        count = int(invalid.sum())
        if count and attack_id in run.config.attacks:  # "best" repeats its members' images
            row = {"model_id": model_id, "attack": attack_id}
            yield row | {"count": count, "num_images": len(samples)}


def _figures(tables: Tables, page_figures: list[PageFigure]) -> dict[str, Any]:
    """Return the figures by section; the panels, their choices and their legend."""
    drawn_panels, titles = list(_drawn_panels(tables)), attack_titles(tables.run)
    attacks, metrics, axes = (
        list(dict.fromkeys(getattr(panel, name) for panel, _ in drawn_panels))
        for name in ("attack", "metric", "axis")
    )
    return {
        "figures": {
            section.name: [f for f in page_figures if f.section == section]
            for section in PageSection
        },
        "panels": drawn_panels,
        "choice_of_attacks": {a: titles[a] for a in attacks if a},
        "choice_of_metrics": {m: METRICS[m].label for m in metrics if m != "clean_accuracy"},
        "choice_of_axes": {axis: axis_name(tables.run, axis) for axis in axes},
        "legend": [
            (name, inline_svg(render(figure, f"swatch-{i}", "svg")))
            for i, (name, figure) in enumerate(swatches(tables.curves))
        ],
    }


def _gallery(run: Run) -> dict[str, Any]:
    """Return the attacked images and their choices."""
    all_strips = list(strips(run))
    return {
        "strips": all_strips,
        "choice_of_galleries": {strip.attack: strip.title for strip in all_strips},
        "choice_of_networks": {strip.network: strip.network for strip in all_strips},
    }


def _drawn_panels(tables: Tables) -> Iterator[tuple[Panel, Markup]]:
    for panel in panels(tables.run, tables.curves):
        figure = panel_figure(tables.run, tables.curves, panel, legend=False)
        yield panel, inline_svg(render(figure, panel.name, "svg"))


def _manifest(path: Path) -> dict[str, Any] | None:
    """Return the values of a manifest that the page shows; None: no manifest."""
    if not is_regular(path):
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
    """Return the failed jobs."""
    with reading(path):
        try:
            lines = read_text(path, MAX_TEXT_BYTES).splitlines()
        except FileNotFoundError:  # no failures, or a starting run has just removed the file
            return []
        return [{"cell": "", "reason": ""} | parse_json(line) for line in lines]
