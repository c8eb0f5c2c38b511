"""Verify the files of a run folder: none changed, missing or added."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from robust_ham.analysis.run import Run
from robust_ham.errors import RequestError, plural
from robust_ham.regular_files import is_regular, read_text
from robust_ham.runs.plan.job import list_jobs
from robust_ham.storage.checksums import is_covered, read_checksums
from robust_ham.storage.files import MAX_TEXT_BYTES, file_hash, parse_json, read_json
from robust_ham.storage.receipts import BEFORE, receipt_of, result_of
from robust_ham.storage.run_folder import WEIGHTS, RunFolder, files_below
from robust_ham.storage.run_logs import read_timings

_MAY_LACK = ("adversarials", "margins", "gallery", "predictions", WEIGHTS)
"""Kinds of files that a copy may omit, all or none of a kind; of ``export/``, any file."""
_RESULTS = (
    *("models", "predictions", "samples", "gallery", "margins", "grids", "spectra"),
    *("adversarials", "shards", "gate.csv", "kernels.csv", "transfer.csv"),
)
"""Results that have receipts in every version of the run folder."""


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    num_checked: int
    faults: list[str]
    not_here: list[str] = field(default_factory=list)
    """Recorded files that were omitted from the copy."""
    unrecorded: list[str] = field(default_factory=list)
    """Files without a checksum, whose changes go unnoticed."""

    def lines(self) -> Iterator[str]:
        """Yield the lines to print, without the faults."""
        count = len(self.faults)
        verdict = plural(count, "fault") if count else "ok"
        missing = f", {len(self.not_here)} not in this copy" if self.not_here else ""
        yield f"{self.name}: {verdict} ({self.num_checked} checked{missing})"
        if self.not_here:
            yield f"  not in this copy: {_in_short(self.not_here)}"
        if self.unrecorded:
            yield f"  no checksum: {_in_short(self.unrecorded)}"


def _in_short(files: list[str]) -> str:
    """List files by name, and count those in folders."""
    counts = Counter(file[: file.find("/") + 1] or file for file in files)
    return ", ".join(f"{n} in {name}" if name[-1] == "/" else name for name, n in counts.items())


def check_files(run: RunFolder) -> Check:
    """Check every file except logs against its checksums in receipts and ``SHA256SUMS``.

    A file without a checksum was added later. Older folders have checksums of results only; there,
    only results count as added.
    """
    name = "files match their checksums"
    try:
        checksums = read_checksums(run)
    except RequestError as error:
        return Check(name, 1, [str(error)])
    recorded, faults = _recorded(run, checksums)
    special = {os.path.relpath(path, run.root): kind for path, kind in run.special_files()}
    faults += [f"{file} is a {kind}, not a file" for file, kind in sorted(special.items())]
    present = {path.relative_to(run.root).as_posix() for path in files_below(run.root)}
    present -= set(special)
    kinds = set(map(_kind, present))
    num_checked, not_here = 0, list[str]()
    for file, records in sorted(recorded.items()):
        kind = _kind(file)
        if file in present:
            num_checked += 1
            digest = file_hash(run.root / file)
            if not all(digest in allowed for allowed in records):
                faults.append(f"{file} has changed since it was written (SHA-256 differs)")
        elif kind == "export" or (kind in _MAY_LACK and kind not in kinds):
            not_here.append(file)
        else:
            faults.append(f"{file} is missing")
    others = present - set(checksums) - {run.checksums.name}
    if any(_kind(file) == run.receipts.name for file in checksums):
        added = set(filter(is_covered, others))
    else:
        if _promises_checksums(run):
            faults.append(f"{run.checksums.name} is missing or lists no results")
        others -= set(recorded)
        results = _RESULTS if run.receipts.is_dir() else ()
        added = {file for file in others if file.partition("/")[0] in results}
    faults += [f"{file} has no checksum: it was added later" for file in sorted(added)]
    return Check(name, num_checked, faults, not_here, sorted(others - added))


def _recorded(
    run: RunFolder, checksums: dict[str, str]
) -> tuple[dict[str, list[list[str]]], list[str]]:
    """Return file to the checksums that each of its records allows, and the damaged receipts."""
    recorded = {file: [[digest]] for file, digest in checksums.items()}
    damaged = list[str]()
    for path in sorted(files_below(run.receipts)):
        receipt = receipt_of(run, result_of(run, path))
        if receipt is None:
            damaged.append(f"{path.relative_to(run.root)} is damaged")
            continue
        recorded.setdefault(path.relative_to(run.root).as_posix(), [])
        for file, digest in receipt.files.items():
            allowed = [digest, receipt.details.get(BEFORE, digest)]
            recorded.setdefault(file, []).append(allowed)
    return recorded, damaged


def _promises_checksums(run: RunFolder) -> bool:
    """Whether the manifest promises that ``SHA256SUMS`` lists all files."""
    try:
        return "checksums" in read_json(run.manifest)
    except (OSError, ValueError, RequestError):
        return False


def _kind(name: str) -> str:
    """Return the top folder of a file; weights are a separate kind."""
    return WEIGHTS if name.endswith(WEIGHTS) else name.partition("/")[0]


def check_logs(run: RunFolder) -> Check:
    """Check that ``timings.csv`` and ``failures.jsonl`` can be read and agree with the results.

    Logs have no checksum: a changed number in ``timings.csv`` goes unnoticed.
    """
    paths = [path for path in (run.timings, run.failures) if is_regular(path)]
    faults = _timing_faults(run) if run.timings in paths else []
    if run.failures in paths:
        faults += _failure_faults(run)
    return Check("logs can be read", len(paths), faults)


def _timing_faults(run: RunFolder) -> list[str]:
    try:
        seconds = pd.Series(read_timings(run), dtype=str)
    except (ValueError, RequestError):
        return ["timings.csv: expected the columns job, seconds"]
    numbers = pd.to_numeric(seconds, errors="coerce").to_numpy(np.float64)
    bad = seconds[~(np.isfinite(numbers) & (numbers >= 0))]
    return [f"timings.csv: {job}: expected seconds, got {text!r}" for job, text in bad.items()]


def _failure_faults(run: RunFolder) -> list[str]:
    """Return the lines of ``failures.jsonl`` that are invalid or name a finished job.

    Another process may have finished a job that failed in one: a file with a checksum is trusted.
    """
    recorded = run.failures.name in read_checksums(run)
    finished = {
        job.name
        for job in list_jobs(Run(run).config)
        if receipt_of(run, job.result(run)) is not None
    }
    faults = []
    try:
        lines = read_text(run.failures, MAX_TEXT_BYTES, errors="replace").splitlines()
    except RequestError as error:  # too large
        return [str(error)]
    for line in lines:
        try:
            name = str(parse_json(line)["cell"])
        except (ValueError, LookupError, TypeError, RecursionError):
            faults.append(f"failures.jsonl: expected a failed job per line, got {line[:100]!r}")
            continue
        if name in finished and not recorded:
            faults.append(f"failures.jsonl lists {name} as failed, but it is finished")
    return faults
