"""What a run folder holds that is not asked for any more, or is damaged: set aside before a run."""

from __future__ import annotations

from pathlib import Path

from robust_ham import checkpoints
from robust_ham.attack_cells import attack_recipe
from robust_ham.config import RequestError
from robust_ham.context import Context
from robust_ham.model_cells import model_identity
from robust_ham.model_groups import FactoryGroup, ModelGroup
from robust_ham.plan import source_folder
from robust_ham.store import content_key, file_hash, read_metadata


def set_aside_stale(context: Context) -> None:
    """Move what another configuration has left, or what is damaged, to ``superseded/``.

    Afterwards the tables of the folder belong to the present configuration, so that a report never
    mixes two.
    """
    run = context.run
    for spec in context.plan.config.model_specs():
        folder = run.model(spec.model_id)
        if folder.is_dir() and not _is_wanted(context, spec, folder):
            run.set_aside(folder)
        for attack_id in context.plan.config.attacks:
            path = run.samples(spec.model_id, attack_id)
            metadata = read_metadata(path) or {}
            attack = context.plan.config.attacks[attack_id]
            recipe = attack_recipe(context, attack_id)
            wanted = attack.attacks(spec) and metadata.get("recipe") == recipe
            if path.exists() and not wanted:
                run.set_aside(path)
                for made in (run.gallery, run.grid, run.margins, run.spectrum, run.adversarials):
                    made(spec.model_id, attack_id).unlink(missing_ok=True)


def _is_wanted(context: Context, spec: ModelGroup, folder: Path) -> bool:
    """Whether a model's folder is what the configuration asks for, and whole."""
    source = source_folder(context.plan.config, spec)
    if source is not None:
        names = checkpoints.described(source)
        return source.samefile(folder) or (
            {p.name for p in folder.iterdir()} == set(names)
            and all(file_hash(folder / name) == file_hash(source / name) for name in names)
        )
    if isinstance(spec, FactoryGroup):
        return True  # judged when the model is there
    try:
        card = checkpoints.read_card(folder)
    except RequestError:
        return False
    weights = folder / checkpoints.WEIGHTS
    whole = weights.is_file() and file_hash(weights) == card["weights_sha256"]
    return whole and card.get("key") == content_key(model_identity(context, spec))
