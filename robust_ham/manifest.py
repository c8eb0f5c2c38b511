"""What a run was made with: enough to make it again, nothing that names a machine's folders."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from robust_ham.store import write_json

if TYPE_CHECKING:
    from robust_ham.context import Context

_PACKAGES = (
    *("robust-ham", "torch", "torchvision", "numpy", "pandas", "scipy", "kornia", "foolbox"),
    "adv-lib",
)


def versions() -> dict[str, str]:
    """Python and the packages that decide results."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_commit() -> str | None:
    """Commit of the checkout this package runs from, ``+changes`` if it was edited; else None."""
    folder = Path(__file__).parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(folder)]
        commit = subprocess.run(
            [*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*command, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed else "")


def peak_memory_mb() -> int:
    """Largest resident memory of this process so far, MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 if sys.platform != "darwin" else 1024**2))


def requested(context: Context) -> dict[str, Any]:
    """What a manifest says that follows from the configuration and the data."""
    config, dataset = context.plan.config, context.plan.dataset
    trains = any(spec.is_trained_here for spec in config.model_specs())
    return {
        "name": config.name,
        "threads": config.evaluation.threads,
        "dataset": {
            "name": Path(config.dataset.name).name,
            "sha256": {"test": dataset.test_hash} | (dataset.hashes if trains else {}),
            "num_attacked": len(context.plan.attacked.labels),
        },
        "seeds": {
            "evaluation": config.evaluation.seed,
            "models": sorted({spec.seed for spec in config.model_specs()}),
        },
    }


def write_manifest(context: Context, seconds: float | None = None) -> None:
    """Write ``manifest.json``; ``seconds`` are known at the end of a run."""
    about = requested(context)
    write_json(
        context.run.manifest,
        {
            "name": about.pop("name"),
            "versions": versions(),
            "git_commit": git_commit(),
            "machine": platform.machine(),
            "device": torch.cuda.get_device_name(context.device)
            if context.device.type == "cuda"
            else "cpu",
            **about,
            "checksums": context.run.checksums.name,
            "last_run": seconds
            and {"seconds": round(seconds, 1), "peak_memory_mb": peak_memory_mb()},
        },
    )
