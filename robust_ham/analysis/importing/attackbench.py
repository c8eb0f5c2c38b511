"""Read AttackBench's results (arXiv 2404.19460) as rows of a per-image table.

A result is a folder with ``config.json`` (model and attack) and ``info.json`` (one outcome per
image), or, since the API of 2025, one ``results.json`` whose ``metadata`` name both. ``distances``
are those of the images that the attack returned, clipped to [0, 1] as in AttackBench;
``best_optim_distances``, the least distances at which the attack passed a fooling image, become
``best_distance``, from which optimality is computed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robust_ham.errors import RequestError
from robust_ham.regular_files import read_text
from robust_ham.storage.files import MAX_CSV_BYTES, parse_json

NORMS = ("l2", "linf")
_ASIDE = re.compile(r"\d+|batch_size_\d+")
"""Names of folders between a result and the folders of its attack and model."""


@dataclass(frozen=True)
class BenchResult:
    """One attack on one model, as columns of text."""

    columns: dict[str, list[str]]
    settings: dict[str, Any]
    """Of the attack; empty if not known."""


@dataclass(frozen=True)
class _Names:
    """Names and settings of a result."""

    model: str
    attack: str
    norm: str
    dataset: str
    settings: dict[str, Any]
    batch_size: int | None


def read_result(path: Path) -> BenchResult:
    """Read one result from its ``info.json`` or ``results.json``.

    Raises:
        RequestError: damaged, targeted, in another norm than l2 and linf, or not such a result.
    """
    info = _read(path)
    names = _names_in_metadata(info, path) if "metadata" in info else _names_beside(path)
    if info.get("targeted"):
        raise RequestError(f"{path}: targeted: only untargeted attacks can be compared")
    hashes = _hashes(info, path)
    count, norm = len(hashes), names.norm
    wrong, success = (_flags(info, key, count, path) for key in ("ori_success", "adv_success"))
    distances = _section(info, "distances", path)
    known = {n: _numbers(distances, n, count, path) for n in NORMS if n in distances}
    if norm not in known:
        raise RequestError(f"{path}: distances: expected {norm} distances")
    crashed = _crashed(info, names, [d == 0 for d in known[norm]], path)
    fooled = [s and not w and not c for s, w, c in zip(success, wrong, crashed, strict=True)]
    invalid = [f and not math.isfinite(d) for f, d in zip(fooled, known[norm], strict=True)]

    def ends(values: list[float]) -> list[str]:
        """Return 0 if the clean image is misclassified, inf if the attack failed."""
        held = [f and not i for f, i in zip(fooled, invalid, strict=True)]
        rows = zip(values, held, wrong, strict=True)
        return [repr(value) if h else "0" if w else "inf" for value, h, w in rows]

    columns = {
        "sample_id": hashes,
        "correct": [str(not value) for value in wrong],
        "invalid": [str(value) for value in invalid],
        "crashed": [str(value) for value in crashed],
        **{name: ends(values) for name, values in known.items()},
    }
    best = info.get("best_optim_distances")
    if isinstance(best, dict) and norm in best:
        values = _numbers(best, norm, count, path)
        columns["best_distance"] = ends([math.inf if math.isnan(v) else v for v in values])
    for name, key in _PER_IMAGE.items():
        numbers = info.get(key)
        if isinstance(numbers, list) and len(numbers) == count:  # else one value per batch
            columns[name] = [repr(value) for value in _numbers(info, key, count, path)]
    same = {"model": names.model, "attack": f"{names.attack}_{norm}", "norm": norm}
    same["dataset"] = names.dataset
    return BenchResult(columns | {k: [v] * count for k, v in same.items()}, names.settings)


_PER_IMAGE = {
    "forwards": "num_forwards",
    "backwards": "num_backwards",
    "clean_prediction": "original_predictions",
    "adversarial_prediction": "adversarial_predictions",
}


def _names_beside(path: Path) -> _Names:
    """Read names from ``config.json``, or else from the folders."""
    config_path = path.parent / "config.json"
    config = _read(config_path)
    attack, model = (_section(config, name, config_path) for name in ("attack", "model"))
    folders = [f.name for f in path.absolute().parents if not _ASIDE.fullmatch(f.name)]
    library = next((v for k in ("lib", "source") if (v := _text(attack, k))), "")
    data = config.get("dataset")
    size = data.get("batch_size") if isinstance(data, dict) else None
    return _Names(
        _text(model, "name") or folders[min(1, len(folders) - 1)],
        "_".join(filter(None, [library, _text(attack, "name")])) or folders[0],
        _norm(attack, config_path, "attack.threat_model"),
        _text(model, "dataset"),
        attack,
        size if type(size) is int and size > 0 else None,
    )


def _names_in_metadata(info: dict[str, Any], path: Path) -> _Names:
    about = _section(info, "metadata", path)
    for key in ("model_name", "attack_name"):
        if not _text(about, key):
            raise RequestError(f"{path}: metadata.{key}: expected a name, got {about.get(key)!r}")
    attack = [_text(about, "attack_lib"), _text(about, "attack_name")]
    return _Names(
        _text(about, "model_name"),
        "_".join(filter(None, attack)),
        _norm(about, path, "metadata.threat_model"),
        _text(about, "dataset"),
        {},
        None,
    )


def _norm(section: dict[str, Any], path: Path, key: str) -> str:
    norm = section.get("threat_model")
    if norm not in NORMS:
        raise RequestError(f"{path}: {key}: expected l2 or linf, got {norm!r:.40}")
    return str(norm)


def _crashed(info: dict[str, Any], names: _Names, unchanged: list[bool], path: Path) -> list[bool]:
    """Return which images are unchanged because the attack failed with an error on their batch.

    If the batch size is not known, these are all unchanged images.
    """
    count, failures = len(unchanged), info.get("batch_failures")
    if failures is None:
        return [False] * count
    if not isinstance(failures, list) or any(type(value) is not bool for value in failures):
        raise RequestError(f"{path}: batch_failures: expected true or false for each batch")
    if not any(failures):
        return [False] * count
    if all(failures):
        raise RequestError(
            f"{path}: batch_failures: {names.attack} crashed in every batch of {names.model}: "
            "no result to report"
        )
    size = names.batch_size
    if size is None:
        return unchanged
    if len(failures) != -(-count // size):
        raise RequestError(
            f"{path}: batch_failures: expected {-(-count // size)} batches of {size} for {count} "
            f"images, got {len(failures)}"
        )
    return [failures[i // size] for i in range(count)]


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON object; NaN and Infinity are allowed, as AttackBench writes them."""
    if not path.exists():
        raise RequestError(f"{path}: no such file")
    try:
        text = read_text(path, MAX_CSV_BYTES, follow_links=True)
        content = parse_json(text, finite=False)
    except (ValueError, RecursionError):
        raise RequestError(f"{path}: not a JSON file") from None
    if not isinstance(content, dict):
        raise RequestError(f"{path}: expected a JSON object, as AttackBench writes it")
    return content


