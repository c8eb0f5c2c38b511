"""Somebody else's per-image tables as a run folder, so that ``report`` works on them.

A table has a row per image, attack and model (``COLUMNS``); AttackBench's results are turned into
such rows first. A folder appears whole or not at all, and the same tables make the same bytes.
What a table does not say stays empty: nothing is made up.
"""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import ValidationError

from robust_ham import attackbench
from robust_ham.analysis.statistics import Values
from robust_ham.attackbench import NORMS
from robust_ham.config import Config, RequestError
from robust_ham.config_fields import Window, first_error
from robust_ham.config_files import parse_config
from robust_ham.receipts import fault, receipt_of, sign
from robust_ham.run_folder import RunFolder
from robust_ham.store import (
    MAX_CSV_BYTES,
    check_size,
    content_key,
    read_table,
    reading,
    write_json,
    write_table,
    write_text,
    writing_folder,
)

VERSION = 1
"""Part of every receipt's key: raised when the same rows give other files."""

COLUMNS = {
    "model": "name of the network; seeds, windows and kernel sizes of one have the same",
    "attack": "name of the attack",
    "sample_id": "number or name of the image",
    "l2": "L2 distance in pixel space; 0: wrong without attack; inf or empty: survived",
    "linf": "the same in L∞; one of the two is enough",
    "fooled": "true or false, in place of a distance, where an attack has none",
    "correct": "whether the image is right without attack; needed beside fooled",
    "invalid": "whether what the attack returned is no image; counts as survived",
    "norm": "l2 or linf: which distances count, where an attack has both (l2)",
    "window": "window of the kernels (none)",
    "kernel_size": "k of the k×k convolutions, odd",
    "seed": "seed of the training (0)",
    "label": "class of the image",
    "clean_prediction": "class seen without attack",
    "adversarial_prediction": "class seen after it",
    "forwards": "passes forward spent on the image",
    "backwards": "passes backward",
    "dataset": "name of the data set, the same in all rows",
}
"""Column to what it holds; in brackets what is meant where it is empty or missing."""

