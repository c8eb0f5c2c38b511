"""What an explanatory experiment's table says of one part of a claim."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from robust_ham.analysis.claims.evidence import Evidence, answer_of, judged
from robust_ham.analysis.claims.schema import ColumnPart, ExponentPart
from robust_ham.analysis.statistics import Interval, over_seeds


def evidence_in_table(table: pd.DataFrame, part: ColumnPart | ExponentPart) -> list[Evidence]:
    """All evidence that an experiment's table has on a part."""
    return _column(table, part) if isinstance(part, ColumnPart) else _exponent(table, part)


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
        answer = answer_of(interval, part.expect, 0.0, None)
        words = f"{part.column.replace('_', ' ')}, {at}, {windows}"
        found.append(
            judged(words, answer, part.expect, interval, "difference", num_seeds=len(both))
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
        judged(
            f"exponent of {part.exponent} in {part.of.replace('_', ' ')}, {which}",
            answer_of(interval, part.expect, part.value, margins),
            f"{part.value:g} ± {part.margin:g}",
            interval,
            "exponent",
            note=f"{len(here)} points",
        )
    ]
