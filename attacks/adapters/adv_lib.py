"""Adapter for FMN of adversarial-library, an optional dependency imported on first use."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from attacks.adapters.common import attack_correct_images
from attacks.utils.boundary import Norm
from attacks.utils.confirm import run_confirmed
from attacks.utils.model import Model
from attacks.utils.outcome import AttackOutcome

INSTALL_ADV_LIB = "pip install tqdm; pip install --no-deps adv-lib"


def fmn(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    norm: Norm = "l2",
    steps: int = 100,
    max_stepsize: float = 1.0,
    gamma: float = 0.05,
) -> AttackOutcome:
    """FMN (Pintor et al., arXiv 2102.12827) of adversarial-library, if that is installed.

    Fast minimum norm: gradient steps on the difference of logits, each projected on a ball around
    the image that shrinks while the point fools and grows while it does not. The result is the
    nearest fooling point of all steps, or the clean image if there is none. The library only gets
    finite, correctly classified images. Its ``callback``, which writes to a server, is not offered.

    In L2, it may stall before the boundary if many pixels are 0 or 1, because clipping them undoes
    the growth of the ball. A smaller ``max_stepsize`` often helps.

    Args:
        model: images (N, C, H, W) in [0, 1] to logits (N, K).
        images: floats (N, C, H, W) in [0, 1].
        labels: int64 (N,), the original classes.
        norm: norm of the perturbation.
        steps: number of points judged per image, including the image itself.
        max_stepsize: α₀, L2 length of the first gradient step; decays to a hundredth (cosine).
        gamma: γ₀, first relative change of the ball's radius; decays to 0.001 (cosine).

    Returns:
        An ``AttackOutcome``; ``transform`` and ``margins`` are None.

    Raises:
        ValueError: an option or the input is out of range.
        ModuleNotFoundError: adversarial-library is not installed.
    """
    if norm not in ("l2", "linf"):
        raise ValueError(f"norm: expected l2 or linf, got {norm!r}")
    if steps < 2:
        raise ValueError(f"steps: expected at least 2, got {steps}")
    if not 0 < max_stepsize < float("inf"):
        raise ValueError(f"max_stepsize: expected a positive number, got {max_stepsize}")
    if not 0 < gamma < 1:
        raise ValueError(f"gamma: expected a number between 0 and 1, got {gamma}")
    attack = partial(
        import_adv_lib("adv_lib.attacks").fmn,
        norm=2 if norm == "l2" else float("inf"),
        steps=steps,
        α_init=max_stepsize,
        γ_init=gamma,
    )
    search = partial(attack_correct_images, call=partial(_call, attack=attack))
    return run_confirmed(search, model, images, labels)


def import_adv_lib(name: str) -> Any:  # noqa: ANN401 - adv_lib has no types
    """Import a module of adv_lib, such as ``adv_lib.attacks``.

    Raises:
        ModuleNotFoundError: it or one of its imports is not installed; the message has a remedy.
    """
    try:
        with _stand_in_for_visdom(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing, remedy = f"adv-lib needs {error.name}, which", INSTALL_ADV_LIB
        if error.name == "adv_lib":
            missing = "adv-lib"
        elif error.name == "distutils":  # removed in Python 3.12; provided by setuptools
            remedy = "pip install setuptools"
        raise ModuleNotFoundError(
            f"{missing} is not installed: {remedy}", name="adv-lib"
        ) from error


@contextlib.contextmanager
def _stand_in_for_visdom() -> Iterator[None]:
    """Allow importing adv_lib without visdom.

    adv_lib imports this plotting client unconditionally but uses it only for live plots, and its
    installation fails with current setuptools.
    """
    if "visdom" in sys.modules or importlib.util.find_spec("visdom") is not None:
        yield
        return
    stand_in: Any = types.ModuleType("visdom")
    stand_in.Visdom = None
    sys.modules["visdom"] = stand_in
    try:
        yield
    finally:
        del sys.modules["visdom"]


def _call(
    model: nn.Module, images: Tensor, labels: Tensor, *, attack: Callable[..., Tensor]
) -> Tensor:
    # Contiguous: adv_lib projects in place, which would otherwise change a copy.
    return attack(model, images.contiguous(), labels)
