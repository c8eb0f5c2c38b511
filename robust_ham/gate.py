"""Whether a run's numbers can be trusted: every finished model and attack checked, ``gate.csv``."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attacks import deepfool
from robust_ham import checks
from robust_ham.analysis.statistics import Values
from robust_ham.catalogue import attack_function, attack_options
from robust_ham.checkpoints import read_card
from robust_ham.checks import MANY_STEPS, NUM_IMAGES, Finding, Rows
from robust_ham.config import AttackConfig, RequestError
from robust_ham.context import Context
from robust_ham.judging import accuracy, judge
from robust_ham.model_cells import finished_models, load_model
from robust_ham.model_groups import ModelGroup
from robust_ham.progress import Progress, unseen
from robust_ham.receipts import check, kept_rows, receipt_of, write_kept
from robust_ham.store import content_key, read_table

VERSION = 4
"""Raised when the same model gets other findings; part of every key."""

_DDN, _DDN_STEPS = "foolbox:DDNAttack", 100

NUM_OTHERS = 4
"""Models whose adversarial images are tried on a model."""

COLUMNS = "model_id attack check severity value limit reason key".split()


class CheckedModel:
    """One finished model of a run, with what several checks need."""

    def __init__(self, context: Context, spec: ModelGroup) -> None:
        self.context = context
        self.spec = spec
        self.images = context.plan.attacked.images[:NUM_IMAGES].to(context.device)
        self.labels = context.plan.attacked.labels[:NUM_IMAGES].to(context.device)
        self.card = read_card(context.run.model(spec.model_id))
        self._persisting: dict[tuple[str, tuple[int, ...]], int] = {}

    @cached_property
    def model(self) -> nn.Module:
        """The network, on the run's device."""
        return load_model(self.context, self.spec)[0]

    @cached_property
    def adversarials(self) -> Tensor:
        """DeepFool's images, which other models are tried on."""
        model = load_model(self.context, self.spec)[0]  # not kept: there may be many others
        return deepfool(model, self.images, self.labels, steps=100).images

    @cached_property
    def keys(self) -> dict[str, str]:
        """Keys of the tables of its finished minimum-norm attacks, by their ids."""
        found = {}
        for attack_id, attack in self.context.plan.config.attacks.items():
            receipt = receipt_of(self.context.run, self._table(attack_id))
            if receipt is None or attack.in_band or not attack.has_budget:
                continue
            if receipt.about.get("weights") == self.card["weights_sha256"]:
                found[attack_id] = receipt.key
        return found

    @cached_property
    def samples(self) -> dict[str, pd.DataFrame]:
        """Rows of all attacked images under these attacks."""
        found = {}
        for attack_id in self.keys:
            path = self._table(attack_id)
            check(self.context.run, path, path)
            found[attack_id] = read_table(path)
        return found

    def _table(self, attack_id: str) -> Path:
        return self.context.run.samples(self.spec.model_id, attack_id)

    def distances(self, attack_id: str) -> Values:
        """Of the checked images that were attacked, in the attack's norm."""
        norm = self.context.plan.config.attacks[attack_id].norm
        return self.samples[attack_id][norm].to_numpy(np.float64)[:NUM_IMAGES]

    def attacked_anew(
        self, attack: str, options: dict[str, Any], rows: Rows | None = None
    ) -> pd.DataFrame:
        """Rows of an attack on the checked images, or on those in ``rows`` of all."""
        images, labels = self.images, self.labels
        if rows is not None:
            attacked = self.context.plan.attacked
            images = attacked.images[torch.from_numpy(rows)].to(self.context.device)
            labels = attacked.labels[torch.from_numpy(rows)].to(self.context.device)
        outcome = attack_function(attack)[0](self.model, images, labels, **options)
        return judge(self.model, images.cpu(), labels.cpu(), outcome, self.context.device)

    def own_ddn(self) -> str | None:
        """Id of a DDN of the run that is as strong as the gate's, on all checked images."""
        for attack_id in self.keys:
            attack = self.context.plan.config.attacks[attack_id]
            enough = len(self.distances(attack_id)) == len(self.labels)
            is_ddn = attack.attack == _DDN and attack.norm == "l2"
            if is_ddn and enough and attack_options(attack, attack_id)["steps"] >= _DDN_STEPS:
                return attack_id
        return None

    def num_persisting(self, norm: str, rows: Rows) -> int:
        """How many of all images in ``rows`` DeepFool cannot fool with 1,000 steps.

        Asked once of the same rows, which several attacks may leave.
        """
        asked = norm, tuple(rows.tolist())
        if asked not in self._persisting:
            left = self.attacked_anew("deepfool", {"norm": norm, "steps": MANY_STEPS}, rows)
            self._persisting[asked] = int((left["status"] != "fooled").sum())
        return self._persisting[asked]

    def forget(self) -> None:
        """Free the memory of the network and the tables."""
        for name in ("model", "samples"):
            self.__dict__.pop(name, None)


def check_model(checked: CheckedModel) -> list[Finding]:
    """All checks that need no attack."""
    model, images, device = checked.model, checked.images, checked.context.device
    found = accuracy(read_table(checked.context.run.predictions(checked.spec.model_id)))
    return [
        checks.check_gradients(model, images, checked.labels),
        checks.check_determinism(model, images, device),
        checks.check_logits(model, images, device),
        checks.check_accuracy(found, checked.card["test_accuracy"]),
    ]


