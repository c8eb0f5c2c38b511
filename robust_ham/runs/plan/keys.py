"""Keys: hashes of everything that decides the result of a job. To change what is cached, edit here.

A finished result counts only while its key is the one computed here. Keys hash configuration
values, data and ``VERSION`` numbers, never source files: raise a ``VERSION`` when the same inputs
give another result. Rows of ``gate.csv`` and ``transfer.csv`` have keys of their own, built on
these (``runs/jobs/gate.py``, ``runs/jobs/transfer.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from robust_ham.config.models import FactoryGroup, ModelGroup
from robust_ham.evaluation import evaluate
from robust_ham.evaluation.options import attack_options, recipe_of
from robust_ham.evaluation.registry import user_code_hash
from robust_ham.models.checkpoints import card_files, read_card, source_folder, training_identity
from robust_ham.runs.plan.context import Context
from robust_ham.storage.files import content_key, file_hash
from robust_ham.training import train


def run_key(context: Context) -> str:
    """Return the key of a run: data, configuration, code, device, threads and precision.

    Processes may share a run folder only if they compute the same key.
    """
    config = context.plan.config
    content = {
        "config": config.to_yaml(),
        "test": context.plan.dataset.test_hash,
        "models": [model_key(context, spec) for spec in config.model_specs()],
        "attacks": [attack_recipe(context, attack_id) for attack_id in config.attacks],
    }
    return content_key(context.where | content)


# --- models ----------------------------------------------------------------------------------


def model_key(context: Context, spec: ModelGroup) -> str | None:
    """Return the key of a model's folder, or None if the model must be loaded to compute it."""
    source = source_folder(context.plan.config, spec)
    if source is not None:
        return key_of_files(card_files(source))
    if isinstance(spec, FactoryGroup):
        return None
    return content_key(model_identity(context, spec))


def model_identity(context: Context, spec: ModelGroup) -> dict[str, Any]:
    """Return everything that decides a trained model and its card."""
    config, dataset = context.plan.config, context.plan.dataset
    identity = training_identity(config, spec)
    precision = train.resolve_precision(config.training_of(spec).precision, context.device)
    identity["training"]["precision"] = precision
    if spec.accuracy_of is not None:  # the twins decide the epoch
        specs = {s.model_id: s for s in config.model_specs()}
        twins = [specs[twin.model_id] for twin in spec.accuracy_twins()]
        identity["twins"] = [training_identity(config, twin) for twin in twins]
    data = dataset.hashes | {"test": dataset.test_hash}
    return identity | context.where | {"data": data, "version": train.VERSION}


def key_of_files(paths: Iterable[Path]) -> str:
    """Return the key of a model made elsewhere: its files' names and contents."""
    return content_key({path.name: file_hash(path, follow_links=True) for path in paths})


def factory_key(context: Context, weights: str) -> str:
    """Return the key of a user's model; ``weights``: hash of its weights and predictions."""
    return content_key({"weights": weights, "test": context.plan.dataset.test_hash})


def predictions_key(context: Context, spec: ModelGroup) -> str:
    """Return the key of the test predictions of a finished model."""
    content = {
        "weights": _weights_hash(context, spec),
        "test": context.plan.dataset.test_hash,
        "version": evaluate.VERSION,
    }
    return content_key(context.where | content)


def _weights_hash(context: Context, spec: ModelGroup) -> str:
    """Return the SHA-256 of the weights that the card of a finished model names."""
    return str(read_card(context.run.model(spec.model_id))["weights_sha256"])


# --- attacks ---------------------------------------------------------------------------------


class AttackKey(NamedTuple):
    """Everything that decides the rows of one attack on one model."""

    recipe: str
    """Hash of everything but the model."""
    weights: str
    """SHA-256 of the model's weights, from its card."""

    @property
    def digest(self) -> str:
        """Hash of both."""
        return content_key(self._asdict())


def attack_key(context: Context, spec: ModelGroup, attack_id: str) -> AttackKey:
    """Return the key of an attack on a finished model."""
    return AttackKey(attack_recipe(context, attack_id), _weights_hash(context, spec))


def attack_recipe(context: Context, attack_id: str) -> str:
    """Return the hash of everything that decides an attack's rows but the model.

    It is computed once per run and attack.
    """
    if attack_id not in context.recipes:
        context.recipes[attack_id] = _hash_recipe(context, attack_id)
    return context.recipes[attack_id]


def _hash_recipe(context: Context, attack_id: str) -> str:
    evaluation, attack = context.plan.config.evaluation, context.plan.config.attacks[attack_id]
    content = {
        "attack": attack.attack,
        "options": recipe_of(attack_options(attack, attack_id)),
        "inputs": context.inputs_key_of(attack.num_images),
        "batch_size": evaluation.batch_size,
        "gallery": evaluation.gallery,
        "keep_adversarials": evaluation.keep_adversarials,
        "version": evaluate.VERSION,
    }
    if evaluation.shard_size is not None:
        content["shard_size"] = evaluation.shard_size
    user_code = user_code_hash(attack.attack)
    if user_code is not None:
        content["code"] = user_code
    return content_key(context.where | content)
