"""Which attack a configuration names, with which options: all of it refused before any compute."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from torch import Tensor, nn

from attacks import ATTACKS, Attack, AttackOutcome, Model, foolbox_attack, misclassified
from attacks.adapters.foolbox import foolbox_parameters, import_foolbox, why_no_option
from attacks.utils.model import attack_mode, predict_logits
from attacks.utils.transforms import grid_transforms, shift_transforms
from robust_ham.config.bounds import MAX_OPTION, MAX_SEED
from robust_ham.config.experiment import EPSILON_OPTIONS, AttackConfig, is_own, norm_named
from robust_ham.config.fields import number, shown
from robust_ham.config.user_code import import_function, like_default, options_after, source_hash
from robust_ham.errors import RequestError

Parameters = dict[str, inspect.Parameter]
OwnFunction = Callable[..., Any]
"""A user's attack: model, images, labels and options to images or an ``AttackOutcome``."""

FOOLBOX_DEFAULT = "DDNAttack"
_EMPTY = inspect.Parameter.empty


def attack_function(name: str, own: OwnFunction | None = None) -> tuple[Attack, Parameters]:
    """The function a config's ``attack`` names, and the options it takes.

    ``foolbox:DDNAttack`` is the catalogue's ``foolbox`` with that attack of foolbox; its options
    are those of the foolbox attack too. ``package.module:function`` is a function of the user's:
    ``own``, where it is handed over.

    Raises:
        ValueError: there is no such attack.
        RequestError: there is no such function of the user's, or it takes no images and labels.
    """
    catalogue_name, colon, foolbox_name = name.partition(":")
    if is_own(name):
        function = own or import_function(name, "attack")
        return partial(_run_own, function=function), options_after(function, name)
    if catalogue_name not in ATTACKS or (
        colon and not (catalogue_name == "foolbox" and foolbox_name)
    ):
        raise ValueError(
            f"expected one of {', '.join(ATTACKS)}, foolbox:NAME or module:function, got {name!r}"
        )
    function = ATTACKS[catalogue_name]
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    options = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    if catalogue_name == "foolbox":
        chosen = foolbox_name or FOOLBOX_DEFAULT
        del options["attack"]
        options |= {p.name: p for p in foolbox_parameters(chosen)}
        return partial(foolbox_attack, attack=chosen), options
    return function, options


def own_code(name: str) -> str | None:
    """Hash of the code of a user's attack; None of ours, which have versions."""
    return source_hash(import_function(name, "attack")) if is_own(name) else None


