"""Several processes, started by torchrun, that train one network together; alone, all is no-op.

Every process computes its share of each batch; gradients are averaged. Statistics of BatchNorm are
those of a process's own share, and the first process's running averages are kept.
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
    """Whether torchrun has started this process."""
    return distributed.is_available() and distributed.is_torchelastic_launched()


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes, over NCCL on CUDA and gloo elsewhere; the device of this one."""
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
    """Number of this process; 0 is the first, which alone writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def num_processes() -> int:
    """How many train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The network with gradients averaged over all processes; all start from the first's."""
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
    """The first process's value, in place."""
    if num_processes() > 1:
        distributed.broadcast(value, 0)
    return value


def agreed(value: int, device: torch.device) -> int:
    """The first process's number."""
    return int(from_first(torch.tensor(value, device=device)).item())
