"""What a run's tables say of one part of a claim."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from robust_ham.analysis.claims.arms import attack_id_of, pairs_of
from robust_ham.analysis.claims.schema import ArmsPart, CorrelationPart, Expected, ImagesPart, Part
from robust_ham.analysis.contrasts import Comparison, Measure, compare, measure_of_card, measures
from robust_ham.analysis.curves import area_values, arms_of, stacked
from robust_ham.analysis.run import HISTORY_COLUMNS, Run
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
    """What the tables say of one part: an effect with its interval, and the answer it gives.

    None: a number that the data cannot give. ``num_seeds`` None: no seeds are in it.
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


def judged(
    part: str,
    answer: Answer,
    expected: str,
    interval: Interval,
    scale: str,
    num_seeds: int | None = None,
    num_images: int | None = None,
    note: str = "",
) -> Evidence:
    """Evidence whose effect and interval are those numbers of ``interval`` that are finite."""
    effect, low, high = (value if np.isfinite(value) else None for value in interval)
    return Evidence(part, answer, expected, effect, low, high, scale, num_seeds, num_images, note)


def answer_of(
    interval: Interval, expected: Expected, null: float, margins: Margins | None
) -> Answer:
    """What an interval says of an expectation."""
    return _ANSWERS[expected].get(verdict(interval, null, margins), "undecided")


def evidence_of(run: Run, part: Part) -> list[Evidence]:
    """All evidence that a run has on a part; none: the run has nothing to say."""
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
        assert measure.scale == "difference", "a margin of a claim is of a difference"
        measure = replace(measure, margins=(-part.margin, part.margin))
    return [
        Evidence(
            part=_words(part, comparison),
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
        for comparison, row in compare(run, pairs_of(run, part), measure)
    ]


def _measure(run: Run, part: ArmsPart) -> Measure | None:
    """What the part compares by; None: the run has no such attack."""
    cards = {"effective_width_learned", "train_loss", "validation_loss", "validation_accuracy"}
    if part.metric in cards:
        return measure_of_card(part.metric)
    attack_id = attack_id_of(run, part.attack) if part.attack is not None else ""
    if attack_id is None:
        return None
    budget = None
    if part.metric == "robust_accuracy" and run.attacks[attack_id].has_budget:
        budget = run.attacks[attack_id].main_budget
    wanted = (part.metric, attack_id, budget)
    return next((m for m in measures(run) if (m.metric, m.attack, m.budget) == wanted), None)


def _words(part: ArmsPart, comparison: Comparison) -> str:
    """The comparison in words: what is compared, of which network, against which."""
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
    """Per comparison the epoch that speaks least for the claim, intervals over all epochs at once.

    Both arms' ``training.csv`` are needed; with one seed nothing is decided.
    """
    group, found = pairs_of(run, part), []
    assert part.metric in HISTORY_COLUMNS, "a claim of every epoch is of a column of training.csv"
    for comparison in group:
        curves = [
            stacked([_per_epoch(run, spec.model_id, part.metric) for spec in arm])
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
        found.append(
            judged(
                f"{_words(part, comparison)}, {place}",
                of_all([answer_of(i, part.expect, 0.0, None) for i in intervals]),
                f"{part.expect} at every epoch",
                least,
                "difference",
                num_seeds=len(one),
                note=ONE_SEED if len(one) == 1 else "",
            )
        )
    return found


def _per_epoch(run: Run, model_id: str, column: str) -> Values | None:
    history = run.history(model_id)
    return None if history is None else history[column].to_numpy(dtype=np.float64)


def of_all(answers: list[Answer]) -> Answer:
    """What several answers to one question say together; one contradiction is enough."""
    if "contradicted" in answers:
        return "contradicted"
    return "supported" if set(answers) == {"supported"} else "undecided"


def _correlation(run: Run, part: CorrelationPart) -> list[Evidence]:
    """Rank correlation over arms, means over seeds; arms that the gate fails are left out."""
    attack_id = attack_id_of(run, part.attack)
    if attack_id is None:
        return []
    pairs, num_seeds = [], []
    for arm in arms_of(run).values():
        sizes = [run.cards[spec.model_id].get(part.correlate) for spec in arm]
        tables = [run.samples.get((spec.model_id, attack_id)) for spec in arm]
        areas = [area_values(t, run.attacks[attack_id]).mean() for t in tables if t is not None]
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
        judged(
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
    """The attacked images beside themselves before subsampling, paired: t interval over images."""
    shares = run.high_frequencies
    if shares is None or len(shares) < 2:
        return []
    difference = shares["high_frequency"] - shares["high_frequency_original"]
    interval = crossed(difference.to_numpy(dtype=np.float64)[None]).interval()
    return [
        judged(
            "high frequency share of the images, used against original",
            answer_of(interval, part.expect, 0.0, None),
            part.expect,
            interval,
            "difference",
            num_images=len(difference),
        )
    ]
