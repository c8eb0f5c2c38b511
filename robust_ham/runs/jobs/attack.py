"""The job of an attack on a model: rows, and what is kept of the images."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from robust_ham.config.models import ModelGroup
from robust_ham.errors import naming
from robust_ham.evaluation.evaluate import VERSION, Evaluation, evaluate
from robust_ham.evaluation.registry import attack_options, own_code, recipe_of, shared_transforms
from robust_ham.models.checkpoints import read_card
from robust_ham.progress import Progress
from robust_ham.runs.jobs.model import load_model
from robust_ham.runs.plan.context import Context, Done
from robust_ham.runs.plan.job import Job
from robust_ham.storage.array_files import read_arrays, write_arrays
from robust_ham.storage.files import content_key, remove_empty, write_csv, writing_folder
from robust_ham.storage.locks import locked
from robust_ham.storage.parquet_tables import read_table, table_bytes, write_table
from robust_ham.storage.receipts import check, is_finished, sign

_ROWS, _ARRAYS = "samples.parquet", "arrays.npz"
"""Files of a shard."""


class Asked(NamedTuple):
    """All that decides an attack's rows on a model."""

    recipe: str
    """Hash of all but the model."""
    weights: str
    """SHA-256 that the model's card names."""

    @property
    def key(self) -> str:
        """Hash of both."""
        return content_key(self._asdict())


def asked_of(context: Context, spec: ModelGroup, attack_id: str) -> Asked:
    """What a configuration asks for of a model that has been obtained."""
    weights = read_card(context.run.model(spec.model_id))["weights_sha256"]
    return Asked(attack_recipe(context, attack_id), weights)


def find_rows(context: Context, job: Job, attack_id: str) -> bool:
    """Whether a job's rows are there already; of several shards, the last one makes the whole."""
    run, asked = context.run, asked_of(context, job.spec, attack_id)
    places = [job.result(run)]
    if job.num_shards > 1:  # looked at first: it goes once the whole is there
        places.insert(0, run.shard(job.spec.model_id, attack_id, job.shard))
    if not any(is_finished(run, place, asked.key) for place in places):
        return False
    if job.num_shards > 1:
        join_shards(context, job, attack_id)  # its process may have been killed before the end
    return True


def attack_model(context: Context, job: Job, attack_id: str, progress: Progress) -> Done:
    """Attack a model that has been obtained, and write one row per image.

    Of several shards, each is kept until all are there; the last one makes the whole.

    Raises:
        RequestError: a checkpoint or an option is not what was asked for.
    """
    run, spec = context.run, job.spec
    if find_rows(context, job, attack_id):
        return "already there"
    asked, config = asked_of(context, spec, attack_id), context.plan.config
    found = evaluate(
        load_model(context, spec)[0],
        context.plan.shard_of(job),
        config.attacks[attack_id],
        attack_id,
        batch_size=config.evaluation.batch_size,
        device=context.device,
        progress=progress,
    )
    if is_finished(run, job.result(run), asked.key):  # by one that took this one for dead
        return "already there"
    if job.num_shards == 1:
        _write(context, spec, attack_id, found, asked)
    else:
        _write_shard(context, run.shard(spec.model_id, attack_id, job.shard), found, asked)
        join_shards(context, job, attack_id)
    return "done"


def _write(
    context: Context, spec: ModelGroup, attack_id: str, found: Evaluation, asked: Asked
) -> None:
    """Write what an attack has found on all images, and its receipt."""
    run, config = context.run, context.plan.config
    attack, place = config.attacks[attack_id], (spec.model_id, attack_id)
    samples, files = found.samples, [run.samples(*place)]
    ids = samples["sample_id"].to_numpy()
    if config.evaluation.gallery:
        files.append(run.gallery(*place))
        write_arrays(files[-1], found.gallery())
    if config.evaluation.keep_adversarials:
        files.append(run.adversarials(*place))
        write_arrays(files[-1], {"sample_id": ids, "adversarial": found.adversarials.numpy()})
    if found.margins is not None:
        files.append(run.margins(*place))
        arrays = {"sample_id": ids, "margins": halved(found.margins.numpy())}
        if found.transforms is not None:
            arrays["transforms"] = found.transforms.numpy()
        write_arrays(files[-1], arrays)
    grid = found.grid()
    if grid is not None:
        files.append(run.grid(*place))
        write_csv(files[-1], grid)
    if attack.has_budget:
        files.append(run.spectrum(*place))
        write_csv(files[-1], found.spectrum())
    samples.insert(0, "split", config.evaluation.split)
    samples.insert(0, "dataset", Path(config.dataset.name).name)
    samples.insert(0, "model_id", spec.model_id)
    about = asked._asdict() | {"key": asked.key}
    write_table(files[0], samples, about | {"attack": attack.attack})
    sign(run, files[0], asked.key, files, **asked._asdict())


