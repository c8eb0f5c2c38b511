"""Whether a finished run can be relied upon: its files, its stored images, and some jobs anew."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from attacks import AttackOutcome
from robust_ham.analysis.run import Run
from robust_ham.analysis.tables import make_tables
from robust_ham.config.experiment import Config
from robust_ham.config.models import ModelGroup
from robust_ham.errors import RequestError
from robust_ham.evaluation.scoring import judge
from robust_ham.progress import unseen
from robust_ham.regular_files import is_regular
from robust_ham.runs.attempt import inputs_table
from robust_ham.runs.jobs.attack import asked_of, attack_model
from robust_ham.runs.jobs.model import load_model, model_key
from robust_ham.runs.manifest import requested
from robust_ham.runs.plan.context import Context
from robust_ham.runs.plan.job import Job, list_jobs
from robust_ham.runs.verify_files import Check, check_files, check_logs
from robust_ham.storage.array_files import ARRAY_HEADER_BYTES, read_arrays
from robust_ham.storage.files import csv_text, file_hash, read_json, reading
from robust_ham.storage.parquet_tables import read_table
from robust_ham.storage.receipts import receipt_of
from robust_ham.storage.run_folder import RunFolder

RELATIVE, SHARE = 1e-5, 0.999
"""Distances agree within this, for at least this share of images (contract 1)."""


def verify(
    run: RunFolder,
    make_context: Callable[[], Context],
    num_jobs: int,
    say: Callable[[str], None],
) -> Iterator[Check]:
    """All checks, the quick ones first; data are read by ``make_context`` once they are needed.

    Models that are known by tables alone cannot be attacked again: only their files are checked.

    Raises:
        RequestError: not a run folder, or the data are not here.
    """
    if not is_regular(run.config):
        raise RequestError(f"{run.root}: not a run folder (no config.yaml)")
    yield check_files(run)
    config = _config_of(run)
    if isinstance(config, Check):
        yield config
        return
    yield check_jobs(run)
    yield check_logs(run)
    yield check_tables(run)
    if config.is_of_tables:
        say("models known by tables alone: nothing can be attacked again")
        return
    context = make_context()
    yield check_inputs(context)
    yield check_keys(context)
    yield check_adversarials(context)
    yield check_again(context, num_jobs, say)


def _config_of(run: RunFolder) -> Config | Check:
    """The configuration of a run; where it makes no sense, the check that says so."""
    try:
        return Run(run).config
    except RequestError as error:
        return Check("the configuration can be read", 1, [str(error)])


def check_jobs(run: RunFolder) -> Check:
    """Every job of the configuration is finished."""
    jobs = list_jobs(Run(run).config)
    left = [job for job in jobs if receipt_of(run, job.result(run)) is None]
    faults = [f"{job.name} is not finished" for job in left]
    return Check("jobs are finished", len(jobs), faults)


def check_tables(run: RunFolder) -> Check:
    """The tables that are made from others, made again: not a byte may differ."""
    name = "tables follow from the configuration and the per-image rows"
    try:
        tables = make_tables(Run(run)).files()
    except RequestError as error:
        return Check(name, 0, [str(error)])
    faults = _transfer_faults(run)
    for path, table in tables.items():
        if not is_regular(path):
            faults.append(f"{path.name} is missing")
        elif file_hash(path) != sha256(csv_text(table).encode()).hexdigest():
            faults.append(f"{path.name} is not what config.yaml and the per-image rows say")
    return Check(name, len(tables), faults)


def _transfer_faults(run: RunFolder) -> list[str]:
    """Whether ``transfer.csv`` is of the attack and budget that the configuration asks for."""
    asked = Run(run).config.transfer
    if asked is None or not is_regular(run.transfer) or len(Run(run).transfer):
        return []
    return [f"transfer.csv has no rows of {asked.attack} at a budget of {asked.budget:g}"]


def check_inputs(context: Context) -> Check:
    """``inputs.parquet`` and ``manifest.json`` say what the configuration and the data say."""
    run, faults = context.run, list[str]()
    try:
        before, after = read_table(run.inputs), inputs_table(context)
        faults += [f"inputs.parquet: {reason}" for reason in _other_inputs(before, after)]
    except (OSError, ValueError, RequestError) as error:
        faults.append(f"inputs.parquet cannot be read: {error}")
    try:
        manifest = read_json(run.manifest)
        for name, value in requested(context).items():
            if manifest.get(name) != value:
                faults.append(f"manifest.json: {name} is not that of the configuration and data")
    except (OSError, ValueError, RequestError) as error:
        faults.append(f"manifest.json cannot be read: {error}")
    return Check("inputs and manifest are of these data", 2, faults)


def _other_inputs(before: pd.DataFrame, after: pd.DataFrame) -> Iterator[str]:
    """How the table of inputs differs from the one that the data give now."""
    if list(before.columns) != list(after.columns) or len(before) != len(after):
        yield (
            f"expected {len(after)} rows of {', '.join(map(str, after))}, got {len(before)} of "
            f"{', '.join(map(str, before))}"
        )
        return
    for name in after:
        one, two = before[name], after[name]
        same = one == two
        if two.dtype.kind == "f" and one.dtype.kind == "f":
            same |= np.isclose(one, two, rtol=RELATIVE, atol=0, equal_nan=True)
        if not same.all():
            image = after["sample_id"][int(np.argmin(same))]
            yield f"{name} of image {image} is not that of the data"


def check_keys(context: Context) -> Check:
    """Every finished result was made from these data, by these versions of the code."""
    run, faults, num_checked = context.run, list[str](), 0
    for job in context.plan.jobs:
        spec, receipt = job.spec, receipt_of(run, job.result(run))
        if receipt is None or receipt_of(run, run.model(spec.model_id)) is None:
            continue
        num_checked += 1
        if job.attack_id is None:
            key = model_key(context, spec)
        else:
            key = asked_of(context, spec, job.attack_id).key
        if key is not None and key != receipt.key:
            faults.append(f"{job.name} was made from something else than it would be now")
    return Check("results are of these data and versions", num_checked, faults)


def check_adversarials(context: Context) -> Check:
    """Every stored adversarial image, shown to its model and measured once more."""
    run, faults, num_checked = context.run, list[str](), 0
    for spec in context.plan.config.model_specs():
        stored = {
            attack_id: run.adversarials(spec.model_id, attack_id)
            for attack_id in context.plan.config.attacks
            if receipt_of(run, run.samples(spec.model_id, attack_id)) is not None
        }
        model = _model_here(context, spec) if any(is_regular(p) for p in stored.values()) else None
        for attack_id, path in stored.items():
            if model is not None and is_regular(path):
                samples = run.samples(spec.model_id, attack_id)
                try:
                    with reading(samples):
                        rows = read_table(samples)
                    reason = _judged_differently(context, model, attack_id, rows, path)
                except RequestError as error:  # one of the two is damaged
                    faults.append(str(error))
                    continue
                num_checked += len(rows)
                faults += [f"{spec.model_id}/{attack_id}: {reason}"] if reason else []
    return Check("stored adversarial images are judged as before", num_checked, faults)


def _judged_differently(
    context: Context, model: nn.Module, attack_id: str, rows: pd.DataFrame, path: Path
) -> str | None:
    """How the rows of stored images differ from what is seen in them now; None: they do not."""
    attacked = context.plan.attacked_by(attack_id)
    with reading(path):
        limit = attacked.images.nbytes + 16 * len(rows) + ARRAY_HEADER_BYTES
        images = torch.from_numpy(read_arrays(path, limit)["adversarial"].astype(np.float32))
    if images.shape != attacked.images.shape:
        return "not of the images that are attacked"
    outcome = _as_found(images, rows)
    judged = judge(model, attacked.images, attacked.labels, outcome, context.device)
    return differ(rows, judged.assign(sample_id=attacked.sample_ids))


def _as_found(images: torch.Tensor, rows: pd.DataFrame) -> AttackOutcome:
    """What the attack had returned, as far as it is judged."""
    none = torch.zeros(len(rows), dtype=torch.int64)
    moved = torch.from_numpy(np.array(rows[["angle", "dx", "dy"]], np.float32))
    fooled = torch.from_numpy(np.array(rows["status"] == "fooled"))
    return AttackOutcome(images, fooled, none, none, None if rows["l2"].notna().any() else moved)


def check_again(context: Context, num_jobs: int, say: Callable[[str], None]) -> Check:
    """Some attacks, drawn at random, made once more: the same rows must come out."""
    run, faults, num_checked = context.run, list[str](), 0
    wanted = [
        job
        for job in context.plan.jobs
        if job.attack_id is not None
        and job.shard == 0
        and receipt_of(run, job.result(run)) is not None
    ]
    np.random.default_rng().shuffle(wanted)
    for job in wanted:
        if num_checked == num_jobs:
            break
        if _model_here(context, job.spec) is not None:
            say(f"{job.name}: made once more")
            faults += [f"{job.name}: {reason}" for reason in _made_differently(context, job)]
            num_checked += 1
    return Check("attacks give the same rows once more", num_checked, faults)


def _made_differently(context: Context, job: Job) -> Iterator[str]:
    run, model_id, attack_id = context.run, job.spec.model_id, str(job.attack_id)
    with tempfile.TemporaryDirectory() as folder:
        other = RunFolder(Path(folder))
        shutil.copytree(run.model(model_id), other.model(model_id), ignore=_special_files)
        again = Context(context.plan, other, context.device)
        for shard in range(job.num_shards):
            part = Job(job.spec, attack_id, shard, job.num_shards)
            attack_model(again, part, attack_id, unseen)
        before, after = run.samples(model_id, attack_id), other.samples(model_id, attack_id)
        if file_hash(before) == file_hash(after):
            return
        with reading(before):
            reason = differ(read_table(before), read_table(after))
        if reason is not None:
            yield reason


def _special_files(folder: str, names: list[str]) -> list[str]:
    """Links, pipes and devices, which are not copied; ``check_files`` has named them."""
    return [name for name in names if not is_regular(Path(folder, name))]


def differ(before: pd.DataFrame, after: pd.DataFrame) -> str | None:
    """How two tables of one attack differ beyond contract 1's tolerance; None: they do not."""
    if before["sample_id"].tolist() != after["sample_id"].tolist():
        return "other images"
    same = np.array(before["status"] == after["status"])
    for norm in ("l2", "linf"):
        one, two = (t[norm].to_numpy(np.float64) for t in (before, after))
        same &= np.isclose(one, two, rtol=RELATIVE, atol=0, equal_nan=True)
    if same.mean() >= SHARE:
        return None
    return f"{int((~same).sum())} of {len(same)} images have another status or distance"


def _model_here(context: Context, spec: ModelGroup) -> nn.Module | None:
    """The network; None: its weights were not passed on."""
    try:
        return load_model(context, spec)[0]
    except RequestError:
        return None
