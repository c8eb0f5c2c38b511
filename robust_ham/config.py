"""Typed configuration: a YAML file in, checked values out; unknown keys are errors.

A leaf: imports nothing of the project and no torch, so that reports and ``--help`` stay light.
"""

from __future__ import annotations

import itertools
import json
import re
from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

SCHEMA = 1
OURS = "robust-ham"
"""What we are called where other libraries stand beside us."""
BEST = {"l2": "best", "linf": "best_linf"}
"""Attack ids of the best, image by image, of several minimum-norm attacks of a norm."""

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class RequestError(Exception):
    """What was asked for is wrong; its one line names the culprit. Exit code 2."""


def safe_name(value: str) -> str:
    """``value`` if it can be a file name everywhere.

    Raises:
        ValueError: anything but 1–100 letters, digits, ``.``, ``_``, ``-``.
    """
    if not _SAFE_NAME.fullmatch(value):
        raise ValueError(f"expected letters, digits, '.', '_' or '-', got {value!r}")
    return value


def number(value: Any) -> Any:  # noqa: ANN401
    """Numbers written as ``8/255`` or ``5e-4`` (which YAML reads as text)."""
    if isinstance(value, str):
        numerator, slash, denominator = value.partition("/")
        try:
            return float(numerator) / (float(denominator) if slash else 1.0)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"expected a number such as 0.5 or 8/255, got {value!r}") from None
    return value


def odd(value: int) -> int:
    """``value`` if a kernel of that size has a centre."""
    if value % 2 == 0:
        raise ValueError(f"expected an odd number, got {value}")
    return value


SafeName = Annotated[str, BeforeValidator(lambda v: safe_name(v) if isinstance(v, str) else v)]
Number = Annotated[float, BeforeValidator(number), Field(allow_inf_nan=False)]
OddSize = Annotated[int, Field(ge=1, le=99), AfterValidator(odd)]
Window = Literal[
    "none", "hamming", "hamming_sqrt", "hann", "blackman", "kaiser", "hamming_shuffled"
]


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values never change afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class DatasetConfig(Section):
    """Which images."""

    name: str = Field(
        "fashion_mnist",
        min_length=1,
        description="fashion_mnist, mnist, cifar10, cifar100, imagenet, or the name or path of "
        "a folder with parquet files or one sub-folder per class",
    )
    num_train: int | None = Field(
        None, ge=1, description="training images used, the first of the split; null: all found"
    )
    num_validation: int = Field(
        0,
        ge=0,
        description="training images held out after those for the validation columns; 0: the "
        "columns show the test split, which decides nothing",
    )
    num_test: int | None = Field(
        None, ge=1, description="test images used, the first of the split; null: all found"
    )
    stream: bool = Field(
        False,
        description="training images are read from class folders when they are needed: for data "
        "sets too large for memory",
    )
    image_size: int | None = Field(
        None, ge=1, description="28×28 to 14 subsamples every second pixel; folders: resize, crop"
    )
    data_root: str | None = Field(
        None, description="folder of data sets; --data-root and ROBUST_HAM_DATA go before it"
    )
    download: bool = Field(False, description="let torchvision download what is not found")

    @model_validator(mode="after")
    def _can_stream(self) -> DatasetConfig:
        if self.stream and self.image_size is None:
            raise ValueError("image_size: needed where stream is true")
        if self.stream and self.num_validation:
            raise ValueError("num_validation: not where stream is true")
        return self


class MatchConfig(Section):
    """The reference whose count a network's width is fitted to, in steps of 1/64."""

    to: Literal["params", "flops"] = Field("params", description="what is to be equal")
    kernel_size: OddSize = Field(3, description="kernel size of the reference")
    width: Number = Field(1.0, gt=0, le=16, description="width multiplier of the reference")
    factorised: bool = Field(False, description="whether the reference is factorised")


