"""Options of an attack: complete them, and refuse invalid ones before any computation."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from attacks.adapters.foolbox import import_foolbox, why_no_option
from robust_ham.config.attacks import EPSILON_OPTIONS, parse_norm
from robust_ham.config.bounds import MAX_OPTION, MAX_SEED
from robust_ham.config.fields import number, shown
from robust_ham.config.sections import AttackConfig
from robust_ham.config.suggestions import did_you_mean
from robust_ham.config.user_code import like_default
from robust_ham.errors import RequestError
from robust_ham.evaluation.registry import Parameters, attack_function
from robust_ham.evaluation.user_attacks import UserFunction

_NO_DEFAULT = inspect.Parameter.empty


def attack_options(
    config: AttackConfig, attack_id: str, user_function: UserFunction | None = None
) -> dict[str, Any]:
    """Return all options of an attack: those given, and the function's defaults for the rest.

    Raises:
        RequestError: unknown attack or option, or a value of the wrong type.
    """
    parameters = _parameters(config, attack_id, user_function)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {name: p for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    options = {name: p.default for name, p in named.items()}
    is_user_code = config.facts.is_user_code
    for name, value in config.options.items():
        key = f"attacks.{attack_id}.{name}"
        if name == "norm" and is_user_code and not (takes_any or name in named):
            if parse_norm(value) is None:
                raise RequestError(f"{key}: expected l2 or linf, got {shown(value)}")
        elif name not in named and not takes_any:
            hint = did_you_mean(name, [*named, *AttackConfig.model_fields])
            if name in EPSILON_OPTIONS and "epsilon" in named:
                hint = "; did you mean epsilon?"
            raise RequestError(f"{key}: {_why_no_option(config, name)} ({', '.join(named)}){hint}")
        else:
            options[name] = _typed(name, value, named.get(name), key)
            if not is_user_code:
                _check_bounds(name, options[name], key)
    return options


def _parameters(
    config: AttackConfig, attack_id: str, user_function: UserFunction | None
) -> Parameters:
    try:
        return attack_function(config.attack, user_function)[1]
    except ValueError as error:
        raise RequestError(f"attacks.{attack_id}.attack: {error}") from None


def _why_no_option(config: AttackConfig, name: str) -> str:
    if config.facts.library == "foolbox":
        return why_no_option(config.facts.library_attack, name)
    return f"unknown option of {config.attack}"


def _check_bounds(name: str, value: Any, key: str) -> None:  # noqa: ANN401
    """Refuse numbers far outside the range of any attack."""
    low, high = (0, MAX_SEED) if name == "seed" else (-MAX_OPTION, MAX_OPTION)
    for part in value if isinstance(value, list | tuple) else (value,):
        if isinstance(part, int | float) and not low <= part <= high:
            expected = f"at most {high:,}" if part > high else f"at least {low:,}"
            raise RequestError(f"{key}: expected {expected}, got {shown(part)}")


def _typed(name: str, value: Any, parameter: inspect.Parameter | None, key: str) -> Any:  # noqa: ANN401
    """Check ``value`` against the annotation; text such as 2e-2 or 8/255 may be a number."""
    default = _NO_DEFAULT if parameter is None else parameter.default
    if name == "norm" and isinstance(default, int | float) and parse_norm(value) is not None:
        return {"l2": type(default)(2), "linf": math.inf}[parse_norm(value) or "l2"]
    adapter = None if parameter is None else _type_adapter(parameter.annotation)
    if adapter is None:
        try:
            return like_default(value, default)
        except ValueError as error:
            raise RequestError(f"{key}: {error}") from None
    value = value.item() if isinstance(value, np.generic) else value
    candidates = [value]
    if name == "norm" and parse_norm(value) is not None:
        candidates.append(parse_norm(value))
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            candidates.append(number(value))
    for candidate in candidates:
        with contextlib.suppress(ValidationError):
            return adapter.validate_python(candidate)
    annotation = parameter.annotation if parameter is not None else None
    expected = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    hint = "; configure one attack for each" if isinstance(value, list) else ""
    raise RequestError(
        f"{key}: expected {expected.replace('typing.', '')}, got {shown(value)}{hint}"
    )


def _type_adapter(annotation: Any) -> TypeAdapter[Any] | None:  # noqa: ANN401
    """A validator for an annotation; None if it is missing or not a type."""
    if annotation is _NO_DEFAULT or isinstance(annotation, str):
        return None
    config = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    try:
        return TypeAdapter(annotation, config=config)
    except PydanticUserError:
        return None


def recipe_of(options: dict[str, Any]) -> dict[str, Any]:
    """Options as they enter a key: values that JSON cannot represent are replaced by a name."""

    def described(value: Any) -> Any:  # noqa: ANN401
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            return getattr(value, "__qualname__", None) or str(value)
        return value

    return {name: described(value) for name, value in options.items()}


# --- norm and kind -------------------------------------------------------------------------------


def resolve_attack(
    config: AttackConfig, attack_id: str, user_function: UserFunction | None = None
) -> AttackConfig:
    """Complete an attack's configuration with the norm, size and kind of the function's defaults.

    Code that has the configuration but not the function, such as a report, then measures the same.

    Raises:
        RequestError: unknown attack or option, a norm other than l2 and linf, or a custom attack
            with a budget but no kind.
    """
    if config.facts.library == "foolbox":
        return _resolve_foolbox(config, attack_id)
    if not config.facts.is_user_code:
        return config
    options = attack_options(config, attack_id, user_function)
    norm = options.get("norm", config.options.get("norm"))
    norm = parse_norm(norm) if isinstance(norm, int | float) else norm
    sizes = {n: options[n] for n in EPSILON_OPTIONS if options.get(n) not in (None, _NO_DEFAULT)}
    kind, has_budgets = config.kind, config.budget is not None or config.budgets is not None
    if kind is None and has_budgets:
        why = f"works within its {next(iter(sizes))}" if sizes else "may work within a fixed size"
        raise RequestError(
            f"attacks.{attack_id}.kind: {config.attack} {why}, and has a budget: set kind: "
            "minimum_norm if it seeks the smallest perturbation, else remove budget"
        )
    if kind == "minimum_norm" and norm is not None and parse_norm(norm) is None:
        raise RequestError(
            f"attacks.{attack_id}.norm: distances are measured in l2 or linf, got {norm!r}"
        )
    values: dict[str, Any] = {n: size for n, size in sizes.items() if isinstance(size, int | float)}
    values["norm"] = norm if isinstance(norm, str) else None
    values["kind"] = kind or ("fixed_epsilon" if sizes else None)
    return _with(config, values)


def _resolve_foolbox(config: AttackConfig, attack_id: str) -> AttackConfig:
    """Add the norm of a foolbox attack that leaves no choice."""
    if "norm" in config.options:
        return config
    parameters, name = _parameters(config, attack_id, None), config.facts.library_attack
    norm = config.options.get("constraint")  # of HopSkipJumpAttack
    if "constraint" not in parameters:
        norm = _foolbox_norm(name)
    if norm in ("l0", "l1") and config.has_budget:
        raise RequestError(
            f"attacks.{attack_id}.norm: foolbox's {name} minimises {norm}: set norm: l2 or norm: "
            "linf to measure its distances"
        )
    return _with(config, {"norm": norm} if norm == "linf" else {})


def _foolbox_norm(name: str) -> str | None:
    """The norm of a foolbox attack; None if it has none or several."""
    foolbox = import_foolbox()
    attack = getattr(foolbox.attacks, name)
    distance = getattr(attack, "distance", None)
    if isinstance(distance, property):
        try:
            distance = attack().distance
        except Exception:  # the norm is an argument, or the attack needs other arguments
            return None
    distances = {norm: getattr(foolbox.distances, norm) for norm in ("l0", "l1", "l2", "linf")}
    return next((norm for norm, known in distances.items() if distance is known), None)


def _with(config: AttackConfig, values: dict[str, Any]) -> AttackConfig:
    given = config.model_dump()
    added = {n: value for n, value in values.items() if value is not None and n not in given}
    return AttackConfig.model_validate(given | added) if added else config


# --- checks --------------------------------------------------------------------------------------


def check_attack_options(
    config: AttackConfig,
    attack_id: str,
    image_shape: tuple[int, int, int],
    user_function: UserFunction | None = None,
) -> None:
    """Refuse invalid options before any computation, by attacking an empty batch.

    Raises:
        RequestError: unknown option, a value out of range, or a missing library.
    """
    options = attack_options(config, attack_id, user_function)
    missing = next((n for n, value in options.items() if value is _NO_DEFAULT), None)
    if missing is not None:
        raise RequestError(f"attacks.{attack_id}.{missing}: {config.attack} has no default")
    _check_sizes(config, options, attack_id, image_shape)
    if not config.has_budget and (config.budget or config.budgets):
        raise RequestError(f"attacks.{attack_id}.budget: {config.attack} has no distance budget")
    if config.facts.is_user_code:
        return  # user code may not support an empty batch
    images, labels = torch.zeros(0, *image_shape), torch.zeros(0, dtype=torch.int64)
    try:
        attack_function(config.attack)[0](lambda x: x.flatten(1), images, labels, **options)
    except (ValueError, TypeError, ModuleNotFoundError) as error:
        raise RequestError(f"attacks.{attack_id}: {error}") from None


def _check_sizes(
    config: AttackConfig,
    options: dict[str, Any],
    attack_id: str,
    image_shape: tuple[int, int, int],
) -> None:
    """Refuse distances that no two images in [0, 1] have, such as 8 for 8/255."""
    facts = config.facts
    if facts.library == "foolbox" and _foolbox_norm(facts.library_attack) in ("l0", "l1"):
        return
    declared = parse_norm(config.options.get("norm"))
    sizes = {n: options[n] for n in EPSILON_OPTIONS if isinstance(options.get(n), int | float)}
    budgets = {f"budgets.{i}": budget for i, budget in enumerate(config.budgets or ())}
    if config.budget is not None:
        budgets["budget"] = config.budget
    for name, size in (sizes | budgets).items():
        unknown = facts.is_user_code and declared is None and name in sizes
        check_distance(size, config.norm, image_shape, f"attacks.{attack_id}.{name}", unknown)


def check_distance(
    size: float,
    norm: str,
    image_shape: tuple[int, int, int],
    key: str,
    unknown_norm: bool = False,
) -> None:
    """Refuse a distance larger than any between two images (C, H, W) in [0, 1].

    Raises:
        RequestError: it is larger, or may be if the norm is unknown.
    """
    most = 1.0 if norm == "linf" or unknown_norm else math.sqrt(math.prod(image_shape))
    if 0 <= size <= most:
        return
    message = f"{key}: expected at most {most:g}, as pixels are in [0, 1], got {size:g}"
    if most == 1 < size <= 255:
        message += f"; did you mean {size:g}/255?"
    if unknown_norm:
        message += " If it is an L2 distance, add norm: l2"
    raise RequestError(message)
