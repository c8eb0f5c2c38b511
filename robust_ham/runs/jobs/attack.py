"""The job of an attack on a model: rows per image, and the images and margins to keep."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from robust_ham.config.models import ModelGroup
from robust_ham.errors import naming
from robust_ham.evaluation.evaluate import Evaluation, evaluate
from robust_ham.evaluation.options import attack_options
from robust_ham.evaluation.registry import shared_transforms
from robust_ham.progress import Progress
from robust_ham.runs.jobs.model import load_model
from robust_ham.runs.plan.context import Context
from robust_ham.runs.plan.job import Done, Job
from robust_ham.runs.plan.keys import AttackKey, attack_key
from robust_ham.storage.array_files import read_arrays, write_arrays
from robust_ham.storage.files import write_csv, writing_folder
from robust_ham.storage.locks import locked
from robust_ham.storage.parquet_tables import read_table, table_bytes, write_table
from robust_ham.storage.receipts import check, is_finished, sign
from robust_ham.storage.temporary_files import remove_empty_parents

_SHARD_ROWS, _SHARD_ARRAYS = "samples.parquet", "arrays.npz"


def find_rows(context: Context, job: Job, attack_id: str) -> bool:
    """Whether a job's rows are finished. Joins the shards if the last one has just ended."""
    run, key = context.run, attack_key(context, job.spec, attack_id).digest
    results = [job.result(run)]
    if job.num_shards > 1:  # checked first: a shard is removed once the joined result exists
        results.insert(0, run.shard(job.spec.model_id, attack_id, job.shard))
    if not any(is_finished(run, result, key) for result in results):
        return False
    if job.num_shards > 1:
        join_shards(context, job, attack_id)  # its process may have been killed before that
    return True


def attack_model(context: Context, job: Job, attack_id: str, progress: Progress) -> Done:
    """Attack a finished model and write one row per image.

    A shard is kept until all shards are finished; the last one joins them.

    Raises:
        RequestError: the checkpoint or an option does not match the configuration.
    """
    run, spec = context.run, job.spec
    if find_rows(context, job, attack_id):
        return "already there"
    key, config = attack_key(context, spec, attack_id), context.plan.config
    evaluation = evaluate(
        load_model(context, spec)[0],
        context.plan.shard_of(job),
        config.attacks[attack_id],
        attack_id,
        batch_size=config.evaluation.batch_size,
        device=context.device,
        progress=progress,
    )
    if is_finished(run, job.result(run), key.digest):  # by a process that took this one for dead
        return "already there"
    if job.num_shards == 1:
        _write(context, spec, attack_id, evaluation, key)
    else:
        _write_shard(context, run.shard(spec.model_id, attack_id, job.shard), evaluation, key)
        join_shards(context, job, attack_id)
    return "done"


def _write(
    context: Context, spec: ModelGroup, attack_id: str, evaluation: Evaluation, key: AttackKey
) -> None:
    """Write the files of an attack on all its images, then their receipt."""
    run, config = context.run, context.plan.config
    attack, ids = config.attacks[attack_id], (spec.model_id, attack_id)
    samples, files = evaluation.samples, [run.samples(*ids)]
    sample_ids = samples["sample_id"].to_numpy()
    if config.evaluation.gallery:
        files.append(run.gallery(*ids))
        write_arrays(files[-1], evaluation.gallery())
    if config.evaluation.keep_adversarials:
        files.append(run.adversarials(*ids))
        adversarials = evaluation.adversarials.numpy()
        write_arrays(files[-1], {"sample_id": sample_ids, "adversarial": adversarials})
    if evaluation.margins is not None:
        files.append(run.margins(*ids))
        arrays = {"sample_id": sample_ids, "margins": halved(evaluation.margins.numpy())}
        if evaluation.transforms is not None:
            arrays["transforms"] = evaluation.transforms.numpy()
        write_arrays(files[-1], arrays)
    grid = evaluation.grid()
    if grid is not None:
        files.append(run.grid(*ids))
        write_csv(files[-1], grid)
    if attack.has_budget:
        files.append(run.spectrum(*ids))
        write_csv(files[-1], evaluation.spectrum())
    samples.insert(0, "split", config.evaluation.split)
    samples.insert(0, "dataset", Path(config.dataset.name).name)
    samples.insert(0, "model_id", spec.model_id)
    metadata = key._asdict() | {"key": key.digest, "attack": attack.attack}
    write_table(files[0], samples, metadata)
    sign(run, files[0], key.digest, files, **key._asdict())


def _write_shard(context: Context, folder: Path, evaluation: Evaluation, key: AttackKey) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # left by a process killed before it signed
    with writing_folder(folder) as temporary:
        (temporary / _SHARD_ROWS).write_bytes(table_bytes(evaluation.samples, {}))
        arrays = {"adversarials": evaluation.adversarials.numpy()}
        if evaluation.margins is not None:
            arrays["margins"] = evaluation.margins.numpy()
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays)  # uncompressed: read once, then removed
        (temporary / _SHARD_ARRAYS).write_bytes(file.getbuffer())
    sign(context.run, folder, key.digest, list(folder.iterdir()), **key._asdict())


def join_shards(context: Context, job: Job, attack_id: str) -> None:
    """Join all shards of an attack into one result and remove them, once all are finished."""
    key = attack_key(context, job.spec, attack_id)
    run, model_id = context.run, job.spec.model_id
    shards = [run.shard(model_id, attack_id, i) for i in range(job.num_shards)]
    folders = (run.receipt(shards[0]).parent, shards[0].parent)
    if is_finished(run, job.result(run), key.digest) and not any(map(Path.is_dir, folders)):
        return
    with locked(run.lock(f"{model_id}/{attack_id}")):
        if not is_finished(run, job.result(run), key.digest):
            if not all(is_finished(run, shard, key.digest) for shard in shards):
                return
            evaluation = _read_shards(context, attack_id, shards)
            _write(context, job.spec, attack_id, evaluation, key)
        for folder in folders:
            if folder.is_dir():
                with naming(folder):
                    shutil.rmtree(folder)
                remove_empty_parents(folder, run.root)


def _read_shards(context: Context, attack_id: str, shards: list[Path]) -> Evaluation:
    tables, arrays = [], []
    for shard in shards:
        for name in (_SHARD_ROWS, _SHARD_ARRAYS):
            check(context.run, shard, shard / name)
        tables.append(read_table(shard / _SHARD_ROWS))
        arrays.append(read_arrays(shard / _SHARD_ARRAYS))
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
    """Round margins to float16 without changing their sign, so that fooled stays fooled."""
    limit = float(np.finfo(np.float16).max)
    half = np.clip(margins, -limit, limit).astype(np.float16)
    smallest = np.finfo(np.float16).smallest_subnormal
    underflowed = (margins < 0) & (half >= 0)
    return np.where(underflowed, -smallest, half)
