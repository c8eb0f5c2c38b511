"""One cell of a run: left alone if its result is there, else computed and written whole.

A result carries the key of everything that decides it; only a result with the right key counts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import nn

from robust_ham import checkpoints, evaluation, training
from robust_ham.config import FactoryGroup, ModelGroup, RequestError
from robust_ham.evaluation import ACCURACY_TOLERANCE
from robust_ham.models import measure
from robust_ham.plan import Cell, Plan, zoo_folder
from robust_ham.store import (
    RunFolder,
    content_key,
    file_hash,
    read_metadata,
    write_csv,
    write_json,
    write_table,
    writing,
)

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
        return content_key(self.inputs.to_dict(orient="list"))

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
    if isinstance(spec, FactoryGroup):
        done = _describe_factory(context, spec)
    elif spec.source == "zoo":
        done = _copy_card(context, spec)
    else:
        done = _train(context, spec, progress)
    predicted = _predict(context, spec)
    return "done" if "done" in (done, predicted) else "already there"


def _train(context: Context, spec: ModelGroup, progress: Progress) -> Done:
    config, dataset = context.plan.config, context.plan.dataset
    precision = training.resolve_precision(config.training.precision, context.device)
    identity = checkpoints.training_identity(config, spec)
    identity["training"]["precision"] = precision
    identity |= context.where | {"data": dataset.hashes, "version": training.VERSION}
    key = content_key(identity)
    folder = context.run.model(spec.model_id)
    superseded = _superseded(context, folder, key)
    if superseded is None:
        return "already there"
    model, curve = training.train(
        spec,
        config.training,
        dataset.train,
        dataset.validation,
        device=context.device,
        precision=precision,
        progress=progress,
    )
    model = model.cpu()
    last = curve.iloc[-1].to_dict()
    card = _card(context, spec, model) | {
        "key": key,
        "training": identity["training"],
        "data": {
            "name": config.dataset.name,
            "image_shape": list(dataset.train.image_shape),
            "num_train": len(dataset.train),
            "num_validation": config.dataset.num_validation,
            "sha256": dataset.hashes,
        },
        "trained_on": context.where | {"torch": torch.__version__},
        "train_loss": last["train_loss"],
        "train_accuracy": last["train_accuracy"],
        "validation_loss": last["validation_loss"],
        "validation_accuracy": last["validation_accuracy"],
    }
    checkpoints.save(folder, superseded, model, card, curve)
    return "done"


def _superseded(context: Context, folder: Path, key: str) -> Path | None:
    """Where an older model of this name goes; None if ``folder`` holds the one asked for."""
    old = "damaged"
    if folder.is_dir():
        try:
            card = checkpoints.read_card(folder)
            old = str(card.get("key", old))
            weights = folder / checkpoints.WEIGHTS
            intact = weights.is_file() and file_hash(weights) == card["weights_sha256"]
        except RequestError:
            intact = False
        if intact and old == key:
            return None
        reason = "another configuration" if intact else "damaged"
        log.warning("%s: %s; kept under superseded/ and trained again", folder.name, reason)
    return context.run.root / "superseded" / f"{folder.name}-{old[:8]}"


def _card(context: Context, spec: ModelGroup, model: nn.Module) -> dict[str, Any]:
    """What every model's card says, however it was come by."""
    test = context.plan.dataset.test
    table = evaluation.predictions(model.to(context.device), test, context.device)
    size = asdict(measure(model, spec, test.image_shape))
    return {
        "model_id": spec.model_id,
        "model": checkpoints.describe(spec),
        "in_channels": test.image_shape[0],
        "num_classes": test.num_classes,
        "test_accuracy": evaluation.accuracy(table),
        "test_sha256": context.plan.dataset.test_hash,
    } | {k: v if np.isfinite(v) else None for k, v in size.items()}


