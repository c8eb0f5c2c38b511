"""Windowed against baseline: effects with intervals, tests and verdicts, for ``contrasts.csv``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd

from robust_ham.analysis.curves import (
    area_values,
    arms_of,
    distances,
    stacked,
    still_right,
    survived,
)
from robust_ham.analysis.doubts import UNDECIDED, Kept, SignedArm, withhold_doubtful
from robust_ham.analysis.run import Run
from robust_ham.analysis.statistics import Values, holm, pooled_seed_variance, ratio, vary_alike
from robust_ham.analysis.verdicts import FEW_SEEDS, UNKNOWN, Margins, judge_mean, judge_median_ratio
from robust_ham.config.experiment import AttackConfig
from robust_ham.config.models import ModelGroup

CONTRAST_COLUMNS = (
    "family window kernel_size versus versus_kernel_size metric attack budget scale num_seeds "
    "num_images baseline windowed effect low high simultaneous_low simultaneous_high p p_holm "
    "margin_low margin_high verdict seeds_to_decide images_to_decide primary note"
).split()
ACCURACY_MARGINS = {"fashion_mnist": 0.005, "mnist": 0.001}
"""Differences of accuracy that count as none; other data sets: ``ACCURACY_MARGIN``."""
ACCURACY_MARGIN = 0.01
RATIO_MARGINS = (0.95, 1.05)

Arm = list[ModelGroup]
Versus = Literal["same k", "3x3 baseline", "claim"]
Scale = Literal["difference", "ratio", "median ratio"]


@dataclass(frozen=True)
class Measure:
    """What two arms are compared by: values per model, (n,) over images, or one number.

    ``margins``: effects that count as none; None: there is no agreed margin. ``largest``: value of
    an image, where the smallest is 0.
    """

    metric: str
    attack: str
    budget: float | None
    scale: Scale
    values: Callable[[Run, ModelGroup], Values | None]
    margins: Margins | None = None
    largest: float = np.inf
    lower_is_better: bool = False
    per_image: bool = True


@dataclass(frozen=True)
class Comparison:
    """Two arms, paired by seed."""

    windowed: Arm
    baseline: Arm
    versus: Versus

    @property
    def spec(self) -> ModelGroup:
        """A model of the windowed arm."""
        return self.windowed[0]


def contrasts(run: Run) -> pd.DataFrame:
    """``contrasts.csv``: every comparison of a windowed arm, by every measure.

    Simultaneous intervals and Holm's p are over the kernel sizes of one family, window, reference
    and measure. An interaction is the growth of the effect between two kernel sizes.
    """
    groups: dict[tuple[str, str, str], list[Comparison]] = {}
    for comparison in _comparisons(run):
        spec = comparison.spec
        groups.setdefault((spec.family, spec.window, comparison.versus), []).append(comparison)
    rows: list[dict[str, Any]] = []
    for group in groups.values():
        for measure in measures(run):
            rows += [row for _, row in compare(run, group, measure)]
            if group[0].versus == "same k" and run.config.interaction is not None:
                rows += _interaction_rows(run, group, measure, *run.config.interaction)
    return pd.DataFrame(rows, columns=CONTRAST_COLUMNS)


def _comparisons(run: Run) -> Iterator[Comparison]:
    arms = arms_of(run)
    references: list[tuple[Versus, int | None]] = [("same k", None), ("3x3 baseline", 3)]
    for (family, size, window), arm in arms.items():
        for versus, other in references:
            if window == "none" or other == size:
                continue
            paired = paired_by_seed(arm, arms.get((family, other or size, "none"), []))
            if paired is not None:
                yield Comparison(*paired, versus)


def paired_by_seed(one: Arm, other: Arm) -> tuple[Arm, Arm] | None:
    """The models of two arms whose seeds both have, in the order of the seeds."""
    first, second = ({spec.seed: spec for spec in arm} for arm in (one, other))
    seeds = sorted(first.keys() & second.keys())
    return ([first[s] for s in seeds], [second[s] for s in seeds]) if seeds else None


def measures(run: Run) -> Iterator[Measure]:
    """Everything that arms are compared by."""
    margin = ACCURACY_MARGINS.get(run.config.dataset.name, ACCURACY_MARGIN)
    shares = (-margin, margin)
    yield Measure("clean_accuracy", "", None, "difference", _from_predictions, shares, 1.0)
    for metric in ("train_loss", "validation_loss"):
        yield replace(measure_of_card(metric), lower_is_better=True)
    for attack_id, attack in run.attacks.items():
        if not attack.has_budget:
            values = partial(_from_samples, attack_id, survived)
            yield Measure("robust_accuracy", attack_id, None, "difference", values, shares, 1.0)
            continue
        values = partial(_from_samples, attack_id, area_values)
        largest = attack.curve_budgets[-1]
        yield Measure("robust_area", attack_id, None, "ratio", values, RATIO_MARGINS, largest)
        endpoints = [e for e in run.config.endpoints if run.meant_by(e.attack) == attack_id]
        asked = {endpoint.budget for endpoint in endpoints if endpoint.budget is not None}
        for budget in sorted({*attack.curve_budgets, attack.main_budget, *asked}):
            values = partial(_from_samples, attack_id, partial(still_right, budget=budget))
            yield Measure("robust_accuracy", attack_id, budget, "difference", values, shares, 1.0)
        values = partial(_from_samples, attack_id, distances)
        yield Measure("distance", attack_id, None, "median ratio", values)


def measure_of_card(metric: str) -> Measure:
    """A number on the models' cards, such as ``train_loss``."""
    return Measure(metric, "", None, "difference", partial(_from_card, metric), per_image=False)


