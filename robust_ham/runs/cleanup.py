"""Set aside stale or damaged results before a run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from robust_ham.config.models import ModelGroup
from robust_ham.models.checkpoints import source_folder
from robust_ham.runs.jobs.model import adopt_model
from robust_ham.runs.plan.context import Context
from robust_ham.runs.plan.keys import attack_recipe, model_key
from robust_ham.storage.parquet_tables import read_metadata
from robust_ham.storage.receipts import fault, receipt_of
from robust_ham.storage.run_folder import RunFolder
from robust_ham.storage.temporary_files import remove_empty_parents
from robust_ham.training.resume import Unfinished


def set_aside_stale(context: Context) -> list[str]:
    """Move results of another configuration and damaged results to ``superseded/``.

    Afterwards all results belong to the present configuration, so that a report never mixes two.
    No other process may be running in the folder.

    Returns:
        A line for each damaged result.
    """
    config = context.plan.config
    recipes = {attack_id: attack_recipe(context, attack_id) for attack_id in config.attacks}
    damages = list[str]()
    for spec in config.model_specs():
        damages += _set_aside_model(context, spec)
        for attack_id, attack in config.attacks.items():
            recipe = recipes[attack_id] if attack.attacks(spec) else None
            damages += _set_aside_attack(context.run, spec.model_id, attack_id, recipe)
    return damages


def _set_aside_model(context: Context, spec: ModelGroup) -> Iterator[str]:
    run = context.run
    folder, predictions = run.model(spec.model_id), run.predictions(spec.model_id)
    source = source_folder(context.plan.config, spec)
    if not folder.is_dir():
        _remove(run.receipt(folder))
    elif source is None or not source.samefile(folder):
        key = model_key(context, spec)
        if key is not None:
            adopt_model(context, spec, key)
        receipt = receipt_of(run, folder)
        if receipt is None or key not in (None, receipt.key):
            run.set_aside(folder)
        elif damage := fault(run, receipt):
            run.set_aside(folder)
            yield damage
        else:  # its process may have been killed before it removed this
            Unfinished(run.unfinished(spec.model_id), receipt.key).remove()
    if damage := _damage(run, predictions):
        yield damage
        _remove(run.receipt(predictions), predictions)


def _damage(run: RunFolder, result: Path) -> str | None:
    """Describe how a result differs from its receipt; None if it matches or has no receipt."""
    receipt = receipt_of(run, result)
    return fault(run, receipt) if receipt is not None else None


def _set_aside_attack(
    run: RunFolder, model_id: str, attack_id: str, recipe: str | None
) -> Iterator[str]:
    """``recipe``: of the configured attack; None: the attack is not run on this model."""
    path = run.samples(model_id, attack_id)
    receipt = receipt_of(run, path)
    present = receipt.details.get("recipe") if receipt is not None else None
    present = present or (read_metadata(path) or {}).get("recipe")
    damage = fault(run, receipt) if receipt is not None and present == recipe else None
    if damage:
        yield damage
    if damage or recipe is None or present != recipe:
        if path.exists():
            run.set_aside(path)
        others = (run.gallery, run.grid, run.margins, run.spectrum, run.adversarials)
        _remove(run.receipt(path), *(path_of(model_id, attack_id) for path_of in others))
        receipt = None
    joined, shards = receipt is not None, run.shard(model_id, attack_id, 0).parent
    signed = (shards / path.stem for path in run.receipt(shards / "0").parent.glob("*.json"))
    numbered = (path for path in shards.glob("*") if path.name.isdecimal())
    for shard in sorted({*numbered, *signed}):
        is_current = not joined and recipe is not None and _recipe_of(run, shard) == recipe
        damage = _damage(run, shard) if is_current else None
        if damage:
            yield damage
        if damage or not is_current:
            _remove(run.receipt(shard))
            shutil.rmtree(shard, ignore_errors=True)  # there may be only its receipt
            remove_empty_parents(shard, run.root)
            remove_empty_parents(run.receipt(shard), run.root)


def _recipe_of(run: RunFolder, result: Path) -> str | None:
    receipt = receipt_of(run, result)
    return receipt.details.get("recipe") if receipt is not None else None


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
