"""``robust-ham list``: attacks, models, windows, data sets, configs, experiments and keys."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Annotated

import typer

from robust_ham.cli.options import Debug
from robust_ham.cli.output import say, say_json
from robust_ham.cli.preparation import check_attacks_package

Rows = list[tuple[str, str]]

_NO_SIDE_LOBE = -200.0  # dB
_MAX_NAME_WIDTH = 44


class Topic(enum.StrEnum):
    """What ``list`` can list."""

    attacks = "attacks"
    models = "models"
    windows = "windows"
    datasets = "datasets"
    configs = "configs"
    explain = "explain"
    keys = "keys"
    schema = "schema"


def list_(
    topic: Annotated[
        Topic | None, typer.Argument(metavar="TOPIC", help=f"One of {', '.join(Topic)}.")
    ] = None,
    debug: Debug = False,
) -> None:
    """List attacks, models, windows, data sets, configs or keys."""
    if topic == Topic.schema:
        from robust_ham.config.experiment import Config

        say_json(Config.model_json_schema(by_alias=True), indent=1)
        return
    check_attacks_package()
    for name in [topic.value] if topic else [name for name in _LISTINGS if name != Topic.keys]:
        rows = _LISTINGS[name]()
        width = min(max((len(row[0]) for row in rows), default=0), _MAX_NAME_WIDTH)
        say(name if topic is None else "")
        for left, right in rows:
            say(f"  {left:<{width}}  {right}")
    if topic is None:
        say("", "All config keys with their defaults: robust-ham list keys")


def _first_line(documented: object) -> str:
    return (documented.__doc__ or "").strip().splitlines()[0].replace("``", "")


def _attacks() -> Rows:
    from attacks import ATTACKS

    return [(name, _first_line(function)) for name, function in ATTACKS.items()]


def _models() -> Rows:
    from robust_ham.config.models import ARCHITECTURES

    return [(name, _first_line(group)) for name, group in ARCHITECTURES.items()]


def _windows() -> Rows:
    from robust_ham.models.windows import (
        PLACEBO,
        WINDOWS,
        effective_width,
        peak_side_lobe,
        window_1d,
    )

    rows = []
    for name in WINDOWS:
        taps = window_1d(name, 7)
        level = peak_side_lobe(taps)
        lobe = f"side lobes at {level:.1f} dB" if level > _NO_SIDE_LOBE else "no side lobe"
        rows.append((name, f"at k = 7: {effective_width(taps):.2f} effective taps, {lobe}"))
    rows.append((PLACEBO, "the values of the Hamming window, shuffled: no taper"))
    return rows


def _datasets() -> Rows:
    from robust_ham.config.datasets import DATASETS
    from robust_ham.data.datasets import available

    return [
        (name, available(name) or f"not found; --data-root FOLDER, or {known.how_to_get}")
        for name, known in DATASETS.items()
    ]


def _configs() -> Rows:
    from robust_ham.config.files import config_text, shipped_configs

    return [
        (name, config_text(path).splitlines()[0].lstrip("# "))
        for name, path in shipped_configs().items()
    ]


def _explain() -> Rows:
    from robust_ham.experiments.explain import EXPERIMENTS

    return [(name, experiment.about) for name, experiment in EXPERIMENTS.items()]


def _keys() -> Rows:
    from robust_ham.config.files import config_keys

    return [
        (f"{key.name} = {key.default}", f"({key.allowed}) {key.description}")
        for key in config_keys()
    ]


_LISTINGS: dict[str, Callable[[], Rows]] = {
    "attacks": _attacks,
    "models": _models,
    "windows": _windows,
    "datasets": _datasets,
    "configs": _configs,
    "explain": _explain,
    "keys": _keys,
}
