"""Networks from user code: functions ``module:function`` that a configuration names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from robust_ham.config.models import FactoryGroup, ModelGroup
from robust_ham.config.user_code import import_function, one_line_for
from robust_ham.errors import RequestError
from robust_ham.models.applied_window import OTHER_WINDOW, windows_of
from robust_ham.models.importing.assign import assign_tensors
from robust_ham.models.importing.state_dicts import read_network
from robust_ham.regular_files import is_regular


def import_factory(spec: FactoryGroup) -> Callable[[], nn.Module]:
    """Import the function ``module:function`` of a group.

    Raises:
        RequestError: no such module or function, or no such weights file.
    """
    factory: Callable[[], nn.Module] = import_function(spec.factory, "factory")
    if spec.weights is not None and not is_regular(Path(spec.weights), follow_links=True):
        raise RequestError(f"weights {spec.weights}: no such file")
    return factory


def load_factory(spec: FactoryGroup) -> nn.Module:
    """Call a factory and load its weights file, if any; the network is in eval mode.

    Raises:
        RequestError: the factory fails, or the weights do not fit its network.
    """
    model = call_factory(spec)
    if spec.weights is not None:
        load_weights(model, Path(spec.weights), spec.weights_key)
    return model.eval()


def call_factory(spec: FactoryGroup) -> nn.Module:
    """Call a factory and check that its network has the window and kernel size of the group.

    Raises:
        RequestError: the factory raises, does not return an ``nn.Module``, or returns a network
            without the declared window or kernel size (not checked if ``label_only``).
    """
    factory = import_factory(spec)
    with one_line_for(f"factory {spec.factory}"):
        model = factory()
    if not isinstance(model, nn.Module):
        raise RequestError(f"factory {spec.factory}: expected a torch.nn.Module, got {type(model)}")
    if not spec.label_only:
        _check_window(spec, model)
        _check_kernel_size(spec, model)
    return model


def _check_window(spec: FactoryGroup, model: nn.Module) -> None:
    """Refuse a network that has another window than its group declares, or none."""
    windows = windows_of(model)
    allowed = ("none", spec.window, OTHER_WINDOW)
    layer = next((name for name, window in windows.items() if window not in allowed), None)
    if layer is not None:
        reason = f"its layer {layer} has the window {windows[layer]}"
    elif spec.window != "none" and spec.window not in windows.values():
        reason = "none of its layers has one"
    else:
        return
    raise RequestError(
        f"factory {spec.factory}: window: {spec.window}, but {reason}: add it with "
        "robust_ham.windowed, declare the window that the network has, or set label_only: true"
    )


def _check_kernel_size(spec: FactoryGroup, model: nn.Module) -> None:
    """Refuse a network with convolutions, none of which has the declared kernel size."""
    sizes = {conv.kernel_size for conv in model.modules() if isinstance(conv, nn.Conv2d)}
    if sizes and not any(max(size) == spec.kernel_size for size in sizes):
        actual = ", ".join(f"{height}×{width}" for height, width in sorted(sizes))
        raise RequestError(
            f"factory {spec.factory}: kernel_size: {spec.kernel_size}, but its kernels are "
            f"{actual}: declare one of these, or set label_only: true"
        )


def check_forward(
    spec: ModelGroup, model: nn.Module, image_shape: tuple[int, ...], device: torch.device
) -> None:
    """Run a factory's network on two random images (C, H, W); other networks are not run.

    Raises:
        RequestError: the network raises, or does not return logits (2, classes).
    """
    if not isinstance(spec, FactoryGroup):
        return
    call = f"factory {spec.factory}: forward on images {image_shape}"
    images = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0))
    with one_line_for(call), torch.no_grad():
        logits = model.eval()(images.to(device))
    if isinstance(logits, Mapping):
        logits = logits.get("logits", logits)
    logits = getattr(logits, "logits", logits)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 2:
        is_tensor = isinstance(logits, Tensor)
        got = tuple(logits.shape) if is_tensor else f"a {type(logits).__name__}"
        raise RequestError(f"{call}: expected a tensor of logits (2, classes), got {got}")


def load_weights(
    model: nn.Module, path: Path, key: str | None = None, option: str = "weights_key"
) -> None:
    """Load a third-party weights file into a network, without running code from the file.

    Args:
        model: any network; tensors are matched by name, as in ``robust-ham import``.
        path: a ``.safetensors`` file, or one that ``torch.save`` wrote.
        key: which network to take from a file that contains several.
        option: the name of ``key`` in messages.

    Raises:
        RequestError: the file is unreadable or holds several networks, or its tensors have other
            names or shapes, or values that are not finite.
    """
    assignment = assign_tensors(read_network(path, key, option), model)
    if assignment.ambiguous_layers is not None:
        raise RequestError(
            f"{path}: its tensor names differ from the network's, and "
            f"{assignment.ambiguous_layers} have the same shapes, so their order is uncertain: "
            "check the accuracy with robust-ham import --accuracy"
        )
