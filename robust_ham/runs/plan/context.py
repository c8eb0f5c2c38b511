"""What all jobs of a run share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
import torch

from robust_ham.runs.plan.plan import Plan
from robust_ham.storage.files import content_key
from robust_ham.storage.run_folder import RunFolder


@dataclass(frozen=True)
class Context:
    """A plan, the folder it runs in, and the device that computes it."""

    plan: Plan
    run: RunFolder
    device: torch.device
    recipes: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    """Cache of ``keys.attack_recipe``, by attack id."""
    _inputs_keys: dict[int | None, str] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def inputs(self) -> pd.DataFrame:
        """Labels and hashes of the attacked images."""
        return self.plan.attacked.table()

    @cached_property
    def inputs_key(self) -> str:
        """Hash of all attacked images, their labels and their order."""
        return self.inputs_key_of(None)

    def inputs_key_of(self, count: int | None) -> str:
        """Return the hash of the first ``count`` attacked images; None: of all."""
        if count not in self._inputs_keys:
            self._inputs_keys[count] = content_key(self.inputs.iloc[:count].to_dict(orient="list"))
        return self._inputs_keys[count]

    @property
    def where(self) -> dict[str, Any]:
        """What decides the rounding of results: device type and number of threads."""
        return {"device": self.device.type, "threads": self.plan.config.evaluation.threads}