def _write_shard(context: Context, folder: Path, found: Evaluation, asked: Asked) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of a process killed before it signed
    with writing_folder(folder) as temporary:
        (temporary / _ROWS).write_bytes(table_bytes(found.samples, {}))
        arrays = {"adversarials": found.adversarials.numpy()}
        if found.margins is not None:
            arrays["margins"] = found.margins.numpy()
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays)  # not compressed: it is read once, and goes
        (temporary / _ARRAYS).write_bytes(file.getbuffer())
    sign(context.run, folder, asked.key, list(folder.iterdir()), **asked._asdict())


def join_shards(context: Context, job: Job, attack_id: str) -> None:
    """Make the whole of all shards, once they are there, and remove them."""
    asked = asked_of(context, job.spec, attack_id)
    run, model_id = context.run, job.spec.model_id
    shards = [run.shard(model_id, attack_id, i) for i in range(job.num_shards)]
    folders = (run.receipt(shards[0]).parent, shards[0].parent)
    if is_finished(run, job.result(run), asked.key) and not any(map(Path.is_dir, folders)):
        return
    with locked(run.lock(f"{model_id}/{attack_id}")):
        if not is_finished(run, job.result(run), asked.key):
            if not all(is_finished(run, shard, asked.key) for shard in shards):
                return
            found = _read_shards(context, attack_id, shards)
            _write(context, job.spec, attack_id, found, asked)
        for folder in folders:
            if folder.is_dir():
                with naming(folder):
                    shutil.rmtree(folder)
                remove_empty(folder, run.root)


def _read_shards(context: Context, attack_id: str, shards: list[Path]) -> Evaluation:
    tables, arrays = [], []
    for shard in shards:
        for name in (_ROWS, _ARRAYS):
            check(context.run, shard, shard / name)
        tables.append(read_table(shard / _ROWS))
        arrays.append(read_arrays(shard / _ARRAYS))
    attacked, attack = context.plan.attacked_by(attack_id), context.plan.config.attacks[attack_id]

    def joined(name: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([a[name] for a in arrays]))

    options = attack_options(attack, attack_id)
    return Evaluation(
        attacked,
        pd.concat(tables, ignore_index=True),
        joined("adversarials"),
        joined("margins") if "margins" in arrays[0] else None,
        shared_transforms(attack.attack, options, attacked.images.shape),
    )


def halved(margins: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Margins as float16 that keep their side of zero: what fools still fools."""
    limit = float(np.finfo(np.float16).max)
    half = np.clip(margins, -limit, limit).astype(np.float16)
    smallest = np.finfo(np.float16).smallest_subnormal
    lost = (margins < 0) & (half >= 0)
    return np.where(lost, -smallest, half)


def attack_recipe(context: Context, attack_id: str) -> str:
    """Hash of all that decides an attack's rows but the model; computed once for all models."""
    if attack_id not in context.recipes:
        context.recipes[attack_id] = _hash_recipe(context, attack_id)
    return context.recipes[attack_id]


def _hash_recipe(context: Context, attack_id: str) -> str:
    config = context.plan.config
    attack, size = config.attacks[attack_id], config.evaluation.shard_size
    code = own_code(attack.attack)
    return content_key(
        context.where
        | {
            "attack": attack.attack,
            "options": recipe_of(attack_options(attack, attack_id)),
            "inputs": context.inputs_key_of(attack.num_images),
            "batch_size": config.evaluation.batch_size,
            "gallery": config.evaluation.gallery,
            "keep_adversarials": config.evaluation.keep_adversarials,
            "version": VERSION,
        }
        | ({"shard_size": size} if size is not None else {})
        | ({"code": code} if code is not None else {})
    )
