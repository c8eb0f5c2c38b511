"""The state of an unfinished training after its last complete epoch, in one file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from robust_ham.memory import memory_share
from robust_ham.regular_files import is_regular, read_bytes
from robust_ham.storage.files import write_bytes

log = logging.getLogger(__name__)

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Unfinished:
    """The file of the state, and the key of the model that it must belong to."""

    path: Path
    key: str

    def save(self, rows: Rows, model: nn.Module, optimizer: torch.optim.SGD) -> None:
        """Write weights, momentum and the curve so far."""
        tensors = {k: v.contiguous().cpu() for k, v in _tensors(model, optimizer).items()}
        text = json.dumps(rows)
        about = {"key": self.key, "rows": text, "sha256": _hash(tensors, text)}
        write_bytes(self.path, save(tensors, about))

    def load(self, model: nn.Module, optimizer: torch.optim.SGD) -> Rows:
        """Restore weights and momentum; return the curve so far, empty without a valid state."""
        if not is_regular(self.path):
            return []
        content = read_bytes(self.path, memory_share(1 / 2))
        try:
            tensors = load(content)
            about = _metadata(content)
        except (SafetensorError, ValueError):
            about, tensors = {}, {}
        text = about.get("rows", "")
        if about.get("key") != self.key or about.get("sha256") != _hash(tensors, text):
            log.warning(
                "%s is damaged or belongs to another model: training restarts", self.path.name
            )
            return []
        for name, parameter in model.named_parameters():
            if f"momentum.{name}" in tensors:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        with torch.no_grad():
            for name, tensor in _tensors(model, optimizer).items():
                tensor.copy_(tensors[name])
        rows: Rows = json.loads(text)
        return rows

    def remove(self) -> None:
        """Remove the state of a finished model."""
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty, or missing
            self.path.parent.rmdir()


def _metadata(content: bytes) -> dict[str, str]:
    """Read the metadata of a safetensors file: a JSON header after its length in 8 bytes."""
    length = int.from_bytes(content[:8], "little")
    about: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return about


def _tensors(model: nn.Module, optimizer: torch.optim.SGD) -> dict[str, Tensor]:
    """Return everything that training changes, by name."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        momentum = optimizer.state[parameter].get("momentum_buffer")
        if momentum is not None:
            state[f"momentum.{name}"] = momentum
    return state


def _hash(tensors: dict[str, Tensor], rows: str) -> str:
    digest = hashlib.sha256(rows.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
