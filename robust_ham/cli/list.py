"""What there is, as rows of a name and what it is; ``robust-ham list`` shows them."""

from __future__ import annotations

from collections.abc import Callable

Rows = list[tuple[str, str]]

_NO_SIDE_LOBE = -200.0  # dB


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


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
    rows.append((PLACEBO, "the values of the Hamming window at random places: no taper"))
    return rows


def _datasets() -> Rows:
    from robust_ham.data.datasets import available
    from robust_ham.data.splits import KNOWN

    return [
        (name, available(name) or f"not found; --data-root FOLDER, or {known.get}")
        for name, known in KNOWN.items()
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


LISTINGS: dict[str, Callable[[], Rows]] = {
    "attacks": _attacks,
    "models": _models,
    "windows": _windows,
    "datasets": _datasets,
    "configs": _configs,
    "explain": _explain,
    "keys": _keys,
}
