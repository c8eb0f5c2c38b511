"""Evidence of a run or an experiment's table on one part of a claim."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from robust_ham.analysis.arms import arms_of, stack
from robust_ham.analysis.claims.schema import (
    ArmsPart,
    ColumnPart,
    CorrelationPart,
    Expected,
    ExponentPart,
    ImagesPart,
    Part,
)
from robust_ham.analysis.claims.selection import attack_id_of, pairs_of
from robust_ham.analysis.contrasts import Comparison, Measure, compare_arms, measure_of
from robust_ham.analysis.metrics import METRICS
from robust_ham.analysis.read_tables import HISTORY_COLUMNS
from robust_ham.analysis.run import Run
from robust_ham.analysis.statistics import Interval, Values, crossed, over_seeds, rank_correlation
from robust_ham.analysis.verdicts import ONE_SEED, Margins, Verdict, verdict

_FEW_ARMS = 5

Answer = Literal["supported", "contradicted", "undecided", "not run"]

_ANSWERS: dict[Expected, dict[Verdict, Answer]] = {
    "higher": {"better": "supported", "worse": "contradicted", "equivalent": "contradicted"},
    "lower": {"better": "contradicted", "worse": "supported", "equivalent": "contradicted"},
    "equal": {"better": "contradicted", "worse": "contradicted", "equivalent": "supported"},
    "not higher": {"better": "contradicted", "worse": "supported", "equivalent": "supported"},
    "not lower": {"better": "supported", "worse": "contradicted", "equivalent": "supported"},
}


@dataclass(frozen=True)
class Evidence:
    """An effect with its interval, and the answer it gives to one part of a claim.

    None: not known. ``num_seeds`` None: not about seeds.
    """

    part: str
    part_answer: Answer
    expected: str
    effect: float | None
    low: float | None
    high: float | None
    scale: str
    num_seeds: int | None = None
    num_images: int | None = None
    note: str = ""


def make_evidence(
    part: str,
    answer: Answer,
    expected: str,
    interval: Interval,
    scale: str,
    num_seeds: int | None = None,
    num_images: int | None = None,
    note: str = "",
) -> Evidence:
    """Build evidence from an interval, with None for ends that are not finite."""
    effect, low, high = (value if np.isfinite(value) else None for value in interval)
    return Evidence(part, answer, expected, effect, low, high, scale, num_seeds, num_images, note)


def answer_of(
    interval: Interval, expected: Expected, null: float, margins: Margins | None
) -> Answer:
    """Answer an expectation from an interval."""
    return _ANSWERS[expected].get(verdict(interval, null, margins), "undecided")


def evidence_of(run: Run, part: Part) -> list[Evidence]:
    """Collect a run's evidence on a part; empty: the run has none."""
    if isinstance(part, ArmsPart):
        return _every_epoch(run, part) if part.every_epoch else _arms(run, part)
    if isinstance(part, CorrelationPart):
        return _correlation(run, part)
    return _images(run, part) if isinstance(part, ImagesPart) else []


def _arms(run: Run, part: ArmsPart) -> list[Evidence]:
    measure = _measure(run, part)
    if measure is None:
        return []
    if part.margin is not None:
        assert measure.scale == "difference", "the margin of a claim is a difference"
        measure = replace(measure, margins=(-part.margin, part.margin))
    return [
        Evidence(
            part=_describe(part, comparison),
            part_answer=_ANSWERS[part.expect].get(row["verdict"], "undecided"),
            expected=part.expect,
            effect=row["effect"],
            low=row["simultaneous_low"],
            high=row["simultaneous_high"],
            scale=measure.scale,
            num_seeds=row["num_seeds"],
            num_images=row["num_images"],
            note=row["note"],
        )
        for comparison, row in compare_arms(run, pairs_of(run, part), measure)
    ]


