"""Any attack of foolbox (Rauber et al., JOSS 2020) behind the contract of this package.

foolbox is imported when an attack of it is called, not before: it is slow to import, looks for a
git binary and warns.
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

from attacks.adapters.common import handed_over, is_plain
from attacks.utils.confirm import run_confirmed
from attacks.utils.linearise import Norm
from attacks.utils.model import Model
from attacks.utils.outcome import AttackOutcome

_NO_START = "init_attack failed"  # foolbox's words where a decision-based attack finds no start
_generators = threading.RLock()  # the global random generators have one user at a time


def foolbox_attack(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    attack: str = "DDNAttack",
    norm: Norm = "l2",
    epsilon: float | None = None,
    seed: int = 0,
    **options: Any,  # noqa: ANN401 - they are the foolbox attack's own
) -> AttackOutcome:
    """Whatever the named foolbox attack finds.

    Images that are wrong already, or not finite, are not handed to foolbox. An attack that draws
    draws from the global generators, which are seeded for each chunk of images and given back as
    they were: its answer for an image depends on the other images of the batch.

    Args:
        model: images (N, C, H, W) in [0, 1] to logits (N, K).
        images: floats (N, C, H, W) in [0, 1].
        labels: int64 (N,).
        attack: name of a class in ``foolbox.attacks``: ``DDNAttack``, ``LinfPGD``, ``FGSM``, …
        norm: in which the attack measures; handed on to an attack that leaves the choice.
        epsilon: size of the perturbation; for attacks of fixed size, and only for them.
        seed: of the global generators while foolbox runs.
        options: of the foolbox attack's constructor, as ``steps=100``; those that are paths,
            objects or functions (``tensorboard``, ``init_attack``) are not offered.

    Returns:
        An ``AttackOutcome``; ``forwards`` and ``backwards`` count what foolbox spent on the batch
        that an image was in, also after the image fooled.

    Raises:
        ValueError: an unknown attack or option, one that is not offered, a norm that is not the
            attack's, an ``epsilon`` missing or too many, or the input is out of range.
    """
    build = _builder(attack, norm, epsilon, options)
    search = partial(handed_over, call=partial(_call, build=build, epsilon=epsilon, seed=seed))
    # Many images survive an attack of fixed size, and would be attacked again without the copy.
    return run_confirmed(search, model, images, labels, use_copy=epsilon is None)


def foolbox_parameters(attack: str) -> list[inspect.Parameter]:
    """What of a foolbox attack's constructor is offered as an option: no path and no code.

    Raises:
        ValueError: no such attack.
    """
    return [p for p in _signature(attack) if is_plain(p.annotation)]


def why_no_option(attack: str, name: str) -> str:
    """What to say of a name that is not among the parameters offered of a foolbox attack."""
    if name in {p.name for p in _signature(attack)}:
        return f"not offered, as a path, an object or a function of foolbox's {attack}"
    return f"unknown option of foolbox's {attack}"


def _signature(attack: str) -> list[inspect.Parameter]:
    signature = inspect.signature(_attack_class(attack), eval_str=True)
    return [p for p in signature.parameters.values() if p.name != "distance"]


def import_foolbox() -> Any:  # noqa: ANN401 - foolbox has no types
    """The package; its import must neither start git, nor fail without it, nor warn."""
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


def _attack_class(name: str) -> Any:  # noqa: ANN401
    package = import_foolbox()
    found = getattr(package.attacks, name, None)
    if not inspect.isclass(found) or not issubclass(found, package.Attack):
        raise ValueError(f"attack: expected an attack of foolbox such as DDNAttack, got {name!r}")
    return found


def _builder(name: str, norm: Norm, epsilon: float | None, options: dict[str, Any]) -> Any:  # noqa: ANN401
    """A function that builds the attack anew, once it is known to build."""
    base, wanted = import_foolbox().attacks.base, _attack_class(name)
    if norm not in ("l2", "linf"):
        raise ValueError(f"norm: expected l2 or linf, got {norm!r}")
    if name == "L2FMNAttack":
        warnings.warn(
            "foolbox's L2FMNAttack never projects: its distances mean nothing; use DDNAttack",
            stacklevel=3,
        )
    known = [p.name for p in foolbox_parameters(name)]
    for option in options:
        if option not in known:
            raise ValueError(f"{option}: {why_no_option(name, option)} ({', '.join(known)})")
    if issubclass(wanted, base.FixedEpsilonAttack) and not (epsilon and epsilon > 0):
        raise ValueError(f"epsilon: foolbox's {name} needs the size of the perturbation")
    if not issubclass(wanted, base.FixedEpsilonAttack) and epsilon is not None:
        raise ValueError(f"epsilon: foolbox's {name} takes none")
    distances = import_foolbox().distances
    if "distance" in inspect.signature(wanted).parameters:
        options = options | {"distance": getattr(distances, norm)}
    try:
        built = wanted(**options)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"foolbox's {name}: {error}") from None
    measured = {distances.l2: "l2", distances.linf: "linf"}.get(getattr(built, "distance", None))
    if measured not in (None, norm):
        raise ValueError(f"norm: foolbox's {name} measures {measured}, got {norm}")
    return partial(wanted, **options)


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
    """What foolbox returns for B images; where it finds no start for some, each alone."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = call_foolbox(build(), model, images, labels, epsilon)
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
    return torch.where(torch.isfinite(found), found, images)


def call_foolbox(
    attack: Any,  # noqa: ANN401
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float | None = None,
) -> Tensor:
    """What an attack object of foolbox returns for images (N, C, H, W): same shape."""
    wrapped = import_foolbox().PyTorchModel(model.eval(), bounds=(0, 1), device=images.device)
    arguments = {"epsilons": epsilon} if hasattr(attack, "distance") else {}
    _, clipped, _ = attack(wrapped, images, labels, **arguments)
    found: Tensor = clipped.detach()
    return found


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The global generators that foolbox draws from seeded, and given back as they were."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach every device
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
