"""Attacks on any torch classifier: floats in [0, 1] in, adversarial images out.

The contract of every attack::

    outcome = attack(model, images, labels, **options)

- ``model``: any callable from float images (N, C, H, W) in [0, 1] to logits (N, K), or to a
  dictionary or object with the logits under ``logits``. Normalisation is part of the model. The
  model is in eval mode during the attack and restored afterwards; attacks call it through
  ``predict_logits``.
- ``images``: float32 or float64; ``labels``: int64 (N,). Misclassified images are returned
  unchanged.
- ``outcome``: an ``AttackOutcome``, confirmed on the caller's model.
- No state, no global random numbers, no printing. The result for an image does not depend on the
  batch or its order, except for randomised attacks of foolbox. An image with NaN counts as not
  fooled; an empty batch gives an empty outcome.

To add an attack, write one function in one file, list it in ``ATTACKS``, add its row to
``robust_ham/config/attacks.py``, and test it.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from attacks.adapters.adv_lib import fmn
from attacks.adapters.foolbox import foolbox_attack
from attacks.band_deepfool import band_deepfool
from attacks.deepfool import deepfool
from attacks.spatial import spatial_grid, spatial_random, spatial_shift
from attacks.stadv import stadv
from attacks.superdeepfool import superdeepfool
from attacks.utils.model import Model, predict_logits
from attacks.utils.outcome import AttackOutcome, margins_of, misclassified
from attacks.utils.transforms import transformation_grid

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackOutcome",
    "Model",
    "band_deepfool",
    "deepfool",
    "fmn",
    "foolbox_attack",
    "margins_of",
    "misclassified",
    "predict_logits",
    "spatial_grid",
    "spatial_random",
    "spatial_shift",
    "stadv",
    "superdeepfool",
    "transformation_grid",
]


class Attack(Protocol):
    """A function in ``ATTACKS``; its options are keyword arguments with defaults."""

    def __call__(self, model: Model, images: Tensor, labels: Tensor) -> AttackOutcome:
        """Attack N images."""
        ...


ATTACKS: dict[str, Attack] = {
    "deepfool": deepfool,
    "superdeepfool": superdeepfool,
    "band_deepfool": band_deepfool,
    "fmn": fmn,
    "spatial_grid": spatial_grid,
    "spatial_random": spatial_random,
    "spatial_shift": spatial_shift,
    "stadv": stadv,
    "foolbox": foolbox_attack,
}
