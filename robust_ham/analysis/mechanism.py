"""What might explain robustness, beside it: learned kernels, spectra of perturbations, transfer."""

from __future__ import annotations

from typing import Any

import pandas as pd

from robust_ham.analysis.curves import area_values, survived
from robust_ham.analysis.run import KERNEL_MEASURES, Run

MECHANISM_COLUMNS = [
    *("model_id", "family", "window", "kernel_size", "seed", "attack", "robustness"),
    *("effective_width_learned", *KERNEL_MEASURES),
]
SPECTRA_COLUMNS = "attack family window kernel_size frequency density".split()
TRANSFER_COLUMNS = (
    "attack budget source_family source_window source_kernel_size target_family target_window "
    "target_kernel_size num_pairs fooled_rate low high"
).split()


def mechanisms(run: Run) -> pd.DataFrame:
    """``mechanisms.csv``: per model and attack its robustness and what its kernels are like.

    ``robustness``: robust area, or the accuracy under a spatial attack. The kernels' measures are
    means over layers of their medians (``kernels.csv``).
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
                values = area_values if attack.has_budget else survived
                robustness = float(values(samples, attack).mean())
                rows.append(known | {"attack": attack_id, "robustness": robustness})
    return pd.DataFrame(rows, columns=MECHANISM_COLUMNS)


def spectra(run: Run) -> pd.DataFrame:
    """Spectra of the perturbations, means over seeds, ``SPECTRA_COLUMNS``.

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
    """``transfer.csv`` gathered by arm: means over pairs of models, ``TRANSFER_COLUMNS``.

    A model is never paired with itself, and, where there are several seeds, never with one of its
    own seed, so that all entries are black-box and alike. ``low``, ``high``: range of the pairs.
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
    found = grouped.agg(num_pairs="count", fooled_rate="mean", low="min", high="max")
    return found.reset_index()[TRANSFER_COLUMNS]
