"""FMN of adversarial-library behind the contract of this package, where that library is installed.

adv_lib is imported when an attack of it is called, not before: it is no dependency of ours.
"""

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

from attacks.adapters.common import handed_over
from attacks.utils.confirm import run_confirmed
from attacks.utils.linearise import Norm
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
    """FMN (Pintor et al., arXiv 2102.12827) of adversarial-library, where that is installed.

    Fast minimum norm: gradient steps on the difference of logits, each projected on a ball about
    the image that shrinks while the point fools and grows while it does not. The nearest fooling
    point met on the way is returned, and for an image that is never fooled the image as it was.
    Images that are wrong already, or not finite, are not handed to the library. Its ``callback``,
    which writes to a server, is not offered.

    In L2 it may stall short of the boundary where many pixels are 0 or 1: clipping them takes away
    what the ball has grown by. A smaller ``max_stepsize`` helps, not always.

    Args:
        model: images (N, C, H, W) in [0, 1] to logits (N, K).
        images: floats (N, C, H, W) in [0, 1].
        labels: int64 (N,), the original classes.
        norm: of the perturbation.
        steps: points judged per image, the image itself among them; none is left out.
        max_stepsize: α₀, L2 length of the first gradient step; falls to a hundredth (cosine).
        gamma: γ₀, by which part the ball first shrinks or grows; falls to 0.001 (cosine).

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
    search = partial(handed_over, call=partial(_call, attack=attack))
    return run_confirmed(search, model, images, labels)


def import_adv_lib(name: str) -> Any:  # noqa: ANN401 - adv_lib has no types
    """A module of adv_lib, such as ``adv_lib.attacks``.

    Raises:
        ModuleNotFoundError: it, or what it imports, is not installed; the message says what to do.
    """
    try:
        with _stand_in_for_visdom(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing, remedy = f"adv-lib needs {error.name}, which", INSTALL_ADV_LIB
        if error.name == "adv_lib":
            missing = "adv-lib"
        elif error.name == "distutils":  # left Python with 3.12; setuptools brings it back
            remedy = "pip install setuptools"
        raise ModuleNotFoundError(
            f"{missing} is not installed: {remedy}", name="adv-lib"
        ) from error


@contextlib.contextmanager
def _stand_in_for_visdom() -> Iterator[None]:
    """Let adv_lib be imported without visdom.

    It imports that plotting client at its top, uses it only when asked for a live plot, and the
    client's own installation fails with today's setuptools.
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
    # Contiguous, for adv_lib projects in place what may else be a copy.
    return attack(model, images.contiguous(), labels)
