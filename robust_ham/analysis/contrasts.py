"""``contrasts.csv``: effects of windows, with intervals, tests and verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from robust_ham.analysis.arms import Arm, arms_of, pair_by_seed, stack
from robust_ham.analysis.metrics import METRICS, Metric, Scale
from robust_ham.analysis.run import Run
from robust_ham.analysis.statistics import Values, holm, pooled_seed_variance, ratio, vary_alike
from robust_ham.analysis.verdicts import FEW_SEEDS, UNKNOWN, Margins, judge_mean, judge_median_ratio
from robust_ham.analysis.withheld_verdicts import UNDECIDED, Kept, SignedArm, withhold_doubtful
from robust_ham.config.models import ModelGroup
from robust_ham.errors import RequestError

CONTRAST_COLUMNS = (
    "family window kernel_size versus versus_kernel_size metric attack budget scale num_seeds "
    "num_images baseline windowed effect low high simultaneous_low simultaneous_high p p_holm "
    "margin_low margin_high verdict seeds_to_decide images_to_decide primary note"
).split()

Versus = Literal["same k", "3x3 baseline", "claim"]


@dataclass(frozen=True)
class Measure:
    """A metric under one attack at one budget, by which two arms are compared.

    ``margins``: effects that count as equivalent; None: no agreed margin.
    """

    metric: Metric
    attack_id: str
    budget: float | None
    margins: Margins | None
    largest: float
    """Highest value of an image, where the lowest is 0."""
    lower_is_better: bool

    @property
    def scale(self) -> Scale:
        """How two arms are compared."""
        return self.metric.scale

    @property
    def per_image(self) -> bool:
        """Whether there is a value per image, not one per model."""
        return self.metric.per_image

    def values(self, run: Run, spec: ModelGroup) -> Values | None:
        """Return the values of a model, (n,); None: not measured yet."""
        if not self.attack_id:
            assert self.metric.model_values is not None
            return self.metric.model_values(run, spec)
        samples = run.samples.get((spec.model_id, self.attack_id))
        if samples is None:
            return None
        return self.metric.image_values(samples, run.attacks[self.attack_id], self.budget)


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
    """Compare each windowed arm with its references by each measure: ``contrasts.csv``.

    Simultaneous intervals and Holm's p cover the kernel sizes of one family, window, reference and
    measure. An interaction is the difference of the effect between two kernel sizes.
    """
    groups: dict[tuple[str, str, str], list[Comparison]] = {}
    for comparison in _comparisons(run):
        spec = comparison.spec
        groups.setdefault((spec.family, spec.window, comparison.versus), []).append(comparison)
    rows: list[dict[str, Any]] = []
    for group in groups.values():
        for measure in measures(run):
            rows += [row for _, row in compare_arms(run, group, measure)]
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
            paired = pair_by_seed(arm, arms.get((family, other or size, "none"), []))
            if paired is not None:
                yield Comparison(*paired, versus)


def compare_windows(
    run: Run, window: str, baseline: str, metric: str, attack_id: str, budget: float | None
) -> pd.DataFrame:
    """Compare two windows by one measure at every kernel size, in the columns of ``contrasts``.

    ``budget`` None: the attack's main one, for metrics at a budget.

    Raises:
        RequestError: the metric has no budget, or it is out of range.
    """
    attack, facts = run.attacks.get(attack_id), METRICS[metric]
    if attack is not None and attack.has_budget and facts.values_at is not None:
        budget = attack.main_budget if budget is None else budget
        if not isinstance(budget, int | float) or not 0 <= budget < np.inf:
            raise RequestError(f"budget: expected a distance of at least 0, got {budget!r}")
    elif budget is not None:
        raise RequestError(f"budget: not for {metric} under {attack_id or 'no attack'}")
    measure = measure_of(run, facts, attack_id, budget)
    arms = arms_of(run)
    groups: dict[str, list[Comparison]] = {}
    for (family, size, name), arm in arms.items():
        paired = pair_by_seed(arm, arms.get((family, size, baseline), []))
        if name == window and paired is not None:
            groups.setdefault(family, []).append(Comparison(*paired, "same k"))
    rows = [row for group in groups.values() for _, row in compare_arms(run, group, measure)]
    table = pd.DataFrame(rows, columns=CONTRAST_COLUMNS)
    return table.fillna(np.nan).infer_objects()  # None: no number


def measures(run: Run) -> Iterator[Measure]:
    """Yield all measures, those without an attack first."""
    metrics = [metric for metric in METRICS.values() if "contrasts" in metric.tables]
    for metric in metrics:
        if metric.model_values is not None:
            yield measure_of(run, metric)
    for attack_id, attack in run.attacks.items():
        for metric in metrics:
            if metric.model_values is not None or not metric.applies_to(attack):
                continue
            if metric.values_at is None or not attack.has_budget:
                yield measure_of(run, metric, attack_id)
                continue
            endpoints = [
                e for e in run.config.endpoints if run.resolve_attack_id(e.attack) == attack_id
            ]
            named = {endpoint.budget for endpoint in endpoints if endpoint.budget is not None}
            for budget in sorted({*attack.curve_budgets, attack.main_budget, *named}):
                yield measure_of(run, metric, attack_id, budget)


def measure_of(
    run: Run, metric: Metric, attack_id: str = "", budget: float | None = None
) -> Measure:
    """Bind a metric to an attack of the run and to the margins of its data set."""
    lowest, highest = metric.range(run.attacks[attack_id] if attack_id else None)
    return Measure(
        metric,
        attack_id,
        budget,
        None if metric.margins is None else metric.margins(run.config.dataset.name),
        highest - lowest,
        not metric.higher_is_better,
    )


# --- one measure, all kernel sizes ------------------------------------------------------------


def _paired_values(
    run: Run, comparison: Comparison, measure: Measure
) -> tuple[Values, Values] | None:
    """Return the values of both arms, (S, n); None if a model has none."""
    attack = run.attacks[measure.attack_id] if measure.attack_id else None
    windowed, baseline = (
        stack([measure.values(run, s) for s in arm if attack is None or attack.attacks(s)])
        for arm in (comparison.windowed, comparison.baseline)
    )
    if windowed is None or baseline is None or windowed.shape != baseline.shape:
        return None  # unfinished, or different numbers of images
    return windowed, baseline


def compare_arms(
    run: Run, group: list[Comparison], measure: Measure
) -> list[tuple[Comparison, dict[str, Any]]]:
    """Judge several comparisons together: a row for each that has values."""
    tables = [(comparison, _paired_values(run, comparison, measure)) for comparison in group]
    complete = [(comparison, *pair) for comparison, pair in tables if pair is not None]
    confidence = 1 - 0.05 / max(len(complete), 1)
    pooled = _pooled(measure, [(windowed, baseline) for _, windowed, baseline in complete])
    rows = [
        _about(run, comparison, measure, windowed, baseline)
        | _judged(measure, windowed, baseline, confidence, pooled)
        for comparison, windowed, baseline in complete
    ]
    tested = [row for row in rows if row["p"] is not None]
    for row, adjusted in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = adjusted
    judged = []
    for (comparison, windowed, baseline), row in zip(complete, rows, strict=True):

        def judge(kept: Kept, one: Values = windowed, two: Values = baseline) -> dict[str, Any]:
            return _judged(measure, one[kept], two[kept], confidence, pooled)

        arms: list[SignedArm] = [(comparison.windowed, 1), (comparison.baseline, -1)]
        checked = withhold_doubtful(run, arms, measure.attack_id, row, judge)
        judged.append((comparison, _with_reservations(run, [comparison], measure, checked)))
    return judged


def _with_reservations(
    run: Run, comparisons: list[Comparison], measure: Measure, row: dict[str, Any]
) -> dict[str, Any]:
    """Add notes on images, gate and learning rates; remove the verdict if it cannot be trusted."""
    specs = [spec for c in comparisons for spec in [*c.windowed, *c.baseline]]
    if not _same_images(run, specs, measure):
        return row | UNKNOWN | UNDECIDED | {"note": "not the same images"}
    if measure.attack_id and "fail" in {run.badge(s.model_id, measure.attack_id) for s in specs}:
        return row | UNDECIDED | {"note": "the gate fails a model: not to be trusted"}
    rates = list(dict.fromkeys(run.learning_rates[spec.model_id] for spec in specs))
    if len(rates) > 1:
        differ = "learning rates " + " and ".join(f"{rate:g}" for rate in rates)
        return row | {"note": "; ".join(filter(None, [row["note"], differ]))}
    return row


def _same_images(run: Run, specs: list[ModelGroup], measure: Measure) -> bool:
    """Return whether all models were attacked on the same images in the same order."""
    if not measure.attack_id:
        return True
    attack = run.attacks[measure.attack_id]
    orders = run.image_orders
    return len({orders[s.model_id, measure.attack_id] for s in specs if attack.attacks(s)}) <= 1


def _interaction_rows(
    run: Run, group: list[Comparison], measure: Measure, small: int, large: int
) -> list[dict[str, Any]]:
    """Compare the effect at the large kernel size with that at the small one."""
    by_size = {comparison.spec.kernel_size: comparison for comparison in group}
    if measure.scale == "median ratio" or not {small, large} <= by_size.keys():
        return []
    few, many = (_paired_values(run, by_size[size], measure) for size in (small, large))
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
    row |= judged | {"p_holm": judged["p"]}  # a family of one test
    both = [by_size[small], by_size[large]]
    arms: list[SignedArm] = [
        (both[0].windowed, -1),
        (both[0].baseline, 1),
        (both[1].windowed, 1),
        (both[1].baseline, -1),
    ]

    def judge(kept: Kept) -> dict[str, Any]:
        return _judged_interaction(measure, few, many, kept)[2]

    checked = withhold_doubtful(run, arms, measure.attack_id, row, judge)
    return [_with_reservations(run, both, measure, checked)]


def _judged_interaction(
    measure: Measure, few: tuple[Values, Values], many: tuple[Values, Values], kept: Kept
) -> tuple[float, float, dict[str, Any]]:
    """Return the effect at each kernel size and the judged difference, over the pairs kept."""
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


def _pooled(measure: Measure, pairs: list[tuple[Values, Values]]) -> tuple[float, float] | None:
    """Pool the seed variance over kernel sizes if seeds are few and vary alike; None: do not."""
    if measure.scale == "median ratio" or len(pairs) < 2:
        return None
    deviations = [_deviation(measure, windowed, baseline)[1] for windowed, baseline in pairs]
    usable = measure.per_image and all(1 < len(d) < FEW_SEEDS for d in deviations)
    finite = all(np.isfinite(d).all() for d in deviations)
    if not (usable and finite and vary_alike(deviations)):
        return None
    return pooled_seed_variance(deviations)


def _deviation(measure: Measure, windowed: Values, baseline: Values) -> tuple[float, Values]:
    """Return the effect, and values (S, n) whose mean has the effect's error."""
    if measure.scale == "difference":
        return float((windowed - baseline).mean()), windowed - baseline
    return ratio(windowed, baseline)


