"""Convert third-party per-image tables to a run folder for ``report``.

A table has a row per image, attack and model (``COLUMNS``); AttackBench's results are converted to
such rows first. A folder appears complete or not at all, and equal tables give equal bytes.
Missing values stay empty.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from robust_ham.analysis.importing.consistency import MODEL
from robust_ham.analysis.importing.readers import COLUMNS, READERS, read_rows
from robust_ham.analysis.importing.validate import KNOWN, validate_rows
from robust_ham.analysis.metrics import tolerance
from robust_ham.config.experiment import Config
from robust_ham.config.fields import first_error
from robust_ham.config.files import parse_config
from robust_ham.errors import RequestError
from robust_ham.storage.checksums import hash_files, record_run
from robust_ham.storage.files import content_key, write_csv, write_json, write_text, writing_folder
from robust_ham.storage.parquet_tables import write_table
from robust_ham.storage.receipts import fault, receipt_of, sign, signed_hashes
from robust_ham.storage.run_folder import RunFolder

log = logging.getLogger(__name__)

__all__ = ["COLUMNS", "folders_to_report", "write_run_folder"]

VERSION = 1
"""Part of each receipt's key: raised when the same rows give different files."""

_UNKNOWN = "clean_margin l2_relative angle dx dy margin".split()
"""Columns of a run's rows that imported tables lack."""
_MAX_NAME = 40
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Quantiles of fooling distances that become the default budgets."""
_PILE = 0.1
"""Share of images at one distance that indicates an attack within a budget."""


def folders_to_report(paths: list[Path], out: Path | None) -> list[Path]:
    """Return ``paths`` if they are run folders; convert tables to the folder ``out``.

    Raises:
        RequestError: folders and tables together, or an invalid table.
    """
    tables = [path for path in paths if path.suffix.lower() in READERS and not path.is_dir()]
    if not tables:
        if out is not None:
            raise RequestError(
                f"--out: only for tables; the report of a run is written into {paths[0]}"
            )
        return paths
    if len(tables) < len(paths):
        raise RequestError(f"{tables[0]}: report tables and run folders in separate commands")
    folder = out or Path("results") / _name(tables[0])
    write_run_folder(tables, folder)
    return [folder]


def write_run_folder(paths: list[Path], folder: Path) -> None:
    """Convert tables, together, to a run folder; do nothing if it exists already.

    Raises:
        RequestError: a table is invalid, or the folder holds other content.
    """
    rows = validate_rows(read_rows(paths))
    config = _configuration(rows, paths[0])
    writer = _HashWriter()
    rows.drop(columns=["file", "row"]).to_csv(writer, index=False)
    digest = writer.digest.hexdigest()
    key = content_key({"version": VERSION, "name": config.name, "rows": digest})
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        _check_same(RunFolder(folder), rows, key)
        return
    try:
        with writing_folder(folder) as temporary:
            _write(RunFolder(temporary), config, rows, key)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        _check_same(RunFolder(folder), rows, key)  # another process created it first


class _HashWriter(io.TextIOBase):
    """Hash a text that may not fit into memory."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, text: str) -> int:
        """Hash more text."""
        self.digest.update(text.encode(errors="replace"))
        return len(text)


def _check_same(run: RunFolder, rows: pd.DataFrame, key: str) -> None:
    """Accept an existing folder of the same tables, with its configuration unchanged.

    Raises:
        RequestError: it holds other content, or is damaged.
    """
    ids = rows[["model_id", "attack_id"]].drop_duplicates()
    models = [run.model(model_id) for model_id in ids["model_id"].unique()]
    samples = [run.samples(*pair) for pair in ids.itertuples(index=False)]
    for path in (*models, *samples):
        receipt = receipt_of(run, path)
        if receipt is None or receipt.key != key:
            raise RequestError(
                f"{run.root}: holds something other than these tables; remove it or choose another "
                "folder with --out"
            )
        damage = fault(run, receipt)
        if damage is not None:
            raise RequestError(f"{run.root}: {damage}; remove the folder and rerun the command")


def _write(run: RunFolder, config: Config, rows: pd.DataFrame, key: str) -> None:
    """Write all files of a run folder except those of ``report``."""
    write_text(run.config, config.to_yaml())
    hashes = rows["sha256"].where(rows["sha256"] != "", None)
    images = rows[["sample_id", "sample"]].assign(sha256=hashes)
    named = images.groupby("sample_id", sort=False, as_index=False).first()
    informative = {
        "sample": (named["sample_id"].astype(str) != named["sample"]).any(),
        "sha256": named["sha256"].notna().any(),
    }
    present = [name for name, is_present in informative.items() if is_present]
    if present:
        write_table(run.inputs, named[["sample_id", *present]], {"key": key})
    columns = [*"model_id dataset split sample_id status l2 linf".split(), *KNOWN, *_UNKNOWN]
    if rows["best_distance"].notna().any():
        columns.append("best_distance")
    findings = _findings(rows)
    if len(findings):
        write_csv(run.gate, findings)
        sign(run, run.gate, key, [run.gate])
    filled = rows.assign(split="", **dict.fromkeys(_UNKNOWN, math.nan))
    for model_id, of_model in filled.groupby("model_id", sort=False):
        card = run.card(str(model_id))
        about = {"architecture": "table", "name": of_model["model"].iloc[0]}
        write_json(card, {"model_id": model_id, "model": about})
        sign(run, card.parent, key, [card])
        for attack_id, table in of_model.groupby("attack_id", sort=False):
            path = run.samples(str(model_id), str(attack_id))
            ordered = table.sort_values("place").reset_index(drop=True)
            write_table(path, ordered[columns], {"key": key})
            sign(run, path, key, [path])
    record_run(run, signed_hashes(run) | hash_files(run, [run.config, run.inputs]))


