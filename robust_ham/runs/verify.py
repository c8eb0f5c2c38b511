"""Verify a finished run: its files, its stored images, and some attacks rerun."""

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
from robust_ham.progress import no_progress
from robust_ham.regular_files import is_regular
from robust_ham.runs.inputs import inputs_table
from robust_ham.runs.jobs.attack import attack_model
from robust_ham.runs.jobs.model import load_model
from robust_ham.runs.manifest import requested
from robust_ham.runs.plan.context import Context
from robust_ham.runs.plan.job import Job, list_jobs
from robust_ham.runs.plan.keys import attack_key, model_key
from robust_ham.runs.verify_files import Check, check_files, check_logs
from robust_ham.storage.array_files import ARRAY_HEADER_BYTES, read_arrays
from robust_ham.storage.files import csv_text, file_hash, read_json, reading
from robust_ham.storage.parquet_tables import read_table
from robust_ham.storage.receipts import receipt_of
from robust_ham.storage.run_folder import RunFolder

RELATIVE, SHARE = 1e-5, 0.999
"""Relative tolerance of distances, and share of images within it (contract 1)."""


def verify(
    run: RunFolder,
    make_context: Callable[[], Context],
    num_jobs: int,
    say: Callable[[str], None],
) -> Iterator[Check]:
    """Yield the results of all checks, the quick ones first.

    ``make_context`` reads the data once they are needed. For imported tables, only the files are
    checked: there is no model to attack again.

    Raises:
        RequestError: not a run folder, or the data are missing.
    """
    if not is_regular(run.config):
        raise run.not_a_run()
    yield check_files(run)
    config = _config_of(run)
    if isinstance(config, Check):
        yield config
        return
    yield check_jobs(run)
    yield check_logs(run)
    yield check_tables(run)
    if config.is_of_tables:
        say("imported tables: there is no model to attack again")
        return
    context = make_context()
    yield check_inputs(context)
    yield check_keys(context)
    yield check_adversarials(context)
    yield check_again(context, num_jobs, say)


def _config_of(run: RunFolder) -> Config | Check:
    """Return the configuration of a run or, if it is invalid, the failed check."""
    try:
        return Run(run).config
    except RequestError as error:
        return Check("the configuration can be read", 1, [str(error)])


def check_jobs(run: RunFolder) -> Check:
    """Check that every job of the configuration is finished."""
    jobs = list_jobs(Run(run).config)
    left = [job for job in jobs if receipt_of(run, job.result(run)) is None]
    faults = [f"{job.name} is not finished" for job in left]
    return Check("all jobs are finished", len(jobs), faults)


def check_tables(run: RunFolder) -> Check:
    """Recompute the derived tables: not a byte may differ."""
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
            faults.append(f"{path.name} does not follow from config.yaml and the per-image rows")
    return Check(name, len(tables), faults)


def _transfer_faults(run: RunFolder) -> list[str]:
    """Check that ``transfer.csv`` has the configured attack and budget."""
    transfer = Run(run).config.transfer
    if transfer is None or not is_regular(run.transfer) or len(Run(run).transfer):
        return []
    return [f"transfer.csv has no rows of {transfer.attack} at a budget of {transfer.budget:g}"]


def check_inputs(context: Context) -> Check:
    """Check that ``inputs.parquet`` and ``manifest.json`` match the configuration and the data."""
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
                faults.append(f"manifest.json: {name} does not match the configuration and data")
    except (OSError, ValueError, RequestError) as error:
        faults.append(f"manifest.json cannot be read: {error}")
    return Check("inputs and manifest match the data", 2, faults)


def _other_inputs(before: pd.DataFrame, after: pd.DataFrame) -> Iterator[str]:
    """Describe how the table of inputs differs from the recomputed one."""
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
            yield f"{name} of image {image} does not match the data"


def check_keys(context: Context) -> Check:
    """Check that every finished result has the key of these data and this code."""
    run, faults, num_checked = context.run, list[str](), 0
    for job in context.plan.jobs:
        spec, receipt = job.spec, receipt_of(run, job.result(run))
        if receipt is None or receipt_of(run, run.model(spec.model_id)) is None:
            continue
        num_checked += 1
        if job.attack_id is None:
            key = model_key(context, spec)
        else:
            key = attack_key(context, spec, job.attack_id).digest
        if key is not None and key != receipt.key:
            faults.append(f"{job.name} was computed from other data, options or code")
    return Check("results match the data and code versions", num_checked, faults)


