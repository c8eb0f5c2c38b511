"""``manifest.json``: what is needed to reproduce a run, without paths of the machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from robust_ham.storage.files import write_json

if TYPE_CHECKING:
    from robust_ham.runs.plan.context import Context

_PACKAGES = (
    *("robust-ham", "torch", "torchvision", "numpy", "pandas", "scipy", "kornia", "foolbox"),
    "adv-lib",
)
_GIT_SECONDS = 10.0


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide results."""
    installed = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def git_commit(folder: Path = Path(__file__).parents[2]) -> str | None:
    """Return the commit of this package's checkout, ``+changes`` if edited; None: no checkout."""
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "--verify", "HEAD^{commit}")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    is_hash = re.fullmatch("[0-9a-f]{40,64}", commit)
    return commit + ("+changes" if changed else "") if is_hash else None


def _git(folder: Path, *words: str) -> str:
    """Return the output of git for a checkout, even of another user (its code is running already).

    Takes no lock and ignores ``GIT_DIR`` and similar variables, which name another repository.

    Raises:
        OSError: git is not installed.
        subprocess.SubprocessError: git fails or takes too long.
    """
    options = ("-c", f"safe.directory={folder}", "-c", "core.fsmonitor=false")
    return subprocess.run(
        ["git", "--no-optional-locks", *options, "-C", str(folder), *words],
        env={name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=_GIT_SECONDS,
        encoding="utf-8",
        errors="replace",
    ).stdout.strip()


def peak_memory_mb() -> int | None:
    """Return the peak resident memory of this process in MB; None: not known on this system."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 if sys.platform != "darwin" else 1024**2))


def requested(context: Context) -> dict[str, Any]:
    """Return the entries that follow from the configuration and the data."""
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
    """Write ``manifest.json``; ``seconds`` is None until the end of the run."""
    content = requested(context)
    write_json(
        context.run.manifest,
        {
            "name": content.pop("name"),
            "versions": versions(),
            "git_commit": git_commit(),
            "machine": platform.machine(),
            "device": torch.cuda.get_device_name(context.device)
            if context.device.type == "cuda"
            else "cpu",
            **content,
            "checksums": context.run.checksums.name,
            "last_run": seconds
            and {"seconds": round(seconds, 1), "peak_memory_mb": peak_memory_mb()},
        },
    )
