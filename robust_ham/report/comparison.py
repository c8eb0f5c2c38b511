"""Compare runs: ``comparison.csv``, a figure and an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from robust_ham.analysis.compare_runs import changed_keys, compare_results, run_names
from robust_ham.analysis.metrics import METRICS
from robust_ham.analysis.run import Run
from robust_ham.errors import RequestError
from robust_ham.report.figures.style import figure_style, panel_grid, render
from robust_ham.report.html import render_page
from robust_ham.report.inline import inline_svg
from robust_ham.report.page import Report
from robust_ham.storage.files import write_csv, write_text
from robust_ham.storage.output_folder import claim, refuse_strangers
from robust_ham.storage.run_folder import RunFolder

_MOST_NETWORKS = 60
"""Most networks that the figure shows; the table shows all."""


_EARLIER = ("comparison.csv", "configurations.csv", "comparison.html")
"""The files of a comparison written before its folder had a manifest."""


def write_comparison(folders: list[Path], out: Path) -> Report:
    """Compare each run with the first.

    Raises:
        RequestError: fewer than two runs, nothing in common, a run with a link, a pipe or a device,
            or an ``out`` with files that are not a comparison's.
    """
    if len(folders) < 2:
        raise RequestError("compare: expected two or more run folders")
    refuse_strangers(out, "compare", _EARLIER)
    runs = [Run(RunFolder(folder)) for folder in folders]
    for run in runs:
        run.folder.refuse_links()
    changes, results = changed_keys(runs), compare_results(runs)
    header, rows = _table(results)
    claim(out, " ".join(run_names(runs)), "compare", _EARLIER)
    write_csv(out / "comparison.csv", results)
    write_csv(out / "configurations.csv", changes)
    with figure_style():
        drawing = _figure(results)
        figure = inline_svg(render(drawing, "comparison", "svg")) if drawing is not None else None
    page = out / "comparison.html"
    values: dict[str, Any] = {
        "names": run_names(runs),
        "changes": changes.to_dict(orient="records"),
        "figure": figure,
        "description": "; ".join(" ".join(row) for row in rows),
        "header": header,
        "text": ["network", "attack", "measure", "note"],
        "rows": rows,
    }
    write_text(page, render_page("comparison.html.j2", **values))
    return Report(page, header, rows)


def _table(results: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return the header and the formatted rows."""
    header = "run|network|attack|measure|reference|value|effect|note".split("|")
    rows = []
    for row in results.to_dict(orient="records"):
        known = not pd.isna(row["effect"])
        sign = "×" if row["scale"] == "ratio" else ""
        numbers = f"{row['effect']:.3g} [{row['low']:.3g}, {row['high']:.3g}]" if known else "–"
        rows.append(
            [
                row["run"],
                row["model_id"],
                row["attack"],
                METRICS[row["metric"]].label,
                *(f"{row[k]:.4g}" if known else "–" for k in ("first", "other")),
                sign + numbers,
                "" if known else row["note"],
            ]
        )
    return header, rows


def _figure(results: pd.DataFrame) -> Figure | None:
    """Draw a panel per run, attack and measure, with a line per network.

    None: no effect is known, or there are too many networks.
    """
    known = results[results["effect"].notna()]
    networks = list(dict.fromkeys(known["model_id"]))
    if not networks or len(networks) > _MOST_NETWORKS:
        return None
    groups = list(known.groupby(["run", "attack", "metric"], sort=False))
    figure, panels = panel_grid(len(groups), 3, 3.2, 0.6 + 0.2 * len(networks), sharey=True)
    for axes, ((run, attack, metric), rows) in zip(panels, groups, strict=False):
        places = [networks.index(name) for name in rows["model_id"]]
        effect, low, high = (rows[k].to_numpy(np.float64) for k in ("effect", "low", "high"))
        errors = [np.nan_to_num(effect - low), np.nan_to_num(high - effect)]
        axes.errorbar(effect, places, xerr=errors, fmt="o", markersize=3, capsize=2)
        axes.axvline(METRICS[str(metric)].no_effect, color="0.6", linewidth=0.8)
        axes.set_yticks(range(len(networks)), networks)
        axes.set_ylim(len(networks) - 0.5, -0.5)
        axes.set_title(f"{run}: {attack}")
        axes.set_xlabel(METRICS[str(metric)].label)
    return figure
