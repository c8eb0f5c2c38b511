"""The job of a model: train it or load it, write its card, and predict the test split."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robust_ham.config.models import FactoryGroup, ModelGroup
from robust_ham.config.user_code import one_line_for
from robust_ham.errors import RequestError
from robust_ham.models import checkpoints, factories, predict
from robust_ham.models.checkpoints import source_folder
from robust_ham.progress import Progress, no_progress
from robust_ham.regular_files import is_regular, read_bytes
from robust_ham.runs.plan import keys
from robust_ham.runs.plan.context import Context
from robust_ham.runs.plan.job import Done
from robust_ham.storage.files import (
    MAX_CSV_BYTES,
    content_key,
    file_hash,
    read_csv,
    reading,
    write_json,
    writing_folder,
)
from robust_ham.storage.parquet_tables import write_table
from robust_ham.storage.receipts import is_finished, receipt_of, sign
from robust_ham.storage.run_folder import CARD, CURVE, WEIGHTS
from robust_ham.training import distributed, train
from robust_ham.training.resume import Unfinished

_PROBE_IMAGES = 32


def obtain_model(context: Context, spec: ModelGroup, progress: Progress) -> Done:
    """Train or load a model, then write its predictions.

    Raises:
        RequestError: the checkpoint does not match the configuration or its own card.
        TrainingError: the loss is no longer finite.
    """
    source = source_folder(context.plan.config, spec)
    if source is not None:
        obtained = _copy_card(context, spec, source)
    elif isinstance(spec, FactoryGroup):
        obtained = _describe_factory(context, spec)
    else:
        obtained = _train(context, spec, progress)
    predicted = _predict(context, spec)
    return "done" if "done" in (obtained, predicted) else "already there"


def is_obtained(context: Context, spec: ModelGroup) -> bool:
    """Whether a model and its predictions are finished; False if this takes loading the model."""
    key, folder = keys.model_key(context, spec), context.run.model(spec.model_id)
    if key is None or not is_finished(context.run, folder, key):
        return False
    predictions = context.run.predictions(spec.model_id)
    return is_finished(context.run, predictions, keys.predictions_key(context, spec))


def finished_models(context: Context, failed: Collection[str]) -> list[ModelGroup]:
    """Return the models that have a card, without those whose job is in ``failed``."""
    return [
        spec
        for spec in context.plan.config.model_specs()
        if spec.model_id not in failed and is_regular(context.run.card(spec.model_id))
    ]


def load_model(context: Context, spec: ModelGroup) -> tuple[nn.Module, dict[str, Any]]:
    """Load the network of a finished model job onto the run's device; return it and its card."""
    source = source_folder(context.plan.config, spec)
    run_copy = context.run.model(spec.model_id)
    if source is None and isinstance(spec, FactoryGroup):
        model, card = factories.load_factory(spec), checkpoints.read_card(run_copy)
    else:
        factory = spec.factory if isinstance(spec, FactoryGroup) else None
        model, card = checkpoints.load(source or run_copy, factory)
    return model.to(context.device), card


# --- receipts --------------------------------------------------------------------------------


def adopt_model(context: Context, spec: ModelGroup, key: str) -> None:
    """Sign a complete model folder whose process was killed before it wrote the receipt."""
    folder = context.run.model(spec.model_id)
    unsigned = receipt_of(context.run, folder) is None
    if unsigned and _key_of_unsigned(context, spec, folder) == key:
        _sign_model(context, spec, key)


def _key_of_unsigned(context: Context, spec: ModelGroup, folder: Path) -> str | None:
    """Compute the key of a folder without a receipt from its content; None if incomplete."""
    if not folder.is_dir():
        return None
    if source_folder(context.plan.config, spec) is not None:
        return keys.key_of_files(folder.iterdir())
    try:
        card = checkpoints.read_card(folder)
    except RequestError:
        return None
    weights = folder / WEIGHTS
    complete = is_regular(weights) and file_hash(weights) == card["weights_sha256"]
    complete = complete and is_regular(folder / CURVE)
    return str(card.get("key")) if complete else None


def _sign_model(context: Context, spec: ModelGroup, key: str) -> None:
    folder = context.run.model(spec.model_id)
    sign(context.run, folder, key, list(folder.iterdir()))


def _set_aside_existing(context: Context, folder: Path) -> None:
    """Move an existing folder (of another model, or unfinished) to ``superseded/``."""
    if folder.is_dir():
        context.run.set_aside(folder)


# --- trained here ----------------------------------------------------------------------------


def _train(context: Context, spec: ModelGroup, progress: Progress) -> Done:
    config, dataset = context.plan.config, context.plan.dataset
    identity = keys.model_identity(context, spec)
    key = content_key(identity)
    folder = context.run.model(spec.model_id)
    unfinished = Unfinished(context.run.unfinished(spec.model_id), key)
    if distributed.rank() == 0:
        adopt_model(context, spec, key)
    if distributed.agreed(is_finished(context.run, folder, key), context.device):
        unfinished.remove()  # left by a process that was killed before it removed it
        return "already there"
    last_epoch = _epoch_like_twin(context, spec)
    model, curve = train.train(
        spec,
        config.training_of(spec),
        dataset.train,
        dataset.validation,
        device=context.device,
        precision=identity["training"]["precision"],
        progress=progress,
        unfinished=unfinished,
        last_epoch=last_epoch,
    )
    if distributed.rank() > 0:
        return "done"  # only the first process writes
    model = model.cpu()
    last = curve.iloc[-1].to_dict()
    card = _card(context, spec, model, dataset.train.num_classes) | {
        "key": key,
        "training": identity["training"],
        "data": {
            "name": Path(config.dataset.name).name,
            "image_shape": list(dataset.train.image_shape),
            "num_train": len(dataset.train),
            "num_validation": config.dataset.num_validation,
            "sha256": dataset.hashes,
        },
        "trained_on": context.where
        | {"torch": torch.__version__, "processes": distributed.num_processes()},
        "train_loss": last["train_loss"],
        "train_accuracy": last["train_accuracy"],
        "validation_loss": last["validation_loss"],
        "validation_accuracy": last["validation_accuracy"],
    }
    if is_finished(context.run, folder, key):  # by a process that took this one for dead
        return "already there"
    _set_aside_existing(context, folder)
    checkpoints.save(folder, model, card, curve)
    _sign_model(context, spec, key)
    unfinished.remove()
    return "done"


