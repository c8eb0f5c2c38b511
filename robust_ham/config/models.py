"""The sections under ``models``: one class per architecture, and the models it expands to."""

from __future__ import annotations

import itertools
import math
import re
from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from robust_ham.config.bounds import MAX_CHANNELS, MAX_DEPTH, MAX_MODELS, MAX_WIDTH
from robust_ham.config.fields import (
    Number,
    OddSize,
    PathText,
    SafeName,
    Section,
    Seed,
    Window,
    first_error,
    shown,
)
from robust_ham.config.suggestions import did_you_mean


class MatchConfig(Section):
    """The reference whose size a network matches by its width, in steps of 1/64."""

    to: Literal["params", "flops"] = Field("params", description="what to match")
    kernel_size: OddSize = Field(3, description="kernel size of the reference")
    width: Number = Field(1.0, gt=0, le=MAX_WIDTH, description="width multiplier of the reference")
    factorised: bool = Field(False, description="whether the reference is factorised")


class ModelGroup(Section):
    """One model, or with ``sweep`` one per combination of the listed values."""

    source: PathText = Field(
        "train",
        min_length=1,
        description="train (models that this run has trained are loaded), zoo, or a folder of "
        "models: the models/ folder of another run, or the output of robust-ham import",
    )
    kernel_size: OddSize = Field(7, description="kernel size k of the k×k convolutions, odd")
    window: Window = Field("none", description="window of the kernels; none: the baseline")
    seed: Seed = Field(
        0, description="seed of the initial weights, the order of images and augmentation"
    )
    init: Literal["default", "compensated"] = Field(
        "default",
        description="compensated: divide raw weights by the root mean square of their window, so "
        "that windowed weights start as large as a baseline's",
    )
    accuracy_of: Window | None = Field(
        None,
        description="train and keep the epoch whose validation accuracy is nearest to the final "
        "one of the same network with this window: a descriptive control",
    )
    normalize: bool = Field(
        False,
        description="normalise the input inside the network, by the training images' mean and std",
    )
    match: MatchConfig | None = Field(
        None,
        description="{to: params or flops, kernel_size: 3}: choose the width at which this network "
        "is as large as the same network with that kernel size and width 1; cnn, resnet18_cifar",
    )
    training: dict[str, Any] = Field(
        default_factory=dict,
        description="keys of training that differ for this group, such as {weight_decay: 0}; set "
        "prefix to distinguish its models from those of another group",
    )
    prefix: SafeName | None = Field(None, description="prefix of the model id")
    sweep: dict[str, Annotated[list[Any], Field(max_length=MAX_MODELS)]] = Field(
        default_factory=dict, description="lists of values of other keys of the group"
    )

    @model_validator(mode="after")
    def _has_a_width(self) -> ModelGroup:
        if self.match is not None and "width" not in type(self).model_fields:
            raise ValueError("match: only for cnn and resnet18_cifar")
        return self

    @model_validator(mode="after")
    def _sweep_keys(self) -> ModelGroup:
        fields = set(type(self).model_fields) - {"sweep", "source", "architecture"}
        for key, values in self.sweep.items():
            if key not in fields:
                hint = did_you_mean(key, fields)
                raise ValueError(f"sweep.{key}: expected one of {', '.join(sorted(fields))}{hint}")
            if not values:
                raise ValueError(f"sweep.{key}: expected at least one value")
        return self

    @property
    def num_models(self) -> int:
        """Number of models of the group."""
        return math.prod(map(len, self.sweep.values()))

    def expand(self) -> Iterator[ModelGroup]:
        """Yield the models of the group; the last key of ``sweep`` varies fastest."""
        base = self.model_dump(exclude={"sweep"})
        for values in itertools.product(*self.sweep.values()):
            combination = dict(zip(self.sweep, values, strict=True))
            try:
                yield type(self).model_validate(base | combination)
            except ValidationError as error:
                raise ValueError(f"sweep.{first_error(error, type(self))}") from None

    def accuracy_twins(self) -> tuple[ModelGroup, ModelGroup]:
        """With ``accuracy_of``: the same network at its last epoch, and the one to resemble."""
        unstopped = self.model_copy(update={"accuracy_of": None})
        return unstopped, unstopped.model_copy(update={"window": self.accuracy_of})

    @property
    def is_trained_here(self) -> bool:
        """Whether a run trains the model; others are loaded or built by user code."""
        return self.source == "train"

    @abstractmethod
    def _tag(self) -> str:
        """The architecture's part of the model id."""

    @property
    def family(self) -> str:
        """Common name of models that differ only in kernel size, window and seed."""
        tag = self._tag() + ("" if self.init == "default" else f"-{self.init}")
        tag += f"-as_{self.accuracy_of}" if self.accuracy_of is not None else ""
        if self.match is not None:
            tag += f"-{self.match.to}{self.match.kernel_size}"
            tag += "" if self.match.width == 1 else f"x{self.match.width:g}"
        return f"{self.prefix}-{tag}" if self.prefix else tag

    @property
    def model_id(self) -> str:
        """Name of the model's files, unique in a run."""
        return f"{self.family}-k{self.kernel_size}-{self.window}-s{self.seed}"


