"""Where the files of a run are (contract 3)."""

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
from robust_ham.storage.working_folder import make_folder

log = logging.getLogger(__name__)


FOLDERS = (
    *("models", "unfinished", "predictions", "samples", "gallery", "margins", "grids", "spectra"),
    *("adversarials", "shards", "receipts", "locks", "superseded", "figures", "export", "bench"),
)
"""Folders of a run in which files are written."""
FILES = (
    *("config.yaml", "manifest.json", "run.log", "timings.csv", "failures.jsonl", "SHA256SUMS"),
    *("inputs.parquet", "summary.csv", "curves.csv", "kernels.csv", "contrasts.csv", "gate.csv"),
    *("checkpoints.csv", "claims.csv", "mechanisms.csv", "transfer.csv", "report.html"),
    *("bench.csv", "bench.md"),
)
"""Files that are written beside those folders."""


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder but hidden ones; what others remove meanwhile is passed over.

    Hidden are names that begin with a dot (``.DS_Store``), and what Windows hides in its folders.
    """
    for root, folders, files in os.walk(folder):
        folders[:] = (name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in files if not _is_hidden(name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini")


def runs_below(folder: Path) -> list[Path]:
    """The run folders that are, or lie below, ``folder`` and hold rows of attacks, by name."""
    configs = (path for path in files_below(folder) if path.name == "config.yaml")
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
        """What a run writes beside its results, each of which has a receipt."""
        return [self.config, self.manifest, self.inputs, self.failures]

    @property
    def checksums(self) -> Path:
        """SHA-256 of every file but logs."""
        return self.root / "SHA256SUMS"

    @property
    def has_rows(self) -> bool:
        """Whether an attack on a model has left its rows."""
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
        """What the learned kernels are like: one row per model and layer."""
        return self.root / "kernels.csv"

    @property
    def contrasts(self) -> Path:
        """Windowed against baseline: effects and verdicts."""
        return self.root / "contrasts.csv"

    @property
    def checkpoints(self) -> Path:
        """Tests of single networks against each other."""
        return self.root / "checkpoints.csv"

    @property
    def claims(self) -> Path:
        """How the run answers what the reference works state."""
        return self.root / "claims.csv"

    @property
    def mechanisms(self) -> Path:
        """Robustness beside what the learned kernels are like, per model."""
        return self.root / "mechanisms.csv"

    @property
    def transfer(self) -> Path:
        """How often one model's adversarial images fool another."""
        return self.root / "transfer.csv"

    @property
    def gate(self) -> Path:
        """What the checks of models and attacks have found."""
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
        """What happened, line by line."""
        return self.root / "run.log"

    @property
    def figures(self) -> Path:
        """Figures as SVG and PNG."""
        return self.root / "figures"

    @property
    def report(self) -> Path:
        """The page."""
        return self.root / "report.html"

    def refuse_links(self) -> None:
        """Refuse what is neither a regular file nor a folder, below the folder of the run.

        Through a link, what is written would end up elsewhere; a pipe is waited for.

        Raises:
            RequestError: the first link, pipe, socket or device; the folder itself may be a link.
        """
        for path, kind in self.special_files():
            raise RequestError(f"{path}: a {kind}; a run folder must not hold any")

    def special_files(self) -> Iterator[tuple[str, str]]:
        """Path and kind of all that is neither a regular file nor a folder.

        Hidden folders, which are not of a run, are passed over.
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

    def unfinished(self, model_id: str) -> Path:
        """State of an interrupted training after its last whole epoch."""
        return self.root / "unfinished" / f"{model_id}.safetensors"

    def predictions(self, model_id: str) -> Path:
        """Clean prediction and margin of every image of the split."""
        return self.root / "predictions" / f"{model_id}.parquet"

    def samples(self, model_id: str, attack_id: str) -> Path:
        """One row per attacked image."""
        return self.root / "samples" / model_id / f"{attack_id}.parquet"

    def gallery(self, model_id: str, attack_id: str) -> Path:
        """Eight images with their adversarials."""
        return self.root / "gallery" / model_id / f"{attack_id}.npz"

    def margins(self, model_id: str, attack_id: str) -> Path:
        """Margin of every attacked image under every candidate."""
        return self.root / "margins" / model_id / f"{attack_id}.npz"

    def grid(self, model_id: str, attack_id: str) -> Path:
        """Images fooled per candidate."""
        return self.root / "grids" / model_id / f"{attack_id}.csv"

    def spectrum(self, model_id: str, attack_id: str) -> Path:
        """Radial spectrum of the perturbations that fool."""
        return self.root / "spectra" / model_id / f"{attack_id}.csv"

    def adversarials(self, model_id: str, attack_id: str) -> Path:
        """All adversarial images."""
        return self.root / "adversarials" / model_id / f"{attack_id}.npz"

    def shard(self, model_id: str, attack_id: str, shard: int) -> Path:
        """What an attack has made of some of the images, until all of them are there."""
        return self.root / "shards" / model_id / attack_id / str(shard)

    @property
    def receipts(self) -> Path:
        """What proves that results are whole."""
        return self.root / "receipts"

    def receipt(self, made: Path) -> Path:
        """Receipt of a file or folder of the run."""
        inside = made.relative_to(self.root)
        return self.receipts / inside.with_name(f"{inside.name}.json")

    @property
    def locks(self) -> Path:
        """Who works on what, as long as somebody does."""
        return self.root / "locks"

    def lock(self, name: str) -> Path:
        """Lock of a job or of a step of the run."""
        return self.locks / f"{name.replace('/', '+')}.lock"

    def set_aside(self, path: Path) -> Path:
        """Move a file or folder of the run to the first free place under ``superseded/``."""
        place = self.root / "superseded" / path.relative_to(self.root)
        free = (place.with_name(f"{place.name}.{i}") for i in itertools.count(1))
        target = next(p for p in free if not p.exists())
        make_folder(target.parent)
        path.replace(target)
        self.receipt(path).unlink(missing_ok=True)
        log.warning("%s: moved to %s", path.relative_to(self.root), target)
        return target