def _epoch_like_twin(context: Context, spec: ModelGroup) -> int | None:
    """Return the epoch whose validation accuracy is nearest to the twin's final one.

    The later of two equally near epochs counts. None: the model has no twin; train all epochs.
    """
    if spec.accuracy_of is None:
        return None
    curves = []
    for twin in spec.accuracy_twins():
        path = context.run.curve(twin.model_id)
        if not is_regular(path):
            raise train.TrainingError(f"its twin {twin.model_id} was not trained")
        with reading(path):
            curves.append(read_csv(path)["validation_accuracy"].astype(float))
    same_recipe, matched = curves
    distance = (same_recipe - matched.iloc[-1]).abs().to_numpy()
    return len(distance) - int(distance[::-1].argmin())


def help_train(context: Context) -> None:
    """Compute this process's share of every training (torchrun, all processes but the first)."""
    failed = set[str]()
    for job in context.plan.jobs:
        if job.attack_id is not None or not job.spec.is_trained_here:
            continue
        if not failed.isdisjoint(job.needs):  # the first process skips it too
            failed.add(job.name)
            continue
        try:
            _train(context, job.spec, no_progress)
        except train.TrainingError:  # the first process records it
            failed.add(job.name)


def _card(context: Context, spec: ModelGroup, model: nn.Module, num_classes: int) -> dict[str, Any]:
    """Return the entries that every card has."""
    dataset = context.plan.dataset
    return predict.model_card(
        spec, model, dataset.test, dataset.test_hash, num_classes, context.device
    )


# --- made elsewhere --------------------------------------------------------------------------


def _copy_card(context: Context, spec: ModelGroup, source: Path) -> Done:
    """Copy the card and training curve, if any, of a model made elsewhere, without its weights.

    Raises:
        RequestError: the curve is not a training curve; in an untrusted folder it may be a link.
    """
    target = context.run.model(spec.model_id)
    key = keys.key_of_files(checkpoints.card_files(source))
    if target.is_dir() and source.samefile(target):
        return "already there"
    adopt_model(context, spec, key)
    if is_finished(context.run, target, key):
        return "already there"
    curve = source / CURVE
    if is_regular(curve, follow_links=True):
        with reading(curve):
            read_csv(curve, follow_links=True).astype(float)["epoch"]
    _set_aside_existing(context, target)
    with writing_folder(target) as temporary:
        for path in checkpoints.card_files(source):
            (temporary / path.name).write_bytes(read_bytes(path, MAX_CSV_BYTES, follow_links=True))
    _sign_model(context, spec, key)
    return "done"


def _describe_factory(context: Context, spec: FactoryGroup) -> Done:
    """Write the card of a user's model.

    Its key hashes its weights and its predictions, because the user's code may change.
    """
    model = factories.load_factory(spec)
    test = context.plan.dataset.test
    factories.check_forward(spec, model.to(context.device), test.image_shape, context.device)
    with one_line_for(f"factory {spec.factory}: forward"):
        predictions = predict.predictions(model, test, context.device)
    margins = hashlib.sha256(predictions["margin"].to_numpy().tobytes()).hexdigest()
    weights = content_key({"weights": checkpoints.state_hash(model), "margins": margins})
    key = keys.factory_key(context, weights)
    target = context.run.model(spec.model_id)
    if is_finished(context.run, target, key):
        return "already there"
    _set_aside_existing(context, target)
    card = _card(context, spec, model, test.num_classes) | {"weights_sha256": weights}
    with writing_folder(target) as temporary:
        write_json(temporary / CARD, card)
    _sign_model(context, spec, key)
    return "done"


# --- predictions -----------------------------------------------------------------------------


def _predict(context: Context, spec: ModelGroup) -> Done:
    """Write the predictions of the test split; their accuracy must match the card.

    Raises:
        RequestError: it does not match.
    """
    path, key = context.run.predictions(spec.model_id), keys.predictions_key(context, spec)
    if is_finished(context.run, path, key):
        return "already there"
    model, card = load_model(context, spec)
    table = predict.predictions(model, context.plan.dataset.test, context.device)
    accuracy = predict.accuracy(table)
    if abs(accuracy - card["test_accuracy"]) > predict.ACCURACY_TOLERANCE:
        images = context.plan.dataset.test.images[:_PROBE_IMAGES]
        passes = [predict.logits_of(model, images, context.device) for _ in range(2)]
        if predict.largest_difference(passes) > predict.PASS_TOLERANCE:
            raise RequestError(
                f"{spec.model_id}: two passes over the same images differ: {predict.RANDOM_LAYER}"
            )
        raise RequestError(
            f"{spec.model_id}: test accuracy {accuracy:.4f}, but its card says "
            f"{card['test_accuracy']:.4f}: not the model that the card describes"
        )
    write_table(path, table, {"key": key, "weights": card["weights_sha256"]})
    sign(context.run, path, key, [path], weights=card["weights_sha256"])
    return "done"
