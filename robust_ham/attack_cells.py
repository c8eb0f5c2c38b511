"""The cell of an attack on a model: rows, and what is kept of the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from robust_ham import evaluation
from robust_ham.catalogue import attack_options
from robust_ham.checkpoints import read_card
from robust_ham.context import Context, Done
from robust_ham.model_cells import load_model
from robust_ham.model_groups import ModelGroup
from robust_ham.progress import Progress
from robust_ham.store import content_key, read_metadata, write_csv, write_table, writing


def attack_model(context: Context, spec: ModelGroup, attack_id: str, progress: Progress) -> Done:
    """Attack a model that has been obtained, and write one row per image.

    Raises:
        RequestError: a checkpoint or an option is not what was asked for.
    """
    config = context.plan.config
    attack = config.attacks[attack_id]
    card = read_card(context.run.model(spec.model_id))
    recipe = attack_recipe(context, attack_id)
    key = content_key({"recipe": recipe, "weights": card["weights_sha256"]})
    path = context.run.samples(spec.model_id, attack_id)
    if (read_metadata(path) or {}).get("key") == key:
        return "already there"
    model, _ = load_model(context, spec)
    found = evaluation.evaluate(
        model,
        context.plan.attacked_by(attack_id),
        attack,
        attack_id,
        batch_size=config.evaluation.batch_size,
        device=context.device,
        progress=progress,
    )
    if config.evaluation.gallery:
        with writing(context.run.gallery(spec.model_id, attack_id)) as temporary:
            _save_arrays(temporary, **found.gallery)
    if config.evaluation.keep_adversarials:
        with writing(context.run.adversarials(spec.model_id, attack_id)) as temporary:
            ids = found.samples["sample_id"].to_numpy()
            _save_arrays(temporary, sample_id=ids, adversarial=found.adversarials.numpy())
    _write_margins(context, spec, attack_id, found)
    if found.spectrum is not None:
        write_csv(context.run.spectrum(spec.model_id, attack_id), found.spectrum)
    samples = found.samples
    samples.insert(0, "split", config.evaluation.split)
    samples.insert(0, "dataset", Path(config.dataset.name).name)
    samples.insert(0, "model_id", spec.model_id)
    about = {
        "key": key,
        "recipe": recipe,
        "weights": card["weights_sha256"],
        "attack": attack.attack,
    }
    write_table(path, samples, about)
    return "done"


def _write_margins(
    context: Context, spec: ModelGroup, attack_id: str, found: evaluation.Evaluation
) -> None:
    """Where all margins were asked for: one float16 array, and images fooled per candidate."""
    if found.margins is None:
        return
    with writing(context.run.margins(spec.model_id, attack_id)) as temporary:
        arrays = {
            "sample_id": found.samples["sample_id"].to_numpy(),
            "margins": halved(found.margins.numpy()),
        }
        if found.transforms is not None:
            arrays["transforms"] = found.transforms.numpy()
        _save_arrays(temporary, **arrays)
    grid = found.grid()
    if grid is not None:
        write_csv(context.run.grid(spec.model_id, attack_id), grid)


def halved(margins: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Margins as float16 that keep their side of zero: what fools still fools."""
    limit = float(np.finfo(np.float16).max)
    half = np.clip(margins, -limit, limit).astype(np.float16)
    smallest = np.finfo(np.float16).smallest_subnormal
    lost = (margins < 0) & (half >= 0)
    return np.where(lost, -smallest, half)


def attack_recipe(context: Context, attack_id: str) -> str:
    """Hash of all that decides an attack's rows but the model."""
    config = context.plan.config
    attack = config.attacks[attack_id]
    return content_key(
        context.where
        | {
            "attack": attack.attack,
            "options": attack_options(attack, attack_id),
            "inputs": context.inputs_key_of(attack.num_images),
            "batch_size": config.evaluation.batch_size,
            "gallery": config.evaluation.gallery,
            "keep_adversarials": config.evaluation.keep_adversarials,
            "version": evaluation.VERSION,
        }
    )


def _save_arrays(path: Path, **arrays: np.ndarray[Any, Any]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
