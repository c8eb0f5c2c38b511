"""Check the per-image rows of a run for contradictions; messages name the first."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robust_ham.config.experiment import AttackConfig, Config
from robust_ham.errors import RequestError

STATUSES = ("already_wrong", "fooled", "survived", "invalid")
_NORMS = ("l2", "linf", "l2_relative")
_ROUNDING = 1e-5
"""Relative error of a norm in float32."""
_CLOSE_MARGIN = 1e-3
"""Below this margin, predictions may depend on the batch size."""

Mask = NDArray[np.bool_]


class AttackRows:
    """The rows of one attack on one model, to be checked."""

    def __init__(self, path: Path, model_id: str, attack_id: str, table: pd.DataFrame) -> None:
        self.place = f"{path}: {model_id}/{attack_id}"
        self.model_id = model_id
        self.table = table

    def refuse(self, bad: Mask, column: str, expected: str) -> None:
        """Raise for the first row where ``bad``, (n,), is true.

        Raises:
            RequestError: ``bad`` is true for a row.
        """
        if bad.any():
            row = self.table.iloc[int(np.argmax(bad))]
            self.fail(f"image {row['sample_id']}: {column}: expected {expected}, got {row[column]}")

    def fail(self, reason: str) -> NoReturn:
        """Raise for the whole table.

        Raises:
            RequestError: always.
        """
        raise RequestError(f"{self.place}: {reason}")

    def check(self, config: Config, attack: AttackConfig, inputs: pd.DataFrame | None) -> None:
        """Check the rows by themselves, against the configuration and the attacked images.

        Args:
            config: configuration of the run.
            attack: attack that gave the rows.
            inputs: ``sample_id label`` of the run's images, in order; None: not known.

        Raises:
            RequestError: the first contradiction.
        """
        self._check_identity(config)
        if inputs is not None:
            self._check_images(attack.num_images or config.evaluation.num_images, inputs)
        self._check_predictions()
        self._check_distances(attack)

    def _check_identity(self, config: Config) -> None:
        """Check that rows belong to this model and data set, one per image."""
        table = self.table
        ids = table["sample_id"].to_numpy(np.float64)
        whole = np.isfinite(ids) & (ids >= 0) & (ids == np.floor(ids))
        self.refuse(~whole, "sample_id", "a whole number")
        if len(np.unique(ids)) < len(ids):
            self.refuse(table.duplicated("sample_id").to_numpy(), "sample_id", "one row per image")
        expected = {"model_id": self.model_id}
        if not config.is_of_tables:
            name = Path(config.dataset.name).name
            expected |= {"dataset": name, "split": config.evaluation.split}
        for column, value in expected.items():
            if column in table:
                self.refuse((table[column] != value).to_numpy(), column, value)

    def _check_images(self, num_images: int, inputs: pd.DataFrame) -> None:
        """Check that rows are of the first ``num_images`` attacked images, with their labels."""
        columns = ("sample_id", "label")
        row_ids, row_labels = (self.table[name].to_numpy(np.float64) for name in columns)
        ids, expected = (inputs[name].to_numpy(np.float64)[:num_images] for name in columns)
        if (
            np.array_equal(row_ids, ids) and len(ids) == num_images
        ):  # the order in which runs write them
            self.refuse(row_labels != expected, "label", "the one in inputs.parquet")
            return
        sample_ids = self.table["sample_id"]
        labels = inputs.iloc[:num_images].set_index("sample_id")["label"]
        if not labels.index.is_unique:
            self.fail("inputs.parquet names an image twice")
        missing = labels.index[~labels.index.isin(sample_ids)]
        if len(missing):
            self.fail(f"image {missing[0]} of inputs.parquet has no row")
        self.refuse(~sample_ids.isin(labels.index).to_numpy(), "sample_id", "an attacked image")
        other = row_labels != labels.reindex(sample_ids).to_numpy(np.float64)
        self.refuse(other, "label", "the one in inputs.parquet")
        if len(sample_ids) != num_images:
            self.fail(f"expected {num_images} rows (num_images), got {len(sample_ids)}")

    def _check_predictions(self) -> None:
        """Check that each status agrees with the label and the predictions."""
        table = self.table
        label, clean, seen = (
            table[name].to_numpy(np.float64)
            for name in ("label", "clean_prediction", "adversarial_prediction")
        )
        status = table["status"].to_numpy()
        self.refuse(~np.isin(status, STATUSES), "status", f"one of {', '.join(STATUSES)}")
        known = np.isfinite(label) & np.isfinite(clean)
        wrong, invalid = status == "already_wrong", status == "invalid"
        self.refuse(
            known & ~invalid & (wrong != (clean != label)),
            "status",
            "already_wrong if and only if the clean prediction is not the label",
        )
        known = np.isfinite(label) & np.isfinite(seen)
        self.refuse(
            known & ((status == "fooled") & (seen == label)),
            "status",
            "fooled only if the adversarial prediction is not the label",
        )
        for column in ("forwards", "backwards"):
            passes = table[column].to_numpy(np.float64)
            self.refuse(passes < 0, column, "a number of passes")

    def _check_distances(self, attack: AttackConfig) -> None:
        """Check that distances are 0, finite or ∞ as the status requires, in full columns."""
        status = self.table["status"].to_numpy()
        wrong, fooled, invalid = (status == s for s in ("already_wrong", "fooled", "invalid"))
        for norm in _NORMS:
            distance = self.table[norm].to_numpy(np.float64)
            missing = np.isnan(distance)
            if missing.all() and not (attack.has_budget and norm == attack.norm):
                continue
            self.refuse(missing, norm, "a distance")
            self.refuse(distance < 0, norm, "a distance of at least 0")
            self.refuse(wrong & (distance != 0), norm, "0 where already_wrong")
            self.refuse(fooled & np.isinf(distance), norm, "a finite distance where fooled")
            kept = np.isinf(distance) | (invalid & (distance == 0))
            self.refuse(~wrong & ~fooled & ~kept, norm, "inf where not fooled")
        l2, linf = (self.table[norm].to_numpy(np.float64) for norm in ("l2", "linf"))
        beyond = np.isfinite(l2) & (linf > l2 * (1 + _ROUNDING))
        self.refuse(beyond, "linf", "at most the L2 distance")


def check_agreement(tables: Iterable[AttackRows]) -> None:
    """Check that attacks on a model agree on its clean predictions, and models on the labels.

    Raises:
        RequestError: two tables differ; the message names the image and the second table.
    """
    known: dict[str, pd.Series[float]] = {}
    for rows in tables:
        ids = pd.Index(rows.table["sample_id"])
        clean = rows.table["clean_prediction"].to_numpy(np.float64, copy=True)
        if "clean_margin" in rows.table:
            clean[rows.table["clean_margin"].abs().to_numpy() < _CLOSE_MARGIN] = np.nan
        for column, of, values in (
            ("label", "", rows.table["label"].to_numpy(np.float64)),
            ("clean_prediction", rows.model_id, clean),
        ):
            before = known.get(of, pd.Series(np.nan, ids))
            expected = before if before.index.equals(ids) else before.reindex(ids)
            unknown = np.isnan(expected.to_numpy()) | np.isnan(values)
            differs = ~unknown & (expected.to_numpy() != values)
            if differs.any():
                value = expected.iloc[int(np.argmax(differs))]
                rows.refuse(differs, column, f"{value:g} as under another attack or model")
            if unknown.any() or len(before) != len(ids):
                before = before.combine_first(pd.Series(values, ids))
            known[of] = before