def _section(content: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = content.get(key)
    if not isinstance(value, dict):
        raise RequestError(f"{path}: {key}: expected a JSON object, as AttackBench writes it")
    return value


def _text(section: dict[str, Any], key: str) -> str:
    value = section.get(key)
    return value.encode(errors="replace").decode() if isinstance(value, str) else ""


def _hashes(info: dict[str, Any], path: Path) -> list[str]:
    hashes = info.get("hashes")
    texts = isinstance(hashes, list) and all(isinstance(value, str) for value in hashes)
    if not hashes or not texts or not all(re.fullmatch("[0-9a-f]{1,128}", h) for h in hashes):
        raise RequestError(f"{path}: hashes: expected the SHA-512 of each image")
    return list(hashes)


def _flags(info: dict[str, Any], key: str, count: int, path: Path) -> list[bool]:
    values = info.get(key)
    if not isinstance(values, list) or [type(value) for value in values] != [bool] * count:
        raise RequestError(f"{path}: {key}: expected true or false for each of {count} images")
    return values


def _numbers(section: dict[str, Any], key: str, count: int, path: Path) -> list[float]:
    values = section.get(key)
    numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
    if not isinstance(values, list) or not numbers or len(values) != count:
        raise RequestError(f"{path}: {key}: expected a number for each of {count} images")
    try:
        return [float(value) for value in values]
    except OverflowError:
        raise RequestError(f"{path}: {key}: a number is too large") from None
