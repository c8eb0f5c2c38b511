"""Windowed against baseline: effects with intervals, tests and verdicts, for ``contrasts.csv``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd

from robust_ham.analysis.curves import area_values, distances, survived
from robust_ham.analysis.run import Run
from robust_ham.analysis.statistics import (
    Interval,
    Values,
    bootstrap_medians,
    crossed,
    holm,
    images_to_decide,
    over_seeds,
    pooled_seed_variance,
    ratio,
    seeds_to_decide,
    vary_alike,
    verdict,
)
from robust_ham.config import BEST, AttackConfig, ModelGroup

CONTRAST_COLUMNS = (
    "family window kernel_size versus versus_kernel_size metric attack budget scale num_seeds "
    "num_images baseline windowed effect low high simultaneous_low simultaneous_high p p_holm "
    "margin_low margin_high verdict seeds_to_decide images_to_decide primary note"
).split()
ACCURACY_MARGINS = {"fashion_mnist": 0.005, "mnist": 0.001}
"""Differences of accuracy that count as none; other data sets: one percentage point."""
RATIO_MARGINS = (0.95, 1.05)
_FEW_SEEDS = 5
_ONE_SEED = "one seed: two networks, not two methods"

Arm = list[ModelGroup]
Scale = Literal["difference", "ratio", "median ratio"]


@dataclass(frozen=True)
class Figure:
    """What two arms are compared by: values per model, (n,) over images, or one number."""

    metric: str
    attack: str
    budget: float | None
    scale: Scale
    values: Callable[[Run, ModelGroup], Values | None]
    lower_is_better: bool = False


@dataclass(frozen=True)
class Comparison:
    """Two arms, paired by seed."""

    windowed: Arm
    baseline: Arm
    versus: Literal["same k", "3x3 baseline"]

    @property
    def spec(self) -> ModelGroup:
        """A model of the windowed arm."""
        return self.windowed[0]


def contrasts(run: Run) -> pd.DataFrame:
    """``contrasts.csv``: every comparison of a windowed arm, by every figure.

    Simultaneous intervals and Holm's p are over the kernel sizes of one family, window, reference
    and figure. An interaction is the growth of the effect between two kernel sizes.
    """
    groups: dict[tuple[str, str, str], list[Comparison]] = {}
    for comparison in _comparisons(run):
        spec = comparison.spec
        groups.setdefault((spec.family, spec.window, comparison.versus), []).append(comparison)
    rows: list[dict[str, Any]] = []
    for group in groups.values():
        for figure in _figures(run):
            rows += _group_rows(run, group, figure)
            if group[0].versus == "same k" and run.config.interaction is not None:
                rows += _interaction_rows(run, group, figure, *run.config.interaction)
    return pd.DataFrame(rows, columns=CONTRAST_COLUMNS)


def _comparisons(run: Run) -> Iterator[Comparison]:
    arms: dict[tuple[str, str, int], Arm] = {}
    for spec in run.specs:
        arms.setdefault((spec.family, spec.window, spec.kernel_size), []).append(spec)
    for (family, window, size), arm in arms.items():
        if window == "none":
            continue
        for versus, other in (("same k", size), ("3x3 baseline", 3)):
            paired = _paired(arm, arms.get((family, "none", other), []))
            if paired is not None and not (versus == "3x3 baseline" and size == 3):
                yield Comparison(*paired, versus=versus)  # type: ignore[arg-type]


def _paired(one: Arm, other: Arm) -> tuple[Arm, Arm] | None:
    """The models of two arms whose seeds both have, in the order of the seeds."""
    first, second = ({spec.seed: spec for spec in arm} for arm in (one, other))
    seeds = sorted(first.keys() & second.keys())
    return ([first[s] for s in seeds], [second[s] for s in seeds]) if seeds else None


def _figures(run: Run) -> Iterator[Figure]:
    yield Figure("clean_accuracy", "", None, "difference", lambda r, s: r.correct(s.model_id))
    for metric in ("train_loss", "validation_loss"):
        values = partial(_from_card, metric)
        yield Figure(metric, "", None, "difference", values, lower_is_better=True)
    for attack_id, attack in run.attacks.items():
        if not attack.has_budget:
            values = partial(_from_samples, attack_id, survived)
            yield Figure("robust_accuracy", attack_id, None, "difference", values)
            continue
        values = partial(_from_samples, attack_id, area_values)
        yield Figure("robust_area", attack_id, None, "ratio", values)
        for budget in attack.curve_budgets:
            values = partial(_from_samples, attack_id, partial(_beyond, budget))
            yield Figure("robust_accuracy", attack_id, budget, "difference", values)
        values = partial(_from_samples, attack_id, distances)
        yield Figure("distance", attack_id, None, "median ratio", values)


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


def _beyond(budget: float, samples: pd.DataFrame, attack: AttackConfig) -> Values:
    return np.asarray(distances(samples, attack) > budget, dtype=np.float64)


# --- one figure, all kernel sizes ------------------------------------------------------------


def _tables(run: Run, comparison: Comparison, figure: Figure) -> tuple[Values, Values] | None:
    """Values of the windowed and of the baseline arm, (S, n); None where a model has none."""
    windowed, baseline = (
        _stacked([figure.values(run, spec) for spec in arm])
        for arm in (comparison.windowed, comparison.baseline)
    )
    if windowed is None or baseline is None or windowed.shape != baseline.shape:
        return None
    return windowed, baseline


def _group_rows(run: Run, group: list[Comparison], figure: Figure) -> list[dict[str, Any]]:
    tables = [(comparison, _tables(run, comparison, figure)) for comparison in group]
    found = [(comparison, *pair) for comparison, pair in tables if pair is not None]
    confidence = 1 - 0.05 / max(len(found), 1)
    pooled = _pooled(figure, [(windowed, baseline) for _, windowed, baseline in found])
    rows = [
        _about(run, comparison, figure, windowed, baseline)
        | _judged(run, figure, windowed, baseline, confidence, pooled)
        for comparison, windowed, baseline in found
    ]
    for row, adjusted in zip(
        [row for row in rows if row["p"] is not None],
        holm([row["p"] for row in rows if row["p"] is not None]),
        strict=True,
    ):
        row["p_holm"] = adjusted
    return rows


def _interaction_rows(
    run: Run, group: list[Comparison], figure: Figure, small: int, large: int
) -> list[dict[str, Any]]:
    """How much more the window does at the large kernel size than at the small one."""
    by_size = {comparison.spec.kernel_size: comparison for comparison in group}
    if figure.scale == "median ratio" or not {small, large} <= by_size.keys():
        return []
    few, many = (_tables(run, by_size[size], figure) for size in (small, large))
    seeds = [[spec.seed for spec in by_size[size].windowed] for size in (small, large)]
    if few is None or many is None or seeds[0] != seeds[1]:
        return []
    low, low_deviation = _deviation(figure, *few)
    high, high_deviation = _deviation(figure, *many)
    deviation = high_deviation - low_deviation
    row = _about(run, by_size[large], figure, *many) | {
        "versus": "interaction",
        "versus_kernel_size": small,
        "baseline": low,
        "windowed": high,
        "scale": "difference",
    }
    margins = _margins(run, figure)
    if margins is not None and figure.scale == "ratio":
        margins = margins[0] - 1, margins[1] - 1
    return [row | _tested(figure, high - low, deviation, 0.95, None, 0.0, margins)]


def _pooled(figure: Figure, cells: list[tuple[Values, Values]]) -> tuple[float, float] | None:
    """Seed variance over kernel sizes where seeds are few and vary alike; None: each its own."""
    if figure.scale == "median ratio" or len(cells) < 2:
        return None
    deviations = [_deviation(figure, windowed, baseline)[1] for windowed, baseline in cells]
    usable = all(1 < len(d) < _FEW_SEEDS and d.shape[1] > 1 for d in deviations)
    finite = all(np.isfinite(d).all() for d in deviations)
    if not (usable and finite and vary_alike(deviations)):
        return None
    return pooled_seed_variance(deviations)


def _stacked(values: list[Values | None]) -> Values | None:
    """(S, n); None where a model has no values or the models' images differ in number."""
    present = [v for v in values if v is not None]
    if len(present) < len(values) or len({len(v) for v in present}) != 1:
        return None
    return np.stack(present)


