"""Measures that may explain robustness: kernels, perturbation spectra, transfer, spatial grids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from robust_ham.analysis.arms import arms_of
from robust_ham.analysis.metrics import headline_metric
from robust_ham.analysis.read_tables import KERNEL_MEASURES
from robust_ham.analysis.run import Run

MECHANISM_COLUMNS = [
    *("model_id", "family", "window", "kernel_size", "seed", "attack", "robustness"),
    *("effective_width_learned", *KERNEL_MEASURES),
]
GRID_COLUMNS = "attack family window kernel_size angle dx dy fooled_rate num_seeds".split()
SPECTRA_COLUMNS = "attack family window kernel_size frequency density".split()
TRANSFER_COLUMNS = (
    "attack budget source_family source_window source_kernel_size target_family target_window "
    "target_kernel_size num_pairs fooled_rate low high"
).split()


def mechanisms(run: Run) -> pd.DataFrame:
    """``mechanisms.csv``: robustness and measures of the kernels, per model and attack.

    ``robustness``: robust area, or accuracy under an attack without a budget. The kernels' measures
    are means over layers of their medians (``kernels.csv``).
    """
    kernels = run.kernels.groupby("model_id", sort=False)[KERNEL_MEASURES].mean()
    rows = []
    for spec in run.specs:
        known: dict[str, Any] = {
            "model_id": spec.model_id,
            "family": spec.family,
            "window": spec.window,
            "kernel_size": spec.kernel_size,
            "seed": spec.seed,
            "effective_width_learned": run.cards[spec.model_id].get("effective_width_learned"),
        }
        if spec.model_id in kernels.index:
            known |= {str(k): v for k, v in kernels.loc[spec.model_id].to_dict().items()}
        for attack_id, attack in run.attacks.items():
            samples = run.samples.get((spec.model_id, attack_id))
            if samples is not None:
                values = headline_metric(attack).image_values(samples, attack)
                robustness = float(values.mean())
                rows.append(known | {"attack": attack_id, "robustness": robustness})
    return pd.DataFrame(rows, columns=MECHANISM_COLUMNS)


def spectra(run: Run) -> pd.DataFrame:
    """Average the spectra of perturbations over seeds: ``SPECTRA_COLUMNS``.

    ``density``: energy per bin of the FFT, in units of white noise of the same energy.
    """
    rows = []
    for spec in run.specs:
        about = (spec.family, spec.window, spec.kernel_size)
        for attack_id in run.config.attacks:
            table = run.spectrum(spec.model_id, attack_id)
            if table is None or table["share"].isna().any():
                continue
            density = table["share"] / table["num_bins"] * table["num_bins"].sum()
            pairs = zip(table["frequency"].tolist(), density.tolist(), strict=True)
            rows += [(attack_id, *about, *pair) for pair in pairs]
    keys = [name for name in SPECTRA_COLUMNS if name != "density"]
    table = pd.DataFrame(rows, columns=SPECTRA_COLUMNS)
    return table.groupby(keys, sort=False)["density"].mean().reset_index() if rows else table


def transfer_between_arms(run: Run) -> pd.DataFrame:
    """Average ``transfer.csv`` by arm over pairs of models: ``TRANSFER_COLUMNS``.

    Pairs are of different models, and of different seeds if there are several, so that all entries
    are comparable black-box attacks. ``low``, ``high``: range over pairs.
    """
    table = run.transfer
    specs = {spec.model_id: spec for spec in run.specs}
    table = table[table["source_id"].isin(list(specs)) & table["target_id"].isin(list(specs))]
    if table.empty:
        return pd.DataFrame(columns=TRANSFER_COLUMNS)
    for role in ("source", "target"):
        for name in ("family", "window", "kernel_size", "seed"):
            table = table.assign(
                **{f"{role}_{name}": [getattr(specs[i], name) for i in table[f"{role}_id"]]}
            )
    several = table["source_seed"].nunique() > 1
    other = table["source_seed"] != table["target_seed"]
    table = table[other if several else table["source_id"] != table["target_id"]]
    table = table[table["num_images"] > 0]
    rate = table["num_fooled"] / table["num_images"]
    keys = [c for c in TRANSFER_COLUMNS if c not in ("num_pairs", "fooled_rate", "low", "high")]
    grouped = table.assign(rate=rate).groupby(keys, sort=False)["rate"]
    rates = grouped.agg(num_pairs="count", fooled_rate="mean", low="min", high="max")
    return rates.reset_index()[TRANSFER_COLUMNS]


def spatial_grids(run: Run) -> pd.DataFrame:
    """Average over seeds the share of correctly classified images that each candidate fools.

    ``GRID_COLUMNS``; only arms whose attacked models all have a grid of the same candidates. Empty
    if no attack stored all margins.
    """
    tables = []
    for attack_id, attack in run.config.attacks.items():
        for (family, size, window), arm in arms_of(run).items():
            models = [spec.model_id for spec in arm if attack.attacks(spec)]
            stored = [run.grid(model_id, attack_id) for model_id in models]
            grids = [grid for grid in stored if grid is not None]
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
    """Average over directions. Rows: shift length in pixels, longest first; columns: angle."""
    shift = np.hypot(grid["dx"], grid["dy"]).round(2)
    table = grid.assign(shift=shift)
    matrix = table.pivot_table(index="shift", columns="angle", values="fooled_rate")
    return matrix.sort_index(ascending=False)


def by_direction(grid: pd.DataFrame) -> pd.DataFrame:
    """Arrange a grid without rotations. Rows: pixels down; columns: pixels right."""
    return grid.pivot_table(index="dy", columns="dx", values="fooled_rate")
