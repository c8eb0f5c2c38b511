"""What a run's tables, or an experiment's, say of one part of a claim."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from robust_ham.analysis.contrasts import (
    Arm,
    Comparison,
    Figure,
    compare,
    figure_of_card,
    figures,
    paired_by_seed,
)
from robust_ham.analysis.curves import area_values, arms_of
from robust_ham.analysis.run import Run
from robust_ham.analysis.statements import (
    ArmsPart,
    AttackChoice,
    ColumnPart,
    CorrelationPart,
    Expected,
    ExponentPart,
    ImagesPart,
    Part,
)
from robust_ham.analysis.statistics import Interval, crossed, over_seeds
from robust_ham.analysis.verdicts import Margins, verdict
from robust_ham.config import BEST
from robust_ham.model_groups import ModelGroup
from robust_ham.store import read_table, reading

_FEW_ARMS = 5

Attributes = dict[str, Any]
Answer = Literal["supported", "contradicted", "undecided", "not run"]

_ANSWERS: dict[Expected, dict[str, Answer]] = {
    "higher": {"better": "supported", "worse": "contradicted", "equivalent": "contradicted"},
    "lower": {"better": "contradicted", "worse": "supported", "equivalent": "contradicted"},
    "equal": {"better": "contradicted", "worse": "contradicted", "equivalent": "supported"},
    "not higher": {"better": "contradicted", "worse": "supported", "equivalent": "supported"},
    "not lower": {"better": "supported", "worse": "contradicted", "equivalent": "supported"},
}


@dataclass(frozen=True)
class Evidence:
    """What the tables say of one part: an effect with its interval, and the answer it gives."""

    part: str
    answer: Answer
    expected: str
    effect: float
    low: float
    high: float
    scale: str
    num_seeds: int
    num_images: int | None = None
    note: str = ""


def answer_of(
    interval: Interval, expected: Expected, null: float, margins: Margins | None
) -> Answer:
    """What an interval says of an expectation."""
    found = verdict(interval, null, margins)
    return "undecided" if found == "undecided" else _ANSWERS[expected][found]


def evidence_of(run: Run, part: Part) -> list[Evidence]:
    """All evidence that a run has on a part; none: the run has nothing to say."""
    if isinstance(part, ArmsPart):
        return _arms(run, part)
    if isinstance(part, CorrelationPart):
        return _correlation(run, part)
    if isinstance(part, ImagesPart):
        return _images(run, part)
    return []


def evidence_in_table(table: pd.DataFrame, part: ColumnPart | ExponentPart) -> list[Evidence]:
    """All evidence that an experiment's table has on a part."""
    return _column(table, part) if isinstance(part, ColumnPart) else _exponent(table, part)


# --- two arms --------------------------------------------------------------------------------


def _arms(run: Run, part: ArmsPart) -> list[Evidence]:
    group = pairs_of(run, part)
    if part.every_epoch:
        return _every_epoch(run, part, group)
    figure = _figure(run, part)
    if figure is None:
        return []
    if part.margin is not None:
        assert figure.scale == "difference", "a margin of a claim is of a difference"
        figure = replace(figure, margins=(-part.margin, part.margin))
    found = []
    for row, comparison in _judged(run, group, figure):
        low, high = row["simultaneous_low"], row["simultaneous_high"]
        interval = Interval(*(np.nan if v is None else v for v in (row["effect"], low, high)))
        null = 1.0 if figure.scale == "ratio" else 0.0
        decided = row["verdict"] != "undecided"
        found.append(
            Evidence(
                part=_words(part, comparison),
                answer=answer_of(interval, part.expect, null, figure.margins)
                if decided
                else "undecided",
                expected=part.expect,
                effect=interval.estimate,
                low=interval.low,
                high=interval.high,
                scale=figure.scale,
                num_seeds=row["num_seeds"],
                num_images=row["num_images"],
                note=row["note"],
            )
        )
    return found