def _from_predictions(run: Run, spec: ModelGroup) -> Values | None:
    return run.correct(spec.model_id)


def _from_card(metric: str, run: Run, spec: ModelGroup) -> Values | None:
    value = run.cards[spec.model_id].get(metric)
    return None if value is None else np.array([float(value)])


def _from_samples(
    attack_id: str,
    values: Callable[[pd.DataFrame, AttackConfig], Values],
    run: Run,
    spec: ModelGroup,
) -> Values | None:
    samples = run.samples.get((spec.model_id, attack_id))
    return None if samples is None else values(samples, run.attacks[attack_id])


# --- one measure, all kernel sizes ------------------------------------------------------------


def _tables(run: Run, comparison: Comparison, measure: Measure) -> tuple[Values, Values] | None:
    """Values of the windowed and of the baseline arm, (S, n); None where a model has none."""
    attack = run.attacks[measure.attack] if measure.attack else None
    windowed, baseline = (
        stacked([measure.values(run, s) for s in arm if attack is None or attack.attacks(s)])
        for arm in (comparison.windowed, comparison.baseline)
    )
    if windowed is None or baseline is None or windowed.shape != baseline.shape:
        return None  # no table yet, or of another number of images
    return windowed, baseline


def compare(
    run: Run, group: list[Comparison], measure: Measure
) -> list[tuple[Comparison, dict[str, Any]]]:
    """A row for each of several comparisons, judged together; those without values left out."""
    tables = [(comparison, _tables(run, comparison, measure)) for comparison in group]
    found = [(comparison, *pair) for comparison, pair in tables if pair is not None]
    confidence = 1 - 0.05 / max(len(found), 1)
    pooled = _pooled(measure, [(windowed, baseline) for _, windowed, baseline in found])
    rows = [
        _about(run, comparison, measure, windowed, baseline)
        | _judged(measure, windowed, baseline, confidence, pooled)
        for comparison, windowed, baseline in found
    ]
    tested = [row for row in rows if row["p"] is not None]
    for row, adjusted in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = adjusted
    judged = []
    for (comparison, windowed, baseline), row in zip(found, rows, strict=True):

        def judge(kept: Kept, one: Values = windowed, two: Values = baseline) -> dict[str, Any]:
            return _judged(measure, one[kept], two[kept], confidence, pooled)

        arms: list[SignedArm] = [(comparison.windowed, 1), (comparison.baseline, -1)]
        sure = withhold_doubtful(run, arms, measure.attack, row, judge)
        judged.append((comparison, _with_reservations(run, [comparison], measure, sure)))
    return judged