def check_adversarials(context: Context) -> Check:
    """Score every stored adversarial image again."""
    run, faults, num_checked = context.run, list[str](), 0
    for spec in context.plan.config.model_specs():
        stored = {
            attack_id: run.adversarials(spec.model_id, attack_id)
            for attack_id in context.plan.config.attacks
            if receipt_of(run, run.samples(spec.model_id, attack_id)) is not None
        }
        model = (
            _load_model_if_present(context, spec)
            if any(is_regular(p) for p in stored.values())
            else None
        )
        for attack_id, path in stored.items():
            if model is not None and is_regular(path):
                samples = run.samples(spec.model_id, attack_id)
                try:
                    with reading(samples):
                        rows = read_table(samples)
                    reason = _score_difference(context, model, attack_id, rows, path)
                except RequestError as error:  # a damaged file
                    faults.append(str(error))
                    continue
                num_checked += len(rows)
                faults += [f"{spec.model_id}/{attack_id}: {reason}"] if reason else []
    return Check("stored adversarial images score as before", num_checked, faults)


def _score_difference(
    context: Context, model: nn.Module, attack_id: str, rows: pd.DataFrame, path: Path
) -> str | None:
    """Describe how rows differ from a new scoring of the stored images; None: they agree."""
    attacked = context.plan.attacked_by(attack_id)
    with reading(path):
        limit = attacked.images.nbytes + 16 * len(rows) + ARRAY_HEADER_BYTES
        images = torch.from_numpy(read_arrays(path, limit)["adversarial"].astype(np.float32))
    if images.shape != attacked.images.shape:
        return "stored images do not match the attacked images"
    outcome = _stored_outcome(images, rows)
    judged = judge(model, attacked.images, attacked.labels, outcome, context.device)
    return differ(rows, judged.assign(sample_id=attacked.sample_ids))


def _stored_outcome(images: torch.Tensor, rows: pd.DataFrame) -> AttackOutcome:
    """Return the outcome of an attack, as far as scoring needs it."""
    none = torch.zeros(len(rows), dtype=torch.int64)
    moved = torch.from_numpy(np.array(rows[["angle", "dx", "dy"]], np.float32))
    fooled = torch.from_numpy(np.array(rows["status"] == "fooled"))
    return AttackOutcome(images, fooled, none, none, None if rows["l2"].notna().any() else moved)


def check_again(context: Context, num_jobs: int, say: Callable[[str], None]) -> Check:
    """Rerun some attacks, drawn at random, and compare their rows."""
    run, faults, num_checked = context.run, list[str](), 0
    candidates = [
        job
        for job in context.plan.jobs
        if job.attack_id is not None
        and job.shard == 0
        and receipt_of(run, job.result(run)) is not None
    ]
    np.random.default_rng().shuffle(candidates)
    for job in candidates:
        if num_checked == num_jobs:
            break
        if _load_model_if_present(context, job.spec) is not None:
            say(f"{job.name}: rerunning")
            faults += [f"{job.name}: {reason}" for reason in _rerun_differences(context, job)]
            num_checked += 1
    return Check("rerun attacks give the same rows", num_checked, faults)


def _rerun_differences(context: Context, job: Job) -> Iterator[str]:
    """Rerun an attack in a temporary folder and describe how its rows differ."""
    run, model_id, attack_id = context.run, job.spec.model_id, str(job.attack_id)
    with tempfile.TemporaryDirectory() as folder:
        other = RunFolder(Path(folder))
        shutil.copytree(run.model(model_id), other.model(model_id), ignore=_special_files)
        rerun = Context(context.plan, other, context.device)
        for shard in range(job.num_shards):
            part = Job(job.spec, attack_id, shard, job.num_shards)
            attack_model(rerun, part, attack_id, no_progress)
        before, after = run.samples(model_id, attack_id), other.samples(model_id, attack_id)
        if file_hash(before) == file_hash(after):
            return
        with reading(before):
            reason = differ(read_table(before), read_table(after))
        if reason is not None:
            yield reason


def _special_files(folder: str, names: list[str]) -> list[str]:
    """Return the links, pipes and devices, which are not copied; ``check_files`` names them."""
    return [name for name in names if not is_regular(Path(folder, name))]


def differ(before: pd.DataFrame, after: pd.DataFrame) -> str | None:
    """Describe how two tables of one attack differ beyond contract 1; None: they agree."""
    if before["sample_id"].tolist() != after["sample_id"].tolist():
        return "different images"
    same = np.array(before["status"] == after["status"])
    for norm in ("l2", "linf"):
        one, two = (t[norm].to_numpy(np.float64) for t in (before, after))
        same &= np.isclose(one, two, rtol=RELATIVE, atol=0, equal_nan=True)
    if same.mean() >= SHARE:
        return None
    return f"{int((~same).sum())} of {len(same)} images have a different status or distance"


def _load_model_if_present(context: Context, spec: ModelGroup) -> nn.Module | None:
    """Load a network; None: this copy of the run lacks its weights."""
    try:
        return load_model(context, spec)[0]
    except RequestError:
        return None
