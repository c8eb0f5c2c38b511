"""Read a run folder as tables."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robust_ham.analysis.best_attack import (
    best_samples,
    members_of_best,
    resolve_attack_id,
    with_best,
)
from robust_ham.analysis.read_tables import (
    GATE_COLUMNS,
    HISTORY_COLUMNS,
    INPUT_COLUMNS,
    KERNEL_MEASURES,
    Arrays,
    memory_of,
    read_card,
    read_csv_numbers,
    read_gallery,
    read_numbers,
    read_samples,
    with_numbers,
)
from robust_ham.analysis.statistics import Values
from robust_ham.analysis.validate_samples import AttackRows, check_agreement
from robust_ham.config.experiment import AttackConfig, Config
from robust_ham.config.files import config_text, parse_config
from robust_ham.config.models import ModelGroup
from robust_ham.memory import check_memory
from robust_ham.regular_files import is_regular
from robust_ham.storage.files import read_csv, reading
from robust_ham.storage.parquet_tables import read_metadata, read_table
from robust_ham.storage.receipts import check
from robust_ham.storage.run_folder import RunFolder


@dataclass(frozen=True)
class Run:
    """A run folder as tables, without models and attacks whose jobs are unfinished."""

    folder: RunFolder

    @cached_property
    def config(self) -> Config:
        """The configuration of the run.

        Raises:
            RequestError: not a run folder.
        """
        path = self.folder.config
        if not is_regular(path):
            raise self.folder.not_a_run()
        return parse_config(config_text(path), origin=str(path))

    # --- models -------------------------------------------------------------------------------

    @cached_property
    def specs(self) -> list[ModelGroup]:
        """Models that have a card, in the order of the configuration."""
        return [s for s in self.config.model_specs() if is_regular(self.folder.card(s.model_id))]

    @cached_property
    def cards(self) -> dict[str, dict[str, Any]]:
        """Model id to card."""
        cards = {}
        for spec in self.specs:
            path = self.folder.card(spec.model_id)
            check(self.folder, path.parent, path)
            cards[spec.model_id] = read_card(path)
        return cards

    def _has_weights_of(self, metadata: dict[str, Any], model_id: str) -> bool:
        """Return whether a table was computed with the weights that the model's card names."""
        weights = metadata.get("weights")
        return weights is None or weights == self.cards[model_id].get("weights_sha256")

    @cached_property
    def learning_rates(self) -> dict[str, float]:
        """Model id to its learning rate."""
        return {spec.model_id: self.config.training_of(spec).lr for spec in self.specs}

    def history(self, model_id: str) -> pd.DataFrame | None:
        """Loss and accuracy per epoch; None: the model was not trained by robust-ham."""
        path = self.folder.curve(model_id)
        if not is_regular(path):
            return None
        check(self.folder, path.parent, path)
        return read_csv_numbers(path, ["epoch", *HISTORY_COLUMNS])

    def correct(self, model_id: str) -> Values | None:
        """1.0 where the model is right, for each image of the test split; None: not predicted."""
        if model_id not in self._correct:
            self._correct[model_id] = self._read_correct(model_id)
        correct = self._correct[model_id]
        return None if correct is None else correct.astype(np.float64)

    @cached_property
    def _correct(self) -> dict[str, NDArray[np.bool_] | None]:
        """Cache of ``correct``, a byte per image."""
        return {}

    def _read_correct(self, model_id: str) -> NDArray[np.bool_] | None:
        path = self.folder.predictions(model_id)
        if not is_regular(path) or not self._has_weights_of(read_metadata(path) or {}, model_id):
            return None
        check(self.folder, path, path)
        table = read_numbers(path, ["prediction", "label"])
        return np.asarray(table["prediction"] == table["label"], dtype=np.bool_)

    # --- attacks ------------------------------------------------------------------------------

    @cached_property
    def attacks(self) -> dict[str, AttackConfig]:
        """The attacks of the configuration, and the best of several minimum-norm ones."""
        return with_best(self.config.attacks)

    @cached_property
    def members_of_best(self) -> dict[str, list[str]]:
        """Id of the best attack of a norm to the attacks it is chosen from."""
        return members_of_best(self.config.attacks)

    def resolve_attack_id(self, attack_id: str) -> str:
        """Return the attack of an endpoint: a norm's only minimum-norm attack is its own best."""
        return resolve_attack_id(self.config.attacks, attack_id)

    @cached_property
    def samples(self) -> dict[tuple[str, str], pd.DataFrame]:
        """(model id, attack id) to per-image rows, in the order of the configuration.

        Raises:
            RequestError: a table is damaged, or its rows contradict each other, the attacked images
                or the configuration.
        """
        samples, checked, num_bytes = {}, list[AttackRows](), 0
        recipes = dict[str, Any]()
        for model_id in self.cards:
            for attack_id in self.config.attacks:
                rows = self._read_attack(model_id, attack_id, recipes)
                if rows is not None:
                    checked.append(rows)
                    samples[model_id, attack_id] = rows.table
                    num_bytes += memory_of(rows.table)
                    check_memory(str(self.folder.root), num_bytes, part=2, so_far=True)
            for best, members in self.members_of_best.items():
                done = [samples[model_id, a] for a in members if (model_id, a) in samples]
                if len(done) == len(members):
                    table = best_samples(done, self.attacks[best].norm)
                    if table is not None:
                        samples[model_id, best] = table
        check_agreement(checked)
        return samples

    def _read_attack(
        self, model_id: str, attack_id: str, recipes: dict[str, Any]
    ) -> AttackRows | None:
        """Read and check the rows of one attack on one model; None: not run on these weights.

        Args:
            model_id: id of the model.
            attack_id: id of the attack.
            recipes: attack id to the options and images of its first table; this table's are added.
        """
        path, attack = self.folder.samples(model_id, attack_id), self.config.attacks[attack_id]
        metadata = (read_metadata(path) or {}) if is_regular(path) else None
        if metadata is None or not self._has_weights_of(metadata, model_id):
            return None
        check(self.folder, path, path)
        rows = AttackRows(path, model_id, attack_id, read_samples(path))
        rows.check(self.config, attack, self.inputs)
        if metadata.get("attack", attack.attack) != attack.attack:
            rows.fail(f"expected rows of {attack.attack}, got {metadata['attack']}")
        recipe = recipes.setdefault(attack_id, metadata.get("recipe"))
        if recipe != metadata.get("recipe"):
            rows.fail("computed with other options or images than the rows of other models")
        return rows

    def spectrum(self, model_id: str, attack_id: str) -> pd.DataFrame | None:
        """Radial spectrum of an attack's perturbations; None: not measured."""
        path = self.folder.spectrum(model_id, attack_id)
        if not is_regular(path) or (model_id, attack_id) not in self.samples:
            return None
        check(self.folder, self.folder.samples(model_id, attack_id), path)
        return read_csv_numbers(path, ["frequency", "num_bins", "share"])

    def grid(self, model_id: str, attack_id: str) -> pd.DataFrame | None:
        """Number of images that each candidate of a spatial attack fools; None: not stored."""
        path = self.folder.grid(model_id, attack_id)
        if not is_regular(path) or (model_id, attack_id) not in self.samples:
            return None
        check(self.folder, self.folder.samples(model_id, attack_id), path)
        columns = "angle dx dy num_images num_fooled".split()
        return read_csv_numbers(path, columns)[columns]

    @cached_property
    def kernels(self) -> pd.DataFrame:
        """Measures of the learned kernels, a row per model and layer; empty: not measured."""
        path = self.folder.kernels
        columns = ["model_id", "layer", *KERNEL_MEASURES]
        if not is_regular(path):
            return pd.DataFrame(columns=columns)
        check(self.folder, path, path)
        with reading(path):
            table = read_csv(path, keep_default_na=False, na_values="")[columns]
            table = with_numbers(table, KERNEL_MEASURES)
        return table[table["model_id"].isin(list(self.cards))]

    @cached_property
    def transfer(self) -> pd.DataFrame:
        """How often one model's adversarial images fool another; empty: not requested."""
        path, transfer = self.folder.transfer, self.config.transfer
        columns = "source_id target_id attack budget num_images num_fooled".split()
        if not is_regular(path) or transfer is None:
            return pd.DataFrame(columns=columns)
        check(self.folder, path, path)
        with reading(path):
            table = read_csv(path)[columns]
            table = with_numbers(table, ["budget", "num_images", "num_fooled"])
        return table[(table["attack"] == transfer.attack) & (table["budget"] == transfer.budget)]

    # --- images -------------------------------------------------------------------------------

    @cached_property
    def inputs(self) -> pd.DataFrame | None:
        """The attacked images, ``sample_id label``; None: known only from the rows."""
        path = self.folder.inputs
        if not is_regular(path) or self.config.is_of_tables:
            return None
        check(self.folder, path, path)
        return read_numbers(path, ["sample_id", "label"], INPUT_COLUMNS)

    @cached_property
    def image_orders(self) -> dict[tuple[str, str], bytes]:
        """(model id, attack id) to a hash of its image ids in order."""
        return {
            key: sha256(table["sample_id"].to_numpy(dtype=np.float64).tobytes()).digest()
            for key, table in self.samples.items()
        }

    @cached_property
    def images(self) -> pd.DataFrame | None:
        """Hash (``sha256``) or name (``sample``) of images by ``sample_id``; None: not known."""
        path = self.folder.inputs
        if not is_regular(path):
            return None
        with reading(path):
            table = read_table(path, INPUT_COLUMNS).set_index("sample_id")
            if not table.index.is_unique:
                raise ValueError("duplicate image")
        return table

    @cached_property
    def high_frequencies(self) -> pd.DataFrame | None:
        """Energy shares of the attacked images as used and as stored; None: not subsampled."""
        columns = ["high_frequency", "high_frequency_original"]
        if self.inputs is None or not set(columns) <= set(self.inputs.columns):
            return None
        with reading(self.folder.inputs):
            return with_numbers(self.inputs, columns)[columns]

    # --- the gate -----------------------------------------------------------------------------

    @cached_property
    def gate(self) -> pd.DataFrame:
        """Findings of the gate; empty if it has not run."""
        path = self.folder.gate
        if not is_regular(path):
            return pd.DataFrame(columns=GATE_COLUMNS)
        check(self.folder, path, path)
        with reading(path):
            table = read_csv(path, keep_default_na=False)
            _ = table[GATE_COLUMNS]
        return table

    @cached_property
    def _severities(self) -> dict[tuple[str, str], set[str]]:
        """(model id, attack id or "") to the severities of the gate's findings."""
        severities: dict[tuple[str, str], set[str]] = {}
        columns = (self.gate[name] for name in ("model_id", "attack", "severity"))
        for model_id, attack_id, severity in zip(*columns, strict=True):
            severities.setdefault((model_id, attack_id), set()).add(severity)
        return severities

    @cached_property
    def gate_by_model(self) -> dict[str, pd.DataFrame]:
        """Model id to the gate's findings on the model and its attacks."""
        return {str(model_id): rows for model_id, rows in self.gate.groupby("model_id")}

    def badge(self, model_id: str, attack_id: str) -> str | None:
        """Return the worst finding on a model and an attack on it; None: not checked."""
        members = self.members_of_best.get(attack_id, [attack_id])
        severities = (self._severities.get((model_id, name), set()) for name in ["", *members])
        present = set[str]().union(*severities)
        return next((s for s in ("fail", "warn", "pass") if s in present), None)


def gate_failures(gate: pd.DataFrame) -> tuple[str, ...]:
    """Return a line for each model or attack that the gate failed."""
    fails = gate[gate["severity"] == "fail"]
    return tuple(
        f"{row['model_id']}{'/' if row['attack'] else ''}{row['attack']}: {row['reason']}"
        for row in fails.to_dict(orient="records")
    )


def load_gallery(run: Run, model_id: str, attack_id: str) -> Arrays | None:
    """Load the stored images of one model and attack; None: none were stored."""
    path = run.folder.gallery(model_id, attack_id)
    if not is_regular(path) or not run.config.evaluation.gallery:
        return None
    check(run.folder, run.folder.samples(model_id, attack_id), path)
    return read_gallery(path)