class CnnGroup(ModelGroup):
    """The paper's small network: ``depth`` convolutions, global average pooling, one linear."""

    architecture: Literal["cnn"] = "cnn"
    depth: int = Field(6, ge=1, le=MAX_DEPTH, description="number of convolutions, M in the paper")
    widths: tuple[Annotated[int, Field(ge=1, le=MAX_CHANNELS)], ...] = Field(
        (128, 256),
        min_length=1,
        max_length=MAX_DEPTH,
        description="channels per layer; the last value repeats",
    )
    width: Number = Field(1.0, gt=0, le=MAX_WIDTH, description="multiplier of all channels")
    first_kernel: OddSize | Literal["same"] = Field(
        7, description="kernel of the first convolution, odd, or same as kernel_size"
    )
    downsampling: Literal["stride", "maxpool", "none"] = Field(
        "stride", description="downsampling in the first layer: stride 2, 2×2 max-pooling, or none"
    )
    window_layers: Literal["all", "first"] = Field(
        "all", description="window in all convolutions or only in the first"
    )

    def _tag(self) -> str:
        tag = f"cnn{self.depth}-w{'x'.join(map(str, self.widths))}"
        tag += "" if self.width == 1 or self.match else f"-x{self.width:g}"
        tag += "" if self.first_kernel == "same" else f"-f{self.first_kernel}"
        tag += {"stride": "", "maxpool": "-maxpool", "none": "-nodown"}[self.downsampling]
        tag += "" if self.window_layers == "all" else "-windowfirst"
        return tag + ("-norm" if self.normalize else "")


class ResNet18CifarGroup(ModelGroup):
    """ResNet-18 for small images: first convolution of stride 1, no max-pooling."""

    architecture: Literal["resnet18_cifar"]
    normalize: bool = Field(True, description="as for cnn")
    width: Number = Field(
        1.0, gt=0, le=MAX_WIDTH, description="multiplier of 64, 128, 256, 512 channels"
    )
    factorised: bool = Field(False, description="k×1 then 1×k convolutions instead of k×k")
    first_kernel: OddSize | Literal["same"] = Field(
        "same", description="kernel of the first convolution, odd, or same as kernel_size"
    )
    first_downsampling: bool = Field(
        False, description="stride 2 in the first convolution and max-pooling, as for ImageNet"
    )

    def _tag(self) -> str:
        tag = f"resnet18-x{1 if self.match else self.width:g}"
        tag += "-factorised" if self.factorised else ""
        tag += "" if self.first_kernel == "same" else f"-f{self.first_kernel}"
        tag += "-down" if self.first_downsampling else ""
        return tag + ("" if self.normalize else "-raw")


