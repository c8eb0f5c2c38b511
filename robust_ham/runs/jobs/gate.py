"""The gate: reliability checks of every finished model and attack; writes ``gate.csv``."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from attacks.utils.boundary import Norm
from robust_ham.analysis.statistics import Values
from robust_ham.config.experiment import AttackConfig
from robust_ham.errors import RequestError
from robust_ham.evaluation.options import attack_options
from robust_ham.models.predict import accuracy
from robust_ham.progress import Progress, no_progress
from robust_ham.runs.jobs import attack_checks, model_checks
from robust_ham.runs.jobs.attack_checks import Finding, Rows
from robust_ham.runs.jobs.black_box import nearest_along
from robust_ham.runs.jobs.checked_model import DDN, DDN_STEPS, PGD_STEPS, CheckedModel, epsilons_of
from robust_ham.runs.jobs.model import finished_models
from robust_ham.runs.plan.context import Context
from robust_ham.storage.files import content_key
from robust_ham.storage.receipts import kept_rows, write_kept

VERSION = 5
"""Raise it when the same model gets other findings; part of every key."""

NUM_OTHERS = 4
"""Number of models whose adversarial images are tried on a model."""

COLUMNS = "model_id attack check severity value limit reason key".split()


def check_model(checked: CheckedModel) -> list[Finding]:
    """Run all checks that need no attack."""
    model, images, labels = checked.model, checked.images, checked.labels
    device = checked.context.device
    findings = [
        model_checks.check_gradients(model, images, labels),
        model_checks.check_finite_differences(model, images, labels),
        model_checks.check_determinism(model, images, device),
        model_checks.check_logits(model, images, device),
        model_checks.check_chance(checked.predictions),
    ]
    repeatable = all(f.severity == "pass" for f in findings if f.check == "determinism")
    if repeatable:  # else its accuracy varies
        test_accuracy = accuracy(checked.predictions)
        findings.append(model_checks.check_accuracy(test_accuracy, checked.card["test_accuracy"]))
    return findings


def check_attack(
    checked: CheckedModel, attack_id: str, others: list[CheckedModel]
) -> list[Finding]:
    """Run all checks of one attack on one model."""
    findings = [attack_checks.check_valid(checked.samples[attack_id])]
    if attack_id in checked.minimum_norm:
        findings += _check_minimum_norm(checked, attack_id, others)
    elif attack_id in checked.epsilons:
        findings += _check_within_epsilon(checked, attack_id)
    return findings


def _check_minimum_norm(
    checked: CheckedModel, attack_id: str, others: list[CheckedModel]
) -> list[Finding]:
    attack = checked.minimum_norm[attack_id]
    options = attack_options(attack, attack_id)
    distances = checked.distances(attack_id)
    count = len(distances)
    args = (checked.model, checked.images[:count], checked.labels[:count])
    findings = [attack_checks.check_random_direction(*args, distances, attack.norm)]
    if attack.facts.retry_survivors:

        def persist(rows: Rows) -> int:
            return checked.num_persisting(attack.norm, rows)

        at_chance = model_checks.check_chance(checked.predictions).severity == "fail"
        findings.append(
            attack_checks.check_survivors(checked.samples[attack_id], persist, at_chance)
        )
    if "steps" in options:
        passes = checked.samples[attack_id]["forwards"].to_numpy()[:count]
        stopped = np.flatnonzero(passes >= options["steps"])  # fewer: it converged
        doubled = distances.copy()
        if len(stopped):
            more = options | {"steps": 2 * options["steps"]}
            rerun = checked.run_attack(attack.attack, more, stopped)
            doubled[stopped] = rerun[attack.norm].to_numpy(np.float64)
        findings.append(attack_checks.check_doubled_steps(distances, doubled))
    if attack_id == _nearest(checked, attack.norm):
        findings += _check_best(checked, attack.norm, others)
    return findings


def _check_best(checked: CheckedModel, norm: Norm, others: list[CheckedModel]) -> list[Finding]:
    """Check the best of all competing attacks of a norm, image by image."""
    attacks = _competitors(checked, norm)
    best: Values = np.minimum.reduce([checked.distances(attack_id) for attack_id in attacks])
    largest = max(attack.curve_budgets[-1] for attack in attacks.values())
    args = (checked.model, checked.images, checked.labels)
    only_deepfool = all(attack.facts.stops_at_boundary for attack in attacks.values())
    findings = [
        attack_checks.check_random_search(*args, best, norm, largest, only_deepfool=only_deepfool)
    ]
    if norm == "linf":  # DDN and transferred images are L2
        return findings
    configured_ddn = checked.configured_ddn()
    if configured_ddn is not None:
        reference = checked.distances(configured_ddn)
    else:
        ddn = checked.run_attack(DDN, {"steps": DDN_STEPS, "norm": "l2"})
        reference = ddn["l2"].to_numpy(np.float64)
    along = nearest_along(*args, [other.adversarials for other in others])
    return [
        *findings,
        attack_checks.check_against_ddn(best, reference, "warn" if only_deepfool else "fail"),
        attack_checks.check_black_box(best, along),
    ]


def _competitors(checked: CheckedModel, norm: Norm) -> dict[str, AttackConfig]:
    """Return the attacks that may be the run's best; if none, those on all checked images."""
    attacks = {a: c for a, c in checked.minimum_norm.items() if c.norm == norm}
    competing = {name: attack for name, attack in attacks.items() if attack.competes}
    whole = {a: c for a, c in attacks.items() if len(checked.distances(a)) == len(checked.labels)}
    return competing or whole


