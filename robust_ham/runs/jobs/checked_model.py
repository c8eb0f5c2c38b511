"""A finished model of a run, with data that several checks share."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attacks import deepfool
from robust_ham.analysis.statistics import Values
from robust_ham.config.experiment import AttackConfig, Config
from robust_ham.config.models import ModelGroup
from robust_ham.evaluation.options import attack_options
from robust_ham.evaluation.registry import attack_function
from robust_ham.evaluation.scoring import judge
from robust_ham.models.checkpoints import read_card
from robust_ham.runs.jobs.attack_checks import MANY_STEPS, NUM_IMAGES, Rows
from robust_ham.runs.jobs.model import load_model
from robust_ham.runs.plan.context import Context
from robust_ham.storage.parquet_tables import read_table
from robust_ham.storage.receipts import check, receipt_of

DDN, DDN_STEPS = "foolbox:DDNAttack", 100
PGD_STEPS = 20
_PGD = {"l2": "foolbox:L2PGD", "linf": "foolbox:LinfPGD"}
_PGD_OPTIONS = {"steps": PGD_STEPS, "rel_stepsize": 2.5 / PGD_STEPS}


def epsilons_of(config: Config) -> dict[str, float]:
    """Return the bound of each bounded attack, by id."""
    epsilons = {}
    for attack_id, attack in config.attacks.items():
        epsilon = attack_options(attack, attack_id).get("epsilon")
        if not attack.has_budget and isinstance(epsilon, int | float):
            epsilons[attack_id] = float(epsilon)
    return epsilons


class CheckedModel:
    """One finished model and what its checks share; ``epsilons``: see ``epsilons_of``."""

    def __init__(self, context: Context, spec: ModelGroup, epsilons: dict[str, float]) -> None:
        self.context = context
        self.spec = spec
        self._epsilons_of_run = epsilons
        self.images = context.plan.attacked.images[:NUM_IMAGES].to(context.device)
        self.labels = context.plan.attacked.labels[:NUM_IMAGES].to(context.device)
        self.card = read_card(context.run.model(spec.model_id))
        self._persisting: dict[tuple[str, tuple[int, ...]], int] = {}
        self._pgd: dict[tuple[str, float], pd.DataFrame] = {}

    @cached_property
    def model(self) -> nn.Module:
        """The network, on the run's device."""
        return load_model(self.context, self.spec)[0]

    @cached_property
    def adversarials(self) -> Tensor:
        """DeepFool's images, to be tried on other models."""
        model = load_model(self.context, self.spec)[0]  # not kept: there may be many models
        return deepfool(model, self.images, self.labels, steps=100).images

    @cached_property
    def keys(self) -> dict[str, str]:
        """Keys of the model's finished attacks, by id."""
        keys = {}
        for attack_id in self.context.plan.config.attacks:
            receipt = receipt_of(self.context.run, self._table(attack_id))
            if receipt and receipt.details.get("weights") == self.card["weights_sha256"]:
                keys[attack_id] = receipt.key
        return keys

    @cached_property
    def minimum_norm(self) -> dict[str, AttackConfig]:
        """The model's finished minimum-norm attacks, by id."""
        configured = self.context.plan.config.attacks
        attacks = {attack_id: configured[attack_id] for attack_id in self.keys}
        return {a: c for a, c in attacks.items() if c.has_budget and not c.in_band}

    @cached_property
    def epsilons(self) -> dict[str, float]:
        """Bounds of the model's finished bounded attacks, by id."""
        known = self._epsilons_of_run
        return {attack_id: known[attack_id] for attack_id in self.keys if attack_id in known}

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """Predictions of the whole test split."""
        return read_table(self.context.run.predictions(self.spec.model_id))

    @cached_property
    def samples(self) -> dict[str, pd.DataFrame]:
        """Rows of the model's finished attacks, by id."""
        tables = {}
        for attack_id in self.keys:
            path = self._table(attack_id)
            check(self.context.run, path, path)
            tables[attack_id] = read_table(path)
        return tables

    def _table(self, attack_id: str) -> Path:
        return self.context.run.samples(self.spec.model_id, attack_id)

    def distances(self, attack_id: str) -> Values:
        """Return the distances of the checked images, in the attack's norm."""
        norm = self.context.plan.config.attacks[attack_id].norm
        return self.samples[attack_id][norm].to_numpy(np.float64)[:NUM_IMAGES]

    def run_attack(
        self, attack: str, options: dict[str, Any], rows: Rows | None = None
    ) -> pd.DataFrame:
        """Attack the checked images, or ``rows`` of all images; return the rows."""
        images, labels = self.images, self.labels
        if rows is not None:
            attacked = self.context.plan.attacked
            images = attacked.images[torch.from_numpy(rows)].to(self.context.device)
            labels = attacked.labels[torch.from_numpy(rows)].to(self.context.device)
        outcome = attack_function(attack)[0](self.model, images, labels, **options)
        return judge(self.model, images.cpu(), labels.cpu(), outcome, self.context.device)

    def configured_ddn(self) -> str | None:
        """Return the id of a DDN of the run that can replace the gate's; None if there is none."""
        for attack_id, attack in self.minimum_norm.items():
            enough = len(self.distances(attack_id)) == len(self.labels)
            is_ddn = attack.attack == DDN and attack.norm == "l2"
            if is_ddn and enough and attack_options(attack, attack_id)["steps"] >= DDN_STEPS:
                return attack_id
        return None

    def run_pgd(self, norm: str, epsilon: float) -> pd.DataFrame:
        """Return rows of 20 steps of PGD within ``epsilon``; computed once."""
        if (norm, epsilon) not in self._pgd:
            options = {"norm": norm, "epsilon": epsilon} | _PGD_OPTIONS
            rows = self.run_attack(_PGD[norm], options)
            rows["sample_id"] = self.context.plan.attacked.sample_ids[: len(rows)]
            self._pgd[norm, epsilon] = rows
        return self._pgd[norm, epsilon]

    def num_persisting(self, norm: str, rows: Rows) -> int:
        """Count the images in ``rows`` that survive 1,000 steps of DeepFool; cached by rows."""
        key = norm, tuple(rows.tolist())
        if key not in self._persisting:
            left = self.run_attack("deepfool", {"norm": norm, "steps": MANY_STEPS}, rows)
            self._persisting[key] = int((left["status"] != "fooled").sum())
        return self._persisting[key]

    def forget(self) -> None:
        """Free the memory of the network and the tables."""
        for name in ("model", "samples", "predictions"):
            self.__dict__.pop(name, None)