def _findings(rows: pd.DataFrame) -> pd.DataFrame:
    """Return and log ``gate.csv``: attacks that returned no image for correctly classified images.

    Raises:
        RequestError: an attack returned no image at all.
    """
    findings = []
    for (model_id, attack_id), table in rows.groupby(["model_id", "attack_id"], sort=False):
        right, lost = table["status"] != "already_wrong", table["status"] == "invalid"
        if not lost.any():
            continue
        crashed = int(table["crashed"].sum())
        failure = "crashed on" if crashed else "returned no image for"
        reason = f"the attack {failure} {crashed or int(lost.sum())} of {int(right.sum())} images"
        if lost.sum() == right.sum():
            first = table.iloc[0]
            raise RequestError(
                f"{first['file']}: model {first['model']}, attack {first['attack']}: {reason}: no "
                "result to report"
            )
        severity = "fail" if crashed else "warn"
        reason += "; they count as survived"
        findings.append((model_id, attack_id, "images", severity, reason))
        log.warning("%s under %s: %s", model_id, attack_id, reason)
    return pd.DataFrame(findings, columns=["model_id", "attack", "check", "severity", "reason"])


def _configuration(rows: pd.DataFrame, path: Path) -> Config:
    """Build the configuration of all rows and add their ``model_id`` and ``attack_id``.

    Raises:
        RequestError: too many models, or two would get the same name.
    """
    families, attacks = (_safe_names(rows[name].unique()) for name in ("model", "attack"))
    groups: list[dict[str, Any]] = []
    for _, group in rows.groupby(MODEL[:3], sort=False):
        first, seeds = group.iloc[0], [int(seed) for seed in group["seed"].unique()]
        known = {"name": families[first["model"]], "window": first["window"]}
        known["kernel_size"] = int(first["kernel_size"])
        several = {"sweep": {"seed": seeds}} if len(seeds) > 1 else {"seed": seeds[0]}
        groups.append({"architecture": "table"} | known | several)
    values = {
        "name": _safe_names([_name(path)])[_name(path)],
        "dataset": {"name": rows["dataset"].iloc[0]},
        "models": groups,
        "attacks": {
            attacks[str(attack)]: {"attack": "table", "norm": norm} | _budgets(rows, norm)
            for attack, norm in rows.groupby("attack", sort=False)["norm"].first().items()
        },
        "evaluation": {"num_images": rows["sample_id"].nunique(), "gate": False, "gallery": False},
    }
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise RequestError(f"{path}: {first_error(error)}") from None
    parse_config(config.to_yaml(), origin=f"{path}: its configuration")  # report must read it
    ids = {(s.family, s.window, s.kernel_size, s.seed): s.model_id for s in config.model_specs()}
    models = zip(rows["model"].map(families), *(rows[name] for name in MODEL[1:]), strict=True)
    rows["model_id"] = [ids[model] for model in models]
    rows["attack_id"] = rows["attack"].map(attacks)
    return config


def _budgets(rows: pd.DataFrame, norm: str) -> dict[str, Any]:
    """Return quantiles of the distances of all attacks in a norm, to two digits.

    An attack within a budget leaves many images exactly there; such a budget is not rounded, as
    rounded down it would make them robust.
    """
    fooled = rows[(rows["norm"] == norm) & (rows["status"] == "fooled")]
    if norm == "none" or fooled.empty:
        return {}
    distances = fooled[norm].to_numpy(dtype=np.float64)
    budgets = set[float]()
    for quantile in np.quantile(distances, _QUANTILES):
        at_quantile = np.abs(distances - quantile) <= tolerance(quantile)
        piled = at_quantile.sum() > 1 and at_quantile.mean() >= _PILE
        budgets.add(float(f"{quantile:.7g}" if piled else f"{quantile:.2g}"))
    return {"budgets": sorted(budgets)}


def _safe_names(names: Iterable[str]) -> dict[str, str]:
    """Map names to valid file names; different names stay different."""
    safe = {n: re.sub(r"[^A-Za-z0-9._-]+", "_", n).strip("._-")[:_MAX_NAME] or "_" for n in names}
    counts = Counter(name.lower() for name in safe.values())
    for name, short in safe.items():
        if counts[short.lower()] > 1 or short == "_":
            digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:12]
            safe[name] = f"x{short}-{digest}" if short == "_" else f"{short}-{digest}"
    if len(set(safe.values())) < len(safe):
        raise RequestError("two names in the table are too similar to be file names")
    return safe


def _name(path: Path) -> str:
    """Return the name of an imported run."""
    return "attackbench" if path.suffix.lower() == ".json" else path.stem
