"""Whether adversarial images made for one model fool another: ``transfer.csv``, a row per pair."""

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
from robust_ham.progress import Progress, unseen
from robust_ham.regular_files import is_regular
from robust_ham.runs.jobs.model import finished_models, load_model
from robust_ham.runs.plan.context import Context
from robust_ham.storage.array_files import ARRAY_HEADER_BYTES, read_arrays
from robust_ham.storage.files import content_key, reading
from robust_ham.storage.parquet_tables import read_table
from robust_ham.storage.receipts import check, kept_rows, receipt_of, write_kept

VERSION = 1
"""Raised when the same pair gets another row; part of every key."""

COLUMNS = "source_id target_id attack budget num_images num_fooled key".split()


class _Attacked(NamedTuple):
    """One model under the attack: key of its rows, which images were right and which fooled."""

    model_id: str
    key: str
    right: Tensor
    fooled: Tensor


def write_transfer(
    context: Context,
    asked: TransferConfig,
    failed: Collection[str] = (),
    progress: Progress = unseen,
) -> None:
    """Write ``transfer.csv`` of a run; rows of pairs whose models are the same are kept.

    Every stored perturbation is rescaled to one L2 length, added to its image, clipped to [0, 1]
    and shown to every model. Only images count that the source was fooled on and the target gets
    right without the perturbation.
    """
    before = kept_rows(context.run, context.run.transfer, COLUMNS)
    known: dict[str, dict[str, str]] = dict(zip(before["key"], _records(before), strict=True))
    models = _attacked_models(context, asked, failed)
    specs = {spec.model_id: spec for spec in context.plan.config.model_specs()}
    wanted = [_key(source, target, asked) for source in models for target in models]
    rows = {key: known[key] for key in wanted if key in known}
    for i, source in enumerate(models):
        missing = [target for target in models if _key(source, target, asked) not in rows]
        if missing:
            moved = rescaled(context, asked, source.model_id)
            for target in missing:
                model, _ = load_model(context, specs[target.model_id])
                row = _pair(context, model, source, target, moved)
                key = _key(source, target, asked)
                about = {"attack": asked.attack, "budget": str(asked.budget), "key": key}
                rows[key] = about | row
            done = [rows[key] for key in wanted if key in rows]
            write_kept(context.run, context.run.transfer, pd.DataFrame(done, columns=COLUMNS))
        progress(i + 1, len(models))


def _records(table: pd.DataFrame) -> list[dict[str, str]]:
    return [{str(k): str(v) for k, v in row.items()} for row in table.to_dict(orient="records")]


def _pair(
    context: Context, model: nn.Module, source: _Attacked, target: _Attacked, moved: Tensor
) -> dict[str, str]:
    """Of the source's images that the target, ``model``, gets right unmoved: how many fool it."""
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
    context: Context, asked: TransferConfig, failed: Collection[str]
) -> list[_Attacked]:
    """The models whose attack is finished."""
    found = []
    for spec in finished_models(context, failed):
        path = context.run.samples(spec.model_id, asked.attack)
        weights = read_card(context.run.model(spec.model_id))["weights_sha256"]
        receipt = receipt_of(context.run, path)
        if receipt is None or receipt.about.get("weights") != weights:
            continue
        check(context.run, path, path)
        samples = read_table(path)
        right = np.array(samples["clean_prediction"] == samples["label"])
        fooled = np.array(samples["status"] == "fooled")
        masks = torch.from_numpy(right), torch.from_numpy(fooled)
        found.append(_Attacked(spec.model_id, receipt.key, *masks))
    return found


def _key(source: _Attacked, target: _Attacked, asked: TransferConfig) -> str:
    made = {"source": source.key, "target": target.key, "budget": asked.budget}
    return content_key(made | {"version": VERSION})


def rescaled(context: Context, asked: TransferConfig, model_id: str) -> Tensor:
    """Images (n, C, H, W) with a model's stored perturbations at the asked L2 length, clipped.

    Raises:
        RequestError: the stored images are missing, damaged, or of other images.
    """
    path = context.run.adversarials(model_id, asked.attack)
    attacked = context.plan.attacked
    if not is_regular(path):
        raise RequestError(f"{path}: no such file; remove the attack's samples to make it again")
    check(context.run, context.run.samples(model_id, asked.attack), path)
    with reading(path):
        limit = attacked.images.nbytes + 16 * len(attacked.labels) + ARRAY_HEADER_BYTES
        arrays = read_arrays(path, limit)
        stored = torch.from_numpy(arrays["adversarial"])
        ids = arrays["sample_id"].tolist()
    if stored.shape != attacked.images.shape or ids != attacked.sample_ids:
        raise RequestError(f"{path}: not of the images that are attacked")
    if not stored.is_floating_point() or not torch.isfinite(stored).all():
        raise RequestError(f"{path}: values that are no finite numbers")
    step = stored - attacked.images
    length = step.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
    moved: Tensor = (attacked.images + asked.budget * step / length).clamp(0, 1)
    return moved
