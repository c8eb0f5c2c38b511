"""What a worker on another machine has to know of a run; the process that sends it has no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robust_ham.runs.plan.context import Context


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker has to know to run any job of a run."""

    config: str
    data_root: str | None
    folder: str
    device: str
    own_code: str
    """The folder in which the run was started: modules of the user's own are looked for there."""
    token: str
    """Name of a file among the locks: who does not see it does not see the folder."""
    key: str
    """Of the run: a worker that finds another one would mix results."""

    @classmethod
    def of(cls, context: Context, data_root: Path | None, token: str) -> WorkerSetup:
        """The jobs of a run."""
        from robust_ham.runs.attempt import run_key

        config, folder = context.plan.config.to_yaml(), str(context.run.root.resolve())
        root = str(data_root.resolve()) if data_root else None
        device, own_code = context.device.type, str(Path.cwd())
        return cls(config, root, folder, device, own_code, token, run_key(context))
