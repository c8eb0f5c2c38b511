"""The job of a model: trained, or taken from where it is; its card, and what it predicts."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robust_ham.config.models import FactoryGroup, ModelGroup
from robust_ham.config.user_code import one_line_for
from robust_ham.errors import RequestError
from robust_ham.evaluation import evaluate
from robust_ham.models import checkpoints, predict
from robust_ham.models.checkpoints import source_folder
from robust_ham.progress import Progress, unseen
from robust_ham.regular_files import is_regular, read_bytes
from robust_ham.runs.plan.context import Context, Done
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
from robust_ham.training import distributed, train
from robust_ham.training.resume import Unfinished

_PROBE_IMAGES = 32


def obtain_model(context: Context, spec: ModelGroup, progress: Progress) -> Done:
    """Train a model, or take it from where it is, and note what it predicts.

    Raises:
        RequestError: a checkpoint is not what was asked for.
        TrainingError: the loss is no longer finite.
    """
    source = source_folder(context.plan.config, spec)
    if source is not None:
        done = _copy_card(context, spec, source)
    elif isinstance(spec, FactoryGroup):
        done = _describe_factory(context, spec)
    else:
        done = _train(context, spec, progress)
    predicted = _predict(context, spec)
    return "done" if "done" in (done, predicted) else "already there"


def model_key(context: Context, spec: ModelGroup) -> str | None:
    """Hash of all that decides a model's folder; None: it has to be made to know."""
    source = source_folder(context.plan.config, spec)
    if source is not None:
        return key_of_files(checkpoints.described(source))
    if isinstance(spec, FactoryGroup):
        return None
    return content_key(model_identity(context, spec))


def key_of_files(paths: Iterable[Path]) -> str:
    """Hash of files by name and content: the key of a model made elsewhere."""
    return content_key({path.name: file_hash(path, follow_links=True) for path in paths})


def _sign_model(context: Context, spec: ModelGroup, key: str) -> None:
    """Write the receipt of a model's folder."""
    folder = context.run.model(spec.model_id)
    sign(context.run, folder, key, list(folder.iterdir()))


def adopt_model(context: Context, spec: ModelGroup, key: str) -> None:
    """Give a model's folder the receipt before which its process was killed, if that is all."""
    folder = context.run.model(spec.model_id)
    unsigned = receipt_of(context.run, folder) is None
    if unsigned and _key_of_unsigned(context, spec, folder) == key:
        _sign_model(context, spec, key)


def _key_of_unsigned(context: Context, spec: ModelGroup, folder: Path) -> str | None:
    """The key of a folder without a receipt, by what is in it."""
    if not folder.is_dir():
        return None
    if source_folder(context.plan.config, spec) is not None:
        return key_of_files(folder.iterdir())
    try:
        card = checkpoints.read_card(folder)
    except RequestError:
        return None
    weights, curve = folder / checkpoints.WEIGHTS, folder / checkpoints.CURVE
    whole = is_regular(weights) and file_hash(weights) == card["weights_sha256"]
    whole = whole and is_regular(curve)
    return str(card.get("key")) if whole else None


def model_identity(context: Context, spec: ModelGroup) -> dict[str, Any]:
    """All that decides a trained model and its card; its hash is the model's key."""
    config, dataset = context.plan.config, context.plan.dataset
    asked = config.training_of(spec).precision
    precision = train.resolve_precision(asked, context.device)
    identity = checkpoints.training_identity(config, spec)
    identity["training"]["precision"] = precision
    if spec.accuracy_of is not None:  # which of them decides the epoch
        specs = {s.model_id: s for s in config.model_specs()}
        twins = [specs[twin.model_id] for twin in spec.accuracy_twins()]
        identity["twins"] = [checkpoints.training_identity(config, twin) for twin in twins]
    data = dataset.hashes | {"test": dataset.test_hash}
    return identity | context.where | {"data": data, "version": train.VERSION}


def _train(context: Context, spec: ModelGroup, progress: Progress) -> Done:
    config, dataset = context.plan.config, context.plan.dataset
    identity = model_identity(context, spec)
    key = content_key(identity)
    folder = context.run.model(spec.model_id)
    unfinished = Unfinished(context.run.unfinished(spec.model_id), key)
    if distributed.rank() == 0:
        adopt_model(context, spec, key)
    if distributed.agreed(is_finished(context.run, folder, key), context.device):
        unfinished.remove()  # of a process that was killed just before it did
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
        return "done"  # the first process writes
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
    if is_finished(context.run, folder, key):  # by another that took this process for dead
        return "already there"
    _make_room(context, folder)
    checkpoints.save(folder, model, card, curve)
    _sign_model(context, spec, key)
    unfinished.remove()
    return "done"


def _epoch_like_twin(context: Context, spec: ModelGroup) -> int | None:
    """The epoch after which a network classified most nearly as well as its twin in the end does.

    Of validation accuracies, the last of two as near; None where all epochs count.
    """
    if spec.accuracy_of is None:
        return None
    curves = []
    for twin in spec.accuracy_twins():
        path = context.run.model(twin.model_id) / checkpoints.CURVE
        if not is_regular(path):
            raise train.TrainingError(f"its twin {twin.model_id} was not trained")
        with reading(path):
            curves.append(read_csv(path)["validation_accuracy"].astype(float))
    own, other = curves
    distance = (own - other.iloc[-1]).abs().to_numpy()
    return len(distance) - int(distance[::-1].argmin())


