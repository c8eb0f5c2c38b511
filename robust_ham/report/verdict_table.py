"""Format the verdicts of ``contrasts.csv`` and the answers of ``claims.csv`` for the page."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from robust_ham.analysis.metrics import METRICS, headline_metric
from robust_ham.analysis.run import Run
from robust_ham.errors import plural
from robust_ham.report.figures.labels import attack_titles, metric_label, size_label, window_label


def verdict_table(run: Run, effects: pd.DataFrame) -> list[dict[str, str]]:
    """Return the verdicts on the primary endpoints, or on one measure per attack if none is set."""
    if run.config.endpoints:
        shown = effects[effects["primary"].astype(bool)]
    else:
        headline = {
            attack_id: headline_metric(attack).id for attack_id, attack in run.attacks.items()
        }
        expected = effects["attack"].map(headline | {"": "clean_accuracy"})
        shown = effects[(effects["metric"] == expected) & (effects["versus"] != "3x3 baseline")]
    several = shown["family"].nunique() > 1
    titles = attack_titles(run)
    rows = []
    for row in shown.to_dict(orient="records"):
        window = window_label(row["window"]) + (f" ({row['family']})" if several else "")
        size = size_label(row["kernel_size"])
        if row["versus"] == "interaction":
            size += f" against {row['versus_kernel_size']}"
        budget = None if pd.isna(row["budget"]) else float(row["budget"])
        label = metric_label(run, row["attack"], row["metric"], budget)
        values = [row[name] for name in ("effect", "simultaneous_low", "simultaneous_high")]
        effect = _with_interval(values, row["scale"], share=METRICS[row["metric"]].unit == "share")
        rows.append(
            {
                "window": window,
                "size": size,
                "versus": row["versus"],
                "figure": f"{titles[row['attack']]}: {label}",
                "effect": "–" if pd.isna(values).any() else effect,
                "p": "–" if pd.isna(row["p_holm"]) else f"{row['p_holm']:.2g}",
                "verdict": row["verdict"],
                "decide": _needed_for_verdict(row),
                "note": row["note"],
            }
        )
    return rows


VERDICTS = {
    "better": "better",
    "worse": "worse",
    "equivalent": "equivalent",
    "undecided": "no clear difference",
}
"""Each verdict, and its words in a sentence."""


def verdicts_in_words(rows: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Return each measure with a sentence: where windowed networks are better, worse, …

    Rows that compare two kernel sizes ("interaction") are left out.
    """
    rows = [row for row in rows if row["versus"] != "interaction"]
    windows = list(dict.fromkeys(row["window"] for row in rows))
    sentences = []
    for measure in dict.fromkeys(row["figure"] for row in rows):
        measure_rows = [row for row in rows if row["figure"] == measure]
        sizes_by_verdict = {
            verdict: [row["size"] for row in measure_rows if row["verdict"] == verdict]
            for verdict in VERDICTS
        }
        if len(windows) == 1:
            parts = [VERDICTS[v] + _at(sizes) for v, sizes in sizes_by_verdict.items() if sizes]
            sentences.append((measure, f"{windows[0]}: {'; '.join(parts)}."))
        else:
            words = VERDICTS | {"undecided": "with no clear difference"}
            parts = [f"{len(sizes)} {words[v]}" for v, sizes in sizes_by_verdict.items() if sizes]
            networks = plural(len(measure_rows), "windowed network")
            sentences.append((measure, f"{networks}: {', '.join(parts)}."))
    return sentences


def _at(sizes: list[str]) -> str:
    known_sizes = [size for size in sizes if size != size_label(0)]
    return f" at k = {', '.join(known_sizes)}" if known_sizes else ""


@dataclass(frozen=True)
class Matrix:
    """Verdicts by window and kernel size (lines) and measure (columns)."""

    figures: list[str]
    lines: list[tuple[str, str, list[dict[str, str] | None]]]
    """Window, kernel size, and a row of ``verdict_table`` per measure; None: not compared."""


def verdict_matrix(rows: list[dict[str, str]]) -> Matrix:
    """Arrange the rows of ``verdict_table`` by window, kernel size and measure."""
    shown = list(dict.fromkeys(row["figure"] for row in rows))
    lines: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in rows:
        lines.setdefault((row["window"], row["size"]), {})[row["figure"]] = row
    return Matrix(
        shown, [(*key, [line.get(name) for name in shown]) for key, line in lines.items()]
    )


def _with_interval(values: list[float], scale: str, *, share: bool) -> str:
    """Format effect, low and high: percentage points, a factor, or plain numbers; ?: unknown."""
    factor = scale == "ratio"
    number = "{:.3f}" if factor else "{:+.1f}" if share else "{:+.3f}"
    effect, low, high = (
        "?" if pd.isna(value) else number.format(100 * value if share else value)
        for value in values
    )
    interval = f"{'×' * factor}{effect} [{low}, {high}]".replace("-", "−")
    return interval + (" points" if share else "")


def _needed_for_verdict(row: dict[Hashable, Any]) -> str:
    """Return how many seeds or images an undecided row needs for a verdict."""
    if row["verdict"] != "undecided":
        return ""
    return " or ".join(
        plural(int(row[f"{noun}s_to_decide"]), noun)
        for noun in ("seed", "image")
        if pd.notna(row[f"{noun}s_to_decide"])
    )


def claim_table(answers: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the statement, source, answer, scope and lines of evidence of each claim."""
    claims = []
    for _, rows in answers.groupby("claim", sort=False):
        first = rows.iloc[0]
        claim = {key: first[key] for key in ("statement", "source", "answer", "scope")}
        parts = rows[rows["part"].notna()].to_dict(orient="records")
        claims.append(claim | {"evidence": [_evidence(row) for row in parts]})
    return claims


def _evidence(row: dict[Hashable, Any]) -> dict[str, str]:
    share = row["scale"] == "difference" and "accuracy" in row["part"]
    effect = _with_interval([row["effect"], row["low"], row["high"]], row["scale"], share=share)
    seeds = "" if pd.isna(row["num_seeds"]) else plural(int(row["num_seeds"]), "seed")
    return {
        "part": row["part"],
        "answer": row["part_answer"],
        "effect": f"{effect}; claimed: {row['expected']}",
        "about": "; ".join(filter(None, [seeds, row["note"]])),
    }
