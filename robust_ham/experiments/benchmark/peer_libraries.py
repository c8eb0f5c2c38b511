"""Run the same attack in other libraries, for `robust-ham bench`.

Each function passes our attack's settings to its library. Libraries are imported on first use;
those not installed are left out.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from attacks.adapters.adv_lib import INSTALL_ADV_LIB, import_adv_lib
from attacks.adapters.foolbox import call_foolbox, import_foolbox
from attacks.utils.transforms import translation_limit
from robust_ham.config.attacks import attack_facts
from robust_ham.config.experiment import OURS
from robust_ham.evaluation.registry import attack_function

DISTRIBUTIONS = {
    OURS: "robust-ham",
    "foolbox": "foolbox",
    "adversarial-library": "adv-lib",
    "torchattacks": "torchattacks",
    "ART": "adversarial-robustness-toolbox",
}
INSTALL = {
    "adversarial-library": INSTALL_ADV_LIB,
    "torchattacks": "pip install tqdm; pip install --no-deps torchattacks",
    "ART": "pip install adversarial-robustness-toolbox",
}
_ART_BATCH = 64

Options = dict[str, Any]
Run = Callable[[nn.Module, Tensor, Tensor, Options], Tensor]
"""Model, images (N, C, H, W), labels (N,) and our attack's options -> adversarial images."""


def installed() -> dict[str, str]:
    """Return the version of each installed library."""
    versions = {}
    for library, distribution in DISTRIBUTIONS.items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(distribution)
    return versions


def can_run(library: str, attack: str, options: Options) -> bool:
    """Whether the library has this attack with these options."""
    if library == OURS:
        return True
    in_linf = options.get("norm") == "linf"
    plain = not options.get("refine") and options.get("padding", "zeros") == "zeros"
    return (
        (library, attack) in _RUNS
        and plain
        and not (in_linf and library in _ONLY_L2)
        and not (attack_facts(attack).candidates and options.get("stop") is None)
    )


def run(
    library: str, attack: str, options: Options, model: nn.Module, images: Tensor, labels: Tensor
) -> Tensor:
    """Run the library's attack and return its images, (N, C, H, W)."""
    if library == OURS:
        return attack_function(attack)[0](model, images, labels, **options).images
    with _quiet():
        return _RUNS[library, attack](model, images, labels, options).detach()


def load(library: str) -> None:
    """Import a library before it is measured."""
    if library == OURS:
        return
    if library == "foolbox":
        import_foolbox()
        return
    with _quiet():
        _import({"adversarial-library": "adv_lib.attacks.deepfool"}.get(library, library.lower()))


def _import(name: str) -> Any:  # noqa: ANN401 - these libraries have no types
    return import_adv_lib(name) if name.startswith("adv_lib") else importlib.import_module(name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings, prints and the root logger's messages."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _foolbox_deepfool(model: nn.Module, images: Tensor, labels: Tensor, options: Options) -> Tensor:
    attacks = import_foolbox().attacks
    attack_class = (
        attacks.L2DeepFoolAttack if options["norm"] == "l2" else attacks.LinfDeepFoolAttack
    )
    all_classes = options["candidates"] == "all"
    attack = attack_class(
        steps=options["steps"],
        candidates=None if all_classes else options["candidates"],
        overshoot=options["overshoot"],
    )
    return call_foolbox(attack, model, images, labels)


def _foolbox_spatial(model: nn.Module, images: Tensor, labels: Tensor, options: Options) -> Tensor:
    attack = import_foolbox().attacks.SpatialAttack(
        max_translation=translation_limit(images.shape, options["max_translation"]),
        max_rotation=options["max_rotation"],
        num_translations=options["num_translations"],
        num_rotations=options["num_rotations"],
    )
    return call_foolbox(attack, model, images, labels)


def _adv_lib_deepfool(model: nn.Module, images: Tensor, labels: Tensor, options: Options) -> Tensor:
    adversarials: Tensor = _import("adv_lib.attacks.deepfool").df(
        model,
        images,
        labels,
        steps=options["steps"],
        overshoot=options["overshoot"],
        norm=2 if options["norm"] == "l2" else float("inf"),
    )
    return adversarials


def _adv_lib_superdeepfool(
    model: nn.Module, images: Tensor, labels: Tensor, options: Options
) -> Tensor:
    adversarials: Tensor = _import("adv_lib.attacks.superdeepfool").sdf(
        model,
        images,
        labels,
        steps=options["steps"],
        df_steps=options["steps"],
        overshoot=options["overshoot"],
    )
    return adversarials


def _torchattacks_deepfool(
    model: nn.Module, images: Tensor, labels: Tensor, options: Options
) -> Tensor:
    package = _import("torchattacks")
    adversarials: Tensor = package.DeepFool(
        model, steps=options["steps"], overshoot=options["overshoot"]
    )(images, labels)
    return adversarials


def _art_deepfool(model: nn.Module, images: Tensor, labels: Tensor, options: Options) -> Tensor:
    classification = _import("art.estimators.classification")
    with torch.no_grad():
        num_classes = model(images[:1]).shape[1]
    classifier = classification.PyTorchClassifier(
        model=model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=num_classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if images.is_cuda else "cpu",
    )
    attack = _import("art.attacks.evasion").DeepFool(
        classifier,
        max_iter=options["steps"],
        epsilon=options["overshoot"],
        nb_grads=num_classes if options["candidates"] == "all" else options["candidates"],
        batch_size=_ART_BATCH,
        verbose=False,
    )
    adversarials = attack.generate(x=images.cpu().numpy(), y=labels.cpu().numpy())
    return torch.from_numpy(adversarials).to(images)


_ONLY_L2 = ("torchattacks", "ART")
_RUNS: dict[tuple[str, str], Run] = {
    ("foolbox", "deepfool"): _foolbox_deepfool,
    ("foolbox", "spatial_grid"): _foolbox_spatial,
    ("adversarial-library", "deepfool"): _adv_lib_deepfool,
    ("adversarial-library", "superdeepfool"): _adv_lib_superdeepfool,
    ("torchattacks", "deepfool"): _torchattacks_deepfool,
    ("ART", "deepfool"): _art_deepfool,
}
