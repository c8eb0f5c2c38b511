"""Adapter for all attacks of foolbox (Rauber et al., JOSS 2020).

foolbox is imported on first use, because its import is slow, looks for a git binary and warns.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import random
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attacks.adapters.common import attack_correct_images, is_plain
from attacks.utils.boundary import Norm
from attacks.utils.confirm import run_confirmed
from attacks.utils.model import Model
from attacks.utils.outcome import AttackOutcome

_NO_START = "init_attack failed"  # foolbox's message if an attack finds no starting point
_generators = threading.RLock()  # one user of the global random generators at a time


def foolbox_attack(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    attack: str = "DDNAttack",
    norm: Norm = "l2",
    epsilon: float | None = None,
    seed: int = 0,
    **options: Any,  # noqa: ANN401 - options of the foolbox attack
) -> AttackOutcome:
    """Any attack of foolbox, by its name.

    foolbox only gets finite, correctly classified images. A randomised attack uses the global
    generators, which are seeded for each chunk of images and restored afterwards; its result for an
    image depends on the other images of the batch.

    Args:
        model: images (N, C, H, W) in [0, 1] to logits (N, K).
        images: floats (N, C, H, W) in [0, 1].
        labels: int64 (N,).
        attack: name of a class in ``foolbox.attacks``: ``DDNAttack``, ``LinfPGD``, ``FGSM``, …
        norm: norm of the attack, passed on if the attack has a choice.
        epsilon: perturbation size; required by attacks with a fixed size, and only by them.
        seed: seed of the global generators while foolbox runs.
        options: arguments of the foolbox attack's constructor, such as ``steps=100``, except paths,
            objects and functions (``tensorboard``, ``init_attack``).

    Returns:
        An ``AttackOutcome``; ``forwards`` and ``backwards`` count foolbox's passes on the image's
        batch, also after the image is fooled.

    Raises:
        ValueError: an unknown attack or option, an option that is not offered, another norm than
            the attack's, a missing or superfluous ``epsilon``, or input out of range.
    """
    build = _builder(attack, norm, epsilon, options)
    search = partial(
        attack_correct_images, call=partial(_call, build=build, epsilon=epsilon, seed=seed)
    )
    # An attack of fixed size leaves many survivors, which would be attacked twice with the copy.
    return run_confirmed(search, model, images, labels, use_copy=epsilon is None)


def foolbox_parameters(attack: str) -> list[inspect.Parameter]:
    """Return the parameters of a foolbox attack's constructor that are offered as options.

    Raises:
        ValueError: no such attack.
    """
    return [p for p in _signature(attack) if is_plain(p.annotation)]


def why_no_option(attack: str, name: str) -> str:
    """Explain why a name is not an option of a foolbox attack."""
    if name in {p.name for p in _signature(attack)}:
        return f"not offered: a path, an object or a function in foolbox's {attack}"
    return f"unknown option of foolbox's {attack}"


def _signature(attack: str) -> list[inspect.Parameter]:
    signature = inspect.signature(_attack_class(attack), eval_str=True)
    return [p for p in signature.parameters.values() if p.name != "distance"]


def import_foolbox() -> Any:  # noqa: ANN401 - foolbox has no types
    """Import foolbox without starting git, failing without git, or warning."""
    settings = {"GIT_PYTHON_REFRESH": "quiet", "GIT_PYTHON_GIT_EXECUTABLE": os.devnull}
    known = {name: os.environ.get(name) for name in settings}
    os.environ |= settings
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import foolbox
    finally:
        for name, value in known.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return foolbox


def foolbox_attack_names() -> list[str]:
    """Names of all attacks of foolbox."""
    package = import_foolbox()
    members = inspect.getmembers(package.attacks, inspect.isclass)
    return [name for name, member in members if issubclass(member, package.Attack)]


def _attack_class(name: str) -> Any:  # noqa: ANN401
    if name not in foolbox_attack_names():
        raise ValueError(f"attack: expected an attack of foolbox such as DDNAttack, got {name!r}")
    return getattr(import_foolbox().attacks, name)


def _builder(name: str, norm: Norm, epsilon: float | None, options: dict[str, Any]) -> Any:  # noqa: ANN401
    """Check the arguments of a foolbox attack, and return a function that builds it."""
    base, attack_class = import_foolbox().attacks.base, _attack_class(name)
    if norm not in ("l2", "linf"):
        raise ValueError(f"norm: expected l2 or linf, got {norm!r}")
    if name == "L2FMNAttack":
        warnings.warn(
            "foolbox's L2FMNAttack never projects: its distances are meaningless; use DDNAttack",
            stacklevel=3,
        )
    known = [p.name for p in foolbox_parameters(name)]
    for option in options:
        if option not in known:
            raise ValueError(f"{option}: {why_no_option(name, option)} ({', '.join(known)})")
    if issubclass(attack_class, base.FixedEpsilonAttack) and not (epsilon and epsilon > 0):
        raise ValueError(f"epsilon: foolbox's {name} requires the perturbation size")
    if not issubclass(attack_class, base.FixedEpsilonAttack) and epsilon is not None:
        raise ValueError(f"epsilon: not an option of foolbox's {name}")
    distances = import_foolbox().distances
    if "distance" in inspect.signature(attack_class).parameters:
        options = options | {"distance": getattr(distances, norm)}
    try:
        built = attack_class(**options)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"foolbox's {name}: {error}") from None
    measured = {distances.l2: "l2", distances.linf: "linf"}.get(getattr(built, "distance", None))
    if measured not in (None, norm):
        raise ValueError(f"norm: foolbox's {name} measures {measured}, got {norm}")
    return partial(attack_class, **options)


def _call(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    build: Any,  # noqa: ANN401
    epsilon: float | None,
    seed: int,
) -> Tensor:
    with _generators, _seeded(seed, images.device):
        return _attacked(build, model, images, labels, epsilon)


def _attacked(
    build: Any,  # noqa: ANN401
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float | None,
) -> Tensor:
    """Run foolbox on B images, one by one if it finds no starting point for some."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adversarials = call_foolbox(build(), model, images, labels, epsilon)
    except ValueError as error:
        if _NO_START not in str(error):
            raise
        if len(images) == 1:
            return images
        alone = [
            _attacked(build, model, images[i : i + 1], labels[i : i + 1], epsilon)
            for i in range(len(images))
        ]
        return torch.cat(alone)
    return torch.where(torch.isfinite(adversarials), adversarials, images)


def call_foolbox(
    attack: Any,  # noqa: ANN401
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float | None = None,
) -> Tensor:
    """Run an attack object of foolbox on images (N, C, H, W); same shape."""
    wrapped = import_foolbox().PyTorchModel(model.eval(), bounds=(0, 1), device=images.device)
    arguments = {"epsilons": epsilon} if hasattr(attack, "distance") else {}
    _, clipped, _ = attack(wrapped, images, labels, **arguments)
    adversarials: Tensor = clipped.detach()
    return adversarials


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global random generators, and restore them afterwards."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all devices
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002