def _deviation(figure: Figure, windowed: Values, baseline: Values) -> tuple[float, Values]:
    """The effect, and values (S, n) whose mean has the effect's error."""
    if figure.scale == "difference":
        return float((windowed - baseline).mean()), windowed - baseline
    estimate, deviation = ratio(windowed, baseline)
    return estimate, deviation


def _about(
    run: Run, comparison: Comparison, figure: Figure, windowed: Values, baseline: Values
) -> dict[str, Any]:
    spec = comparison.spec
    means: dict[str, Any] = {}
    if figure.scale != "median ratio":
        means = {"baseline": float(baseline.mean()), "windowed": float(windowed.mean())}
    return {
        "family": spec.family,
        "window": spec.window,
        "kernel_size": spec.kernel_size,
        "versus": comparison.versus,
        "versus_kernel_size": comparison.baseline[0].kernel_size,
        "metric": figure.metric,
        "attack": figure.attack,
        "budget": figure.budget,
        "scale": figure.scale,
        "num_seeds": len(windowed),
        "num_images": windowed.shape[1] if windowed.shape[1] > 1 else None,
        "primary": comparison.versus == "same k" and _is_primary(run, figure),
        **means,
    }


def _is_primary(run: Run, figure: Figure) -> bool:
    """Whether the configuration names the figure as an endpoint; one attack is its own best."""
    for endpoint in run.config.endpoints:
        attack = endpoint.attack
        if attack in BEST.values() and attack not in run.attacks:
            norm = next(norm for norm, best in BEST.items() if best == attack)
            alone = [a for a, c in run.attacks.items() if c.has_budget and c.norm == norm]
            attack = alone[0] if alone else attack
        if (endpoint.metric, attack) == (figure.metric, figure.attack) and (
            endpoint.budget is None or endpoint.budget == figure.budget
        ):
            return True
    return False


