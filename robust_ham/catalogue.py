"""Which attack a configuration names, with which options: all of it refused before any compute."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from attacks import ATTACKS, Attack, AttackOutcome, Model, foolbox_attack, misclassified
from attacks.foolbox_attacks import foolbox_parameters
from attacks.model import attack_mode
from attacks.transforms import grid_transforms, shift_transforms
from robust_ham.config import AttackConfig, RequestError, is_own
from robust_ham.config_fields import number
from robust_ham.own_code import import_function, source_hash


def attack_function(name: str) -> tuple[Attack, dict[str, inspect.Parameter]]:
    """The function a config's ``attack`` names, and the options it takes.

    ``foolbox:DDNAttack`` is the catalogue's ``foolbox`` with that attack of foolbox; its options
    are those of the foolbox attack too. ``package.module:function`` is a function of the user's.

    Raises:
        ValueError: there is no such attack.
        RequestError: there is no such function of the user's.
    """
    catalogue_name, colon, foolbox_name = name.partition(":")
    if is_own(name):
        function = import_function(name, "attack")
        return partial(_run_own, function=function), _options(function)
    if catalogue_name not in ATTACKS or (colon and catalogue_name != "foolbox"):
        raise ValueError(
            f"expected one of {', '.join(ATTACKS)}, foolbox:NAME or module:function, got {name!r}"
        )
    function = ATTACKS[catalogue_name]
    options = _options(function)
    if catalogue_name == "foolbox":
        chosen = foolbox_name or options["attack"].default
        del options["attack"]
        options |= {p.name: p for p in foolbox_parameters(chosen)}
        return partial(foolbox_attack, attack=chosen), options
    return function, options


def own_code(name: str) -> str | None:
    """Hash of the code of a user's attack; None of ours, which have versions."""
    return source_hash(import_function(name, "attack")) if is_own(name) else None


def _options(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function, eval_str=True).parameters
    return {p.name: p for p in parameters.values() if p.kind is p.KEYWORD_ONLY}


def _run_own(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    function: Callable[..., Any],
    **options: Any,  # noqa: ANN401
) -> AttackOutcome:
    """What a user's function returns, as our attacks return it; passes are not counted.

    The model is frozen meanwhile, and given back as it was.

    Raises:
        ValueError: it returns neither an ``AttackOutcome`` nor images like those it was given.
    """
    with attack_mode(model):
        found = function(model, images, labels, **options)
    if isinstance(found, AttackOutcome):
        return found
    if not isinstance(found, Tensor) or found.shape != images.shape:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"expected images {tuple(images.shape)} or an AttackOutcome, got {got}")
    passes = torch.zeros_like(labels)
    with torch.no_grad():
        found = found.detach().to(images)
        return AttackOutcome(found, misclassified(model(found), labels), passes, passes)


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
    if expected is inspect.Parameter.empty:  # a user's function may leave it out
        return value
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
    if is_own(config.attack):
        missing = next(
            (n for n, value in options.items() if value is inspect.Parameter.empty), None
        )
        if missing is not None:
            raise RequestError(f"attacks.{attack_id}.{missing}: {config.attack} has no default")
        return  # an empty batch may be more than it was written for
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