class ModelGroup(Section):
    """One model, or, with ``sweep``, one for each combination of the listed values."""

    source: str = Field(
        "train",
        min_length=1,
        description="train (or load what this run has trained), zoo, or a folder of models: the "
        "models/ of another run, or what robust-ham import wrote",
    )
    kernel_size: OddSize = Field(7, description="k of the k×k convolutions, odd")
    window: Window = Field("none", description="window of the kernels; none: the baseline")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of initial weights, order, augmentation")
    init: Literal["default", "compensated"] = Field(
        "default",
        description="compensated: raw weights divided by the root mean square of their window, so "
        "that windowed weights start as large as a baseline's",
    )
    normalize: bool = Field(
        False, description="the network normalises its input by the training images' mean and std"
    )
    match: MatchConfig | None = Field(
        None,
        description="{to: params or flops, kernel_size: 3}: find the width at which this network "
        "counts as much as the same with that kernel size and width 1; cnn, resnet18_cifar",
    )
    training: dict[str, Any] = Field(
        default_factory=dict,
        description="keys of training that differ for this group, as {weight_decay: 0}; its prefix "
        "tells its models from those of another group",
    )
    prefix: SafeName | None = Field(None, description="put before the model id")
    sweep: dict[str, list[Any]] = Field(
        default_factory=dict, description="lists of values of any other key of the group"
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
                raise ValueError(f"sweep.{key}: expected one of {', '.join(sorted(fields))}")
            if not values:
                raise ValueError(f"sweep.{key}: expected at least one value")
        return self

    def expand(self) -> Iterator[ModelGroup]:
        """The models of the group, the last key of ``sweep`` running fastest."""
        base = self.model_dump(exclude={"sweep"})
        for values in itertools.product(*self.sweep.values()):
            chosen = dict(zip(self.sweep, values, strict=True))
            try:
                yield type(self).model_validate(base | chosen)
            except ValidationError as error:
                raise ValueError(f"sweep.{first_error(error)}") from None

    @abstractmethod
    def _tag(self) -> str:
        """What the model id says of the architecture."""

    @property
    def family(self) -> str:
        """What models that differ only in kernel size, window and seed have in common."""
        tag = self._tag() + ("" if self.init == "default" else f"-{self.init}")
        if self.match is not None:
            tag += f"-{self.match.to}{self.match.kernel_size}"
            tag += "" if self.match.width == 1 else f"x{self.match.width:g}"
        return f"{self.prefix}-{tag}" if self.prefix else tag

    @property
    def model_id(self) -> str:
        """Name of the model's files: readable, and different for different models of a run."""
        return f"{self.family}-k{self.kernel_size}-{self.window}-s{self.seed}"


class CnnGroup(ModelGroup):
    """The paper's small network: ``depth`` convolutions, global average pooling, one linear."""

    architecture: Literal["cnn"] = "cnn"
    depth: int = Field(6, ge=1, le=100, description="number of convolutions, M in the paper")
    widths: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (128, 256), min_length=1, description="channels per layer; the last value repeats"
    )
    width: Number = Field(1.0, gt=0, le=16, description="multiplier of widths")
    first_kernel: OddSize | Literal["same"] = Field(
        7, description="kernel of the first convolution, odd, or same as kernel_size"
    )
    downsampling: Literal["stride", "maxpool", "none"] = Field(
        "stride", description="of the first layer: by 2, by 2×2 max-pooling, or none"
    )
    window_layers: Literal["all", "first"] = Field(
        "all", description="window in all convolutions, or in the first only"
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
    width: Number = Field(1.0, gt=0, le=16, description="multiplier of 64, 128, 256, 512 channels")
    factorised: bool = Field(False, description="k×1 then 1×k in place of k×k")
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
    kernel_size: OddSize = Field(3, description="3: torchvision's own; else k×k for 3×3")
    normalize: bool = Field(True, description="as for cnn")

    def _tag(self) -> str:
        return f"imagenet-{self.architecture}" + ("" if self.normalize else "-raw")


class FactoryGroup(ModelGroup):
    """A user's own model: a function that returns an ``nn.Module`` with inputs in [0, 1].

    ``kernel_size``, ``window`` and ``seed`` only label it in tables and figures.
    """

    architecture: Literal["factory"] = "factory"
    factory: str = Field(
        pattern=r"^[\w.]+:[\w.]+$", description="module:function; this runs that module's code"
    )
    weights: str | None = Field(
        None, description=".safetensors or .pth state dict (read without running code)"
    )

    def _tag(self) -> str:
        return self.factory.replace(":", "-")


ARCHITECTURES: dict[str, type[ModelGroup]] = {
    "cnn": CnnGroup,
    "resnet18_cifar": ResNet18CifarGroup,
    "resnet18": ImageNetGroup,
    "vgg11_bn": ImageNetGroup,
    "factory": FactoryGroup,
}


class TrainingConfig(Section):
    """How models are trained; the last epoch counts."""

    epochs: int = Field(10, ge=1, description="passes over the training images")
    batch_size: int = Field(128, ge=1, description="images per step")
    optimizer: Literal["sgd"] = Field("sgd", description="stochastic gradient descent")
    lr: Number = Field(0.1, gt=0, description="learning rate; of one_cycle: its peak")
    momentum: Number = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    nesterov: bool = Field(False, description="Nesterov's momentum")
    weight_decay: Number = Field(5e-4, ge=0, description="L2 penalty on all parameters")
    schedule: Literal["one_cycle", "step", "constant"] = Field(
        "one_cycle", description="one_cycle (30 % up, cosine), step (×0.1 at milestones), constant"
    )
    milestones: tuple[int, ...] = Field((), description="epochs at which step multiplies by 0.1")
    warmup_epochs: int = Field(
        0, ge=0, description="epochs in which the rate of step and constant first grows to lr"
    )
    augment: tuple[Literal["flip", "crop", "resized_crop"], ...] = Field(
        ("flip", "crop"),
        description="per image: horizontal flip; crop after padding by 4; resized_crop: a crop of "
        "10 to 100 % of the area, aspect 0.8 to 1.25, of images read from class folders as needed",
    )
    accumulate: int = Field(
        1, ge=1, description="parts in which a process computes its share of a batch, one by one"
    )
    precision: Literal["auto", "bf16", "float32"] = Field(
        "auto", description="auto: bf16 autocast where the device computes in it, else float32"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> TrainingConfig:
        if self.schedule == "one_cycle" and self.warmup_epochs:
            raise ValueError("warmup_epochs: one_cycle has its own")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate: expected at most batch_size = {self.batch_size}")
        return self


class AttackConfig(BaseModel):
    """One attack; keys not named here are options of the attack function itself."""

    model_config = ConfigDict(extra="allow", frozen=True)

    attack: str = Field(
        description="a name in the catalogue (robust-ham list attacks), or foolbox:NAME for an "
        "attack of foolbox"
    )
    budget: Number | None = Field(
        None, gt=0, description="distance of robust_accuracy; minimum-norm attacks"
    )
    budgets: tuple[Annotated[Number, Field(gt=0)], ...] | None = Field(
        None, min_length=1, description="distances of the curve; the largest ends robust_area"
    )

    @property
    def options(self) -> dict[str, Any]:
        """Options of the attack function."""
        return dict(self.model_extra or {})

    @property
    def norm(self) -> Literal["l2", "linf"]:
        """Norm in which this attack's distances are counted."""
        return "linf" if self.options.get("norm") == "linf" else "l2"

    @property
    def has_budget(self) -> bool:
        """Whether the attack seeks the smallest distance; others fool or do not."""
        without = ("spatial_", "stadv", "foolbox:SpatialAttack")
        return not self.attack.startswith(without) and "epsilon" not in self.options

    @property
    def curve_budgets(self) -> tuple[float, ...]:
        """``budgets``, ascending, or the norm's defaults."""
        default = (
            (0.05, 0.1, 0.25, 0.5) if self.norm == "l2" else (0.5 / 255, 1 / 255, 2 / 255, 4 / 255)
        )
        return tuple(sorted(self.budgets or default))

    @property
    def main_budget(self) -> float:
        """``budget``, or the middle one of ``curve_budgets``."""
        return self.budget or self.curve_budgets[len(self.curve_budgets) // 2]


class EndpointConfig(Section):
    """A primary endpoint: what a study is to decide, named before anything is trained."""

    metric: Literal["clean_accuracy", "robust_area", "robust_accuracy"] = Field(
        description="clean_accuracy (whole test split), robust_area or robust_accuracy"
    )
    attack: str = Field(
        "", description="attack id; best: of several minimum-norm attacks, image by image"
    )
    budget: Number | None = Field(
        None, gt=0, description="of robust_accuracy under a minimum-norm attack"
    )


class EvaluationConfig(Section):
    """Which images are attacked, and how it is computed."""

    num_images: int = Field(1000, ge=1, description="attacked: the first of a balanced order")
    split: Literal["test", "train"] = Field("test", description="split that is attacked")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the balanced order")
    batch_size: int = Field(250, ge=1, description="images handed to an attack at once")
    threads: int = Field(2, ge=1, description="CPU threads of training and attacks; part of keys")
    keep_adversarials: bool = Field(False, description="store all adversarial images")
    gate: bool = Field(
        True, description="check models and minimum-norm attacks on 32 images: can they be trusted"
    )
    gallery: bool = Field(
        True,
        description="keep 8 images per model and attack for the page; false for data whose "
        "images may not be passed on",
    )


class Config(Section):
    """A whole experiment."""

    schema_version: Literal[1] = Field(
        1,
        validation_alias=AliasChoices("schema", "schema_version"),
        serialization_alias="schema",
        description="version of this layout",
    )
    name: SafeName = Field(description="name of the run; its folder is results/<name>")
    dataset: DatasetConfig = Field(default_factory=DatasetConfig)
    models: list[CnnGroup | ResNet18CifarGroup | ImageNetGroup | FactoryGroup] = Field(min_length=1)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    attacks: dict[SafeName, AttackConfig] = Field(min_length=1)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    endpoints: list[EndpointConfig] = Field(
        default_factory=list,
        description="primary endpoints: window effects per k on these decide; all else explores",
    )
    interaction: tuple[OddSize, OddSize] | None = Field(
        None, description="two kernel sizes: by how much the window effect grows between them"
    )

    @field_validator("models", mode="before")
    @classmethod
    def _by_architecture(cls, groups: Any) -> Any:  # noqa: ANN401
        """Give each group its own class, so that an error names the one key that is wrong."""
        if not isinstance(groups, list):
            return groups
        built = []
        for index, group in enumerate(groups):
            try:
                built.append(model_group(group))
            except ValueError as error:
                raise ValueError(f"{index}.{error}") from None
        return built

    @model_validator(mode="after")
    def _unique_ids(self) -> Config:
        seen: set[str] = set()
        for spec in self.model_specs():
            if spec.model_id in seen:
                raise ValueError(f"models: two models are called {spec.model_id}; set a prefix")
            seen.add(spec.model_id)
        return self

    @model_validator(mode="after")
    def _attack_ids(self) -> Config:
        for attack_id in self.attacks:
            if attack_id in BEST.values():
                raise ValueError(f"attacks: {attack_id} is the name of the best of all attacks")
        for i, endpoint in enumerate(self.endpoints):
            known = ["", *BEST.values(), *self.attacks]
            if endpoint.attack not in known or (endpoint.metric == "clean_accuracy") != (
                endpoint.attack == ""
            ):
                raise ValueError(f"endpoints.{i}.attack: {endpoint.metric} of {endpoint.attack!r}")
        return self

    @model_validator(mode="after")
    def _trainings(self) -> Config:
        for spec in self.model_specs():
            augment = self.training_of(spec).augment
            if self.dataset.stream and "crop" in augment:
                raise ValueError("training.augment: crop is for images in memory; resized_crop")
            if not self.dataset.stream and "resized_crop" in augment:
                raise ValueError("training.augment: resized_crop needs dataset.stream: true")
        return self

    def training_of(self, spec: ModelGroup) -> TrainingConfig:
        """``training`` with what differs for this model."""
        try:
            return TrainingConfig.model_validate(self.training.model_dump() | spec.training)
        except ValidationError as error:
            raise ValueError(f"models: training.{first_error(error)}") from None

    def model_specs(self) -> list[ModelGroup]:
        """All models of the run, sweeps expanded."""
        return [spec for group in self.models for spec in group.expand()]

    def to_yaml(self) -> str:
        """The complete configuration as YAML that ``load_config`` reads back."""
        values = json.loads(self.model_dump_json(by_alias=True))
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def model_group(group: Any) -> Any:  # noqa: ANN401
    """A group of the class its ``architecture`` names; what is no mapping passes unchanged."""
    if not isinstance(group, dict):
        return group
    name = group.get("architecture", "factory" if "factory" in group else "cnn")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        expected = ", ".join(ARCHITECTURES)
        raise ValueError(f"architecture: expected one of {expected}, got {name!r}")
    try:
        return ARCHITECTURES[name].model_validate(group)
    except ValidationError as error:
        raise ValueError(first_error(error)) from None


def first_error(error: ValidationError) -> str:
    """The first fault as ``key.sub_key: what is wrong``."""
    fault = error.errors()[0]
    known = set(ARCHITECTURES.values())
    names = {cls.__name__ for cls in known}
    parts = [str(part) for part in fault["loc"]]  # unions add the name of the type they tried
    where = ".".join(p for p in parts if p not in names and not p.startswith("function-"))
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        message = "unknown key"
    scalar = isinstance(fault["input"], str | int | float | bool | None)
    if scalar and "got" not in message and fault["type"] not in {"extra_forbidden", "missing"}:
        message += f", got {fault['input']!r}"
    message = message[0].lower() + message[1:]
    if fault["type"] == "value_error" and where and re.match(r"[\w.]+: ", message):
        return f"{where}.{message}"  # the message goes on with the path
    return f"{where}: {message}" if where else message