def _with_reservations(
    run: Run, comparisons: list[Comparison], measure: Measure, row: dict[str, Any]
) -> dict[str, Any]:
    """The row, and what it must say beside, or in place of, what its numbers say."""
    specs = [spec for c in comparisons for spec in [*c.windowed, *c.baseline]]
    if not _same_images(run, specs, measure):
        return row | UNKNOWN | UNDECIDED | {"note": "not the same images"}
    if measure.attack and "fail" in {run.badge(s.model_id, measure.attack) for s in specs}:
        return row | UNDECIDED | {"note": "the gate fails a model: not to be trusted"}
    rates = list(dict.fromkeys(run.learning_rates[spec.model_id] for spec in specs))
    if len(rates) > 1:
        differ = "learning rates " + " and ".join(f"{rate:g}" for rate in rates)
        return row | {"note": "; ".join(filter(None, [row["note"], differ]))}
    return row


def _same_images(run: Run, specs: list[ModelGroup], measure: Measure) -> bool:
    """Whether all models were attacked on the same images, in the same order."""
    if not measure.attack:
        return True
    attack = run.attacks[measure.attack]
    orders = run.image_orders
    return len({orders[s.model_id, measure.attack] for s in specs if attack.attacks(s)}) <= 1


def _interaction_rows(
    run: Run, group: list[Comparison], measure: Measure, small: int, large: int
) -> list[dict[str, Any]]:
    """How much more the window does at the large kernel size than at the small one."""
    by_size = {comparison.spec.kernel_size: comparison for comparison in group}
    if measure.scale == "median ratio" or not {small, large} <= by_size.keys():
        return []
    few, many = (_tables(run, by_size[size], measure) for size in (small, large))
    seeds = [[spec.seed for spec in by_size[size].windowed] for size in (small, large)]
    if few is None or many is None or seeds[0] != seeds[1]:
        return []
    if few[0].shape != many[0].shape:
        return []
    everything = np.ones(len(few[0]), dtype=np.bool_)
    low, high, judged = _judged_interaction(measure, few, many, everything)
    row = _about(run, by_size[large], measure, *many) | {
        "versus": "interaction",
        "versus_kernel_size": small,
        "baseline": low,
        "windowed": high,
        "scale": "difference",
    }
    row |= judged | {"p_holm": judged["p"]}  # the only one of its kind
    both = [by_size[small], by_size[large]]
    arms: list[SignedArm] = [
        (both[0].windowed, -1),
        (both[0].baseline, 1),
        (both[1].windowed, 1),
        (both[1].baseline, -1),
    ]

    def judge(kept: Kept) -> dict[str, Any]:
        return _judged_interaction(measure, few, many, kept)[2]

    sure = withhold_doubtful(run, arms, measure.attack, row, judge)
    return [_with_reservations(run, both, measure, sure)]


def _judged_interaction(
    measure: Measure, few: tuple[Values, Values], many: tuple[Values, Values], kept: Kept
) -> tuple[float, float, dict[str, Any]]:
    """Effect at either kernel size, and what is judged of their difference, of the pairs kept."""
    low, low_deviation = _deviation(measure, *(values[kept] for values in few))
    high, high_deviation = _deviation(measure, *(values[kept] for values in many))
    margins = measure.margins
    if margins is not None and measure.scale == "ratio":
        margins = margins[0] - 1, margins[1] - 1
    judged = judge_mean(
        high - low,
        high_deviation - low_deviation,
        0.95,
        None,
        0.0,
        margins,
        possible=(-2 * measure.largest, 2 * measure.largest)
        if measure.scale == "difference"
        else (-np.inf, np.inf),
        lower_is_better=measure.lower_is_better,
        per_image=measure.per_image,
    )
    return low, high, judged