def _nearest(checked: CheckedModel, norm: Norm) -> str | None:
    """Return the attack with the smallest mean distance, to which checks of the best apply."""
    means = {
        attack_id: np.minimum(checked.distances(attack_id), attack.curve_budgets[-1]).mean()
        for attack_id, attack in _competitors(checked, norm).items()
    }
    return min(means, key=lambda attack_id: means[attack_id]) if means else None


def _check_within_epsilon(checked: CheckedModel, attack_id: str) -> list[Finding]:
    """Run the checks of a bounded attack."""
    norm, epsilon = checked.context.plan.config.attacks[attack_id].norm, checked.epsilons[attack_id]
    samples = checked.samples[attack_id]
    if samples[norm].isna().all():  # spatial: no distance
        return []
    rivals = {name: checked.samples[name] for name in _rivals(checked, attack_id)}
    rivals[f"PGD of {PGD_STEPS} steps"] = checked.run_pgd(norm, epsilon)
    checked_rows = samples[: len(checked.labels)]
    count = len(checked_rows)
    args = (checked.model, checked.images[:count], checked.labels[:count])
    return [
        attack_checks.check_within_epsilon(samples, norm, epsilon),
        attack_checks.check_weaker(samples, rivals, norm, epsilon),
        attack_checks.check_random_search_within(*args, checked_rows, norm, epsilon),
    ]


def _rivals(checked: CheckedModel, attack_id: str) -> list[str]:
    """Return the other attacks with the same bound in the same norm."""
    configured = checked.context.plan.config.attacks
    return [
        other
        for other, epsilon in checked.epsilons.items()
        if other != attack_id
        and configured[other].norm == configured[attack_id].norm
        and np.isclose(epsilon, checked.epsilons[attack_id])
    ]


def write_gate(
    context: Context,
    failed: Collection[str] = (),
    progress: Progress = no_progress,
) -> pd.DataFrame:
    """Write ``gate.csv`` and return it; keep findings with the same key.

    Skips models in ``failed`` and unfinished attacks.
    """
    before = kept_rows(context.run, context.run.gate, COLUMNS)
    places = before.groupby(["model_id", "attack", "key"], sort=False).indices
    epsilons = epsilons_of(context.plan.config)
    models = [CheckedModel(context, spec, epsilons) for spec in finished_models(context, failed)]
    tables, rows, num_rows = [before], list[int](), len(before)
    for i, checked in enumerate(models):
        others = _spread_over(models, i)
        for attack_id, key in _subjects(checked, others).items():
            kept = places.get((checked.spec.model_id, attack_id, key))
            if kept is None:
                tables.append(_findings(checked, attack_id, others, key))
                kept = np.arange(num_rows, num_rows + len(tables[-1]))
                num_rows += len(kept)
            rows.extend(int(place) for place in kept)
        checked.forget()
        progress(i + 1, len(models))
    gate = pd.concat([table for table in tables if len(table)] or tables)
    gate = gate.iloc[rows].reset_index(drop=True)
    write_kept(context.run, context.run.gate, gate)
    return gate


def _spread_over(models: list[CheckedModel], i: int) -> list[CheckedModel]:
    """Choose up to four models other than model ``i``, spread over the run."""
    count = len(models)
    places = {(i + round(j * count / (NUM_OTHERS + 1))) % count for j in range(1, NUM_OTHERS + 1)}
    return [models[place] for place in sorted(places - {i})]


def _findings(
    checked: CheckedModel, attack_id: str, others: list[CheckedModel], key: str
) -> pd.DataFrame:
    """Return rows of ``gate.csv``; a check that raises is a finding too."""
    try:
        findings = check_attack(checked, attack_id, others) if attack_id else check_model(checked)
    except (RequestError, OSError):
        raise
    except Exception as error:  # from a user's model
        reason = " ".join(str(error).split()) or type(error).__name__
        findings = [Finding("error", "fail", 1.0, 0.0, f"cannot be checked: {reason}")]
    subject = {"model_id": checked.spec.model_id, "attack": attack_id, "key": key}
    return pd.DataFrame([subject | asdict(finding) for finding in findings], columns=COLUMNS)


def _subjects(checked: CheckedModel, others: list[CheckedModel]) -> dict[str, str]:
    """Return the keys of the findings of the model itself ("") and of its finished attacks."""
    context = checked.context
    about = context.where | {
        "version": VERSION,
        "weights": checked.card["weights_sha256"],
        "inputs": context.inputs_key,
    }
    keys = {"": content_key(about)}
    seen = [other.card["weights_sha256"] for other in others]
    for attack_id in checked.keys:
        beside: dict[str, Any] = {"attack": attack_id, "made": {attack_id: checked.keys[attack_id]}}
        if attack_id in checked.minimum_norm:
            keys_of_all = {name: checked.keys[name] for name in checked.minimum_norm}
            beside |= {"made": keys_of_all, "others": seen}
        elif attack_id in checked.epsilons:
            names = [attack_id, *_rivals(checked, attack_id)]
            beside["made"] = {name: checked.keys[name] for name in names}
        keys[attack_id] = content_key(about | beside)
    return keys
