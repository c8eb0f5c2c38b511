"""A run folder as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robust_ham.analysis.rows import AttackRows, Mask, check_agreement
from robust_ham.analysis.statistics import Values
from robust_ham.config.experiment import BEST, AttackConfig, Config
from robust_ham.config.files import config_text, parse_config
from robust_ham.config.models import ModelGroup
from robust_ham.errors import RequestError
from robust_ham.memory import check_memory
from robust_ham.regular_files import is_regular
from robust_ham.storage.files import read_csv, read_json, reading
from robust_ham.storage.parquet_tables import read_metadata, read_table
from robust_ham.storage.receipts import check
from robust_ham.storage.run_folder import RunFolder

HISTORY_COLUMNS = "train_loss train_accuracy validation_loss validation_accuracy".split()
MEASURED = "effective_width effective_width_learned params flops test_accuracy".split()
"""What cards say in numbers."""
KERNEL_MEASURES = "effective_taps bandwidth side_lobe_energy edge_energy".split()


@dataclass(frozen=True)
class Run:
    """A run folder as tables; models and attacks whose jobs are not done are left out."""

    folder: RunFolder

    @cached_property
    def config(self) -> Config:
        """The configuration that the run was made with.

        Raises:
            RequestError: not a run folder.
        """
        path = self.folder.config
        if not is_regular(path):
            raise RequestError(f"{self.folder.root}: not a run folder (no config.yaml)")
        return parse_config(config_text(path), origin=str(path))

    @cached_property
    def specs(self) -> list[ModelGroup]:
        """Models whose cards are there, in the order of the configuration."""
        specs = self.config.model_specs()
        return [s for s in specs if is_regular(self.folder.model(s.model_id) / "model.json")]

    @cached_property
    def cards(self) -> dict[str, dict[str, Any]]:
        """Model id to card."""
        cards = {}
        for spec in self.specs:
            path = self.folder.model(spec.model_id) / "model.json"
            check(self.folder, path.parent, path)
            with reading(path):
                cards[spec.model_id] = _checked_card(read_json(path))
        return cards

    @cached_property
    def samples(self) -> dict[tuple[str, str], pd.DataFrame]:
        """(model id, attack id) to per-image rows, in the order of the configuration.

        Raises:
            RequestError: a table is damaged, or its rows contradict each other, the attacked images
                or the configuration.
        """
        found, checked, recipes = {}, list[AttackRows](), dict[str, Any]()
        num_bytes = 0
        for model_id in self.cards:
            for attack_id, attack in self.config.attacks.items():
                path = self.folder.samples(model_id, attack_id)
                made_by = (read_metadata(path) or {}) if is_regular(path) else None
                if made_by is not None and self._is_of(made_by, model_id):
                    check(self.folder, path, path)
                    rows = AttackRows(path, model_id, attack_id, _read_samples(path))
                    rows.check(self.config, attack, self.inputs)
                    if made_by.get("attack", attack.attack) != attack.attack:
                        rows.fail(f"expected rows of {attack.attack}, got {made_by['attack']}")
                    recipe = recipes.setdefault(attack_id, made_by.get("recipe"))
                    if recipe != made_by.get("recipe"):
                        rows.fail("made with other options or images than the rows of other models")
                    checked.append(rows)
                    found[model_id, attack_id] = rows.table
                    num_bytes += int(rows.table.memory_usage().sum())
                    check_memory(str(self.folder.root), num_bytes, part=2, so_far=True)
            for attack_id, members in self.members_of_best.items():
                tables = [found.get((model_id, member)) for member in members]
                done = [table for table in tables if table is not None]
                same = len({tuple(table["sample_id"]) for table in done}) == 1
                if same and len(done) == len(members):
                    found[model_id, attack_id] = _best(done, self.attacks[attack_id].norm)
        check_agreement(checked)
        return found

    @cached_property
    def inputs(self) -> pd.DataFrame | None:
        """The attacked images, ``sample_id label``; None: not known but from the rows."""
        path = self.folder.inputs
        if not is_regular(path) or self.config.is_of_tables:
            return None
        check(self.folder, path, path)
        return _read(path, ["sample_id", "label"], _INPUT_COLUMNS)

    @cached_property
    def attacks(self) -> dict[str, AttackConfig]:
        """The attacks of the configuration, and the best of several minimum-norm ones.

        The best has the budgets of the first of them.
        """
        found = dict(self.config.attacks)
        for attack_id, members in self.members_of_best.items():
            first = found[members[0]]
            found[attack_id] = AttackConfig(
                attack="best",
                budget=first.main_budget,
                budgets=first.curve_budgets,
                norm=first.norm,
            )
        return found

    @cached_property
    def members_of_best(self) -> dict[str, list[str]]:
        """Id of the best attack of a norm to the minimum-norm attacks it is chosen from.

        Those held to a band of frequencies, or to some of the images or models, are not among them.
        """
        found: dict[str, list[str]] = {}
        for attack_id, attack in self.config.attacks.items():
            if attack.competes:
                found.setdefault(BEST[attack.norm], []).append(attack_id)
        return {best: members for best, members in found.items() if len(members) > 1}

    def meant_by(self, attack_id: str) -> str:
        """The attack of an endpoint: one minimum-norm attack of a norm alone is its own best."""
        if attack_id in self.attacks or attack_id not in BEST.values():
            return attack_id
        attacks = self.config.attacks.items()
        return next(a for a, c in attacks if c.competes and BEST[c.norm] == attack_id)

    @cached_property
    def gate(self) -> pd.DataFrame:
        """Findings of the gate; empty where it has not run."""
        path = self.folder.gate
        if not is_regular(path):
            return pd.DataFrame(columns=["model_id", "attack", "check", "severity", "reason"])
        check(self.folder, path, path)
        with reading(path):
            table = read_csv(path, keep_default_na=False)
            _ = table[["model_id", "attack", "check", "severity", "reason"]]
        return table

    @cached_property
    def _severities(self) -> dict[tuple[str, str], set[str]]:
        """Model id and attack, or "", to the severities that the gate has found."""
        found: dict[tuple[str, str], set[str]] = {}
        columns = (self.gate[name] for name in ("model_id", "attack", "severity"))
        for model_id, attack_id, severity in zip(*columns, strict=True):
            found.setdefault((model_id, attack_id), set()).add(severity)
        return found

    @cached_property
    def gate_by_model(self) -> dict[str, pd.DataFrame]:
        """Model id to the findings of the gate on it and on its attacks."""
        return {str(model_id): found for model_id, found in self.gate.groupby("model_id")}

    @cached_property
    def image_orders(self) -> dict[tuple[str, str], bytes]:
        """(model id, attack id) to a hash of the ids of its images: equal where they are."""
        return {
            key: sha256(table["sample_id"].to_numpy(dtype=np.float64).tobytes()).digest()
            for key, table in self.samples.items()
        }

    def badge(self, model_id: str, attack_id: str) -> str | None:
        """The worst finding of a model and of an attack on it; None: not checked."""
        members = self.members_of_best.get(attack_id, [attack_id])
        found = (self._severities.get((model_id, name), set()) for name in ["", *members])
        present = set[str]().union(*found)
        return next((s for s in ("fail", "warn", "pass") if s in present), None)

    @cached_property
    def learning_rates(self) -> dict[str, float]:
        """Model id to the learning rate that it was trained with."""
        return {spec.model_id: self.config.training_of(spec).lr for spec in self.specs}

    def _is_of(self, made_by: dict[str, Any], model_id: str) -> bool:
        """Whether a table was made with the weights that the model's card names."""
        weights = made_by.get("weights")
        return weights is None or weights == self.cards[model_id].get("weights_sha256")

    def history(self, model_id: str) -> pd.DataFrame | None:
        """Loss and accuracy per epoch; None: the model was not trained by robust-ham."""
        path = self.folder.model(model_id) / "training.csv"
        if not is_regular(path):
            return None
        check(self.folder, path.parent, path)
        with reading(path):
            return _with_numbers(read_csv(path), ["epoch", *HISTORY_COLUMNS])

    def spectrum(self, model_id: str, attack_id: str) -> pd.DataFrame | None:
        """Radial spectrum of an attack's perturbations; None: not measured."""
        path = self.folder.spectrum(model_id, attack_id)
        if not is_regular(path) or (model_id, attack_id) not in self.samples:
            return None
        check(self.folder, self.folder.samples(model_id, attack_id), path)
        with reading(path):
            return _with_numbers(read_csv(path), ["frequency", "num_bins", "share"])

    def grid(self, model_id: str, attack_id: str) -> pd.DataFrame | None:
        """Images that every candidate of a spatial attack fools; None: not asked for."""
        path = self.folder.grid(model_id, attack_id)
        if not is_regular(path) or (model_id, attack_id) not in self.samples:
            return None
        check(self.folder, self.folder.samples(model_id, attack_id), path)
        with reading(path):
            columns = "angle dx dy num_images num_fooled".split()
            return _with_numbers(read_csv(path), columns)[columns]

    @cached_property
    def kernels(self) -> pd.DataFrame:
        """What the learned kernels are like, a row per model and layer; empty: not measured."""
        path = self.folder.kernels
        columns = ["model_id", "layer", *KERNEL_MEASURES]
        if not is_regular(path):
            return pd.DataFrame(columns=columns)
        check(self.folder, path, path)
        with reading(path):
            table = read_csv(path, keep_default_na=False, na_values="")[columns]
            table = _with_numbers(table, KERNEL_MEASURES)
        return table[table["model_id"].isin(list(self.cards))]

    @cached_property
    def transfer(self) -> pd.DataFrame:
        """How often one model's adversarial images fool another; empty: not asked for."""
        path, asked = self.folder.transfer, self.config.transfer
        columns = "source_id target_id attack budget num_images num_fooled".split()
        if not is_regular(path) or asked is None:
            return pd.DataFrame(columns=columns)
        check(self.folder, path, path)
        with reading(path):
            table = read_csv(path)[columns]
            table = _with_numbers(table, ["budget", "num_images", "num_fooled"])
        return table[(table["attack"] == asked.attack) & (table["budget"] == asked.budget)]

    @cached_property
    def images(self) -> pd.DataFrame | None:
        """Hash (``sha256``) or name (``sample``) of images by ``sample_id``; None: not known."""
        path = self.folder.inputs
        if not is_regular(path):
            return None
        with reading(path):
            table = read_table(path, _INPUT_COLUMNS).set_index("sample_id")
            if not table.index.is_unique:
                raise ValueError("an image twice")
        return table

    @cached_property
    def high_frequencies(self) -> pd.DataFrame | None:
        """Shares of the attacked images, as used and as stored; None: nothing was left out."""
        columns = ["high_frequency", "high_frequency_original"]
        if self.inputs is None or not set(columns) <= set(self.inputs.columns):
            return None
        with reading(self.folder.inputs):
            return _with_numbers(self.inputs, columns)[columns]

    def correct(self, model_id: str) -> Values | None:
        """1.0 where the model is right, for every image of the test split; None: not predicted."""
        if model_id not in self._right:
            self._right[model_id] = self._read_right(model_id)
        right = self._right[model_id]
        return None if right is None else right.astype(np.float64)

    @cached_property
    def _right(self) -> dict[str, Mask | None]:
        """What ``_read_right`` has read so far."""
        return {}

    def _read_right(self, model_id: str) -> Mask | None:
        path = self.folder.predictions(model_id)
        if not is_regular(path) or not self._is_of(read_metadata(path) or {}, model_id):
            return None
        check(self.folder, path, path)
        table = _read(path, ["prediction", "label"])
        return np.asarray(table["prediction"] == table["label"], dtype=np.bool_)


