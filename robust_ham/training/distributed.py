"""Train one network with several processes of torchrun; with one process, all of this is a no-op.

Every process computes its share of each batch, and gradients are averaged. BatchNorm uses the
statistics of each process's share; the running averages of the first process are kept.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

_PATIENCE = timedelta(hours=4)
"""How long the others wait while the first process reads, evaluates and writes."""


def launched() -> bool:
    """Whether torchrun started this process."""
    return distributed.is_available() and distributed.is_torchelastic_launched()


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes (NCCL on CUDA, else gloo); yield the device of this one."""
    if not launched():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    """Return the number of this process; only the first, 0, writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def num_processes() -> int:
    """Return the number of processes that train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a network to average gradients over all processes, which start from equal weights."""
    if num_processes() == 1:
        return model
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices)


@contextlib.contextmanager
def averaging(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Average the gradients of the backward passes inside only if ``enabled``."""
    if enabled or not isinstance(model, DistributedDataParallel):
        yield
        return
    with model.no_sync():
        yield


def summed(value: Tensor) -> Tensor:
    """Sum over all processes, in place."""
    if num_processes() > 1:
        distributed.all_reduce(value)
    return value


def from_first(value: Tensor) -> Tensor:
    """Copy the first process's value to all processes, in place."""
    if num_processes() > 1:
        distributed.broadcast(value, 0)
    return value


def agreed(value: int, device: torch.device) -> int:
    """Return the first process's number in all processes."""
    return int(from_first(torch.tensor(value, device=device)).item())