def pairs_of(run: Run, part: ArmsPart) -> list[Comparison]:
    """The comparisons that a part asks for, of the arms that the run has."""
    pairs = _pairs(run, part)
    if part.vary is not None:
        pairs = _varied(pairs, part.vary)
    return [comparison for _, comparison in pairs]


def _judged(
    run: Run, group: list[Comparison], figure: Figure
) -> Iterator[tuple[dict[str, Any], Comparison]]:
    """Rows of ``compare``, each with the comparison that it judges."""
    rows = compare(run, group, figure)
    by_arm = {(c.spec.family, c.spec.kernel_size, c.spec.window): c for c in group}
    for row in rows:
        yield row, by_arm[row["family"], row["kernel_size"], row["window"]]


def _pairs(run: Run, part: ArmsPart) -> list[tuple[Attributes, Comparison]]:
    """Arms of the run that differ as the part says and in nothing else, paired by seed."""
    arms: list[tuple[Attributes, Arm]] = [
        (_attributes(run, arm[0]), arm) for arm in arms_of(run).values()
    ]
    found = []
    for attributes, arm in arms:
        if not _matches(attributes, part.compare | part.only):
            continue
        wanted = attributes | part.against
        for others, other in arms:
            if others == wanted and other is not arm:
                paired = paired_by_seed(arm, other)
                if paired is not None:
                    found.append((attributes, Comparison(*paired, "claim")))
    return found


def _varied(
    pairs: list[tuple[Attributes, Comparison]], key: str
) -> list[tuple[Attributes, Comparison]]:
    """Those of which there are others that differ in ``key`` and in no more than the name."""
    groups: dict[str, list[tuple[Attributes, Comparison]]] = {}
    for attributes, comparison in pairs:
        rest = {k: v for k, v in attributes.items() if k not in {key, "prefix"}}
        groups.setdefault(repr(rest), []).append((attributes, comparison))
    varied = [g for g in groups.values() if len({repr(a[key]) for a, _ in g}) > 1]
    return [pair for group in varied for pair in group]


def _attributes(run: Run, spec: ModelGroup) -> Attributes:
    """All that describes an arm but its learning rate; a fitted width is told by ``match``."""
    elsewhere = {"source", "weights", "factory"}  # where it comes from
    values = spec.model_dump(exclude={"seed", "sweep", "training", "match"} | elsewhere)
    match = spec.match
    values["match"] = f"{match.to}{match.kernel_size}" if match is not None else None
    if match is not None:
        values["width"] = match.width
    recipe = run.config.training_of(spec).model_dump(exclude={"lr"})
    return values | {"weight_decay": recipe.pop("weight_decay"), "recipe": recipe}


def _matches(attributes: Attributes, wanted: Attributes) -> bool:
    """Whether every wanted key has the value, or one of the values; a key not there: null."""
    for key, values in wanted.items():
        options = values if isinstance(values, list) else [values]
        if attributes.get(key) not in options:
            return False
    return True


def _figure(run: Run, part: ArmsPart) -> Figure | None:
    """What the part compares by; None: the run has no such attack."""
    cards = {"effective_width_learned", "train_loss", "validation_loss", "validation_accuracy"}
    if part.metric in cards:
        return figure_of_card(part.metric)
    attack_id = _attack_id(run, part.attack) if part.attack is not None else ""
    if attack_id is None:
        return None
    budget = None
    if part.metric == "robust_accuracy" and run.attacks[attack_id].has_budget:
        budget = run.attacks[attack_id].main_budget
    wanted = (part.metric, attack_id, budget)
    return next((f for f in figures(run) if (f.metric, f.attack, f.budget) == wanted), None)


def _attack_id(run: Run, choice: AttackChoice) -> str | None:
    """The run's attack of that function and norm, on most models and images, the first of equals.

    ``best`` needs several to choose from.
    """
    if choice.name == "best":
        best = BEST[choice.norm]
        return best if best in run.attacks else None
    able = {
        attack_id: attack
        for attack_id, attack in run.attacks.items()
        if attack.attack == choice.name and attack.norm == choice.norm
    }
    most = run.config.evaluation.num_images
    return max(
        able,
        key=lambda a: (able[a].seeds is None, able[a].num_images or most),
        default=None,
    )


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