def _pooled(measure: Measure, cells: list[tuple[Values, Values]]) -> tuple[float, float] | None:
    """Seed variance over kernel sizes where seeds are few and vary alike; None: each its own."""
    if measure.scale == "median ratio" or len(cells) < 2:
        return None
    deviations = [_deviation(measure, windowed, baseline)[1] for windowed, baseline in cells]
    usable = measure.per_image and all(1 < len(d) < FEW_SEEDS for d in deviations)
    finite = all(np.isfinite(d).all() for d in deviations)
    if not (usable and finite and vary_alike(deviations)):
        return None
    return pooled_seed_variance(deviations)


def _deviation(measure: Measure, windowed: Values, baseline: Values) -> tuple[float, Values]:
    """The effect, and values (S, n) whose mean has the effect's error."""
    if measure.scale == "difference":
        return float((windowed - baseline).mean()), windowed - baseline
    return ratio(windowed, baseline)


def possible_effects(
    scale: Scale, largest: float, estimate: float, baseline: Values
) -> tuple[float, float]:
    """Smallest and largest effect that one image can have, where its values are 0 to ``largest``.

    Of a ratio as the delta method sees it: the numerator is ``largest`` and the denominator 0.
    """
    if scale == "difference":
        return -largest, largest
    below = float(baseline.mean())
    return 0.0, estimate + largest / below if below > 0 else np.inf


def _about(
    run: Run, comparison: Comparison, measure: Measure, windowed: Values, baseline: Values
) -> dict[str, Any]:
    spec = comparison.spec
    means: dict[str, Any] = {}
    if measure.scale != "median ratio":
        means = {"baseline": float(baseline.mean()), "windowed": float(windowed.mean())}
    return {
        "family": spec.family,
        "window": spec.window,
        "kernel_size": spec.kernel_size,
        "versus": comparison.versus,
        "versus_kernel_size": comparison.baseline[0].kernel_size,
        "metric": measure.metric,
        "attack": measure.attack,
        "budget": measure.budget,
        "scale": measure.scale,
        "num_seeds": len(windowed),
        "num_images": windowed.shape[1] if measure.per_image else None,
        "primary": comparison.versus == "same k" and _is_primary(run, measure),
        **means,
    }


def _is_primary(run: Run, measure: Measure) -> bool:
    """Whether the configuration names the figure as an endpoint; without a budget: the attack's."""
    for endpoint in run.config.endpoints:
        attack_id, budget = run.meant_by(endpoint.attack), endpoint.budget
        if endpoint.metric == "robust_accuracy" and run.attacks[attack_id].has_budget:
            budget = budget or run.attacks[attack_id].main_budget
        if (endpoint.metric, attack_id, budget) == (measure.metric, measure.attack, measure.budget):
            return True
    return False


def _judged(
    measure: Measure,
    windowed: Values,
    baseline: Values,
    confidence: float,
    pooled: tuple[float, float] | None,
) -> dict[str, Any]:
    """Effect, intervals, p, verdict, and what it would take to decide."""
    if measure.scale == "median ratio":
        return judge_median_ratio(windowed, baseline, confidence)
    null = 0.0 if measure.scale == "difference" else 1.0
    estimate, deviation = _deviation(measure, windowed, baseline)
    return judge_mean(
        estimate,
        deviation,
        confidence,
        pooled,
        null,
        measure.margins,
        possible=possible_effects(measure.scale, measure.largest, estimate, baseline),
        lower_is_better=measure.lower_is_better,
        per_image=measure.per_image,
    )
