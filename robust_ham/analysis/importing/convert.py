"""Somebody else's per-image tables as a run folder, so that ``report`` works on them.

A table has a row per image, attack and model (``COLUMNS``); AttackBench's results are turned into
such rows first. A folder appears whole or not at all, and the same tables make the same bytes.
What a table does not say stays empty: nothing is made up.
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

from robust_ham.analysis.budgets import tolerance
from robust_ham.analysis.importing.consistency import MODEL
from robust_ham.analysis.importing.readers import COLUMNS, READERS, read_rows
from robust_ham.analysis.importing.validate import KNOWN, checked_rows
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
"""Part of every receipt's key: raised when the same rows give other files."""

_UNKNOWN = "clean_margin l2_relative angle dx dy margin".split()
"""What our own rows say beside, and those of others do not."""
_MAX_NAME = 40
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Of the distances that fool: budgets, until somebody edits ``config.yaml``."""
_PILE = 0.1
"""Share of images at one distance that only an attack within a budget leaves there."""


def folders_to_report(paths: list[Path], out: Path | None) -> list[Path]:
    """The run folders among ``paths``, or the one at ``out`` that its tables are turned into.

    Raises:
        RequestError: folders and tables together, or a table that makes no sense.
    """
    tables = [path for path in paths if path.suffix.lower() in READERS and not path.is_dir()]
    if not tables:
        if out is not None:
            raise RequestError(f"--out: for tables; {paths[0]} is reported where it is")
        return paths
    if len(tables) < len(paths):
        raise RequestError(f"{tables[0]}: tables and run folders need a command each")
    folder = out or Path("results") / _name(tables[0])
    write_run_folder(tables, folder)
    return [folder]


def write_run_folder(paths: list[Path], folder: Path) -> None:
    """Turn tables, taken together, into a run folder; nothing is done if that has been done.

    Raises:
        RequestError: a table makes no sense, or the folder holds something else.
    """
    rows = checked_rows(read_rows(paths))
    config = _configuration(rows, paths[0])
    hashed = _Hashed()
    rows.drop(columns=["file", "row"]).to_csv(hashed, index=False)
    digest = hashed.digest.hexdigest()
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
        _check_same(RunFolder(folder), rows, key)  # another process was quicker


class _Hashed(io.TextIOBase):
    """A text that is only hashed: it may be larger than the memory."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, text: str) -> int:
        """Add to the text."""
        self.digest.update(text.encode(errors="replace"))
        return len(text)


def _check_same(run: RunFolder, rows: pd.DataFrame, key: str) -> None:
    """Leave a folder of the same tables as it is, configuration included.

    Raises:
        RequestError: it is of something else, or damaged.
    """
    ids = rows[["model_id", "attack_id"]].drop_duplicates()
    models = [run.model(model_id) for model_id in ids["model_id"].unique()]
    samples = [run.samples(*pair) for pair in ids.itertuples(index=False)]
    for made in (*models, *samples):
        receipt = receipt_of(run, made)
        if receipt is None or receipt.key != key:
            raise RequestError(
                f"{run.root}: holds something else than these tables; remove it or name another "
                "folder by --out"
            )
        found = fault(run, receipt)
        if found is not None:
            raise RequestError(f"{run.root}: {found}; remove the folder and make it again")


def _write(run: RunFolder, config: Config, rows: pd.DataFrame, key: str) -> None:
    """All files of a run folder but those that ``report`` makes."""
    write_text(run.config, config.to_yaml())
    hashes = rows["sha256"].where(rows["sha256"] != "", None)
    images = rows[["sample_id", "sample"]].assign(sha256=hashes)
    named = images.groupby("sample_id", sort=False, as_index=False).first()
    unlike = {
        "sample": (named["sample_id"].astype(str) != named["sample"]).any(),
        "sha256": named["sha256"].notna().any(),
    }
    told = [name for name, is_told in unlike.items() if is_told]
    if told:
        write_table(run.inputs, named[["sample_id", *told]], {"key": key})
    columns = [*"model_id dataset split sample_id status l2 linf".split(), *KNOWN, *_UNKNOWN]
    if rows["best_distance"].notna().any():
        columns.append("best_distance")
    findings = _findings(rows)
    if len(findings):
        write_csv(run.gate, findings)
        sign(run, run.gate, key, [run.gate])
    filled = rows.assign(split="", **dict.fromkeys(_UNKNOWN, math.nan))
    for model_id, of_model in filled.groupby("model_id", sort=False):
        card = run.model(str(model_id)) / "model.json"
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
    """``gate.csv``: the attacks that returned no image for some that were right; they are logged.

    Raises:
        RequestError: an attack returned none for any.
    """
    found = []
    for (model_id, attack_id), table in rows.groupby(["model_id", "attack_id"], sort=False):
        right, lost = table["status"] != "already_wrong", table["status"] == "invalid"
        if not lost.any():
            continue
        crashed = int(table["crashed"].sum())
        what = "crashed on" if crashed else "returned no image for"
        reason = f"the attack {what} {crashed or int(lost.sum())} of {int(right.sum())} images"
        if lost.sum() == right.sum():
            first = table.iloc[0]
            raise RequestError(
                f"{first['file']}: model {first['model']}, attack {first['attack']}: {reason}: it "
                "says nothing of robustness"
            )
        severity = "fail" if crashed else "warn"
        reason += "; they count as survived"
        found.append((model_id, attack_id, "images", severity, reason))
        log.warning("%s under %s: %s", model_id, attack_id, reason)
    return pd.DataFrame(found, columns=["model_id", "attack", "check", "severity", "reason"])


def _configuration(rows: pd.DataFrame, path: Path) -> Config:
    """The configuration that describes all rows; they gain ``model_id`` and ``attack_id``.

    Raises:
        RequestError: there are too many models, or two of them would have one name.
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
    """Quantiles of the distances of all attacks in a norm, to two digits: the same for each.

    An attack that works within a budget leaves many images just there; rounded down, that budget
    would have them survive, so it stays as it is.
    """
    here = rows[(rows["norm"] == norm) & (rows["status"] == "fooled")]
    if norm == "none" or here.empty:
        return {}
    distances = here[norm].to_numpy(dtype=np.float64)
    budgets = set[float]()
    for quantile in np.quantile(distances, _QUANTILES):
        there = np.abs(distances - quantile) <= tolerance(quantile)
        piled = there.sum() > 1 and there.mean() >= _PILE
        budgets.add(float(f"{quantile:.7g}" if piled else f"{quantile:.2g}"))
    return {"budgets": sorted(budgets)}


def _safe_names(names: Iterable[str]) -> dict[str, str]:
    """Names of others to names that files can have: different ones stay different."""
    safe = {n: re.sub(r"[^A-Za-z0-9._-]+", "_", n).strip("._-")[:_MAX_NAME] or "_" for n in names}
    counts = Counter(name.lower() for name in safe.values())
    for name, short in safe.items():
        if counts[short.lower()] > 1 or short == "_":
            digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:12]
            safe[name] = f"x{short}-{digest}" if short == "_" else f"{short}-{digest}"
    if len(set(safe.values())) < len(safe):
        raise RequestError("two names of the table are too much alike to be file names")
    return safe


def _name(path: Path) -> str:
    """What a run made of a table is called."""
    return "attackbench" if path.suffix.lower() == ".json" else path.stem