def _measure(run: Run, part: ArmsPart) -> Measure | None:
    """Build the measure of a part; None: the run has no such attack."""
    attack_id = attack_id_of(run, part.attack) if part.attack is not None else ""
    if attack_id is None:
        return None
    metric, budget = METRICS[part.metric], None
    if bool(attack_id) == (metric.model_values is not None):
        return None
    if attack_id and not metric.applies_to(run.attacks[attack_id]):
        return None
    if attack_id and metric.values_at is not None and run.attacks[attack_id].has_budget:
        budget = run.attacks[attack_id].main_budget
    return replace(measure_of(run, metric, attack_id, budget), lower_is_better=False)


def _describe(part: ArmsPart, comparison: Comparison) -> str:
    """Describe a comparison: metric, kernel sizes, windows, networks."""
    one, other = comparison.spec, comparison.baseline[0]
    metric = part.metric.replace("_", " ")
    if part.attack is not None:
        metric += f" ({part.attack.name} {part.attack.norm})".replace(" l2", "").replace("_", " ")
    where = f"k = {one.kernel_size}"
    if other.kernel_size != one.kernel_size:
        where += f" against {other.kernel_size}"
    against = " against ".join(w.replace("none", "baseline") for w in (one.window, other.window))
    network = one.family if one.family == other.family else f"{one.family} against {other.family}"
    return f"{metric}, {where}, {against}, {network}"


def _every_epoch(run: Run, part: ArmsPart) -> list[Evidence]:
    """Return, per comparison, the epoch that supports the claim least; intervals are simultaneous.

    Both arms need ``training.csv``; with one seed the answer is undecided.
    """
    group, evidence = pairs_of(run, part), []
    assert part.metric in HISTORY_COLUMNS, "every_epoch needs a column of training.csv"
    for comparison in group:
        curves = [
            stack([_per_epoch(run, spec.model_id, part.metric) for spec in arm])
            for arm in (comparison.windowed, comparison.baseline)
        ]
        one, other = curves
        if one is None or other is None or one.shape != other.shape:
            continue
        effects = [over_seeds(column) for column in (one - other).T]
        confidence = 1 - 0.05 / (len(effects) * len(group))
        intervals = [effect.interval(confidence) for effect in effects]
        sign = -1 if part.expect == "lower" else 1
        least = min(intervals, key=lambda i: sign * i.estimate)
        place = f"epoch {intervals.index(least) + 1} of {len(effects)}"
        evidence.append(
            make_evidence(
                f"{_describe(part, comparison)}, {place}",
                combine_answers([answer_of(i, part.expect, 0.0, None) for i in intervals]),
                f"{part.expect} at every epoch",
                least,
                "difference",
                num_seeds=len(one),
                note=ONE_SEED if len(one) == 1 else "",
            )
        )
    return evidence


def _per_epoch(run: Run, model_id: str, column: str) -> Values | None:
    history = run.history(model_id)
    return None if history is None else history[column].to_numpy(dtype=np.float64)


def combine_answers(answers: list[Answer]) -> Answer:
    """Combine answers: all must be supported, one can contradict."""
    if "contradicted" in answers:
        return "contradicted"
    return "supported" if set(answers) == {"supported"} else "undecided"


def _correlation(run: Run, part: CorrelationPart) -> list[Evidence]:
    """Correlate ranks over arms, averaged over seeds, without arms that the gate fails."""
    attack_id = attack_id_of(run, part.attack)
    if attack_id is None:
        return []
    metric, pairs, num_seeds = METRICS[part.to], [], []
    for arm in arms_of(run).values():
        sizes = [run.cards[spec.model_id].get(part.correlate) for spec in arm]
        tables = [run.samples.get((spec.model_id, attack_id)) for spec in arm]
        areas = [
            metric.image_values(table, run.attacks[attack_id]).mean()
            for table in tables
            if table is not None
        ]
        trusted = "fail" not in {run.badge(spec.model_id, attack_id) for spec in arm}
        if None not in sizes and len(areas) == len(arm) and trusted:
            pairs.append((np.mean(np.array(sizes, dtype=np.float64)), np.mean(areas)))
            num_seeds.append(len(arm))
    if len(pairs) < 3:
        return []
    interval = rank_correlation(*np.array(pairs).T)
    few = len(pairs) < _FEW_ARMS or min(num_seeds) == 1
    names = (name.replace("_", " ") for name in (part.correlate, part.to, part.attack.name))
    return [
        make_evidence(
            "rank correlation of {} with {} ({})".format(*names) + f" over {len(pairs)} arms",
            "undecided" if few else answer_of(interval, part.expect, 0.0, None),
            f"{part.expect} than 0",
            interval,
            "rank correlation",
            num_seeds=min(num_seeds),
            note="too few arms or seeds"
            if few
            else "the arms are taken as a sample; no proof of a cause",
        )
    ]