def _every_epoch(run: Run, part: ArmsPart, group: list[Comparison]) -> list[Evidence]:
    """Per comparison the epoch that speaks least for the claim, intervals over all epochs at once.

    Both arms' ``training.csv`` are needed; with one seed nothing is decided.
    """
    found = []
    for comparison in group:
        tables = [
            [run.history(spec.model_id) for spec in arm]
            for arm in (comparison.windowed, comparison.baseline)
        ]
        if any(table is None or part.metric not in table for arm in tables for table in arm):
            continue
        one, other = (
            np.stack([t[part.metric].to_numpy(dtype=np.float64) for t in arm if t is not None])
            for arm in tables
        )
        if one.shape != other.shape:
            continue
        effects = [over_seeds(column) for column in (one - other).T]
        confidence = 1 - 0.05 / (len(effects) * len(group))
        intervals = [effect.interval(confidence) for effect in effects]
        sign = -1 if part.expect == "lower" else 1
        worst = min(intervals, key=lambda i: sign * i.estimate)
        epoch = intervals.index(worst) + 1
        answers = {answer_of(i, part.expect, 0.0, None) for i in intervals}
        single = len(one) == 1
        found.append(
            Evidence(
                part=f"{_words(part, comparison)}, epoch {epoch} of {len(effects)}",
                answer=next(iter(answers))
                if len(answers) == 1 and not single
                else "contradicted"
                if "contradicted" in answers and not single
                else "undecided",
                expected=f"{part.expect} at every epoch",
                effect=worst.estimate,
                low=worst.low,
                high=worst.high,
                scale="difference",
                num_seeds=len(one),
                note="one seed: two networks, not two methods" if single else "",
            )
        )
    return found


# --- correlation, images ---------------------------------------------------------------------


def _correlation(run: Run, part: CorrelationPart) -> list[Evidence]:
    """Spearman's rank correlation over arms, means over seeds.

    The interval takes the arms as a sample: Fisher's z with the variance (1 + ρ²/2)/(n − 3) of
    Bonett & Wright (2000).
    """
    attack_id = _attack_id(run, part.attack)
    if attack_id is None:
        return []
    xs, ys = [], []
    for arm in arms_of(run).values():
        sizes = [run.cards[spec.model_id].get(part.correlate) for spec in arm]
        tables = [run.samples.get((spec.model_id, attack_id)) for spec in arm]
        done = [table for table in tables if table is not None]
        trusted = "fail" not in {run.badge(spec.model_id, attack_id) for spec in arm}
        if None not in sizes and len(done) == len(arm) and trusted:
            xs.append(np.array(sizes, dtype=np.float64))
            ys.append(np.array([area_values(t, run.attacks[attack_id]).mean() for t in done]))
    if len(xs) < 3:
        return []
    num_seeds = min(len(x) for x in xs)
    interval = _spearman([float(x.mean()) for x in xs], [float(y.mean()) for y in ys])
    few = len(xs) < _FEW_ARMS or num_seeds == 1
    return [
        Evidence(
            part=f"rank correlation of {part.correlate.replace('_', ' ')} with "
            f"{part.to.replace('_', ' ')} ({part.attack.name}) over {len(xs)} arms",
            answer="undecided" if few else answer_of(interval, part.expect, 0.0, None),
            expected=f"{part.expect} than 0",
            effect=interval.estimate,
            low=interval.low,
            high=interval.high,
            scale="rank correlation",
            num_seeds=num_seeds,
            num_images=None,
            note="too few arms or seeds"
            if few
            else "the arms are taken as a sample; no proof of a cause",
        )
    ]


