"""One cell of a run: left alone if its result is there, else computed and written whole.

A result carries the key of everything that decides it; only a result with the right key counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import nn

from robust_ham import checkpoints, distributed, evaluation, training
from robust_ham.catalogue import attack_options
from robust_ham.config import RequestError
from robust_ham.evaluation import ACCURACY_TOLERANCE
from robust_ham.model_groups import FactoryGroup, ModelGroup
from robust_ham.perturbations import high_frequency_share
from robust_ham.plan import Cell, Plan, source_folder
from robust_ham.splits import to_float
from robust_ham.store import (
    RunFolder,
    content_key,
    read_csv,
    read_metadata,
    read_rows,
    reading,
    write_csv,
    write_json,
    write_table,
    writing,
    writing_folder,
)
from robust_ham.unfinished import Unfinished

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Done = Literal["done", "already there"]


@dataclass(frozen=True)
class Context:
    """What all cells of a run share."""

    plan: Plan
    run: RunFolder
    device: torch.device

    @cached_property
    def inputs(self) -> pd.DataFrame:
        """Labels and hashes of the attacked images."""
        return self.plan.attacked.table()

    @cached_property
    def inputs_key(self) -> str:
        """One hash of all attacked images, their labels and order."""
        return self.inputs_key_of(None)

    def inputs_key_of(self, count: int | None) -> str:
        """The same of the first ``count`` of them; None: of all."""
        return content_key(self.inputs.iloc[:count].to_dict(orient="list"))

    @property
    def where(self) -> dict[str, Any]:
        """What decides the rounding of results: device kind and threads."""
        return {"device": self.device.type, "threads": self.plan.config.evaluation.threads}


def run_cell(context: Context, cell: Cell, progress: Progress) -> Done:
    """Obtain a model, or attack one.

    Raises:
        RequestError: a checkpoint or an option is not what was asked for.
        TrainingError: the loss is no longer finite.
    """
    if cell.attack_id is None:
        return _model_cell(context, cell.spec, progress)
    return _attack_cell(context, cell.spec, cell.attack_id, progress)


# --- models ----------------------------------------------------------------------------------


def _model_cell(context: Context, spec: ModelGroup, progress: Progress) -> Done:
    source = source_folder(context.plan.config, spec)
    if source is not None:
        done = _copy_card(context, spec, source)
    elif isinstance(spec, FactoryGroup):
        done = _describe_factory(context, spec)
    else:
        done = _train(context, spec, progress)
    predicted = _predict(context, spec)
    return "done" if "done" in (done, predicted) else "already there"


def model_identity(context: Context, spec: ModelGroup) -> dict[str, Any]:
    """All that decides a trained model and its card; its hash is the model's key."""
    config, dataset = context.plan.config, context.plan.dataset
    asked = config.training_of(spec).precision
    precision = training.resolve_precision(asked, context.device)
    identity = checkpoints.training_identity(config, spec)
    identity["training"]["precision"] = precision
    if spec.accuracy_of is not None:  # which of them decides the epoch
        specs = {s.model_id: s for s in config.model_specs()}
        twins = [specs[twin.model_id] for twin in spec.accuracy_twins()]
        identity["twins"] = [checkpoints.training_identity(config, twin) for twin in twins]
    data = dataset.hashes | {"test": dataset.test_hash}
    return identity | context.where | {"data": data, "version": training.VERSION}


