"""Find the few candidates that need full precision, by margins in bfloat16.

CPUs with bfloat16 instructions compute convolutions much faster in it. A margin in bfloat16 that
exceeds a threshold is taken as it is; all others are computed in full precision. The threshold is
10 times the error on probes, and every margin that is computed twice is checked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.utils.model import Model, chunks
from attacks.utils.outcome import margins_of
from attacks.utils.prepare import FastCopy
from attacks.utils.tape import Tape

NUM_PROBES = 256
_QUANTILE = 0.999
_SAFETY = 10.0


def margins_of_images(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    """Margins (B,) of images (B, C, H, W), chunk by chunk."""
    parts = zip(chunks(images), chunks(labels), strict=True)
    return torch.cat([margins_of(model(x), y) for x, y in parts])


def low_precision(model: Model, images: Tensor) -> Tape | None:
    """The model in bfloat16, for images (B, C, H, W); None: that does not pay."""
    if not isinstance(model, FastCopy) or images.dtype != torch.float32:
        return None
    return model.in_bfloat16(images.device)


class Screen:
    """Margins of a model, in bfloat16 where that is certain enough.

    ``failed``: whether an error exceeded half of the threshold.
    """

    def __init__(
        self, model: Model, low: Tape, images: Tensor, labels: Tensor, exact: Tensor
    ) -> None:
        """Measure the error on probes: images (B, C, H, W), labels and ``exact`` margins (B,)."""
        self.model, self.low, self.failed = model, low, False
        error = (self._in_low_precision(images, labels) - exact).abs()
        error = error[torch.isfinite(error)]
        self.threshold = _SAFETY * float(error.quantile(_QUANTILE)) if len(error) else torch.inf

    def margins(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Margins (B,), and whether each is in full precision: bool (B,)."""
        found = self._in_low_precision(images, labels)
        exact = ~((found > self.threshold) & torch.isfinite(found))
        rows = exact.nonzero().squeeze(1)
        if len(rows):
            found[rows] = self.confirmed(images[rows], labels[rows], found[rows])
        return found, exact

    def confirmed(self, images: Tensor, labels: Tensor, found: Tensor) -> Tensor:
        """Margins (B,) in full precision, for those ``found`` in bfloat16."""
        exact = margins_of_images(self.model, images, labels)
        error = (found - exact).abs()
        self.failed |= bool((error[torch.isfinite(error)] > self.threshold / 2).any())
        return exact

    def _in_low_precision(self, images: Tensor, labels: Tensor) -> Tensor:
        parts = zip(chunks(images), chunks(labels), strict=True)
        low = [margins_of(self.low.logits(x.bfloat16()).float(), y) for x, y in parts]
        return torch.cat(low)