def _copy_card(context: Context, spec: ModelGroup) -> Done:
    """A zoo model's card and training curve; its weights stay in the zoo."""
    source, target = zoo_folder(context.plan.config, spec), context.run.model(spec.model_id)
    if (target / checkpoints.CARD).is_file() and file_hash(target / checkpoints.CARD) == file_hash(
        source / checkpoints.CARD
    ):
        return "already there"
    for name in (checkpoints.CURVE, checkpoints.CARD):
        with writing(target / name) as temporary:
            temporary.write_bytes((source / name).read_bytes())
    return "done"


def _describe_factory(context: Context, spec: FactoryGroup) -> Done:
    model = checkpoints.load_factory(spec)
    weights = checkpoints.state_hash(model)
    target = context.run.model(spec.model_id)
    if (target / checkpoints.CARD).is_file():
        card = checkpoints.read_card(target)
        if (
            card["weights_sha256"] == weights
            and card["test_sha256"] == context.plan.dataset.test_hash
        ):
            return "already there"
    card = _card(context, spec, model) | {"weights_sha256": weights}
    write_json(target / checkpoints.CARD, card)
    return "done"


def load_model(context: Context, spec: ModelGroup) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a finished model cell, on the run's device, and its card."""
    if isinstance(spec, FactoryGroup):
        model = checkpoints.load_factory(spec)
        card = checkpoints.read_card(context.run.model(spec.model_id))
    else:
        zoo = spec.source == "zoo"
        folder = zoo_folder(context.plan.config, spec) if zoo else context.run.model(spec.model_id)
        model, card = checkpoints.load(folder)
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
    same_data = card.get("test_sha256") == context.plan.dataset.test_hash
    if same_data and abs(found - card["test_accuracy"]) > ACCURACY_TOLERANCE:
        raise RequestError(
            f"{spec.model_id}: test accuracy {found:.4f}, but its card says "
            f"{card['test_accuracy']:.4f}: not the model that the card describes"
        )
    write_table(path, table, {"key": key, "model_id": spec.model_id})
    return "done"


# --- attacks ---------------------------------------------------------------------------------


def _attack_cell(context: Context, spec: ModelGroup, attack_id: str, progress: Progress) -> Done:
    config = context.plan.config
    attack = config.attacks[attack_id]
    options = evaluation.attack_options(attack, attack_id)
    card = checkpoints.read_card(context.run.model(spec.model_id))
    key = content_key(
        context.where
        | {
            "weights": card["weights_sha256"],
            "window": spec.window,
            "attack": attack.attack,
            "options": options,
            "inputs": context.inputs_key,
            "batch_size": config.evaluation.batch_size,
            "gallery": config.evaluation.gallery,
            "keep_adversarials": config.evaluation.keep_adversarials,
            "version": evaluation.VERSION,
        }
    )
    path = context.run.samples(spec.model_id, attack_id)
    if (read_metadata(path) or {}).get("key") == key:
        return "already there"
    model, _ = load_model(context, spec)
    found = evaluation.evaluate(
        model,
        context.plan.attacked,
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
    samples = found.samples
    samples.insert(0, "split", config.evaluation.split)
    samples.insert(0, "dataset", config.dataset.name)
    samples.insert(0, "model_id", spec.model_id)
    write_table(path, samples, {"key": key, "attack_id": attack_id, "attack": attack.attack})
    return "done"


def _save_arrays(path: Path, **arrays: np.ndarray[Any, Any]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def write_inputs(context: Context) -> None:
    """Write ``inputs.parquet`` and ``config.yaml`` of the run."""
    write_table(context.run.inputs, context.inputs, {"dataset": context.plan.config.dataset.name})
    with writing(context.run.config) as temporary:
        temporary.write_text(context.plan.config.to_yaml(), encoding="utf-8")


def write_timings(run: RunFolder, name: str, seconds: float) -> None:
    """Note how long a cell took; a later run of the same cell replaces the line."""
    columns = ["cell", "seconds"]
    table = pd.read_csv(run.timings) if run.timings.is_file() else pd.DataFrame(columns=columns)
    line = pd.DataFrame([[name, round(seconds, 3)]], columns=columns)
    others = table[table["cell"] != name]
    write_csv(run.timings, pd.concat([others, line]) if len(others) else line)
