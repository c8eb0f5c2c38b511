"""Process-wide switches of torch, turned off during an attack and restored afterwards."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

_lock = threading.Lock()
_restorers: list[Callable[[], None]] = []  # in calling order
_users = 0


@contextlib.contextmanager
def process_switches() -> Iterator[None]:
    """Turn off TF32 and bfloat16 in float32 operations, and ``torch.compile``.

    Compiled graphs allow a single backward pass. The switches are process-wide: of several threads,
    the first saves them and the last restores them.
    """
    global _users  # noqa: PLW0603 - as global as the switches
    with _lock:
        _users += 1
        if _users == 1:
            _save_and_disable()
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                for restore in _restorers:
                    restore()
                _restorers.clear()


def _save_and_disable() -> None:
    """Save all switches and turn them off.

    Precision is set in both the new and the old interface, because torch refuses to read an old
    switch that contradicts a new one.
    """
    if "torch._dynamo" in sys.modules:  # else nothing is compiled
        stance = torch.compiler.set_stance("force_eager")
        _restorers.append(partial(stance.__exit__, None, None, None))
    backends: Any = torch.backends
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    inherited = [backends, cudnn, mkldnn]
    matmul, convolution = [backends.cuda.matmul, mkldnn.matmul], [cudnn.conv, cudnn.rnn]
    operations = [*matmul, *convolution, mkldnn.conv, mkldnn.rnn]
    saved = []
    for switch in inherited + operations:  # inherited values must be cleared first
        saved.append(partial(setattr, switch, "fp32_precision", switch.fp32_precision))
        switch.fp32_precision = "none"
    old_matmul = _read_old(torch.get_float32_matmul_precision, matmul)
    _restorers.append(partial(torch.set_float32_matmul_precision, old_matmul))
    old_tf32 = _read_old(lambda: cudnn.allow_tf32, convolution)
    _restorers.append(partial(setattr, cudnn, "allow_tf32", old_tf32))
    _restorers.extend(reversed(saved))
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False
    for switch in operations:
        switch.fp32_precision = "ieee"


def _read_old(read: Callable[[], Any], switches: list[Any]) -> Any:  # noqa: ANN401
    """Read an old switch, trying all values of the new ``switches`` that it may represent."""
    for values in (("ieee", "ieee"), ("tf32", "tf32"), ("tf32", "bf16")):
        for switch, value in zip(switches, values, strict=True):
            switch.fp32_precision = value
        with contextlib.suppress(RuntimeError):
            return read()
    raise AssertionError("torch cannot read this switch in any state")
