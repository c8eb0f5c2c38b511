"""The one comparison of distances with a budget; every table, curve and claim uses it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from robust_ham.analysis.statistics import Values

_ULP = 2.0**-24
"""Spacing of float32 numbers just below 1, the largest value of a pixel."""


def tolerance(budget: float) -> float:
    """How far rounding may put a distance beyond the budget that it was clipped to.

    Pixels in float32 are rounded by half an ulp of [0, 1], once when the perturbation is added and
    once when it is subtracted again: 4 ulp hold that. An L2 norm that is summed in float32, and a
    budget stored in float32, are off by a share of the budget; of an image of 3×224×224 random
    pixels by up to 30 ulp: 32. Together 3e-7 at 8/255 and 1.2e-6 at 0.5. At a budget of 0 nothing
    is rounded: 0.
    """
    return _ULP * (4 + 32 * budget) if budget > 0 else 0.0


def beyond_budget(distances: Values, budget: float) -> NDArray[np.bool_]:
    """Whether distances exceed a budget by more than rounding can; same shape as ``distances``."""
    return np.asarray(distances > budget + tolerance(budget))
