"""What a worker on another machine must know about a run. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robust_ham.runs.plan.context import Context


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker must know to run any job of a run."""

    config: str
    data_root: str | None
    folder: str
    device: str
    user_code: str
    """Folder in which the run was started; the user's modules are imported from it."""
    token: str
    """Name of a file among the locks; a worker that finds it shares the run folder."""
    key: str
    """Key of the run; a worker that computes another key is refused."""

    @classmethod
    def of(cls, context: Context, data_root: Path | None, token: str) -> WorkerSetup:
        """Describe a run."""
        from robust_ham.runs.plan.keys import run_key

        config, folder = context.plan.config.to_yaml(), str(context.run.root.resolve())
        root = str(data_root.resolve()) if data_root else None
        device, user_code = context.device.type, str(Path.cwd())
        return cls(config, root, folder, device, user_code, token, run_key(context))
