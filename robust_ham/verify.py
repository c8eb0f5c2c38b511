"""Whether a finished run can be relied upon: its files, its stored images, and some cells anew."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from attacks import AttackOutcome
from robust_ham.analysis.run import Run
from robust_ham.analysis.tables import make_tables
from robust_ham.attack_cells import attack_key, attack_model
from robust_ham.cell import Cell, list_cells
from robust_ham.checkpoints import WEIGHTS
from robust_ham.config import RequestError
from robust_ham.context import Context
from robust_ham.judging import judge
from robust_ham.model_cells import load_model, model_key
from robust_ham.progress import unseen
from robust_ham.receipts import Receipt, fault, receipt_of
from robust_ham.run_folder import RunFolder
from robust_ham.store import read_arrays, read_table, write_csv

RELATIVE, SHARE = 1e-5, 0.999
"""Distances agree within this, for at least this share of images (contract 1)."""
_NOT_PASSED_ON = ("adversarials", "margins", "gallery", "predictions")
"""Folders that a repository may leave out; weights may be left out too."""


@dataclass(frozen=True)
class Check:
    """What was looked at, and what is wrong with it."""

    name: str
    num_checked: int
    faults: list[str]
    not_here: int = 0
    """Files that the folder's receipts name, but that were not passed on with it."""


def verify(
    run: RunFolder,
    make_context: Callable[[], Context],
    num_cells: int,
    say: Callable[[str], None],
) -> Iterator[Check]:
    """All checks, the quick ones first; data are read by ``make_context`` once they are needed.

    Raises:
        RequestError: not a run folder, or the data are not here.
    """
    yield check_cells(run)
    yield check_files(run)
    yield check_tables(run)
    context = make_context()
    yield check_keys(context)
    yield check_adversarials(context)
    yield check_again(context, num_cells, say)


def check_files(run: RunFolder) -> Check:
    """Every file that a receipt names, against its checksum."""
    faults, num_checked, not_here = list[str](), 0, 0
    for path in sorted(run.receipts.rglob("*.json")):
        made = run.root / path.relative_to(run.receipts).with_suffix("")
        receipt = receipt_of(run, made)
        if receipt is None:
            faults.append(f"{path.relative_to(run.root)} is damaged")
            continue
        for name, expected in receipt.files.items():
            if not (run.root / name).is_file() and _may_be_missing(name):
                not_here += 1
                continue
            num_checked += 1
            found = fault(run, Receipt(receipt.key, {name: expected}, {}))
            faults += [found] if found else []
    return Check("files are as they were written", num_checked, faults, not_here)


def _may_be_missing(name: str) -> bool:
    return name.partition("/")[0] in _NOT_PASSED_ON or name.endswith(WEIGHTS)


def check_cells(run: RunFolder) -> Check:
    """Every cell of the configuration is finished."""
    cells = list_cells(Run(run).config)
    faults = []
    for cell in cells:
        model_id, attack_id = cell.spec.model_id, cell.attack_id
        made = run.samples(model_id, attack_id) if attack_id else run.model(model_id)
        if receipt_of(run, made) is None:
            faults.append(f"{cell.name} is not finished")
    return Check("cells are finished", len(cells), faults)


def check_tables(run: RunFolder) -> Check:
    """The tables that are made from others, made again: not a byte may differ."""
    tables = make_tables(Run(run)).files()
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        for path, table in tables.items():
            again = Path(folder) / path.name
            write_csv(again, table)
            if not path.is_file():
                faults.append(f"{path.name} is missing")
            elif path.read_bytes() != again.read_bytes():
                faults.append(f"{path.name} is not what the per-image rows say")
    return Check("tables follow from the per-image rows", len(tables), faults)


