"""Find the function, the options and the candidate transforms of an attack by its name."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from attacks import ATTACKS, Attack, foolbox_attack
from attacks.adapters.foolbox import foolbox_attack_names, foolbox_parameters
from attacks.utils.transforms import grid_transforms, shift_transforms
from robust_ham.config.attacks import attack_facts
from robust_ham.config.suggestions import did_you_mean
from robust_ham.config.user_code import import_function, options_after, source_hash
from robust_ham.evaluation.user_attacks import UserFunction, run_user_attack

Parameters = dict[str, inspect.Parameter]

_CANDIDATES = {"grid": grid_transforms, "shifts": shift_transforms}


def attack_function(
    name: str, user_function: UserFunction | None = None
) -> tuple[Attack, Parameters]:
    """Return the function that a configuration calls ``name``, and the options it takes.

    ``foolbox:DDNAttack`` is ``attacks.foolbox_attack`` with that attack of foolbox; its options
    include those of the foolbox attack. ``package.module:function`` is user code: the given
    ``user_function``, else the function imported by that name.

    Raises:
        ValueError: unknown attack.
        RequestError: unknown user function, or one that does not take model, images and labels.
    """
    facts = attack_facts(name)
    if facts.is_user_code:
        custom = user_function or import_function(name, "attack")
        return partial(run_user_attack, function=custom), options_after(custom, name)
    is_foolbox = facts.library == "foolbox"
    if facts.catalogue_name not in ATTACKS or (is_foolbox and not facts.library_attack):
        raise ValueError(
            f"expected one of {', '.join(ATTACKS)}, foolbox:NAME or module:function, got {name!r}"
            + (did_you_mean(name, ATTACKS) or _foolbox_suggestion(name))
        )
    function = ATTACKS[facts.catalogue_name]
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    options = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    if is_foolbox:
        del options["attack"]
        try:
            options |= {p.name: p for p in foolbox_parameters(facts.library_attack)}
        except ValueError as error:
            hint = did_you_mean(facts.library_attack, foolbox_attack_names())
            raise ValueError(f"{error}{hint}") from None
        return partial(foolbox_attack, attack=facts.library_attack), options
    return function, options


def _foolbox_suggestion(name: str) -> str:
    """End of a message for the name of an attack of foolbox, with or without "Attack"."""
    known = {other.lower().removesuffix("attack"): other for other in foolbox_attack_names()}
    other = known.get(name.lower().removesuffix("attack"))
    return f"; did you mean foolbox:{other}?" if other else ""


def user_code_hash(name: str) -> str | None:
    """Hash of the source of a custom attack; None for attacks of ``ATTACKS``."""
    if not attack_facts(name).is_user_code:
        return None
    return source_hash(import_function(name, "attack"))


def shared_transforms(attack: str, options: dict[str, Any], shape: Sequence[int]) -> Tensor | None:
    """Candidate transforms (T, 3) of an attack that tries the same ones on all images; else None.

    ``shape``: of the images, (…, H, W).
    """
    transforms = _CANDIDATES.get(attack_facts(attack).candidates or "")
    if transforms is None:
        return None
    names = inspect.signature(transforms).parameters
    return transforms(shape, **{name: options[name] for name in names if name in options})


def num_candidates(attack: str, options: dict[str, Any], shape: Sequence[int]) -> int:
    """Number of transforms that an attack tries on each image (…, H, W); 0: it has no list."""
    shared = shared_transforms(attack, options, shape)
    if shared is not None:
        return len(shared)
    return options["num_draws"] if attack_facts(attack).candidates == "draws" else 0