class ImageNetGroup(ModelGroup):
    """torchvision's ResNet-18 or VGG-11 with BatchNorm; k above 3: larger kernels."""

    architecture: Literal["resnet18", "vgg11_bn"]
    kernel_size: OddSize = Field(3, description="3: torchvision's kernels; else k×k instead of 3×3")
    normalize: bool = Field(True, description="as for cnn")

    def _tag(self) -> str:
        return f"imagenet-{self.architecture}" + ("" if self.normalize else "-raw")


_MODULE_AND_FUNCTION = r"[\w.]+:[\w.]+"


def _module_and_function(name: str) -> str:
    if re.fullmatch(_MODULE_AND_FUNCTION, name):
        return name
    raise ValueError("expected module:function, such as my_package.networks:build")


class FactoryGroup(ModelGroup):
    """A custom model: a function that returns an ``nn.Module`` with inputs in [0, 1].

    ``kernel_size``, ``window`` and ``seed`` label it in tables and figures. The network must have
    such layers, unless ``label_only`` is set.
    """

    architecture: Literal["factory"] = "factory"
    source: PathText = Field(
        "factory",
        min_length=1,
        description="factory: call the function; or a folder that robust-ham import wrote",
    )
    factory: Annotated[str, AfterValidator(_module_and_function)] = Field(
        description="module:function; this runs that module's code",
        json_schema_extra={"pattern": f"^{_MODULE_AND_FUNCTION}$"},
    )
    weights: PathText | None = Field(
        None,
        description="weights: .safetensors, .pth, .pt or .ckpt, read without running code",
    )
    weights_key: str | None = Field(
        None, description="network to load from a file with several, such as model_ema"
    )
    pretrained: bool = Field(
        False,
        exclude_if=lambda pretrained: not pretrained,
        description="whether the function returns a trained network, which needs no weights",
    )
    label_only: bool = Field(
        False,
        description="whether window and kernel_size are labels only, not checked in the network",
    )

    @model_validator(mode="after")
    def _has_one_set_of_weights(self) -> FactoryGroup:
        if self.pretrained and self.weights is not None:
            raise ValueError("pretrained: not together with weights")
        if self.weights_key is not None and self.weights is None:
            raise ValueError("weights_key: only with weights")
        return self

    @property
    def is_trained_here(self) -> bool:
        """Never: a function builds it."""
        return False

    def _tag(self) -> str:
        return self.factory.replace(":", "-")


class TableGroup(ModelGroup):
    """A model known only by an imported table: it can be reported but not run.

    ``window``, ``kernel_size`` and ``seed`` label it, as for ``factory``.
    """

    architecture: Literal["table"]
    name: SafeName = Field(
        description="common name of models that differ only in k, window and seed"
    )
    kernel_size: OddSize | Literal[0] = Field(0, description="as for cnn; 0: unknown")

    @property
    def is_trained_here(self) -> bool:
        """Never: it has no network."""
        return False

    def _tag(self) -> str:
        return self.name

    @property
    def model_id(self) -> str:
        """As for other models, without an unknown kernel size."""
        size = f"-k{self.kernel_size}" if self.kernel_size else ""
        return f"{self.family}{size}-{self.window}-s{self.seed}"


ARCHITECTURES: dict[str, type[ModelGroup]] = {
    "cnn": CnnGroup,
    "resnet18_cifar": ResNet18CifarGroup,
    "resnet18": ImageNetGroup,
    "vgg11_bn": ImageNetGroup,
    "factory": FactoryGroup,
    "table": TableGroup,
}


def model_group(group: Any) -> Any:  # noqa: ANN401
    """Parse a group as the class that its ``architecture`` names; return other values unchanged."""
    if not isinstance(group, dict):
        return group
    name = group.get("architecture", "factory" if "factory" in group else "cnn")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        expected = ", ".join(ARCHITECTURES)
        hint = did_you_mean(name, ARCHITECTURES)
        if isinstance(name, list):
            hint = "; add one group of models for each"
        raise ValueError(f"architecture: expected one of {expected}, got {shown(name)}{hint}")
    try:
        return ARCHITECTURES[name].model_validate(group)
    except ValidationError as error:
        raise ValueError(first_error(error, ARCHITECTURES[name])) from None
