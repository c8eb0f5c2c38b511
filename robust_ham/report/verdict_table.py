"""The verdicts of ``contrasts.csv`` and the answers of ``claims.csv`` as the page shows them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from robust_ham.analysis.curves import SHARES
from robust_ham.analysis.run import Run
from robust_ham.report.figures.robustness import attack_title, metric_label
from robust_ham.report.figures.style import WINDOW_LABELS, size_label


def verdict_table(run: Run, effects: pd.DataFrame) -> list[dict[str, str]]:
    """A row per verdict: the primary endpoints, or, without any, one figure per attack."""
    if run.config.endpoints:
        shown = effects[effects["primary"].astype(bool)]
    else:
        distances = {attack for attack, config in run.attacks.items() if config.has_budget}
        headline = effects["metric"].isin(["clean_accuracy", "robust_area"])
        spatial = (effects["metric"] == "robust_accuracy") & ~effects["attack"].isin(distances)
        shown = effects[(headline | spatial) & (effects["versus"] != "3x3 baseline")]
    several = shown["family"].nunique() > 1
    rows = []
    for row in shown.to_dict(orient="records"):
        title = attack_title(run, row["attack"]) if row["attack"] else "clean images"
        window = WINDOW_LABELS[row["window"]] + (f" ({row['family']})" if several else "")
        size = size_label(row["kernel_size"])
        if row["versus"] == "interaction":
            size += f" against {row['versus_kernel_size']}"
        budget = None if pd.isna(row["budget"]) else float(row["budget"])
        label = metric_label(run, row["attack"], row["metric"], budget)
        values = [row[name] for name in ("effect", "simultaneous_low", "simultaneous_high")]
        effect = _with_interval(values, row["scale"], share=row["metric"] in SHARES)
        rows.append(
            {
                "window": window,
                "size": size,
                "versus": row["versus"],
                "figure": f"{title}: {label}",
                "effect": "–" if pd.isna(values).any() else effect,
                "p": "–" if pd.isna(row["p_holm"]) else f"{row['p_holm']:.2g}",
                "verdict": row["verdict"],
                "decide": _what_would_decide(row),
                "note": row["note"],
            }
        )
    return rows


VERDICTS = ("better", "worse", "equivalent", "undecided")


def in_words(rows: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Per figure what its verdicts say: where the windowed networks are better, worse, …

    The growth between two kernel sizes is a verdict on no network, and left out.
    """
    rows = [row for row in rows if row["versus"] != "interaction"]
    windows = list(dict.fromkeys(row["window"] for row in rows))
    sentences = []
    for figure in dict.fromkeys(row["figure"] for row in rows):
        here = [row for row in rows if row["figure"] == figure]
        found = {v: [row["size"] for row in here if row["verdict"] == v] for v in VERDICTS}
        if len(windows) == 1:
            told = [v + _at(sizes) for v, sizes in found.items() if sizes]
            sentences.append((figure, f"{windows[0]} is {'; '.join(told)}."))
        else:
            told = [f"{len(sizes)} {v}" for v, sizes in found.items() if sizes]
            sentences.append((figure, f"{len(here)} windowed networks: {', '.join(told)}."))
    return sentences


def _at(sizes: list[str]) -> str:
    known = [size for size in sizes if size != size_label(0)]
    return f" at k = {', '.join(known)}" if known else ""


@dataclass(frozen=True)
class Matrix:
    """Verdicts by window and kernel size (lines) and figure (columns)."""

    figures: list[str]
    lines: list[tuple[str, str, list[dict[str, str] | None]]]
    """Window, kernel size, and a row of ``verdict_table`` per figure; None: not compared."""


def verdict_matrix(rows: list[dict[str, str]]) -> Matrix:
    """The verdicts at a glance."""
    shown = list(dict.fromkeys(row["figure"] for row in rows))
    lines: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in rows:
        lines.setdefault((row["window"], row["size"]), {})[row["figure"]] = row
    return Matrix(
        shown, [(*key, [found.get(name) for name in shown]) for key, found in lines.items()]
    )


def _with_interval(values: list[float], scale: str, *, share: bool) -> str:
    """Effect, low and high end: percentage points, a factor, or plain numbers; ?: not known."""
    factor = scale == "ratio"
    number = "{:.3f}" if factor else "{:+.1f}" if share else "{:+.3f}"
    effect, low, high = (
        "?" if pd.isna(value) else number.format(100 * value if share else value)
        for value in values
    )
    told = f"{'×' * factor}{effect} [{low}, {high}]".replace("-", "−")
    return told + (" points" if share else "")


def _what_would_decide(row: dict[Hashable, Any]) -> str:
    """Seeds, or images, that would turn an undecided row."""
    if row["verdict"] != "undecided":
        return ""
    needed = [
        f"{int(row[f'{what}_to_decide']):,} {what}"
        for what in ("seeds", "images")
        if pd.notna(row[f"{what}_to_decide"])
    ]
    return " or ".join(needed).replace(",", "\u202f")


def claim_table(answers: pd.DataFrame) -> list[dict[str, Any]]:
    """Per claim its statement, source, answer and scope, and its pieces of evidence in words."""
    claims = []
    for _, rows in answers.groupby("claim", sort=False):
        first, told = rows.iloc[0], rows[rows["part"].notna()]
        known = {key: first[key] for key in ("statement", "source", "answer", "scope")}
        evidence = [_evidence(row) for row in told.to_dict(orient="records")]
        claims.append(known | {"evidence": evidence})
    return claims


def _evidence(row: dict[Hashable, Any]) -> dict[str, str]:
    share = row["scale"] == "difference" and "accuracy" in row["part"]
    effect = _with_interval([row["effect"], row["low"], row["high"]], row["scale"], share=share)
    seeds = "" if pd.isna(row["num_seeds"]) else f"{int(row['num_seeds'])} seeds"
    return {
        "part": row["part"],
        "answer": row["part_answer"],
        "effect": f"{effect}; claimed: {row['expected']}",
        "about": "; ".join(filter(None, [seeds, row["note"]])),
    }