def _judged(
    run: Run,
    figure: Figure,
    windowed: Values,
    baseline: Values,
    confidence: float,
    pooled: tuple[float, float] | None,
) -> dict[str, Any]:
    """Effect, intervals, p, verdict, and what it would take to decide."""
    margins = _margins(run, figure)
    if figure.scale == "median ratio":
        return _median_ratio(windowed, baseline, confidence)
    null = 0.0 if figure.scale == "difference" else 1.0
    estimate, deviation = _deviation(figure, windowed, baseline)
    return _tested(figure, estimate, deviation, confidence, pooled, null, margins)


def _tested(
    figure: Figure,
    estimate: float,
    deviation: Values,
    confidence: float,
    pooled: tuple[float, float] | None,
    null: float,
    margins: tuple[float, float] | None,
) -> dict[str, Any]:
    """Of an effect whose error is that of the mean of ``deviation``, (S, n)."""
    row: dict[str, Any] = {"p": None, "p_holm": None, "verdict": "undecided", "note": ""}
    if margins is not None:
        row |= {"margin_low": margins[0], "margin_high": margins[1]}
    if not np.isfinite(deviation).all():
        return row | {"note": "the baseline's figure is 0"}
    error = over_seeds(deviation[:, 0]) if deviation.shape[1] == 1 else crossed(deviation, pooled)
    effect = replace(error, estimate=estimate)
    simultaneous = effect.interval(confidence)
    row |= _intervals(effect.interval(), simultaneous) | {"p": effect.p_value(null)}
    if len(deviation) == 1:
        return row | {"note": _ONE_SEED}
    if pooled is not None:
        row["note"] = "seed variance pooled over kernel sizes"
    elif len(deviation) < _FEW_SEEDS and deviation.shape[1] > 1:
        row["note"] = f"{len(deviation)} seeds and nothing to pool them with: intervals are rough"
    row["verdict"] = verdict(_upwards(simultaneous, figure), null, margins)
    if row["verdict"] == "undecided" and deviation.shape[1] > 1:
        row["seeds_to_decide"] = seeds_to_decide(effect, confidence, null, margins)
        row["images_to_decide"] = images_to_decide(effect, confidence, null, margins)
    return row


def _median_ratio(windowed: Values, baseline: Values, confidence: float) -> dict[str, Any]:
    """Median over images that both get right of windowed over baseline distance."""
    row: dict[str, Any] = {"p": None, "p_holm": None, "verdict": "undecided"}
    ratios = _per_image_ratios(windowed, baseline)
    if np.isnan(ratios).all(axis=1).any():
        return row | {"note": "no image that both get right"}
    medians = bootstrap_medians(ratios)
    simultaneous = medians.interval(confidence)
    row |= _intervals(medians.interval(), simultaneous)
    if len(windowed) == 1:
        return row | {"note": _ONE_SEED}
    few = "bootstrap, approximate below 10 seeds" if len(windowed) < 10 else "bootstrap"
    return row | {"verdict": verdict(simultaneous, 1.0, None), "note": few}


def _intervals(nominal: Interval, simultaneous: Interval) -> dict[str, float | None]:
    return {
        "effect": _finite(nominal.estimate),
        "low": _finite(nominal.low),
        "high": _finite(nominal.high),
        "simultaneous_low": _finite(simultaneous.low),
        "simultaneous_high": _finite(simultaneous.high),
    }


def _margins(run: Run, figure: Figure) -> tuple[float, float] | None:
    """Effects that count as none; None: there is no agreed margin."""
    if figure.scale == "ratio":
        return RATIO_MARGINS
    if figure.scale == "difference" and not figure.lower_is_better:
        margin = ACCURACY_MARGINS.get(run.config.dataset.name, 0.01)
        return -margin, margin
    return None


def _upwards(interval: Interval, figure: Figure) -> Interval:
    """The interval of a figure of which more is better."""
    if not figure.lower_is_better:
        return interval
    return Interval(-interval.estimate, -interval.high, -interval.low)


def _per_image_ratios(windowed: Values, baseline: Values) -> Values:
    """Windowed over baseline distance, (S, n); NaN where one of the two is wrong at first.

    ∞ against ∞ is a tie: 1.
    """
    both = (windowed > 0) & (baseline > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = windowed / baseline
    found = np.where(np.isinf(windowed) & np.isinf(baseline), 1.0, found)
    return np.where(both, found, np.nan)


def _finite(value: float) -> float | None:
    """None for an end that the data cannot give."""
    return value if np.isfinite(value) else None
