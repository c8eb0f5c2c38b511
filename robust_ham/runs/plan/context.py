"""What all jobs of a run share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import pandas as pd
import torch

from robust_ham.runs.plan.plan import Plan
from robust_ham.storage.files import content_key
from robust_ham.storage.run_folder import RunFolder

Done = Literal["done", "already there"]


@dataclass(frozen=True)
class Context:
    """A run: what it is to do, where, and on which device."""

    plan: Plan
    run: RunFolder
    device: torch.device
    recipes: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    """Attack id to the hash of all that decides its rows but the model, once it is known."""
    _inputs_keys: dict[int | None, str] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def inputs(self) -> pd.DataFrame:
        """Labels and hashes of the attacked images."""
        return self.plan.attacked.table()

    @cached_property
    def inputs_key(self) -> str:
        """One hash of all attacked images, their labels and order."""
        return self.inputs_key_of(None)

    def inputs_key_of(self, count: int | None) -> str:
        """The same of the first ``count`` of them; None: of all."""
        if count not in self._inputs_keys:
            self._inputs_keys[count] = content_key(self.inputs.iloc[:count].to_dict(orient="list"))
        return self._inputs_keys[count]

    @property
    def where(self) -> dict[str, Any]:
        """What decides the rounding of results: device kind and threads."""
        return {"device": self.device.type, "threads": self.plan.config.evaluation.threads}
