"""What a run folder holds that is not asked for any more, or is damaged: set aside before a run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from robust_ham import checkpoints
from robust_ham.attack_cells import attack_recipe
from robust_ham.config import RequestError
from robust_ham.context import Context
from robust_ham.model_cells import key_of_files, model_key, sign_model
from robust_ham.model_groups import ModelGroup
from robust_ham.plan import source_folder
from robust_ham.receipts import fault, receipt_of
from robust_ham.store import file_hash, read_metadata, remove_empty


def set_aside_stale(context: Context) -> list[str]:
    """Move what another configuration has left, or what is damaged, to ``superseded/``.

    Afterwards the tables of the folder belong to the present configuration, so that a report never
    mixes two. Nobody else may be at work in the folder.

    Returns:
        A line for each damaged result.
    """
    config = context.plan.config
    found = list[str]()
    for spec in config.model_specs():
        found += _set_aside_model(context, spec)
        for attack_id, attack in config.attacks.items():
            asked = attack.attacks(spec)
            found += _set_aside_attack(context, spec.model_id, attack_id, asked)
    return found


def _set_aside_model(context: Context, spec: ModelGroup) -> Iterator[str]:
    run = context.run
    folder, predictions = run.model(spec.model_id), run.predictions(spec.model_id)
    source = source_folder(context.plan.config, spec)
    own = source is None or not folder.is_dir() or not source.samefile(folder)
    if own and not _is_signed(context, spec, folder):
        if not folder.is_dir():
            run.receipt(folder).unlink(missing_ok=True)
        elif (reason := _why_not(context, spec, folder)) is not None:
            run.set_aside(folder)
            if reason:
                yield reason
    receipt = receipt_of(run, predictions)
    damage = fault(run, receipt) if receipt else None
    if damage:
        yield damage
        _remove(run.receipt(predictions), predictions)


def _is_signed(context: Context, spec: ModelGroup, folder: Path) -> bool:
    """Whether a model's folder is finished, what is asked for, and as it was written."""
    receipt = receipt_of(context.run, folder)
    if receipt is None or fault(context.run, receipt) is not None:
        return False
    return model_key(context, spec) in (None, receipt.key)


def _why_not(context: Context, spec: ModelGroup, folder: Path) -> str | None:
    """What is wrong with a model's folder; empty: it is another's; None: only its receipt missed.

    A process may have been killed between the two; a training is not lost for that.
    """
    receipt, key = receipt_of(context.run, folder), model_key(context, spec)
    if receipt is not None:
        return fault(context.run, receipt) if receipt.key == key or key is None else ""
    if key is None or _key_of_unsigned(context, spec, folder) != key:
        return ""
    sign_model(context, spec, key)
    return None


def _key_of_unsigned(context: Context, spec: ModelGroup, folder: Path) -> str | None:
    """The key of a folder without a receipt, by what is in it."""
    if source_folder(context.plan.config, spec) is not None:
        return key_of_files(folder.iterdir())
    try:
        card = checkpoints.read_card(folder)
    except RequestError:
        return None
    weights = folder / checkpoints.WEIGHTS
    whole = weights.is_file() and file_hash(weights) == card["weights_sha256"]
    return str(card.get("key")) if whole else None


def _set_aside_attack(
    context: Context, model_id: str, attack_id: str, asked: bool
) -> Iterator[str]:
    run, recipe = context.run, attack_recipe(context, attack_id)
    path = run.samples(model_id, attack_id)
    receipt = receipt_of(run, path)
    about = receipt.about if receipt is not None else read_metadata(path) or {}
    wanted = asked and about.get("recipe") == recipe
    damage = fault(run, receipt) if receipt is not None and wanted else None
    if damage:
        yield damage
    if not wanted or damage:
        if path.exists():
            run.set_aside(path)
        made = (run.gallery, run.grid, run.margins, run.spectrum, run.adversarials)
        _remove(run.receipt(path), *(place(model_id, attack_id) for place in made))
    shards = run.shard(model_id, attack_id, 0).parent
    for shard in sorted(shards.iterdir()) if shards.is_dir() else ():
        whole, receipt = receipt_of(run, path) is not None, receipt_of(run, shard)
        wanted = asked and receipt is not None and receipt.about.get("recipe") == recipe
        wanted = wanted and not whole
        damage = fault(run, receipt) if receipt is not None and wanted else None
        if damage:
            yield damage
        if not wanted or damage:
            _remove(run.receipt(shard))
            shutil.rmtree(shard)
            remove_empty(shard, run.root)
            remove_empty(run.receipt(shard), run.root)


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
