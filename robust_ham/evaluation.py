"""Run an attack on one model, judge it afresh, write one row per image.

What an attack says of itself is not believed: every returned image goes through the model once
more, its pixels are checked against [0, 1], and its distances are measured here.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn

from attacks import ATTACKS, Attack, AttackOutcome, foolbox_attack, margins_of
from attacks.foolbox_attacks import foolbox_parameters
from attacks.prepare import BOX_TOLERANCE, attack_mode
from attacks.spatial import grid_transforms, shift_transforms
from robust_ham.config import AttackConfig, RequestError, number
from robust_ham.data import Split, balanced_order, to_float

VERSION = 2
"""Raised when the same attack on the same model gives other rows; part of every key."""

ACCURACY_TOLERANCE = 0.001
GALLERY_IMAGES = 8
NO_PREDICTION = -1  # where logits are not finite
PRUNE_CHECK_IMAGES = 64
PRUNE_TOLERANCE = 0.001
_JUDGE_BATCH = 500

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class AttackedImages:
    """The images that every model of a run is attacked on.

    ``images`` float32 (n, C, H, W) in [0, 1]; ``labels`` int64 (n,); ``sample_ids`` (n,) index into
    the split.
    """

    images: Tensor
    labels: Tensor
    sample_ids: list[int]

    def table(self) -> pd.DataFrame:
        """``sample_id label sha256`` of the decoded uint8 pixels."""
        pixels = self.images.mul(255).round().to(torch.uint8).numpy()
        hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels]
        return pd.DataFrame(
            {"sample_id": self.sample_ids, "label": self.labels.numpy(), "sha256": hashes}
        )


def attacked_images(split: Split, num_images: int, seed: int) -> AttackedImages:
    """The first ``num_images`` of the split's class-balanced order.

    Raises:
        RequestError: the split has fewer.
    """
    if num_images > len(split):
        raise RequestError(
            f"evaluation.num_images: expected at most {len(split)} ({split.source}), "
            f"got {num_images}"
        )
    rows = torch.from_numpy(balanced_order(split.labels, seed)[:num_images])
    return AttackedImages(to_float(split.images[rows]), split.labels[rows], rows.tolist())


def attack_function(name: str) -> tuple[Attack, dict[str, inspect.Parameter]]:
    """The function a config's ``attack`` names, and the options it takes.

    ``foolbox:DDNAttack`` is the catalogue's ``foolbox`` with that attack of foolbox; its options
    are those of the foolbox attack too.

    Raises:
        ValueError: there is no such attack.
    """
    catalogue_name, colon, foolbox_name = name.partition(":")
    if catalogue_name not in ATTACKS or (colon and catalogue_name != "foolbox"):
        raise ValueError(f"expected one of {', '.join(ATTACKS)} or foolbox:NAME, got {name!r}")
    function = ATTACKS[catalogue_name]
    signature = inspect.signature(function, eval_str=True)
    options = {p.name: p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
    if catalogue_name == "foolbox":
        chosen = foolbox_name or options["attack"].default
        del options["attack"]
        options |= {p.name: p for p in foolbox_parameters(chosen)}
        return partial(foolbox_attack, attack=chosen), options
    return function, options


def attack_options(config: AttackConfig, attack_id: str) -> dict[str, Any]:
    """All options of an attack, those not given at the function's defaults.

    Raises:
        RequestError: unknown attack or option; the message lists what there is.
    """
    try:
        _, parameters = attack_function(config.attack)
    except ValueError as error:
        raise RequestError(f"attacks.{attack_id}.attack: {error}") from None
    options = {name: p.default for name, p in parameters.items()}
    for name, value in config.options.items():
        if name not in parameters:
            raise RequestError(
                f"attacks.{attack_id}.{name}: unknown option of {config.attack} "
                f"({', '.join(parameters)})"
            )
        options[name] = _typed(value, parameters[name].annotation, f"attacks.{attack_id}.{name}")
    return options


def _typed(value: Any, expected: Any, key: str) -> Any:  # noqa: ANN401
    """``value`` if it is of the annotated type; text such as 2e-2 or 8/255 may be a number."""
    check: TypeAdapter[Any] = TypeAdapter(
        expected,
        config=ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True),
    )
    candidates = [value]
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            candidates.append(number(value))
    for candidate in candidates:
        with contextlib.suppress(ValidationError):
            return check.validate_python(candidate)
    described = expected.__name__ if isinstance(expected, type) else str(expected)
    described = described.replace("typing.", "")
    raise RequestError(f"{key}: expected {described}, got {value!r}")


def check_attack(config: AttackConfig, attack_id: str, image_shape: tuple[int, int, int]) -> None:
    """Let the attack refuse its options now, on an empty batch, and not after hours.

    Raises:
        RequestError: unknown option, or a value out of range.
    """
    options = attack_options(config, attack_id)
    images, labels = torch.zeros(0, *image_shape), torch.zeros(0, dtype=torch.int64)
    try:
        attack_function(config.attack)[0](lambda x: x.flatten(1), images, labels, **options)
    except (ValueError, TypeError) as error:
        raise RequestError(f"attacks.{attack_id}: {error}") from None
    if not config.has_budget and (config.budget or config.budgets):
        raise RequestError(f"attacks.{attack_id}.budget: {config.attack} has no distance budget")


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """float32 logits (n, K) on the CPU, model in eval mode, autocast off.

    ``images`` are uint8, or floats in [0, 1].
    """
    with attack_mode(model):
        parts = []
        for part in images.split(_JUDGE_BATCH):
            batch = part.to(device)
            parts.append(model(to_float(batch) if batch.dtype == torch.uint8 else batch).cpu())
    return torch.cat(parts)


def predictions(model: nn.Module, split: Split, device: torch.device) -> pd.DataFrame:
    """Clean prediction and margin of every image: ``sample_id label prediction margin``.

    Raises:
        RequestError: the model does not give one logit per class.
    """
    logits = logits_of(model, split.images, device)
    if logits.ndim != 2 or logits.shape[1] < split.num_classes:
        raise RequestError(
            f"model: expected logits (N, {split.num_classes}), got {tuple(logits.shape)}"
        )
    return pd.DataFrame(
        {
            "sample_id": np.arange(len(split)),
            "label": split.labels.numpy(),
            "prediction": logits.argmax(1)
            .masked_fill(~torch.isfinite(logits).all(1), NO_PREDICTION)
            .numpy(),
            "margin": margins_of(logits, split.labels).numpy(),
        }
    )


def accuracy(table: pd.DataFrame) -> float:
    """Share of right predictions in a ``predictions`` table."""
    return float((table["prediction"] == table["label"]).mean())


@dataclass(frozen=True)
class Evaluation:
    """One attack on one model: rows, adversarial images, and what the gallery shows."""

    samples: pd.DataFrame
    adversarials: Tensor
    gallery: dict[str, np.ndarray[Any, Any]]
    margins: Tensor | None
    """Where an attack keeps them: the margin under every candidate (n, T); NaN: wrong already."""
    transforms: Tensor | None
    """The candidates that all images share (T, 3): degrees, pixels right, pixels down."""

    def grid(self) -> pd.DataFrame | None:
        """``angle dx dy num_images num_fooled`` per candidate; images right at first only."""
        if self.margins is None or self.transforms is None:
            return None
        right = np.array(self.samples["clean_prediction"] == self.samples["label"])
        margins = self.margins[torch.from_numpy(right)]
        table = pd.DataFrame(self.transforms.numpy(), columns=["angle", "dx", "dy"])
        table["num_images"] = len(margins)
        table["num_fooled"] = (margins < 0).sum(0).numpy()
        return table


def evaluate(
    model: nn.Module,
    attacked: AttackedImages,
    config: AttackConfig,
    attack_id: str,
    *,
    batch_size: int,
    device: torch.device,
    progress: Progress = lambda done, total: None,
) -> Evaluation:
    """Attack all images and judge what comes back.

    An attack that prunes is first run on 64 images with and without pruning; if a status or the
    mean distance differs, it is run without.

    Returns:
        Rows with the columns of contract 3 from ``sample_id`` on; adversarials (n, C, H, W).

    Raises:
        RequestError: the attack refuses its options or the input.
    """
    attack, options = attack_function(config.attack)[0], attack_options(config, attack_id)
    count = len(attacked.labels)

    def rows(part: slice, options: dict[str, Any]) -> tuple[AttackOutcome, pd.DataFrame]:
        images, labels = attacked.images[part], attacked.labels[part]
        try:
            outcome = attack(model, _onto(images, device), _onto(labels, device), **options)
        except ValueError as error:
            raise RequestError(f"attacks.{attack_id}: {error}") from None
        return outcome, judge(model, images, labels, outcome, device)

    if options.get("prune") is not None:
        first = slice(PRUNE_CHECK_IMAGES)
        unpruned = options | {"prune": None}
        if not same_answer(rows(first, options)[1], rows(first, unpruned)[1], config.norm):
            log.warning("%s: pruning changes the answer; run without it", attack_id)
            options = unpruned
    tables, adversarials, margins = [], [], []
    start = 0
    while start < count:
        try:
            outcome, table = rows(slice(start, start + batch_size), options)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error) or batch_size == 1:
                raise
            batch_size = max(1, min(batch_size, count) // 2)
            log.warning("%s: memory exhausted; goes on by %d images", attack_id, batch_size)
            continue
        tables.append(table)
        adversarials.append(outcome.images.cpu())
        if outcome.margins is not None:
            margins.append(outcome.margins.cpu())
        start += batch_size
        progress(min(start, count), count)
    samples = pd.concat(tables, ignore_index=True)
    samples.insert(0, "sample_id", attacked.sample_ids)
    found = torch.cat(adversarials)
    return Evaluation(
        samples,
        found,
        _gallery(attacked, found, samples),
        torch.cat(margins) if margins else None,
        _shared_transforms(config.attack, options, attacked.images.shape),
    )


def _onto(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":  # from pinned memory, a transfer does not hold up the host
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _out_of_memory(error: Exception) -> bool:
    """Whether torch, on a GPU or the CPU, or Python found no memory."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def _shared_transforms(attack: str, options: dict[str, Any], shape: Sequence[int]) -> Tensor | None:
    """Candidates of an attack that tries the same ones on every image."""
    grids = {"spatial_grid": grid_transforms, "spatial_shift": shift_transforms}
    if attack not in grids:
        return None
    names = inspect.signature(grids[attack]).parameters
    return grids[attack](shape, **{name: options[name] for name in names if name in options})


