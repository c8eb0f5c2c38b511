"""The paths inside a run folder (contract 3). File names are spelled here only."""

from __future__ import annotations

import itertools
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from robust_ham.errors import RequestError
from robust_ham.regular_files import kind_of
from robust_ham.storage.temporary_files import remove_leftovers
from robust_ham.storage.working_folder import make_folder

log = logging.getLogger(__name__)

WEIGHTS, CARD, CURVE = "model.safetensors", "model.json", "training.csv"
"""Files of a model's folder."""

FOLDERS = (
    *("models", "unfinished", "predictions", "samples", "gallery", "margins", "grids", "spectra"),
    *("adversarials", "shards", "receipts", "locks", "superseded", "figures", "export", "bench"),
)
"""Folders of a run."""
FILES = (
    *("config.yaml", "manifest.json", "run.log", "timings.csv", "failures.jsonl", "SHA256SUMS"),
    *("inputs.parquet", "summary.csv", "curves.csv", "kernels.csv", "contrasts.csv", "gate.csv"),
    *("checkpoints.csv", "claims.csv", "mechanisms.csv", "transfer.csv", "report.html"),
    *("bench.csv", "bench.md"),
)
"""Files beside those folders."""
LOGS = ("run.log", "timings.csv")
"""Files to which every process of a run appends; no result depends on them."""


