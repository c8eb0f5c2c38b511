"""Steps that several verbs take before their work starts."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from robust_ham.cli.output import say
from robust_ham.errors import RequestError

if TYPE_CHECKING:
    from robust_ham.config.experiment import Config
    from robust_ham.progress import Monitor


def check_attacks_package() -> None:
    """Refuse a package called ``attacks`` that is not robust-ham's."""
    spec = importlib.util.find_spec("attacks")
    origin = Path(spec.origin).resolve() if spec and spec.origin else None
    expected = Path(__file__).resolve().parents[2] / "attacks" / "__init__.py"
    if origin != expected:
        raise RequestError(f"the package `attacks` is not robust-ham's: {origin or 'not found'}")


def load_experiment(name: str, overrides: list[str] | None, threads: int | None) -> Config:
    """Load a configuration with the overrides of the command line."""
    from robust_ham.config.files import load_config

    extra = [f"evaluation.threads={threads}"] if threads else []
    return load_config(name, [*(overrides or []), *extra])


@contextlib.contextmanager
def claimed_folder(folder: Path, name: str) -> Iterator[None]:
    """Claim a folder for robust-ham, unless others use it; it must stay in place in the block."""
    from robust_ham.storage.output_folder import claim
    from robust_ham.storage.working_folder import working_in

    claim(folder, name)
    with working_in(folder):
        yield


@contextlib.contextmanager
def progress_monitor() -> Iterator[Monitor]:
    """Show nested bars on a terminal, and one line per job elsewhere."""
    from robust_ham.cli.progress import Bars, Lines

    if sys.stdout.isatty():
        with Bars() as bars:
            yield bars
    else:
        yield Lines(say)