def _spearman(one: list[float], other: list[float]) -> Interval:
    """Rank correlation of n ≥ 3 pairs and its 95 % interval; 0 where one never changes."""
    ranks = stats.rankdata(one), stats.rankdata(other)
    if any(np.ptp(rank) == 0 for rank in ranks):
        return Interval(0.0, -1.0, 1.0)
    found = float(np.corrcoef(*ranks)[0, 1])
    if len(one) < 4:
        return Interval(found, -1.0, 1.0)
    centre = np.arctanh(np.clip(found, -0.9999, 0.9999))
    half = stats.norm.ppf(0.975) * np.sqrt((1 + found**2 / 2) / (len(one) - 3))
    return Interval(found, float(np.tanh(centre - half)), float(np.tanh(centre + half)))


def _images(run: Run, part: ImagesPart) -> list[Evidence]:
    """The attacked images beside themselves before subsampling, paired: t interval over images."""
    if not run.folder.inputs.is_file():
        return []
    with reading(run.folder.inputs):
        table = read_table(run.folder.inputs)
    before = f"{part.images}_original"
    if before not in table or table[before].isna().any() or len(table) < 2:
        return []
    difference = (table[part.images] - table[before]).to_numpy(dtype=np.float64)
    interval = crossed(difference[None]).interval()
    return [
        Evidence(
            part=f"{part.images.replace('_', ' ')} share of the images, used against original",
            answer=answer_of(interval, part.expect, 0.0, None),
            expected=part.expect,
            effect=interval.estimate,
            low=interval.low,
            high=interval.high,
            scale="difference",
            num_seeds=0,
            num_images=len(difference),
        )
    ]


# --- experiments -----------------------------------------------------------------------------


def _at(table: pd.DataFrame, at: dict[str, Any]) -> pd.DataFrame:
    """Rows with the given values; ``last``: the largest that there is."""
    for column, value in at.items():
        wanted = table[column].max() if value == "last" else value
        table = table[table[column] == wanted]
    return table


def _column(table: pd.DataFrame, part: ColumnPart) -> list[Evidence]:
    here = _at(table, part.at)
    groups = list(here.groupby(part.per, sort=True))
    found = []
    for value, group in groups:
        one, other = (
            _at(group, keys).set_index("seed")[part.column] for keys in (part.compare, part.against)
        )
        both = (one - other).dropna()
        if both.empty:
            continue
        effect = over_seeds(both.to_numpy(dtype=np.float64))
        interval = effect.interval(1 - 0.05 / len(groups))
        windows = " against ".join(str(keys["window"]) for keys in (part.compare, part.against))
        windows = windows.replace("none", "baseline")
        at = f"{part.per.replace('_', ' ')} {value}"
        found.append(
            Evidence(
                part=f"{part.column.replace('_', ' ')}, {at}, {windows}",
                answer=answer_of(interval, part.expect, 0.0, None)
                if len(both) > 1
                else "undecided",
                expected=part.expect,
                effect=interval.estimate,
                low=interval.low,
                high=interval.high,
                scale="difference",
                num_seeds=len(both),
            )
        )
    return found


def _exponent(table: pd.DataFrame, part: ExponentPart) -> list[Evidence]:
    """Slope of a straight line through logarithms, with its t interval."""
    here = _at(table, part.at)
    if len(here) < 3:
        return []
    x, y = (np.log(here[name].to_numpy(dtype=np.float64)) for name in (part.of, part.exponent))
    line = stats.linregress(x, y)
    half = float(stats.t.ppf(0.975, len(x) - 2) * line.stderr)
    slope = float(line.slope)
    interval = Interval(slope, slope - half, slope + half)
    margins = (part.value - part.margin, part.value + part.margin)
    which = ", ".join(str(value) for value in part.at.values())
    return [
        Evidence(
            part=f"exponent of {part.exponent} in {part.of.replace('_', ' ')}, {which}",
            answer=answer_of(interval, part.expect, part.value, margins),
            expected=f"{part.value:g} ± {part.margin:g}",
            effect=slope,
            low=interval.low,
            high=interval.high,
            scale="exponent",
            num_seeds=0,
            note=f"{len(here)} points",
        )
    ]
