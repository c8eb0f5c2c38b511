"""Search on a fast copy of a model, and confirm the result on the model itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from attacks.utils.model import (
    Model,
    attack_mode,
    check_inputs,
    check_labels,
    chunks,
    predict_logits,
)
from attacks.utils.outcome import AttackOutcome, misclassified
from attacks.utils.prepare import FastCopy, agrees, prepare

Search = Callable[[Model, Tensor, Tensor], AttackOutcome]

log = logging.getLogger(__name__)


def run_confirmed(
    search: Search,
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    use_copy: bool = True,
    retry_survivors: bool = True,
) -> AttackOutcome:
    """Run ``search`` on a fast copy of the model and confirm every image on the model itself.

    Images that fool only the copy, and images that do not fool the copy, are attacked again on the
    model. First the copy is compared with the model on these images: if the two differ, a warning
    is logged and all images are attacked on the model.

    Args:
        search: the attack, on a model in attack mode that returns logits.
        model: the caller's model.
        images: floats (N, C, H, W) in [0, 1].
        labels: int64 (N,).
        use_copy: False: search only on the model.
        retry_survivors: False for searches without gradients: while the copy has the model's
            logits, a second search would return the same.

    Raises:
        ValueError: inputs or logits of the wrong shape or range.
    """
    check_inputs(images, labels)
    if len(images) == 0:
        counts = torch.zeros(0, dtype=torch.int64, device=images.device)
        return AttackOutcome(images.detach().clone(), counts.bool(), counts, counts.clone())
    with attack_mode(model):
        images, labels = _plain(images), _plain(labels)
        called = partial(predict_logits, model)
        with torch.no_grad():
            check_labels(called(images[:1]), labels)
        fast = prepare(model, images) if use_copy else model
        if not isinstance(fast, FastCopy):
            return search(called, images, labels)
        outcome = search(fast, images, labels)
        fooled = _is_fooled(called, outcome.images, labels)
        doubtful = (~(outcome.fooled & fooled)).nonzero().squeeze(1)
        if len(doubtful) and not agrees(fast, model, outcome.images[doubtful]):
            log.warning(
                "the fast copy of the model differs from it on some of the %d images that do not "
                "fool both; all %d images of the batch are attacked on the model itself",
                len(doubtful),
                len(images),
            )
            return search(called, images, labels)
        outcome = replace(outcome, forwards=outcome.forwards + 1)
        again = outcome.fooled != fooled
        if retry_survivors:
            again |= ~fooled & torch.isfinite(images).flatten(1).all(1)
        rows = again.nonzero().squeeze(1)
        if len(rows):
            outcome = _replaced(outcome, rows, search(called, images[rows], labels[rows]))
            fooled[rows] = outcome.fooled[rows]
        return replace(outcome, fooled=fooled)


def _plain(tensor: Tensor) -> Tensor:
    """Convert tensor subclasses and inference tensors to plain tensors."""
    plain = tensor.detach().as_subclass(Tensor)
    return plain.clone() if plain.is_inference() else plain


@torch.no_grad()
def _is_fooled(called: Model, images: Tensor, labels: Tensor) -> Tensor:
    parts = zip(chunks(images), chunks(labels), strict=True)
    return torch.cat([misclassified(called(x), y) for x, y in parts])


def _replaced(outcome: AttackOutcome, rows: Tensor, again: AttackOutcome) -> AttackOutcome:
    """Replace the results of some images, and add up their passes."""

    def merged(old: Tensor | None, new: Tensor | None) -> Tensor | None:
        return None if old is None or new is None else old.index_copy(0, rows, new)

    return AttackOutcome(
        images=outcome.images.index_copy(0, rows, again.images),
        fooled=outcome.fooled.index_copy(0, rows, again.fooled),
        forwards=outcome.forwards.index_add(0, rows, again.forwards),
        backwards=outcome.backwards.index_add(0, rows, again.backwards),
        transform=merged(outcome.transform, again.transform),
        margins=merged(outcome.margins, again.margins),
    )