def files_below(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder except hidden ones; skip files removed meanwhile.

    Hidden are names that begin with a dot (``.DS_Store``) and the hidden files of Windows.
    """
    for root, folders, files in os.walk(folder):
        folders[:] = (name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in files if not _is_hidden(name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini")


def runs_below(folder: Path) -> list[Path]:
    """Return the run folders at or below ``folder`` that hold rows of attacks, sorted."""
    configs = (p for p in files_below(folder) if p == RunFolder(p.parent).config)
    return sorted(path.parent for path in configs if RunFolder(path.parent).has_rows)


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run's folder."""

    root: Path

    @property
    def config(self) -> Path:
        """The complete, resolved configuration."""
        return self.root / "config.yaml"

    @property
    def manifest(self) -> Path:
        """Versions, seeds, hashes."""
        return self.root / "manifest.json"

    @property
    def written_by_run(self) -> list[Path]:
        """Files that a run writes besides its results; results have receipts."""
        return [self.config, self.manifest, self.inputs, self.failures]

    @property
    def checksums(self) -> Path:
        """SHA-256 of every file except logs."""
        return self.root / "SHA256SUMS"

    @property
    def has_rows(self) -> bool:
        """Whether there are rows of any attack."""
        return any(self.root.glob("samples/*/*"))

    @property
    def inputs(self) -> Path:
        """Labels and hashes of the attacked images."""
        return self.root / "inputs.parquet"

    @property
    def summary(self) -> Path:
        """One row per model and attack."""
        return self.root / "summary.csv"

    @property
    def curves(self) -> Path:
        """Robust accuracy against budget."""
        return self.root / "curves.csv"

    @property
    def kernels(self) -> Path:
        """Spectra of the learned kernels: one row per model and layer."""
        return self.root / "kernels.csv"

    @property
    def contrasts(self) -> Path:
        """Windowed against baseline: effects and verdicts."""
        return self.root / "contrasts.csv"

    @property
    def checkpoints(self) -> Path:
        """Tests of individual networks against each other."""
        return self.root / "checkpoints.csv"

    @property
    def claims(self) -> Path:
        """Verdicts of this run on the statements of the reference works."""
        return self.root / "claims.csv"

    @property
    def mechanisms(self) -> Path:
        """Robustness and properties of the learned kernels, per model."""
        return self.root / "mechanisms.csv"

    @property
    def transfer(self) -> Path:
        """How often one model's adversarial images fool another."""
        return self.root / "transfer.csv"

    @property
    def gate(self) -> Path:
        """Findings of the reliability checks."""
        return self.root / "gate.csv"

    @property
    def timings(self) -> Path:
        """Seconds per job."""
        return self.root / "timings.csv"

    @property
    def failures(self) -> Path:
        """One line per failed job."""
        return self.root / "failures.jsonl"

    @property
    def log(self) -> Path:
        """Log of the run."""
        return self.root / "run.log"

    @property
    def figures(self) -> Path:
        """Figures as SVG and PNG."""
        return self.root / "figures"

    @property
    def report(self) -> Path:
        """The report page."""
        return self.root / "report.html"

    def not_a_run(self) -> RequestError:
        """Return the error that this is not the folder of a run."""
        reason = "not a folder" if self.root.exists() else "no such folder"
        if self.root.is_dir():
            reason = f"no {self.config.name}"
        return RequestError(f"{self.root}: not a run folder ({reason})")

    def remove_leftovers(self) -> None:
        """Remove temporary files of killed processes; see ``temporary_files``."""
        remove_leftovers(self.root, FOLDERS, FILES)

    def refuse_links(self) -> None:
        """Refuse anything in the run folder that is neither a regular file nor a folder.

        Writing through a link would change another place; reading a pipe would block.

        Raises:
            RequestError: a link, pipe, socket or device; the run folder itself may be a link.
        """
        for path, kind in self.special_files():
            raise RequestError(f"{path}: a {kind}; a run folder must not hold any")

    def special_files(self) -> Iterator[tuple[str, str]]:
        """Yield path and kind of everything that is neither a regular file nor a folder.

        Hidden folders are skipped: a run has none.
        """
        for folder, folders, files in os.walk(self.root):
            names = (*folders, *files)
            folders[:] = (name for name in folders if not name.startswith("."))
            for name in names:
                path = os.path.join(folder, name)
                try:
                    mode = os.lstat(path).st_mode
                except OSError:  # another process has just removed it
                    continue
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    yield path, kind_of(mode)

    def model(self, model_id: str) -> Path:
        """Folder of a model's weights, card and training curve."""
        return self.root / "models" / model_id

    def card(self, model_id: str) -> Path:
        """Card of a model: architecture, accuracy, SHA-256 of the weights."""
        return self.model(model_id) / CARD

    def curve(self, model_id: str) -> Path:
        """Training curve: one row per epoch."""
        return self.model(model_id) / CURVE

    def unfinished(self, model_id: str) -> Path:
        """State of an interrupted training after its last complete epoch."""
        return self.root / "unfinished" / f"{model_id}.safetensors"

    def predictions(self, model_id: str) -> Path:
        """Clean prediction and margin of every image of the split."""
        return self.root / "predictions" / f"{model_id}.parquet"

    def samples(self, model_id: str, attack_id: str) -> Path:
        """One row per attacked image."""
        return self.root / "samples" / model_id / f"{attack_id}.parquet"

    def gallery(self, model_id: str, attack_id: str) -> Path:
        """Eight images with their adversarial images."""
        return self.root / "gallery" / model_id / f"{attack_id}.npz"

    def margins(self, model_id: str, attack_id: str) -> Path:
        """Margin of every attacked image under every candidate."""
        return self.root / "margins" / model_id / f"{attack_id}.npz"

    def grid(self, model_id: str, attack_id: str) -> Path:
        """Fooled images per candidate."""
        return self.root / "grids" / model_id / f"{attack_id}.csv"

    def spectrum(self, model_id: str, attack_id: str) -> Path:
        """Radial spectrum of the successful perturbations."""
        return self.root / "spectra" / model_id / f"{attack_id}.csv"

    def adversarials(self, model_id: str, attack_id: str) -> Path:
        """All adversarial images."""
        return self.root / "adversarials" / model_id / f"{attack_id}.npz"

    def shard(self, model_id: str, attack_id: str, shard: int) -> Path:
        """Result of an attack on one shard of the images, until all shards are joined."""
        return self.root / "shards" / model_id / attack_id / str(shard)

    @property
    def receipts(self) -> Path:
        """Receipts of finished results."""
        return self.root / "receipts"

    def receipt(self, result: Path) -> Path:
        """Receipt of a file or folder of the run."""
        inside = result.relative_to(self.root)
        return self.receipts / inside.with_name(f"{inside.name}.json")

    @property
    def locks(self) -> Path:
        """Locks of the jobs that are running and of the steps of the run."""
        return self.root / "locks"

    @property
    def shared_key(self) -> Path:
        """Key of the run while processes take part in it."""
        return self.locks / "asked.key"

    def lock(self, name: str) -> Path:
        """Lock of a job or of a step of the run."""
        return self.locks / f"{name.replace('/', '+')}.lock"

    def set_aside(self, path: Path) -> Path:
        """Move a file or folder to the first free name under ``superseded/``."""
        place = self.root / "superseded" / path.relative_to(self.root)
        free = (place.with_name(f"{place.name}.{i}") for i in itertools.count(1))
        target = next(p for p in free if not p.exists())
        make_folder(target.parent)
        path.replace(target)
        self.receipt(path).unlink(missing_ok=True)
        log.warning("%s: moved to %s", path.relative_to(self.root), target)
        return target
