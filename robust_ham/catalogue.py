"""Which attack a configuration names, with which options: all of it refused before any compute."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from attacks import ATTACKS, Attack, foolbox_attack
from attacks.foolbox_attacks import foolbox_parameters
from attacks.transforms import grid_transforms, shift_transforms
from robust_ham.config import AttackConfig, RequestError
from robust_ham.config_fields import number


def attack_function(name: str) -> tuple[Attack, dict[str, inspect.Parameter]]:
    """The function a config's ``attack`` names, and the options it takes.

    ``foolbox:DDNAttack`` is the catalogue's ``foolbox`` with that attack of foolbox; its options
    are those of the foolbox attack too.

    Raises:
        ValueError: there is no such attack.
    """
    catalogue_name, colon, foolbox_name = name.partition(":")
    if catalogue_name not in ATTACKS or (colon and catalogue_name != "foolbox"):
        raise ValueError(f"expected one of {', '.join(ATTACKS)} or foolbox:NAME, got {name!r}")
    function = ATTACKS[catalogue_name]
    signature = inspect.signature(function, eval_str=True)
    options = {p.name: p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
    if catalogue_name == "foolbox":
        chosen = foolbox_name or options["attack"].default
        del options["attack"]
        options |= {p.name: p for p in foolbox_parameters(chosen)}
        return partial(foolbox_attack, attack=chosen), options
    return function, options


def attack_options(config: AttackConfig, attack_id: str) -> dict[str, Any]:
    """All options of an attack, those not given at the function's defaults.

    Raises:
        RequestError: unknown attack or option; the message lists what there is.
    """
    try:
        _, parameters = attack_function(config.attack)
    except ValueError as error:
        raise RequestError(f"attacks.{attack_id}.attack: {error}") from None
    options = {name: p.default for name, p in parameters.items()}
    for name, value in config.options.items():
        if name not in parameters:
            raise RequestError(
                f"attacks.{attack_id}.{name}: unknown option of {config.attack} "
                f"({', '.join(parameters)})"
            )
        options[name] = _typed(value, parameters[name].annotation, f"attacks.{attack_id}.{name}")
    return options


def _typed(value: Any, expected: Any, key: str) -> Any:  # noqa: ANN401
    """``value`` if it is of the annotated type; text such as 2e-2 or 8/255 may be a number."""
    check: TypeAdapter[Any] = TypeAdapter(
        expected,
        config=ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True),
    )
    candidates = [value]
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            candidates.append(number(value))
    for candidate in candidates:
        with contextlib.suppress(ValidationError):
            return check.validate_python(candidate)
    described = expected.__name__ if isinstance(expected, type) else str(expected)
    described = described.replace("typing.", "")
    raise RequestError(f"{key}: expected {described}, got {value!r}")


def check_attack(config: AttackConfig, attack_id: str, image_shape: tuple[int, int, int]) -> None:
    """Let the attack refuse its options now, on an empty batch, and not after hours.

    Raises:
        RequestError: unknown option, a value out of range, or a library that is not installed.
    """
    options = attack_options(config, attack_id)
    images, labels = torch.zeros(0, *image_shape), torch.zeros(0, dtype=torch.int64)
    try:
        attack_function(config.attack)[0](lambda x: x.flatten(1), images, labels, **options)
    except (ValueError, TypeError, ModuleNotFoundError) as error:
        raise RequestError(f"attacks.{attack_id}: {error}") from None
    if not config.has_budget and (config.budget or config.budgets):
        raise RequestError(f"attacks.{attack_id}.budget: {config.attack} has no distance budget")


def shared_transforms(attack: str, options: dict[str, Any], shape: Sequence[int]) -> Tensor | None:
    """Candidates of an attack that tries the same ones on every image."""
    grids = {"spatial_grid": grid_transforms, "spatial_shift": shift_transforms}
    if attack not in grids:
        return None
    names = inspect.signature(grids[attack]).parameters
    return grids[attack](shape, **{name: options[name] for name in names if name in options})