def possible_effects(
    scale: Scale, largest: float, estimate: float, baseline: Values
) -> tuple[float, float]:
    """Return the smallest and largest effect of one image whose values are 0 to ``largest``.

    For a ratio, by the delta method: the numerator is ``largest`` and the denominator 0.
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
        "metric": measure.metric.id,
        "attack": measure.attack_id,
        "budget": measure.budget,
        "scale": measure.scale,
        "num_seeds": len(windowed),
        "num_images": windowed.shape[1] if measure.per_image else None,
        "primary": comparison.versus == "same k" and _is_primary(run, measure),
        **means,
    }


def _is_primary(run: Run, measure: Measure) -> bool:
    """Return whether the measure is a primary endpoint; default budget: the attack's main one."""
    key = (measure.metric.id, measure.attack_id, measure.budget)
    for endpoint in run.config.endpoints:
        attack_id, budget = run.resolve_attack_id(endpoint.attack), endpoint.budget
        at_budget = METRICS[endpoint.metric].values_at is not None
        if at_budget and run.attacks[attack_id].has_budget:
            budget = budget or run.attacks[attack_id].main_budget
        if (endpoint.metric, attack_id, budget) == key:
            return True
    return False


def _judged(
    measure: Measure,
    windowed: Values,
    baseline: Values,
    confidence: float,
    pooled: tuple[float, float] | None,
) -> dict[str, Any]:
    """Return effect, intervals, p, verdict, and the size needed for a verdict."""
    if measure.scale == "median ratio":
        return judge_median_ratio(windowed, baseline, confidence)
    estimate, deviation = _deviation(measure, windowed, baseline)
    return judge_mean(
        estimate,
        deviation,
        confidence,
        pooled,
        measure.metric.no_effect,
        measure.margins,
        possible=possible_effects(measure.scale, measure.largest, estimate, baseline),
        lower_is_better=measure.lower_is_better,
        per_image=measure.per_image,
    )