def help_train(context: Context) -> None:
    """What all processes but the first do: their share of every training, and nothing else."""
    failed = set[str]()
    for job in context.plan.jobs:
        if job.attack_id is not None or not job.spec.is_trained_here:
            continue
        if not failed.isdisjoint(job.needs):  # the first process does not begin
            failed.add(job.name)
            continue
        try:
            _train(context, job.spec, unseen)
        except train.TrainingError:  # the first process notes it
            failed.add(job.name)


def _card(context: Context, spec: ModelGroup, model: nn.Module, num_classes: int) -> dict[str, Any]:
    """What every model's card says."""
    dataset = context.plan.dataset
    return predict.model_card(
        spec, model, dataset.test, dataset.test_hash, num_classes, context.device
    )


def _copy_card(context: Context, spec: ModelGroup, source: Path) -> Done:
    """Card and training curve, if any, of a model made elsewhere; its weights stay there.

    Raises:
        RequestError: the curve is none: a link in a folder of a stranger's may be to anything.
    """
    target, key = context.run.model(spec.model_id), key_of_files(checkpoints.described(source))
    if target.is_dir() and source.samefile(target):
        return "already there"
    adopt_model(context, spec, key)
    if is_finished(context.run, target, key):
        return "already there"
    curve = source / checkpoints.CURVE
    if is_regular(curve, follow_links=True):
        with reading(curve):
            read_csv(curve, follow_links=True).astype(float)["epoch"]
    _make_room(context, target)
    with writing_folder(target) as temporary:
        for path in checkpoints.described(source):
            (temporary / path.name).write_bytes(read_bytes(path, MAX_CSV_BYTES, follow_links=True))
    _sign_model(context, spec, key)
    return "done"


def _describe_factory(context: Context, spec: FactoryGroup) -> Done:
    """A user's model is known by its weights and by what it answers, for its code may change."""
    model = checkpoints.load_factory(spec)
    test = context.plan.dataset.test
    checkpoints.check_forward(spec, model.to(context.device), test.image_shape, context.device)
    with one_line_for(f"factory {spec.factory}: forward"):
        answers = predict.predictions(model, test, context.device)
    margins = hashlib.sha256(answers["margin"].to_numpy().tobytes()).hexdigest()
    weights = content_key({"weights": checkpoints.state_hash(model), "margins": margins})
    key = content_key({"weights": weights, "test": context.plan.dataset.test_hash})
    target = context.run.model(spec.model_id)
    if is_finished(context.run, target, key):
        return "already there"
    _make_room(context, target)
    card = _card(context, spec, model, test.num_classes) | {"weights_sha256": weights}
    with writing_folder(target) as temporary:
        write_json(temporary / checkpoints.CARD, card)
    _sign_model(context, spec, key)
    return "done"


def _make_room(context: Context, folder: Path) -> None:
    """Another model's folder, or one that was left unfinished, is not written over."""
    if folder.is_dir():
        context.run.set_aside(folder)


def finished_models(context: Context, failed: Collection[str]) -> list[ModelGroup]:
    """The models of the run that have a card, those called in ``failed`` left out."""
    return [
        spec
        for spec in context.plan.config.model_specs()
        if spec.model_id not in failed
        and is_regular(context.run.model(spec.model_id) / checkpoints.CARD)
    ]


def load_model(context: Context, spec: ModelGroup) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a finished model job, on the run's device, and its card."""
    source, own = source_folder(context.plan.config, spec), context.run.model(spec.model_id)
    if source is None and isinstance(spec, FactoryGroup):
        model, card = checkpoints.load_factory(spec), checkpoints.read_card(own)
    else:
        factory = spec.factory if isinstance(spec, FactoryGroup) else None
        model, card = checkpoints.load(source or own, factory)
    return model.to(context.device), card


def _predict(context: Context, spec: ModelGroup) -> Done:
    """Predictions of the whole test split; they must confirm the card's accuracy."""
    path, key = context.run.predictions(spec.model_id), _predictions_key(context, spec)
    if is_finished(context.run, path, key):
        return "already there"
    model, card = load_model(context, spec)
    table = predict.predictions(model, context.plan.dataset.test, context.device)
    found = predict.accuracy(table)
    if abs(found - card["test_accuracy"]) > predict.ACCURACY_TOLERANCE:
        images = context.plan.dataset.test.images[:_PROBE_IMAGES]
        passes = [predict.logits_of(model, images, context.device) for _ in range(2)]
        if predict.largest_difference(passes) > predict.PASS_TOLERANCE:
            raise RequestError(
                f"{spec.model_id}: two passes over the same images differ: {predict.RANDOM_LAYER}"
            )
        raise RequestError(
            f"{spec.model_id}: test accuracy {found:.4f}, but its card says "
            f"{card['test_accuracy']:.4f}: not the model that the card describes"
        )
    write_table(path, table, {"key": key, "weights": card["weights_sha256"]})
    sign(context.run, path, key, [path], weights=card["weights_sha256"])
    return "done"


def _predictions_key(context: Context, spec: ModelGroup) -> str:
    """Hash of all that decides what a model that has been obtained predicts."""
    weights = checkpoints.read_card(context.run.model(spec.model_id))["weights_sha256"]
    test = context.plan.dataset.test_hash
    about = {"weights": weights, "test": test, "version": evaluate.VERSION}
    return content_key(context.where | about)


def is_obtained(context: Context, spec: ModelGroup) -> bool:
    """Whether a model and its predictions are there; never known of a user's function."""
    key, folder = model_key(context, spec), context.run.model(spec.model_id)
    if key is None or not is_finished(context.run, folder, key):
        return False
    predictions = context.run.predictions(spec.model_id)
    return is_finished(context.run, predictions, _predictions_key(context, spec))
