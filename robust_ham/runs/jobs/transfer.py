"""Transfer of adversarial images between models: ``transfer.csv``, a row per pair."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robust_ham.config.experiment import TransferConfig
from robust_ham.errors import RequestError
from robust_ham.models.checkpoints import read_card
from robust_ham.models.predict import logits_of
from robust_ham.progress import Progress, no_progress
from robust_ham.regular_files import is_regular
from robust_ham.runs.jobs.model import finished_models, load_model
from robust_ham.runs.plan.context import Context
from robust_ham.storage.array_files import ARRAY_HEADER_BYTES, read_arrays
from robust_ham.storage.files import content_key, reading
from robust_ham.storage.parquet_tables import read_table
from robust_ham.storage.receipts import check, kept_rows, receipt_of, write_kept

VERSION = 1
"""Raise it when the same pair gets another row; part of every key."""

COLUMNS = "source_id target_id attack budget num_images num_fooled key".split()


class _Attacked(NamedTuple):
    """One attacked model: key of its rows, correctly classified images, fooled images."""

    model_id: str
    key: str
    right: Tensor
    fooled: Tensor


def write_transfer(
    context: Context,
    transfer: TransferConfig,
    failed: Collection[str] = (),
    progress: Progress = no_progress,
) -> None:
    """Write ``transfer.csv`` of a run; keep rows with the same key.

    Rescales every stored perturbation to one L2 length, adds it to its image, clips to [0, 1] and
    predicts with every model. Only images count that fooled the source and that the target
    classifies correctly without the perturbation.
    """
    before = kept_rows(context.run, context.run.transfer, COLUMNS)
    known: dict[str, dict[str, str]] = dict(zip(before["key"], _records(before), strict=True))
    models = _attacked_models(context, transfer, failed)
    specs = {spec.model_id: spec for spec in context.plan.config.model_specs()}
    wanted = [_key(source, target, transfer) for source in models for target in models]
    rows = {key: known[key] for key in wanted if key in known}
    for i, source in enumerate(models):
        missing = [target for target in models if _key(source, target, transfer) not in rows]
        if missing:
            moved = rescaled(context, transfer, source.model_id)
            for target in missing:
                model, _ = load_model(context, specs[target.model_id])
                row = _pair(context, model, source, target, moved)
                key = _key(source, target, transfer)
                about = {"attack": transfer.attack, "budget": str(transfer.budget), "key": key}
                rows[key] = about | row
            done = [rows[key] for key in wanted if key in rows]
            write_kept(context.run, context.run.transfer, pd.DataFrame(done, columns=COLUMNS))
        progress(i + 1, len(models))


def _records(table: pd.DataFrame) -> list[dict[str, str]]:
    return [{str(k): str(v) for k, v in row.items()} for row in table.to_dict(orient="records")]


def _pair(
    context: Context, model: nn.Module, source: _Attacked, target: _Attacked, moved: Tensor
) -> dict[str, str]:
    """Count how many of the source's perturbed images fool the target, ``model``."""
    both = source.fooled & target.right
    predicted = logits_of(model, moved[both], context.device).argmax(1)
    wrong = predicted != context.plan.attacked.labels[both]
    return {
        "source_id": source.model_id,
        "target_id": target.model_id,
        "num_images": str(int(both.sum())),
        "num_fooled": str(int(wrong.sum())),
    }


def _attacked_models(
    context: Context, transfer: TransferConfig, failed: Collection[str]
) -> list[_Attacked]:
    """Return the models with finished rows of the attack."""
    models = []
    for spec in finished_models(context, failed):
        path = context.run.samples(spec.model_id, transfer.attack)
        weights = read_card(context.run.model(spec.model_id))["weights_sha256"]
        receipt = receipt_of(context.run, path)
        if receipt is None or receipt.details.get("weights") != weights:
            continue
        check(context.run, path, path)
        samples = read_table(path)
        right = np.array(samples["clean_prediction"] == samples["label"])
        fooled = np.array(samples["status"] == "fooled")
        masks = torch.from_numpy(right), torch.from_numpy(fooled)
        models.append(_Attacked(spec.model_id, receipt.key, *masks))
    return models


def _key(source: _Attacked, target: _Attacked, transfer: TransferConfig) -> str:
    content = {"source": source.key, "target": target.key, "budget": transfer.budget}
    return content_key(content | {"version": VERSION})


def rescaled(context: Context, transfer: TransferConfig, model_id: str) -> Tensor:
    """Return images (n, C, H, W) with a model's stored perturbations at the configured L2 length.

    Raises:
        RequestError: the stored images are missing, damaged, or do not match the attacked images.
    """
    path = context.run.adversarials(model_id, transfer.attack)
    attacked = context.plan.attacked
    if not is_regular(path):
        raise RequestError(f"{path}: no such file; remove the attack's samples to recompute it")
    check(context.run, context.run.samples(model_id, transfer.attack), path)
    with reading(path):
        limit = attacked.images.nbytes + 16 * len(attacked.labels) + ARRAY_HEADER_BYTES
        arrays = read_arrays(path, limit)
        stored = torch.from_numpy(arrays["adversarial"])
        ids = arrays["sample_id"].tolist()
    if stored.shape != attacked.images.shape or ids != attacked.sample_ids:
        raise RequestError(f"{path}: does not match the attacked images")
    if not stored.is_floating_point() or not torch.isfinite(stored).all():
        raise RequestError(f"{path}: expected finite numbers")
    step = stored - attacked.images
    length = step.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
    moved: Tensor = (attacked.images + transfer.budget * step / length).clamp(0, 1)
    return moved