def check_keys(context: Context) -> Check:
    """Every finished result was made from these data, by these versions of the code."""
    run, faults, num_checked = context.run, list[str](), 0
    for cell in context.plan.cells:
        spec, attack_id = cell.spec, cell.attack_id
        made = run.samples(spec.model_id, attack_id) if attack_id else run.model(spec.model_id)
        receipt = receipt_of(run, made)
        if receipt is None or receipt_of(run, run.model(spec.model_id)) is None:
            continue
        num_checked += 1
        key = attack_key(context, spec, attack_id) if attack_id else model_key(context, spec)
        if key is not None and key != receipt.key:
            faults.append(f"{cell.name} was made from something else than it would be now")
    return Check("results are of these data and versions", num_checked, faults)


def check_adversarials(context: Context) -> Check:
    """Every stored adversarial image, shown to its model and measured once more."""
    run, config, faults, num_checked = context.run, context.plan.config, list[str](), 0
    for spec in config.model_specs():
        for attack_id in config.attacks:
            table = run.samples(spec.model_id, attack_id)
            path = run.adversarials(spec.model_id, attack_id)
            if receipt_of(run, table) is None or not path.is_file():
                continue
            if not _has_weights(context, spec.model_id):
                continue
            rows, arrays = read_table(table), read_arrays(path)
            attacked = context.plan.attacked_by(attack_id)
            images = torch.from_numpy(arrays["adversarial"])
            num_checked += len(rows)
            if images.shape != attacked.images.shape:
                faults.append(f"{spec.model_id}/{attack_id}: not of the images that are attacked")
                continue
            model, _ = load_model(context, spec)
            outcome = _as_found(images, rows)
            judged = judge(model, attacked.images, attacked.labels, outcome, context.device)
            reason = differ(rows, judged.assign(sample_id=attacked.sample_ids))
            if reason is not None:
                faults.append(f"{spec.model_id}/{attack_id}: {reason}")
    return Check("stored adversarial images are judged as before", num_checked, faults)


def _as_found(images: torch.Tensor, rows: pd.DataFrame) -> AttackOutcome:
    """What the attack had returned, as far as it is judged."""
    none = torch.zeros(len(rows), dtype=torch.int64)
    moved = torch.from_numpy(np.array(rows[["angle", "dx", "dy"]], np.float32))
    fooled = torch.from_numpy(np.array(rows["status"] == "fooled"))
    return AttackOutcome(images, fooled, none, none, None if rows["l2"].notna().any() else moved)


def check_again(context: Context, num_cells: int, say: Callable[[str], None]) -> Check:
    """Some attacks, drawn at random, made once more: the same rows must come out."""
    run = context.run
    finished = [
        cell
        for cell in context.plan.cells
        if cell.attack_id is not None
        and cell.shard == 0
        and receipt_of(run, run.samples(cell.spec.model_id, cell.attack_id)) is not None
        and _has_weights(context, cell.spec.model_id)
    ]
    draw = np.random.default_rng().permutation(len(finished))[:num_cells]
    faults = []
    for place in sorted(draw):
        cell = finished[place]
        say(f"{cell.name}: made once more")
        faults += [f"{cell.name}: {reason}" for reason in _made_differently(context, cell)]
    return Check("attacks give the same rows once more", len(draw), faults)


def _made_differently(context: Context, cell: Cell) -> Iterator[str]:
    run, model_id, attack_id = context.run, cell.spec.model_id, str(cell.attack_id)
    with tempfile.TemporaryDirectory() as folder:
        other = RunFolder(Path(folder))
        shutil.copytree(run.model(model_id), other.model(model_id))
        again = Context(context.plan, other, context.device)
        for shard in range(cell.num_shards):
            part = Cell(cell.spec, attack_id, shard, cell.num_shards)
            attack_model(again, part, attack_id, unseen)
        before, after = run.samples(model_id, attack_id), other.samples(model_id, attack_id)
        if before.read_bytes() == after.read_bytes():
            return
        reason = differ(read_table(before), read_table(after))
        if reason is not None:
            yield reason


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


def _has_weights(context: Context, model_id: str) -> bool:
    """Whether the network can be loaded: its weights are here, or where it was taken from."""
    spec = next(s for s in context.plan.config.model_specs() if s.model_id == model_id)
    try:
        load_model(context, spec)
    except RequestError:
        return False
    return True