_REQUIRED = ["model", "attack", "sample_id"]
_MODEL = ["model", "window", "kernel_size", "seed"]
"""What tells models apart."""
_KNOWN = "label clean_prediction adversarial_prediction forwards backwards".split()
_UNKNOWN = "clean_margin l2_relative angle dx dy margin".split()
"""What our own rows say beside, and those of others do not."""
_MAX_ROWS = 2_000_000
_MAX_DISTANCE = 1e9
_MAX_NAME = 40
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")
_FLAGS = {"": math.nan, "true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Of the distances that fool: budgets, until somebody edits ``config.yaml``."""


def folders_to_report(paths: list[Path], out: Path | None) -> list[Path]:
    """The run folders among ``paths``, or the one at ``out`` that its tables are turned into.

    Raises:
        RequestError: folders and tables together, or a table that makes no sense.
    """
    tables = [path for path in paths if path.suffix.lower() in _READERS and not path.is_dir()]
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
    rows = _checked(_read(paths))
    config = _configuration(rows, paths[0])
    text = rows.drop(columns=["file", "row"]).to_csv(index=False)
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    key = content_key({"version": VERSION, "name": config.name, "rows": digest})
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        _check_same(RunFolder(folder), rows, key)
        return
    with writing_folder(folder) as temporary:
        _write(RunFolder(temporary), config, rows, key)


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
    names = rows[["sample_id", "sample"]].drop_duplicates().reset_index(drop=True)
    if (names["sample_id"].astype(str) != names["sample"]).any():
        write_table(run.inputs, names, {"key": key})
    columns = [*"model_id dataset split sample_id status l2 linf".split(), *_KNOWN, *_UNKNOWN]
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


# --- from rows to a configuration ----------------------------------------------------------------


def _configuration(rows: pd.DataFrame, path: Path) -> Config:
    """The configuration that describes all rows; they gain ``model_id`` and ``attack_id``.

    Raises:
        RequestError: there are too many models, or two of them would have one name.
    """
    families, attacks = (_safe_names(rows[name].unique()) for name in ("model", "attack"))
    groups: list[dict[str, Any]] = []
    for _, group in rows.groupby(_MODEL[:3], sort=False):
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
    models = zip(rows["model"].map(families), *(rows[name] for name in _MODEL[1:]), strict=True)
    rows["model_id"] = [ids[model] for model in models]
    rows["attack_id"] = rows["attack"].map(attacks)
    return config


def _budgets(rows: pd.DataFrame, norm: str) -> dict[str, Any]:
    """Quantiles of the distances of all attacks in a norm, to two digits: the same for each."""
    here = rows[(rows["norm"] == norm) & (rows["status"] == "fooled")]
    if norm == "none" or here.empty:
        return {}
    quantiles = np.quantile(here[norm].to_numpy(dtype=np.float64), _QUANTILES)
    return {"budgets": sorted({float(f"{quantile:.2g}") for quantile in quantiles})}


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


# --- what rows say -------------------------------------------------------------------------------


def _checked(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of text as rows of values, and what came of every image.

    ``status``, ``l2`` and ``linf`` are as in our own rows; ``norm``: none where there are no
    distances; ``sample``, ``sample_id``, ``place``: name, number and place in order of an image.

    Raises:
        RequestError: the first value that makes no sense, or contradicts another.
    """
    rows = table[["file", "row", *_REQUIRED]].copy()
    for name in _REQUIRED:
        _refuse(table, name, rows[name] == "", "a name")
    rows["window"] = table["window"].replace("", "none")
    windows = get_args(Window)
    _refuse(table, "window", ~rows["window"].isin(windows), f"one of {', '.join(windows)}")
    sizes = _whole(table, "kernel_size", 1, 99)
    _refuse(table, "kernel_size", sizes % 2 == 0, "an odd number")
    rows["kernel_size"] = np.nan_to_num(sizes).astype(np.int64)
    rows["seed"] = np.nan_to_num(_whole(table, "seed", 0, 2**31 - 1)).astype(np.int64)
    twice = rows.duplicated([*_MODEL, "attack", "sample_id"])
    _refuse(table, "sample_id", twice, "an image once for a model and an attack")
    named = table["dataset"][table["dataset"] != ""]
    rows["dataset"] = named.iloc[0] if len(named) else "table"
    other = ~table["dataset"].isin(["", rows["dataset"].iloc[0]])
    _refuse(table, "dataset", other, f"one data set, {rows['dataset'].iloc[0]!r:.60}")
    for name in _KNOWN[:3]:
        rows[name] = _whole(table, name, -1, 2**53)
    for name in _KNOWN[3:]:
        rows[name] = _numbers(table, name, 0, 2**53, "a number of passes")
    _judge(table, rows)
    places, names = pd.factorize(rows["sample_id"])
    numbers = all(_WHOLE.fullmatch(name) for name in names)
    rows["sample"], rows["place"] = rows["sample_id"], places
    rows["sample_id"] = rows["sample_id"].astype(np.int64) if numbers else places
    return rows


def _judge(table: pd.DataFrame, rows: pd.DataFrame) -> None:
    """Add ``norm``, ``status``, ``l2`` and ``linf`` to the rows.

    Raises:
        RequestError: the first row whose values contradict each other.
    """
    found = {norm: _distances(table, norm) for norm in NORMS}
    fooled, correct, invalid = (_flags(table, name) for name in ("fooled", "correct", "invalid"))

    def in_attack(values: Values) -> NDArray[np.bool_]:
        """Whether any row of the same attack has a value, (n,)."""
        known = pd.Series(~np.isnan(values), index=table.index)
        return np.asarray(known.groupby(table["attack"]).transform("any"))

    has = {norm: in_attack(values) for norm, values in found.items()}
    moved = in_attack(fooled) & ~has["l2"] & ~has["linf"]  # in no measurable way
    _refuse(table, "fooled", moved & np.isnan(fooled), "true or false")
    _refuse(table, "correct", moved & np.isnan(correct), "true or false beside fooled")
    norm = _norms(table, has, moved)
    own, other = (
        np.where((norm == "linf") ^ swapped, found["linf"], found["l2"])
        for swapped in (False, True)
    )
    has_other = np.where(norm == "linf", has["l2"], has["linf"])
    unlike = ~moved & has_other & (_kind(own) != _kind(other))
    for name in NORMS:
        _refuse(table, name, unlike & (norm != name), "0, a distance or inf as in the other norm")

    wrong = np.where(moved, correct == 0, own == 0)
    _refuse(
        table,
        "correct",
        ~np.isnan(correct) & ((correct == 0) != wrong),
        "false where the distance is 0, and only there",
    )
    is_invalid = (invalid == 1) & ~wrong
    beaten = np.where(moved, fooled == 1, np.isfinite(own)) & ~wrong & ~is_invalid
    _refuse(
        table,
        "fooled",
        ~np.isnan(fooled) & ~wrong & ~is_invalid & ((fooled == 1) != beaten),
        "true where there is a distance, and only there",
    )
    label, clean, seen = (rows[name].to_numpy() for name in _KNOWN[:3])
    _refuse(
        table,
        "clean_prediction",
        ~np.isnan(label) & ~np.isnan(clean) & ((label != clean) != wrong),
        "another class than the label where the image is wrong without attack, and only there",
    )
    _refuse(
        table, "adversarial_prediction", beaten & (label == seen), "another class than the label"
    )
    rows["norm"] = np.where(moved, "none", norm)
    rows["status"] = np.select(
        [wrong, is_invalid, beaten], ["already_wrong", "invalid", "fooled"], "survived"
    )
    for name, values in found.items():
        censored = np.where(wrong, 0.0, np.where(beaten, values, np.inf))
        rows[name] = np.where(~moved & (has[name] | (norm == name)), censored, np.nan)


def _norms(
    table: pd.DataFrame, has: dict[str, NDArray[np.bool_]], moved: NDArray[np.bool_]
) -> NDArray[np.str_]:
    """The norm in which the distances of every row's attack count, (n,)."""
    asked = table["norm"].to_numpy()
    _refuse(table, "norm", ~np.isin(asked, ["", *NORMS]), "l2 or linf")
    only_linf = has["linf"].any() and not has["l2"].any()
    usual = np.where(has["l2"] | ~(has["linf"] | only_linf), "l2", "linf")
    norm = pd.Series(np.where(asked == "", usual, asked).astype(str), index=table.index)
    first = norm.groupby(table["attack"]).transform("first")
    _refuse(table, "norm", norm != first, "one norm for all rows of the attack")
    measured = np.where(norm == "l2", has["l2"], has["linf"])
    nothing = ~measured & (has["l2"] | has["linf"]) & ~moved
    _refuse(table, "norm", nothing, "a norm in which the attack has distances")
    return norm.to_numpy(dtype=str)


def _kind(distances: Values) -> NDArray[np.int64]:
    """0: wrong without attack, 1: fooled, 2: survived."""
    return np.where(distances == 0, 0, np.where(np.isfinite(distances), 1, 2))


def _distances(table: pd.DataFrame, name: str) -> Values:
    """A column of distances, (n,); NaN where it says nothing."""
    expected = f"a distance of 0 to {_MAX_DISTANCE:g}, inf or nothing"
    values = _numbers(table, name, 0, np.inf, expected)
    _refuse(table, name, np.isfinite(values) & (values > _MAX_DISTANCE), expected)
    return values


def _whole(table: pd.DataFrame, name: str, low: int, high: int) -> Values:
    """A column of whole numbers, (n,); NaN where it says nothing."""
    expected = f"a whole number of {low} to {high}"
    values = _numbers(table, name, low, high, expected)
    _refuse(table, name, ~np.isnan(values) & (values != np.floor(values)), expected)
    return values


def _numbers(table: pd.DataFrame, name: str, low: float, high: float, expected: str) -> Values:
    """A column of numbers, (n,); NaN where it says nothing."""
    parsed = [_number(text) for text in table[name]]
    values = np.array([math.nan if value is None else value for value in parsed])
    unread = np.array([value is None for value in parsed])
    _refuse(table, name, unread | (values < low) | (values > high), expected)
    return values


def _number(text: str) -> float | None:
    """None: no number."""
    try:
        return float(text) if text else math.nan
    except ValueError:
        return None


def _flags(table: pd.DataFrame, name: str) -> Values:
    """A column of true (1.0) and false (0.0), (n,); NaN where it says nothing."""
    texts = [text.lower() for text in table[name]]
    _refuse(table, name, np.array([text not in _FLAGS for text in texts]), "true or false")
    return np.array([_FLAGS[text] for text in texts])


def _refuse(
    table: pd.DataFrame, name: str, bad: NDArray[np.bool_] | pd.Series[Any], expected: str
) -> None:
    """Name the first bad row, if there is one."""
    if np.any(bad):
        row = table.iloc[int(np.argmax(bad))]
        raise RequestError(
            f"{row['file']}: row {row['row']}: {name}: expected {expected}, got {row[name]!r:.60}"
        )


# --- files to rows of text -----------------------------------------------------------------------


def _read(paths: list[Path]) -> pd.DataFrame:
    """The rows of all tables as text, in their order; empty where a table has no such column."""
    tables = []
    for path in paths:
        if not path.is_file():
            raise RequestError(f"{path}: no such file")
        table = _READERS[path.suffix.lower()](path)
        if table.empty:
            raise RequestError(f"{path}: no rows")
        tables.append(table.assign(file=str(path), row=range(1, len(table) + 1)))
    together = pd.concat(tables, ignore_index=True)
    if len(together) > _MAX_ROWS:
        raise RequestError(
            f"{paths[0]}: expected at most {_MAX_ROWS:,} rows, got {len(together):,}"
        )
    return together.fillna("").reindex(columns=["file", "row", *COLUMNS], fill_value="")


def _read_csv(path: Path) -> pd.DataFrame:
    check_size(path, MAX_CSV_BYTES)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            header = [name.strip() for name in next(lines, [])]
            _check_columns(path, header)
            return pd.DataFrame(
                list(_csv_rows(path, lines, len(header))), columns=header, dtype=object
            )
    except (csv.Error, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: not a CSV file ({error})") from None


def _csv_rows(path: Path, lines: Any, count: int) -> Iterator[list[str]]:  # noqa: ANN401
    for i, row in enumerate(lines):
        if i == _MAX_ROWS:
            raise RequestError(f"{path}: expected at most {_MAX_ROWS:,} rows")
        if len(row) not in (0, count):
            place = f"{path}: line {lines.line_num}"
            raise RequestError(f"{place}: expected {count} values, got {len(row)}")
        if row:
            yield [value.strip() for value in row]


def _read_parquet(path: Path) -> pd.DataFrame:
    with reading(path):
        table = read_table(path)
        _check_columns(path, [str(name) for name in table.columns])
        texts = {name: [_as_text(value) for value in table[name]] for name in table.columns}
    return pd.DataFrame(texts, dtype=object)


def _as_text(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, float | np.floating):
        return "" if math.isnan(value) else repr(float(value))
    return "" if value is None or value is pd.NA else str(value).strip()


def _read_attackbench(path: Path) -> pd.DataFrame:
    return pd.DataFrame(attackbench.read_result(path), dtype=object)


_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".json": _read_attackbench,
}


def _check_columns(path: Path, columns: list[str]) -> None:
    """Refuse a table that lacks a column, has one twice, or one that means nothing here."""
    wrong = [f"unknown column {name!r:.60}" for name in columns if name not in COLUMNS]
    wrong += [f"no column {name}" for name in _REQUIRED if name not in columns]
    wrong += [f"two columns {name}" for name in COLUMNS if columns.count(name) > 1]
    if not {"l2", "linf", "fooled"} & set(columns):
        wrong.append("no column l2, linf or fooled")
    if wrong:
        told = "; ".join(f"{name}: {about}" for name, about in COLUMNS.items())
        raise RequestError(f"{path}: {wrong[0]}; columns are {told}")