def same_answer(pruned: pd.DataFrame, full: pd.DataFrame, norm: str) -> bool:
    """Whether pruning kept every status, and the mean distance of fooled images within 0.1 %."""
    if not pruned["status"].equals(full["status"]):
        return False
    fooled = full["status"] == "fooled"
    if not fooled.any():
        return True
    ratio = pruned.loc[fooled, norm].mean() / full.loc[fooled, norm].mean()
    return bool(abs(ratio - 1) <= PRUNE_TOLERANCE)


def judge(
    model: nn.Module, images: Tensor, labels: Tensor, outcome: AttackOutcome, device: torch.device
) -> pd.DataFrame:
    """One row per image, from fresh forward passes on the clean and the returned images.

    ``status``: ``already_wrong`` (distance 0), ``fooled``, ``survived`` (distance ∞) or
    ``invalid`` (pixels or logits not finite, or pixels outside [0, 1] by more than 1e-6: distance
    ∞, but 0 where the clean image was not classified right).
    """
    adversarial = outcome.images.cpu()
    clean_logits = logits_of(model, images, device)
    logits = logits_of(model, adversarial, device)
    clean_prediction, prediction = clean_logits.argmax(1), logits.argmax(1)
    clean_prediction[~torch.isfinite(clean_logits).all(1)] = NO_PREDICTION
    inside = (
        ((adversarial >= -BOX_TOLERANCE) & (adversarial <= 1 + BOX_TOLERANCE)).flatten(1).all(1)
    )
    finite = torch.isfinite(adversarial).flatten(1).all(1) & torch.isfinite(logits).all(1)
    valid = inside & finite & torch.isfinite(clean_logits).all(1)
    wrong = (clean_prediction != labels).numpy()
    status = np.where(
        ~valid,
        "invalid",
        np.where(wrong, "already_wrong", np.where(prediction != labels, "fooled", "survived")),
    )
    difference = (adversarial - images).double().flatten(1)
    l2 = difference.norm(dim=1).numpy()
    linf = difference.abs().amax(1).numpy()
    relative = l2 / images.double().flatten(1).norm(dim=1).clamp_min(1e-12).numpy()
    spatial = outcome.transform is not None

    def distance(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if spatial:
            return np.full(len(labels), np.nan)
        censored = np.where(status == "fooled", values, np.inf)
        return np.where(wrong, 0.0, censored)

    transform = (
        outcome.transform.cpu().double().numpy()
        if outcome.transform is not None
        else np.full((len(labels), 3), np.nan)
    )
    return pd.DataFrame(
        {
            "label": labels.numpy(),
            "clean_prediction": clean_prediction.numpy(),
            "clean_margin": margins_of(clean_logits, labels).double().numpy(),
            "adversarial_prediction": prediction.numpy(),
            "status": status,
            "l2": distance(l2),
            "linf": distance(linf),
            "l2_relative": distance(relative),
            "forwards": outcome.forwards.cpu().numpy(),
            "backwards": outcome.backwards.cpu().numpy(),
            "angle": transform[:, 0],
            "dx": transform[:, 1],
            "dy": transform[:, 2],
            "margin": margins_of(logits, labels).double().numpy(),
        }
    )


def _gallery(
    attacked: AttackedImages, adversarials: Tensor, samples: pd.DataFrame
) -> dict[str, np.ndarray[Any, Any]]:
    """The first fooled images, filled up with others, as small arrays."""
    fooled = (samples["status"] == "fooled").to_numpy()
    rows = np.concatenate([np.flatnonzero(fooled), np.flatnonzero(~fooled)])[:GALLERY_IMAGES]
    clean = attacked.images[rows]
    columns = ["sample_id", "label", "clean_prediction", "adversarial_prediction"]
    shown = {name: samples[name].to_numpy()[rows].astype(np.int64) for name in columns}
    return shown | {
        "clean": clean.mul(255).round().to(torch.uint8).numpy(),
        "adversarial": adversarials[rows].numpy().astype(np.float16),
        "perturbation": (adversarials[rows] - clean).numpy().astype(np.float16),
        "fooled": fooled[rows],
        "l2": samples["l2"].to_numpy()[rows],
        "transform": samples[["angle", "dx", "dy"]].to_numpy()[rows],
    }