def _train(context: Context, spec: ModelGroup, progress: Progress) -> Done:
    config, dataset = context.plan.config, context.plan.dataset
    identity = model_identity(context, spec)
    folder = context.run.model(spec.model_id)
    there = folder.is_dir()  # what is no longer asked for was set aside
    if distributed.agreed(there, context.device):
        return "already there"
    unfinished = Unfinished(context.run.unfinished(spec.model_id), content_key(identity))
    last_epoch = _epoch_like_twin(context, spec)
    model, curve = training.train(
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
        "key": content_key(identity),
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
    checkpoints.save(folder, model, card, curve)
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
        if not path.is_file():
            raise training.TrainingError(f"its twin {twin.model_id} was not trained")
        with reading(path):
            curves.append(read_csv(path)["validation_accuracy"].astype(float))
    own, other = curves
    distance = (own - other.iloc[-1]).abs().to_numpy()
    return len(distance) - int(distance[::-1].argmin())


def help_train(context: Context) -> None:
    """What all processes but the first do: their share of every training, and nothing else."""
    for cell in context.plan.cells:
        if cell.attack_id is None and cell.spec.is_trained_here:
            with contextlib.suppress(training.TrainingError):  # the first process notes it
                _train(context, cell.spec, lambda done, total: None)


def _card(context: Context, spec: ModelGroup, model: nn.Module, num_classes: int) -> dict[str, Any]:
    """What every model's card says."""
    dataset = context.plan.dataset
    return evaluation.model_card(
        spec, model, dataset.test, dataset.test_hash, num_classes, context.device
    )


def _copy_card(context: Context, spec: ModelGroup, source: Path) -> Done:
    """Card and training curve, if any, of a model made elsewhere; its weights stay there.

    Raises:
        RequestError: the curve is none: a link in a folder of a stranger's may be to anything.
    """
    target = context.run.model(spec.model_id)
    if target.is_dir():  # what is no longer asked for was set aside
        return "already there"
    curve = source / checkpoints.CURVE
    if curve.is_file():
        with reading(curve):
            read_csv(curve).astype(float)["epoch"]
    with writing_folder(target) as temporary:
        for name in checkpoints.described(source):
            (temporary / name).write_bytes((source / name).read_bytes())
    return "done"


def _describe_factory(context: Context, spec: FactoryGroup) -> Done:
    """A user's model is known by its weights and by what it answers, for its code may change."""
    model = checkpoints.load_factory(spec)
    test = context.plan.dataset.test
    answers = evaluation.predictions(model.to(context.device), test, context.device)
    margins = hashlib.sha256(answers["margin"].to_numpy().tobytes()).hexdigest()
    weights = content_key({"weights": checkpoints.state_hash(model), "margins": margins})
    target = context.run.model(spec.model_id)
    if (target / checkpoints.CARD).is_file():
        card = checkpoints.read_card(target)
        same = card["weights_sha256"] == weights
        if same and card["test_sha256"] == context.plan.dataset.test_hash:
            return "already there"
        context.run.set_aside(target)
    card = _card(context, spec, model, test.num_classes) | {"weights_sha256": weights}
    with writing_folder(target) as temporary:
        write_json(temporary / checkpoints.CARD, card)
    return "done"


def finished_models(context: Context, failed: Collection[str]) -> list[ModelGroup]:
    """The models of the run that have a card, those called in ``failed`` left out."""
    return [
        spec
        for spec in context.plan.config.model_specs()
        if spec.model_id not in failed
        and (context.run.model(spec.model_id) / checkpoints.CARD).is_file()
    ]


def load_model(context: Context, spec: ModelGroup) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a finished model cell, on the run's device, and its card."""
    source, own = source_folder(context.plan.config, spec), context.run.model(spec.model_id)
    if source is None and isinstance(spec, FactoryGroup):
        model, card = checkpoints.load_factory(spec), checkpoints.read_card(own)
    else:
        factory = spec.factory if isinstance(spec, FactoryGroup) else None
        model, card = checkpoints.load(source or own, factory)
    return model.to(context.device), card


def _predict(context: Context, spec: ModelGroup) -> Done:
    """Predictions of the whole test split; they must confirm the card's accuracy."""
    card = checkpoints.read_card(context.run.model(spec.model_id))
    path = context.run.predictions(spec.model_id)
    key = content_key(
        context.where
        | {
            "weights": card["weights_sha256"],
            "test": context.plan.dataset.test_hash,
            "version": evaluation.VERSION,
        }
    )
    if (read_metadata(path) or {}).get("key") == key:
        return "already there"
    model, card = load_model(context, spec)
    table = evaluation.predictions(model, context.plan.dataset.test, context.device)
    found = evaluation.accuracy(table)
    if abs(found - card["test_accuracy"]) > ACCURACY_TOLERANCE:
        raise RequestError(
            f"{spec.model_id}: test accuracy {found:.4f}, but its card says "
            f"{card['test_accuracy']:.4f}: not the model that the card describes"
        )
    write_table(path, table, {"key": key, "weights": card["weights_sha256"]})
    return "done"


# --- attacks ---------------------------------------------------------------------------------


def _attack_cell(context: Context, spec: ModelGroup, attack_id: str, progress: Progress) -> Done:
    config = context.plan.config
    attack = config.attacks[attack_id]
    card = checkpoints.read_card(context.run.model(spec.model_id))
    recipe = attack_recipe(context, attack_id)
    key = content_key({"recipe": recipe, "weights": card["weights_sha256"]})
    path = context.run.samples(spec.model_id, attack_id)
    if (read_metadata(path) or {}).get("key") == key:
        return "already there"
    model, _ = load_model(context, spec)
    found = evaluation.evaluate(
        model,
        context.plan.attacked_by(attack_id),
        attack,
        attack_id,
        batch_size=config.evaluation.batch_size,
        device=context.device,
        progress=progress,
    )
    if config.evaluation.gallery:
        with writing(context.run.gallery(spec.model_id, attack_id)) as temporary:
            _save_arrays(temporary, **found.gallery)
    if config.evaluation.keep_adversarials:
        with writing(context.run.adversarials(spec.model_id, attack_id)) as temporary:
            ids = found.samples["sample_id"].to_numpy()
            _save_arrays(temporary, sample_id=ids, adversarial=found.adversarials.numpy())
    _write_margins(context, spec, attack_id, found)
    if found.spectrum is not None:
        write_csv(context.run.spectrum(spec.model_id, attack_id), found.spectrum)
    samples = found.samples
    samples.insert(0, "split", config.evaluation.split)
    samples.insert(0, "dataset", Path(config.dataset.name).name)
    samples.insert(0, "model_id", spec.model_id)
    about = {
        "key": key,
        "recipe": recipe,
        "weights": card["weights_sha256"],
        "attack": attack.attack,
    }
    write_table(path, samples, about)
    return "done"


def _write_margins(
    context: Context, spec: ModelGroup, attack_id: str, found: evaluation.Evaluation
) -> None:
    """Where all margins were asked for: one float16 array, and images fooled per candidate."""
    if found.margins is None:
        return
    with writing(context.run.margins(spec.model_id, attack_id)) as temporary:
        arrays = {
            "sample_id": found.samples["sample_id"].to_numpy(),
            "margins": halved(found.margins.numpy()),
        }
        if found.transforms is not None:
            arrays["transforms"] = found.transforms.numpy()
        _save_arrays(temporary, **arrays)
    grid = found.grid()
    if grid is not None:
        write_csv(context.run.grid(spec.model_id, attack_id), grid)


def halved(margins: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Margins as float16 that keep their side of zero: what fools still fools."""
    limit = float(np.finfo(np.float16).max)
    half = np.clip(margins, -limit, limit).astype(np.float16)
    smallest = np.finfo(np.float16).smallest_subnormal
    lost = (margins < 0) & (half >= 0)
    return np.where(lost, -smallest, half)


def attack_recipe(context: Context, attack_id: str) -> str:
    """Hash of all that decides an attack's rows but the model."""
    config = context.plan.config
    attack = config.attacks[attack_id]
    return content_key(
        context.where
        | {
            "attack": attack.attack,
            "options": attack_options(attack, attack_id),
            "inputs": context.inputs_key_of(attack.num_images),
            "batch_size": config.evaluation.batch_size,
            "gallery": config.evaluation.gallery,
            "keep_adversarials": config.evaluation.keep_adversarials,
            "version": evaluation.VERSION,
        }
    )


def _save_arrays(path: Path, **arrays: np.ndarray[Any, Any]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def write_inputs(context: Context) -> None:
    """Write ``inputs.parquet`` and ``config.yaml`` of the run.

    Beside what identifies an image stands its share of high frequencies, and that before it was
    subsampled, where it was.
    """
    plan = context.plan
    table = context.inputs.copy()
    table["high_frequency"] = high_frequency_share(plan.attacked.images)
    stored = plan.dataset.test_before_subsampling()
    if stored is not None and plan.config.evaluation.split == "test":
        images = to_float(stored.images[table["sample_id"].tolist()])
        table["high_frequency_original"] = high_frequency_share(images)
    write_table(context.run.inputs, table, {"dataset": Path(plan.config.dataset.name).name})
    with writing(context.run.config) as temporary:
        temporary.write_text(plan.config.to_yaml(), encoding="utf-8")


def write_timings(run: RunFolder, name: str, seconds: float) -> None:
    """Note how long a cell took; a later run of the same cell replaces the line."""
    columns = ["cell", "seconds"]
    table = read_rows(run.timings, columns)
    line = pd.DataFrame([[name, round(seconds, 3)]], columns=columns)
    others = table[table["cell"] != name]
    write_csv(run.timings, pd.concat([others, line]) if len(others) else line)