def check_attack(
    checked: CheckedModel, attack_id: str, others: list[CheckedModel]
) -> list[Finding]:
    """All checks of one minimum-norm attack on one model."""
    attack = checked.context.plan.config.attacks[attack_id]
    options = attack_options(attack, attack_id)
    if "prune" in options:
        options["prune"] = None  # as it is run where pruning would change the answer
    distances = checked.distances(attack_id)
    count = len(distances)
    args = (checked.model, checked.images[:count], checked.labels[:count])
    findings = [checks.check_random_direction(*args, distances, attack.norm)]
    if attack.attack in ("deepfool", "superdeepfool"):

        def persist(rows: Rows) -> int:
            return checked.num_persisting(attack.norm, rows)

        findings.append(checks.check_survivors(checked.samples[attack_id], persist))
    if "steps" in options:
        passes = checked.samples[attack_id]["forwards"].to_numpy()[:count]
        stopped = np.flatnonzero(passes >= options["steps"])  # fewer: it has ended by itself
        doubled = distances.copy()
        if len(stopped):
            more = options | {"steps": 2 * options["steps"]}
            again = checked.attacked_anew(attack.attack, more, stopped)
            doubled[stopped] = again[attack.norm].to_numpy(np.float64)
        findings.append(checks.check_doubled_steps(distances, doubled))
    if attack_id == _nearest_l2(checked):
        findings += _check_best(checked, others)
    return findings


def _check_best(checked: CheckedModel, others: list[CheckedModel]) -> list[Finding]:
    """Checks of all competing L2 attacks together, image by image."""
    attacks = _l2_attacks(checked)
    best: Values = np.minimum.reduce([checked.distances(attack_id) for attack_id in attacks])
    own = checked.own_ddn()
    if own is not None:
        reference = checked.distances(own)
    else:
        ddn = checked.attacked_anew(_DDN, {"steps": _DDN_STEPS, "norm": "l2"})
        reference = ddn["l2"].to_numpy(np.float64)
    only_deepfool = all(attack.attack == "deepfool" for attack in attacks.values())
    ends = [other.adversarials for other in others]
    along = checks.nearest_along(checked.model, checked.images, checked.labels, ends)
    return [
        checks.check_against_ddn(best, reference, "warn" if only_deepfool else "fail"),
        checks.check_black_box(best, along),
    ]


def _l2_attacks(checked: CheckedModel) -> dict[str, AttackConfig]:
    """Those that may be the run's best; where none may, those on all checked images."""
    configured = checked.context.plan.config.attacks
    attacks = {a: configured[a] for a in checked.samples if configured[a].norm == "l2"}
    competing = {name: attack for name, attack in attacks.items() if attack.competes}
    whole = {a: c for a, c in attacks.items() if len(checked.distances(a)) == len(checked.labels)}
    return competing or whole


def _nearest_l2(checked: CheckedModel) -> str | None:
    """The L2 attack that comes nearest on average: it answers for the best of all."""
    means = {
        attack_id: np.minimum(checked.distances(attack_id), attack.curve_budgets[-1]).mean()
        for attack_id, attack in _l2_attacks(checked).items()
    }
    return min(means, key=lambda attack_id: means[attack_id]) if means else None


def write_gate(
    context: Context,
    failed: Collection[str] = (),
    progress: Progress = unseen,
) -> pd.DataFrame:
    """Write ``gate.csv`` of a run and return it; findings whose subject is the same are kept.

    Models called in ``failed`` and attacks that are not finished are left out.
    """
    before = kept_rows(context.run, context.run.gate, COLUMNS)
    models = [CheckedModel(context, spec) for spec in finished_models(context, failed)]
    tables = []
    for i, checked in enumerate(models):
        others = _spread_over(models, i)
        for attack_id, key in _subjects(checked, others).items():
            known = (before["model_id"] == checked.spec.model_id) & (before["key"] == key)
            table = before[known & (before["attack"] == attack_id)]
            if table.empty:
                table = _findings(checked, attack_id, others, key)
            tables.append(table)
        checked.forget()
        progress(i + 1, len(models))
    gate = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)
    write_kept(context.run, context.run.gate, gate)
    return gate


def _spread_over(models: list[CheckedModel], i: int) -> list[CheckedModel]:
    """Up to four other models than that at ``i``, from all over the run."""
    count = len(models)
    places = {(i + round(j * count / (NUM_OTHERS + 1))) % count for j in range(1, NUM_OTHERS + 1)}
    return [models[place] for place in sorted(places - {i})]


def _findings(
    checked: CheckedModel, attack_id: str, others: list[CheckedModel], key: str
) -> pd.DataFrame:
    """Rows of ``gate.csv``; a check that breaks down is a finding, too."""
    try:
        found = check_attack(checked, attack_id, others) if attack_id else check_model(checked)
    except (RequestError, OSError):
        raise
    except Exception as error:  # whatever a user's model raises
        reason = " ".join(str(error).split()) or type(error).__name__
        found = [Finding("error", "fail", 1.0, 0.0, f"cannot be checked: {reason}")]
    subject = {"model_id": checked.spec.model_id, "attack": attack_id, "key": key}
    return pd.DataFrame([subject | asdict(finding) for finding in found], columns=COLUMNS)


def _subjects(checked: CheckedModel, others: list[CheckedModel]) -> dict[str, str]:
    """The model itself ("") and its finished attacks, each with a key of all that decides them."""
    context = checked.context
    about = context.where | {
        "version": VERSION,
        "weights": checked.card["weights_sha256"],
        "inputs": context.inputs_key,
    }
    rivals = {"made": checked.keys, "others": [other.card["weights_sha256"] for other in others]}
    keys = {"": content_key(about)}
    return keys | {name: content_key(about | rivals | {"attack": name}) for name in checked.keys}
