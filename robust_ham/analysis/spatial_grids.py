"""How often every rotation and shift of a grid fools: per arm, by angle and length of the shift."""

from __future__ import annotations

import numpy as np
import pandas as pd

from robust_ham.analysis.curves import arms_of
from robust_ham.analysis.run import Run

GRID_COLUMNS = "attack family window kernel_size angle dx dy fooled_rate num_seeds".split()


def spatial_grids(run: Run) -> pd.DataFrame:
    """Share of the images right at first that each candidate fools, means over seeds.

    ``GRID_COLUMNS``; only arms of which every attacked model has kept its grid, on the same
    candidates. Empty: all margins were never asked for.
    """
    tables = []
    for attack_id, attack in run.config.attacks.items():
        for (family, size, window), arm in arms_of(run).items():
            models = [spec.model_id for spec in arm if attack.attacks(spec)]
            found = [run.grid(model_id, attack_id) for model_id in models]
            grids = [grid for grid in found if grid is not None]
            if not grids or len(grids) < len(models):
                continue
            together = pd.concat(grids)
            rate = together["num_fooled"] / together["num_images"].where(together["num_images"] > 0)
            by_place = together.assign(rate=rate).groupby(["angle", "dx", "dy"], sort=True)["rate"]
            if (by_place.size() != len(grids)).any():
                continue
            table = by_place.mean().rename("fooled_rate").reset_index()
            tables.append(
                table.assign(
                    attack=attack_id,
                    family=family,
                    window=window,
                    kernel_size=size,
                    num_seeds=len(grids),
                )[GRID_COLUMNS]
            )
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=GRID_COLUMNS)


def by_angle_and_shift(grid: pd.DataFrame) -> pd.DataFrame:
    """Rows: length of the shift in pixels, longest first; columns: angle; mean over directions."""
    shift = np.hypot(grid["dx"], grid["dy"]).round(2)
    table = grid.assign(shift=shift)
    matrix = table.pivot_table(index="shift", columns="angle", values="fooled_rate")
    return matrix.sort_index(ascending=False)


def by_direction(grid: pd.DataFrame) -> pd.DataFrame:
    """Rows: pixels down, columns: pixels right; for grids that do not turn."""
    return grid.pivot_table(index="dy", columns="dx", values="fooled_rate")