def _run_own(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    function: OwnFunction,
    **options: Any,  # noqa: ANN401
) -> AttackOutcome:
    """What a user's function returns, as our attacks return it.

    The function may overwrite its images; the model is frozen meanwhile, and given back as it was.
    Passes are those of a returned ``AttackOutcome``, else 0.

    Raises:
        ValueError: it returns neither an ``AttackOutcome`` nor images like those it was given, or
            has changed the model's parameters.
    """
    module = model if isinstance(model, nn.Module) else None
    before = [(p, p.detach().clone(), p.grad) for p in module.parameters()] if module else []
    with attack_mode(model):
        found = function(model, images.clone(), labels.clone(), **options)
    changed = False
    for parameter, value, slope in before:
        if parameter.dtype != value.dtype or not torch.equal(parameter, value):
            parameter.data, changed = value, True
        parameter.grad = slope
    if changed:
        raise ValueError("the attack has changed the model's parameters")
    outcome = found if isinstance(found, AttackOutcome) else None
    returned = found.images if outcome else found
    if isinstance(returned, np.ndarray):
        returned = torch.from_numpy(returned)
    if not isinstance(returned, Tensor) or returned.shape != images.shape:
        got = tuple(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
        raise ValueError(f"expected images {tuple(images.shape)} or an AttackOutcome, got {got}")
    if not returned.is_floating_point():
        raise ValueError(f"expected images of floats in [0, 1], got {returned.dtype}")
    returned = returned.detach().to(images)
    with attack_mode(model), torch.no_grad():
        fooled = misclassified(predict_logits(model, returned), labels)
    count = len(images)
    return AttackOutcome(
        returned,
        fooled,
        _returned(outcome, "forwards", (count,), labels, torch.zeros_like(labels)),
        _returned(outcome, "backwards", (count,), labels, torch.zeros_like(labels)),
        _returned(outcome, "transform", (count, 3), images),
        _returned(outcome, "margins", (count, None), images),
    )


def _returned(
    outcome: AttackOutcome | None,
    name: str,
    shape: tuple[int | None, ...],
    like: Tensor,
    default: Any = None,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """A field of an outcome of a user's attack, if it has it, of the shape that it must have."""
    value = getattr(outcome, name, None)
    if value is None:
        return default
    value = torch.as_tensor(value)
    sides = [value.shape[-1] if side is None else side for side in shape]
    if list(value.shape) != sides:
        expected = ", ".join("T" if side is None else str(side) for side in shape)
        raise ValueError(f"{name}: expected shape ({expected}), got {tuple(value.shape)}")
    return value.detach().to(like)


def attack_options(
    config: AttackConfig, attack_id: str, own: OwnFunction | None = None
) -> dict[str, Any]:
    """All options of an attack, those not given at the function's defaults.

    Raises:
        RequestError: unknown attack or option; the message lists what there is.
    """
    parameters = _parameters(config, attack_id, own)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {name: p for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    options = {name: p.default for name, p in named.items()}
    for name, value in config.options.items():
        key = f"attacks.{attack_id}.{name}"
        if name == "norm" and is_own(config.attack) and not (takes_any or name in named):
            if norm_named(value) is None:
                raise RequestError(f"{key}: expected l2 or linf, got {shown(value)}")
        elif name not in named and not takes_any:
            raise RequestError(f"{key}: {_why_no_option(config, name)} ({', '.join(named)})")
        else:
            options[name] = _typed(name, value, named.get(name), key)
            if not is_own(config.attack):
                _check_bounds(name, options[name], key)
    return options


def _why_no_option(config: AttackConfig, name: str) -> str:
    library, _, attack = config.attack.partition(":")
    if library == "foolbox":
        return why_no_option(attack or FOOLBOX_DEFAULT, name)
    return f"unknown option of {config.attack}"


def _check_bounds(name: str, value: Any, key: str) -> None:  # noqa: ANN401
    """Refuse numbers that no attack is meant for; one's own attack may take any."""
    low, high = (0, MAX_SEED) if name == "seed" else (-MAX_OPTION, MAX_OPTION)
    for part in value if isinstance(value, list | tuple) else (value,):
        if isinstance(part, int | float) and not low <= part <= high:
            expected = f"at most {high:,}" if part > high else f"at least {low:,}"
            raise RequestError(f"{key}: expected {expected}, got {shown(part)}")


def recipe_of(options: dict[str, Any]) -> dict[str, Any]:
    """Options as they enter a key: what JSON cannot say, of a user's defaults, by its name."""

    def described(value: Any) -> Any:  # noqa: ANN401
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            return getattr(value, "__qualname__", None) or str(value)
        return value

    return {name: described(value) for name, value in options.items()}


def _parameters(config: AttackConfig, attack_id: str, own: OwnFunction | None) -> Parameters:
    try:
        return attack_function(config.attack, own)[1]
    except ValueError as error:
        raise RequestError(f"attacks.{attack_id}.attack: {error}") from None


def _typed(name: str, value: Any, parameter: inspect.Parameter | None, key: str) -> Any:  # noqa: ANN401
    """``value`` if it is of the annotated type; text such as 2e-2 or 8/255 may be a number."""
    default = _EMPTY if parameter is None else parameter.default
    if name == "norm" and isinstance(default, int | float) and norm_named(value) is not None:
        return {"l2": type(default)(2), "linf": math.inf}[norm_named(value) or "l2"]
    check = None if parameter is None else _annotated_type(parameter.annotation)
    if check is None:
        try:
            return like_default(value, default)
        except ValueError as error:
            raise RequestError(f"{key}: {error}") from None
    value = value.item() if isinstance(value, np.generic) else value
    candidates = [value]
    if name == "norm" and norm_named(value) is not None:
        candidates.append(norm_named(value))
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            candidates.append(number(value))
    for candidate in candidates:
        with contextlib.suppress(ValidationError):
            return check.validate_python(candidate)
    expected = parameter.annotation if parameter is not None else None
    described = expected.__name__ if isinstance(expected, type) else str(expected)
    described = described.replace("typing.", "")
    raise RequestError(f"{key}: expected {described}, got {shown(value)}")


def _annotated_type(annotation: Any) -> TypeAdapter[Any] | None:  # noqa: ANN401
    """What checks a value; None for what a user's function leaves out, or what is no type."""
    if annotation is _EMPTY or isinstance(annotation, str):
        return None
    config = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    try:
        return TypeAdapter(annotation, config=config)
    except PydanticUserError:
        return None


def resolve_attack(
    config: AttackConfig, attack_id: str, own: OwnFunction | None = None
) -> AttackConfig:
    """An attack's configuration with its norm, size and kind, where the function's defaults say.

    What reads a configuration without the function, as a report does, then measures as it does.

    Raises:
        RequestError: unknown attack or option, a norm in which no distances are counted, or an
            attack of the user's of which it must be said whether it seeks the least distance.
    """
    if config.attack.partition(":")[0] == "foolbox":
        return _resolve_foolbox(config, attack_id)
    if not is_own(config.attack):
        return config
    options = attack_options(config, attack_id, own)
    norm = options.get("norm", config.options.get("norm"))
    norm = norm_named(norm) if isinstance(norm, int | float) else norm
    sizes = {n: options[n] for n in EPSILON_OPTIONS if options.get(n) not in (None, _EMPTY)}
    kind, has_budgets = config.kind, config.budget is not None or config.budgets is not None
    if kind is None and has_budgets:
        why = f"works within its {next(iter(sizes))}" if sizes else "may work within a fixed size"
        raise RequestError(
            f"attacks.{attack_id}.kind: {config.attack} {why}, and has a budget: say kind: "
            "minimum_norm if it seeks the least distance, else leave budget out"
        )
    if kind == "minimum_norm" and norm is not None and norm_named(norm) is None:
        raise RequestError(
            f"attacks.{attack_id}.norm: distances are counted in l2 or linf, got {norm!r}"
        )
    found: dict[str, Any] = {n: size for n, size in sizes.items() if isinstance(size, int | float)}
    found["norm"] = norm if isinstance(norm, str) else None
    found["kind"] = kind or ("fixed_epsilon" if sizes else None)
    return _with(config, found)


def _resolve_foolbox(config: AttackConfig, attack_id: str) -> AttackConfig:
    """With the norm that the attack measures in, where it leaves no choice."""
    if "norm" in config.options:
        return config
    parameters = _parameters(config, attack_id, None)
    name = config.attack.partition(":")[2] or FOOLBOX_DEFAULT
    norm = config.options.get("constraint")  # of HopSkipJumpAttack
    if "constraint" not in parameters:
        norm = _foolbox_norm(name)
    if norm in ("l0", "l1") and config.has_budget:
        raise RequestError(
            f"attacks.{attack_id}.norm: foolbox's {name} measures {norm}: say norm: l2 or norm: "
            "linf, in which its distances are to be counted"
        )
    return _with(config, {"norm": norm} if norm == "linf" else {})


def _foolbox_norm(name: str) -> str | None:
    """The norm of an attack of foolbox; None where it leaves the choice or has none."""
    foolbox = import_foolbox()
    attack = getattr(foolbox.attacks, name)
    measured = getattr(attack, "distance", None)
    if isinstance(measured, property):
        try:
            measured = attack().distance
        except Exception:  # it must be told, or cannot be built as it is
            return None
    distances = {norm: getattr(foolbox.distances, norm) for norm in ("l0", "l1", "l2", "linf")}
    return next((norm for norm, distance in distances.items() if measured is distance), None)


def _with(config: AttackConfig, found: dict[str, Any]) -> AttackConfig:
    given = config.model_dump()
    added = {n: value for n, value in found.items() if value is not None and n not in given}
    return AttackConfig.model_validate(given | added) if added else config


def check_attack(
    config: AttackConfig,
    attack_id: str,
    image_shape: tuple[int, int, int],
    own: OwnFunction | None = None,
) -> None:
    """Let the attack refuse its options now, on an empty batch, and not after hours.

    Raises:
        RequestError: unknown option, a value out of range, or a library that is not installed.
    """
    options = attack_options(config, attack_id, own)
    missing = next((n for n, value in options.items() if value is _EMPTY), None)
    if missing is not None:
        raise RequestError(f"attacks.{attack_id}.{missing}: {config.attack} has no default")
    _check_sizes(config, options, attack_id, image_shape)
    if not config.has_budget and (config.budget or config.budgets):
        raise RequestError(f"attacks.{attack_id}.budget: {config.attack} has no distance budget")
    if is_own(config.attack):
        return  # an empty batch may be more than it was written for
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
    """Refuse distances that no two images in [0, 1] have: mostly, 8 is meant as 8/255."""
    if config.attack.startswith("foolbox:") and _foolbox_norm(config.attack[8:]) in ("l0", "l1"):
        return
    declared = norm_named(config.options.get("norm"))
    sizes = {n: options[n] for n in EPSILON_OPTIONS if isinstance(options.get(n), int | float)}
    budgets = {f"budgets.{i}": budget for i, budget in enumerate(config.budgets or ())}
    if config.budget is not None:
        budgets["budget"] = config.budget
    for name, size in (sizes | budgets).items():
        unknown = is_own(config.attack) and declared is None and name in sizes
        check_distance(size, config.norm, image_shape, f"attacks.{attack_id}.{name}", unknown)


def check_distance(
    size: float,
    norm: str,
    image_shape: tuple[int, int, int],
    key: str,
    unknown_norm: bool = False,
) -> None:
    """Refuse a distance that is larger than any between images (C, H, W) in [0, 1].

    Raises:
        RequestError: it is, or might be where the norm is not known.
    """
    most = 1.0 if norm == "linf" or unknown_norm else math.sqrt(math.prod(image_shape))
    if 0 <= size <= most:
        return
    message = f"{key}: expected at most {most:g}, as pixels are in [0, 1], got {size:g}"
    if most == 1 < size <= 255:
        message += f"; {size:g}/255?"
    if unknown_norm:
        message += " If it is an L2 distance, add norm: l2"
    raise RequestError(message)


def shared_transforms(attack: str, options: dict[str, Any], shape: Sequence[int]) -> Tensor | None:
    """Candidates of an attack that tries the same ones on every image."""
    grids = {"spatial_grid": grid_transforms, "spatial_shift": shift_transforms}
    if attack not in grids:
        return None
    names = inspect.signature(grids[attack]).parameters
    return grids[attack](shape, **{name: options[name] for name in names if name in options})


def num_candidates(attack: str, options: dict[str, Any], shape: Sequence[int]) -> int:
    """How many transforms an attack tries on each image (…, H, W); 0: it has no list of them."""
    shared = shared_transforms(attack, options, shape)
    return options.get("num_draws", 0) if shared is None else len(shared)
