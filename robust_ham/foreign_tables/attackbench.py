"""AttackBench's results (arXiv 2404.19460) as rows of a per-image table.

A result is a folder with ``config.json`` (which model, which attack) and ``info.json`` (what came
of every image). Distances are those of the images that the attack returned (``distances``), not of
the best that it passed on its way.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from robust_ham.config import RequestError
from robust_ham.store import MAX_CSV_BYTES, check_size

NORMS = ("l2", "linf")
_ASIDE = re.compile(r"\d+|batch_size_\d+")
"""Folders between a result and its names."""


def read_result(info_path: Path) -> dict[str, list[str]]:
    """The columns of one result, as text.

    Raises:
        RequestError: damaged, targeted, of another norm than l2 and linf, or not such a result.
    """
    info, config_path = _read(info_path), info_path.parent / "config.json"
    config = _read(config_path)
    attack, model = (_section(config, name, config_path) for name in ("attack", "model"))
    norm = attack.get("threat_model")
    if norm not in NORMS:
        raise RequestError(
            f"{config_path}: attack.threat_model: expected l2 or linf, got {norm!r:.40}"
        )
    if info.get("targeted"):
        raise RequestError(f"{info_path}: targeted: only untargeted attacks can be compared")
    hashes = _hashes(info, info_path)
    count = len(hashes)
    wrong, fooled = (_flags(info, key, count, info_path) for key in ("ori_success", "adv_success"))
    outside = _flags(info, "box_failures", count, info_path) if "box_failures" in info else None
    distances = _section(info, "distances", info_path)
    known = {n: _numbers(distances, n, count, info_path) for n in NORMS if n in distances}
    if norm not in known:
        raise RequestError(f"{info_path}: distances: no {norm}")
    invalid = [
        success and (not math.isfinite(known[norm][i]) or bool(outside and outside[i]))
        for i, success in enumerate(fooled)
    ]
    rows = {
        "sample_id": hashes,
        "correct": [str(not value) for value in wrong],
        "invalid": [str(value) for value in invalid],
    }
    for name, values in known.items():
        ends = ["0" if w else "inf" for w in wrong]
        held = [w or i or not f for w, i, f in zip(wrong, invalid, fooled, strict=True)]
        rows[name] = [end if h else repr(v) for end, h, v in zip(ends, held, values, strict=True)]
    for name in ("forwards", "backwards"):
        passes = info.get(f"num_{name}")
        if isinstance(passes, list) and len(passes) == count:  # else they are of whole batches
            values = _numbers(info, f"num_{name}", count, info_path)
            rows[name] = [repr(value) for value in values]
    folders = [f.name for f in info_path.absolute().parents if not _ASIDE.fullmatch(f.name)]
    library = next((v for k in ("lib", "source") if (v := _text(attack, k))), "")
    name = "_".join(filter(None, [library, _text(attack, "name")])) or folders[0]
    same = {
        "model": _text(model, "name") or folders[min(1, len(folders) - 1)],
        "attack": f"{name}_{norm}",
        "norm": norm,
        "dataset": _text(model, "dataset"),
    }
    return rows | {key: [value] * count for key, value in same.items()}


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; Python's NaN and Infinity are let through, as AttackBench writes them."""
    if not path.is_file():
        raise RequestError(f"{path}: no such file")
    check_size(path, MAX_CSV_BYTES)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise RequestError(f"{path}: not a JSON file") from None
    if not isinstance(content, dict):
        raise RequestError(f"{path}: expected a JSON object of AttackBench's")
    return content


def _section(content: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    found = content.get(key)
    if not isinstance(found, dict):
        raise RequestError(f"{path}: {key}: expected a JSON object, as AttackBench writes it")
    return found


def _text(section: dict[str, Any], key: str) -> str:
    value = section.get(key)
    return value.encode(errors="replace").decode() if isinstance(value, str) else ""


def _hashes(info: dict[str, Any], path: Path) -> list[str]:
    found = info.get("hashes")
    texts = isinstance(found, list) and all(isinstance(value, str) for value in found)
    if not found or not texts or not all(re.fullmatch("[0-9a-f]{1,128}", h) for h in found):
        raise RequestError(f"{path}: hashes: expected the SHA-512 of every image")
    return list(found)


def _flags(info: dict[str, Any], key: str, count: int, path: Path) -> list[bool]:
    found = info.get(key)
    if not isinstance(found, list) or [type(value) for value in found] != [bool] * count:
        raise RequestError(f"{path}: {key}: expected true or false for each of {count} images")
    return found


def _numbers(section: dict[str, Any], key: str, count: int, path: Path) -> list[float]:
    found = section.get(key)
    numbers = isinstance(found, list) and all(type(value) in (int, float) for value in found)
    if not isinstance(found, list) or not numbers or len(found) != count:
        raise RequestError(f"{path}: {key}: expected a number for each of {count} images")
    try:
        return [float(value) for value in found]
    except OverflowError:
        raise RequestError(f"{path}: {key}: a number is too large") from None