def _images(run: Run, part: ImagesPart) -> list[Evidence]:
    """Compare the attacked images with themselves before subsampling: paired t interval."""
    shares = run.high_frequencies
    if shares is None or len(shares) < 2:
        return []
    difference = shares["high_frequency"] - shares["high_frequency_original"]
    interval = crossed(difference.to_numpy(dtype=np.float64)[None]).interval()
    return [
        make_evidence(
            "high frequency share of the images, used against original",
            answer_of(interval, part.expect, 0.0, None),
            part.expect,
            interval,
            "difference",
            num_images=len(difference),
        )
    ]


# --- experiments ------------------------------------------------------------------------------


def evidence_in_table(table: pd.DataFrame, part: ColumnPart | ExponentPart) -> list[Evidence]:
    """Collect the evidence of an experiment's table on a part."""
    return _column(table, part) if isinstance(part, ColumnPart) else _exponent(table, part)


def _select(table: pd.DataFrame, values: dict[str, Any]) -> pd.DataFrame:
    """Select rows with the given values; ``last``: the largest."""
    for column, value in values.items():
        wanted = table[column].max() if value == "last" else value
        table = table[table[column] == wanted]
    return table


def _column(table: pd.DataFrame, part: ColumnPart) -> list[Evidence]:
    groups = list(_select(table, part.at).groupby(part.per, sort=True))
    evidence = []
    for value, group in groups:
        one, other = (
            _select(group, keys).set_index("seed")[part.column]
            for keys in (part.compare, part.against)
        )
        both = (one - other).dropna()
        if both.empty:
            continue
        effect = over_seeds(both.to_numpy(dtype=np.float64))
        interval = effect.interval(1 - 0.05 / len(groups))
        windows = " against ".join(str(keys["window"]) for keys in (part.compare, part.against))
        windows = windows.replace("none", "baseline")
        at = f"{part.per.replace('_', ' ')} {value}"
        answer = answer_of(interval, part.expect, 0.0, None)
        description = f"{part.column.replace('_', ' ')}, {at}, {windows}"
        evidence.append(
            make_evidence(
                description, answer, part.expect, interval, "difference", num_seeds=len(both)
            )
        )
    return evidence


def _exponent(table: pd.DataFrame, part: ExponentPart) -> list[Evidence]:
    """Fit a straight line to logarithms; return its slope with a t interval."""
    selected = _select(table, part.at)
    if len(selected) < 3:
        return []
    x, y = (np.log(selected[name].to_numpy(dtype=np.float64)) for name in (part.of, part.exponent))
    line = stats.linregress(x, y)
    half = float(stats.t.ppf(0.975, len(x) - 2) * line.stderr)
    slope = float(line.slope)
    interval = Interval(slope, slope - half, slope + half)
    margins = (part.value - part.margin, part.value + part.margin)
    which = ", ".join(str(value) for value in part.at.values())
    return [
        make_evidence(
            f"exponent of {part.exponent} in {part.of.replace('_', ' ')}, {which}",
            answer_of(interval, part.expect, part.value, margins),
            f"{part.value:g} ± {part.margin:g}",
            interval,
            "exponent",
            note=f"{len(selected)} points",
        )
    ]