_SAMPLE_COLUMNS = (
    "model_id dataset split sample_id label clean_prediction clean_margin adversarial_prediction "
    "status l2 linf l2_relative forwards backwards angle dx dy margin normal_cosine best_distance"
).split()
"""What is read of a table of attacked images."""
_INPUT_COLUMNS = (
    *("sample_id", "label", "sample", "sha256"),
    *("high_frequency", "high_frequency_original"),
)
"""What is read of ``inputs.parquet``."""
_SAMPLES = (
    "sample_id label clean_prediction adversarial_prediction l2 linf l2_relative forwards backwards"
).split()
"""Columns of numbers that every table of attacked images has."""


def _read(path: Path, numbers: list[str], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A table with rows, whose named columns hold numbers; ``columns``: those to read."""
    with reading(path):
        table = _with_numbers(read_table(path, columns or numbers), numbers)
        if table.empty:
            raise ValueError("no rows")
    return table


def _read_samples(path: Path) -> pd.DataFrame:
    table = _read(path, _SAMPLES, _SAMPLE_COLUMNS)
    with reading(path):
        if not table["status"].map(lambda s: isinstance(s, str)).all():
            raise TypeError("status is not text")
        return _with_numbers(table, [name for name in ("clean_margin",) if name in table])


def _with_numbers(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The table, if these columns hold numbers.

    Raises:
        KeyError: a column is missing.
        TypeError: it holds something else.
    """
    kinds = {name: kind.kind for name, kind in zip(table.columns, table.dtypes, strict=True)}
    others = [name for name in columns if kinds[name] not in "iuf"]
    if others and not table.empty:
        raise TypeError(f"no numbers in {others}")
    return table


def _checked_card(card: dict[str, Any]) -> dict[str, Any]:
    """The card, if all that tables are made from is of its kind.

    Raises:
        KeyError: it does not say which model it is of.
        TypeError: a value of another kind.
    """
    model = card["model"]
    measured = (card.get(name) for name in MEASURED)
    if not isinstance(model["architecture"], str) or not all(
        value is None or type(value) in (int, float) for value in measured
    ):
        raise TypeError("expected numbers")
    return card


def _best(tables: list[pd.DataFrame], norm: str) -> pd.DataFrame:
    """For every image the row of the attack that came nearest; passes are those of all attacks."""
    distances = np.stack([table[norm].to_numpy(dtype=np.float64) for table in tables])
    nearest = distances.argmin(axis=0)
    rows = np.arange(len(nearest))
    together = pd.concat(tables, ignore_index=True)
    best: pd.DataFrame = together.iloc[nearest * len(rows) + rows].reset_index(drop=True)
    for column in ("forwards", "backwards"):
        best[column] = sum(table[column].to_numpy() for table in tables)
    return best
