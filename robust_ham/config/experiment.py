"""Typed configuration: a YAML file in, checked values out; unknown keys are errors.

A leaf: imports its sections only and no torch, so that reports and ``--help`` stay light.
"""

from __future__ import annotations

import json
import math
import os
import re
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AliasChoices,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from robust_ham.config.bounds import (
    MAX_BATCH,
    MAX_EPOCHS,
    MAX_IMAGE_SIZE,
    MAX_IMAGES,
    MAX_ITEMS,
    MAX_JOBS,
    MAX_MODELS,
    MAX_RATE,
    MAX_THREADS,
)
from robust_ham.config.fields import (
    Distance,
    Number,
    OddSize,
    PathText,
    SafeName,
    Section,
    Seed,
    first_error,
)
from robust_ham.config.models import (
    CnnGroup,
    FactoryGroup,
    ImageNetGroup,
    ModelGroup,
    ResNet18CifarGroup,
    TableGroup,
    model_group,
)

SCHEMA = 1
OURS = "robust-ham"
"""What we are called where other libraries stand beside us."""
BEST = {"l2": "best", "linf": "best_linf"}
"""Attack ids of the best, image by image, of several minimum-norm attacks of a norm."""


MAX_ID_BYTES = 200
"""Of a model id; a file name holds 255, of which a temporary file's takes up to 40 more."""


class DatasetConfig(Section):
    """Which images."""

    name: PathText = Field(
        "fashion_mnist",
        min_length=1,
        description="fashion_mnist, mnist, cifar10, cifar100, imagenet, or the name or path of "
        "a folder with parquet files or one sub-folder per class",
    )
    num_train: int | None = Field(
        None,
        ge=1,
        le=MAX_IMAGES,
        description="training images used, the first of the split; null: all found",
    )
    num_validation: int = Field(
        0,
        ge=0,
        le=MAX_IMAGES,
        description="training images held out after those for the validation columns; 0: the "
        "columns show the test split, which decides nothing",
    )
    num_test: int | None = Field(
        None,
        ge=1,
        le=MAX_IMAGES,
        description="test images used, the first of the split; null: all found",
    )
    stream: bool = Field(
        False,
        description="training images are read from class folders when they are needed: for data "
        "sets too large for memory",
    )
    image_size: int | None = Field(
        None,
        ge=1,
        le=MAX_IMAGE_SIZE,
        description="28×28 to 14 subsamples every second pixel; folders: resize, crop",
    )
    data_root: PathText | None = Field(
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


class TrainingConfig(Section):
    """How models are trained; the last epoch counts."""

    epochs: int = Field(10, ge=1, le=MAX_EPOCHS, description="passes over the training images")
    batch_size: int = Field(128, ge=1, le=MAX_BATCH, description="images per step")
    optimizer: Literal["sgd"] = Field("sgd", description="stochastic gradient descent")
    lr: Number = Field(0.1, gt=0, le=MAX_RATE, description="learning rate; of one_cycle: its peak")
    momentum: Number = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    nesterov: bool = Field(False, description="Nesterov's momentum")
    weight_decay: Number = Field(
        5e-4, ge=0, le=MAX_RATE, description="L2 penalty on all parameters"
    )
    schedule: Literal["one_cycle", "step", "constant"] = Field(
        "one_cycle", description="one_cycle (30 % up, cosine), step (×0.1 at milestones), constant"
    )
    milestones: tuple[Annotated[int, Field(ge=0, le=MAX_EPOCHS)], ...] = Field(
        (), max_length=MAX_ITEMS, description="epochs at which step multiplies by 0.1"
    )
    warmup_epochs: int = Field(
        0,
        ge=0,
        le=MAX_EPOCHS,
        description="epochs in which the rate of step and constant first grows to lr",
    )
    augment: tuple[Literal["flip", "crop", "resized_crop"], ...] = Field(
        ("flip", "crop"),
        max_length=MAX_ITEMS,
        description="per image: horizontal flip; crop after padding by 4; resized_crop: a crop of "
        "10 to 100 % of the area, aspect 0.8 to 1.25, of images read from class folders as needed",
    )
    accumulate: int = Field(
        1,
        ge=1,
        le=MAX_BATCH,
        description="parts in which a process computes its share of a batch, one by one",
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


EPSILON_OPTIONS = ("epsilon", "eps", "max_epsilon", "max_eps")
"""Options that set the size of the perturbation: an attack that has one seeks no least distance."""

_NORM_NAMES = {"l2": "l2", "2": "l2", "linf": "linf", "inf": "linf", "l∞": "linf", "∞": "linf"}


def norm_named(value: Any) -> Literal["l2", "linf"] | None:  # noqa: ANN401
    """The norm that an attack calls ``l2``, ``L2``, 2, ``linf``, ``L_inf`` or infinity."""
    spelled = f"{value:g}" if isinstance(value, int | float) else str(value)
    return _NORM_NAMES.get(re.sub("^l[ _-]", "l", spelled.lower()))  # type: ignore[return-value]


def is_own(attack: str) -> bool:
    """Whether an attack's name is that of a user's function, ``module:function``."""
    return ":" in attack and not attack.startswith("foolbox:")


class AttackConfig(Section):
    """One attack; keys not named here are options of the attack function itself."""

    model_config = ConfigDict(extra="allow", frozen=True)

    attack: str = Field(
        description="a name in the catalogue (robust-ham list attacks), foolbox:NAME for an "
        "attack of foolbox, or module:function for one of your own; this runs that module's code; "
        "beside models of a table: table, with norm: none where it has no distances"
    )
    budget: Distance | None = Field(
        None, description="distance of robust_accuracy; minimum-norm attacks"
    )
    budgets: tuple[Distance, ...] | None = Field(
        None,
        min_length=1,
        max_length=MAX_ITEMS,
        description="distances of the curve; the largest ends robust_area",
    )
    kind: Literal["minimum_norm", "fixed_epsilon"] | None = Field(
        None,
        exclude_if=lambda kind: kind is None,
        description="of an attack of your own: minimum_norm seeks the least distance, counted in "
        "its norm (l2, linf) against budget; fixed_epsilon works within a size of its own, and "
        "what survives it is robust; one with an option epsilon or eps is fixed_epsilon",
    )
    num_images: int | None = Field(
        None,
        ge=1,
        le=MAX_IMAGES,
        description="attacked: the first of evaluation.num_images; null: all of them",
    )
    seeds: tuple[Seed, ...] | None = Field(
        None,
        min_length=1,
        max_length=MAX_ITEMS,
        description="only models of these seeds are attacked; null: all",
    )

    @model_validator(mode="after")
    def _kind_is_not_known(self) -> AttackConfig:
        if self.kind is not None and not is_own(self.attack):
            raise ValueError(f"kind: only for an attack of your own, got {self.attack!r}")
        return self

    @model_validator(mode="after")
    def _has_a_band(self) -> AttackConfig:
        for name in ("band", "bands"):
            if self.in_band and type(self.options.get(name, 0)) is not int:
                raise ValueError(f"{name}: expected a whole number, got {self.options[name]!r}")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """Options of the attack function."""
        return dict(self.model_extra or {})

    @property
    def norm(self) -> Literal["l2", "linf"]:
        """Norm in which this attack's distances are counted."""
        return norm_named(self.options.get("norm")) or "l2"

    def attacks(self, spec: ModelGroup) -> bool:
        """Whether a model is to be attacked."""
        return self.seeds is None or spec.seed in self.seeds

    @property
    def has_budget(self) -> bool:
        """Whether the attack seeks the least distance; others fool or do not."""
        if self.kind is not None:
            return self.kind == "minimum_norm"
        if is_own(self.attack):  # in a run of before there was kind
            return self.budget is not None or self.budgets is not None
        without = ("spatial_", "stadv", "foolbox:SpatialAttack")
        bounded = self.options.get("epsilon") is not None or self.options.get("norm") == "none"
        return not self.attack.startswith(without) and not bounded

    @property
    def in_band(self) -> bool:
        """Whether perturbations are held to a band of frequencies, so that no distance is least."""
        return self.attack == "band_deepfool"

    @property
    def band(self) -> tuple[int, int]:
        """Of an attack that is held to a band: which, from 1, and of how many."""
        return self.options.get("band", 0) + 1, self.options.get("bands", 4)

    @property
    def competes(self) -> bool:
        """Whether best may be it: it seeks the least distance, on all images of all models."""
        everything = self.num_images is None and self.seeds is None
        return self.has_budget and not self.in_band and everything

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
    budget: Distance | None = Field(
        None, description="of robust_accuracy under a minimum-norm attack"
    )


class EvaluationConfig(Section):
    """Which images are attacked, and how it is computed."""

    num_images: int = Field(
        1000, ge=1, le=MAX_IMAGES, description="attacked: the first of a balanced order"
    )
    split: Literal["test", "train"] = Field("test", description="split that is attacked")
    seed: Seed = Field(0, description="seed of the balanced order")
    batch_size: int = Field(
        250, ge=1, le=MAX_BATCH, description="images handed to an attack at once"
    )
    shard_size: int | None = Field(
        None,
        ge=1,
        le=MAX_IMAGES,
        description="images of one job, so that several workers share an attack on a model; "
        "null: all of them",
    )
    threads: int = Field(
        2, ge=1, le=MAX_THREADS, description="CPU threads of training and attacks; part of keys"
    )
    keep_adversarials: bool = Field(False, description="store all adversarial images")
    gate: bool = Field(
        True, description="check models and minimum-norm attacks on 32 images: can they be trusted"
    )
    gallery: bool = Field(
        True,
        description="keep 8 images per model and attack for the page; false for data whose "
        "images may not be passed on",
    )


class TransferConfig(Section):
    """Adversarial images of every model, rescaled to one length and shown to every other."""

    attack: str = Field(description="id of a minimum-norm L2 attack of the run")
    budget: Distance = Field(description="L2 length of all perturbations")


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
    models: list[CnnGroup | ResNet18CifarGroup | ImageNetGroup | FactoryGroup | TableGroup] = Field(
        min_length=1, max_length=MAX_MODELS
    )
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    attacks: dict[SafeName, AttackConfig] = Field(min_length=1, max_length=MAX_ITEMS)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    endpoints: list[EndpointConfig] = Field(
        default_factory=list,
        max_length=MAX_ITEMS,
        description="primary endpoints: window effects per k on these decide; all else explores",
    )
    interaction: tuple[OddSize, OddSize] | None = Field(
        None, description="two kernel sizes: by how much the window effect grows between them"
    )
    transfer: TransferConfig | None = Field(
        None,
        description="transfer between all models; needs evaluation.keep_adversarials: true",
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
        num_models = sum(group.num_models for group in self.models)
        if num_models > MAX_MODELS:
            raise ValueError(f"models: expected at most {MAX_MODELS:,} in all, got {num_models:,}")
        num_jobs = num_models * (1 + sum(map(self.num_shards, self.attacks)))
        if num_jobs > MAX_JOBS:
            raise ValueError(
                f"evaluation.shard_size: expected at most {MAX_JOBS:,} jobs, got {num_jobs:,}"
            )
        seen: set[str] = set()
        for spec in self.model_specs():
            if len(os.fsencode(spec.model_id)) > MAX_ID_BYTES:
                raise ValueError(
                    f"models: {spec.model_id[:40]}… would be a file name of more than "
                    f"{MAX_ID_BYTES} bytes"
                )
            if spec.model_id in seen:
                raise ValueError(f"models: two models are called {spec.model_id}; set a prefix")
            seen.add(spec.model_id)
        return self

    @model_validator(mode="after")
    def _accuracy_twins(self) -> Config:
        asked = {spec.model_id: spec for spec in self.model_specs()}
        for spec in self.model_specs():
            if spec.accuracy_of is None:
                continue
            if not self.dataset.num_validation:
                raise ValueError(
                    "models.accuracy_of: needs dataset.num_validation: test images decide nothing"
                )
            if not spec.is_trained_here or spec.accuracy_of == spec.window:
                raise ValueError("models.accuracy_of: needs source: train, and another window")
            for twin in spec.accuracy_twins():
                if twin.model_id not in asked:
                    raise ValueError(f"models.accuracy_of: {spec.model_id} needs {twin.model_id}")
            itself = asked[spec.accuracy_twins()[0].model_id]
            if self.training_of(itself) != self.training_of(spec):
                raise ValueError(
                    f"models.accuracy_of: {spec.model_id} needs the same training as "
                    f"{itself.model_id}"
                )
        return self

    @model_validator(mode="after")
    def _attack_ids(self) -> Config:
        for attack_id in self.attacks:
            if attack_id in BEST.values():
                raise ValueError(f"attacks: {attack_id} is the name of the best of all attacks")
        return self

    @model_validator(mode="after")
    def _attacked(self) -> Config:
        seeds = {spec.seed for spec in self.model_specs()}
        for attack_id, attack in self.attacks.items():
            if (attack.num_images or 0) > self.evaluation.num_images:
                most = self.evaluation.num_images
                raise ValueError(
                    f"attacks.{attack_id}.num_images: expected at most evaluation.num_images = "
                    f"{most}, got {attack.num_images}"
                )
            for seed in attack.seeds or ():
                if seed not in seeds:
                    raise ValueError(f"attacks.{attack_id}.seeds: no model has seed {seed}")
        return self

    @model_validator(mode="after")
    def _endpoints(self) -> Config:
        for i, endpoint in enumerate(self.endpoints):
            where, metric, attack = f"endpoints.{i}.attack", endpoint.metric, endpoint.attack
            if metric == "clean_accuracy":
                if attack:
                    raise ValueError(f"{where}: not for clean_accuracy, got {attack!r}")
                continue
            competing = [config for config in self.attacks.values() if config.competes]
            known = [*self.attacks, *{BEST[config.norm] for config in competing}]
            if metric == "robust_area":
                known = [a for a in known if a not in self.attacks or self.attacks[a].has_budget]
            if attack not in known:
                expected = ", ".join(known) or "a minimum-norm attack"
                raise ValueError(f"{where}: {metric} needs one of {expected}, got {attack!r}")
            unbounded = attack in self.attacks and not self.attacks[attack].has_budget
            if endpoint.budget is not None and (metric != "robust_accuracy" or unbounded):
                raise ValueError(f"endpoints.{i}.budget: not for {metric} of {attack}")
        return self

    @model_validator(mode="after")
    def _interaction(self) -> Config:
        sizes = {spec.kernel_size for spec in self.model_specs()}
        missing = [size for size in self.interaction or () if size not in sizes]
        if missing:
            raise ValueError(f"interaction: no model has kernel_size {missing[0]}")
        return self

    @model_validator(mode="after")
    def _transfer(self) -> Config:
        if self.transfer is None:
            return self
        attacks = self.attacks.items()
        able = [a for a, config in attacks if config.competes and config.norm == "l2"]
        if self.transfer.attack not in able:
            expected = ", ".join(able) or "a minimum-norm L2 attack on all images and models"
            raise ValueError(
                f"transfer.attack: needs one of {expected}, got {self.transfer.attack!r}"
            )
        if not self.evaluation.keep_adversarials:
            raise ValueError("transfer: needs evaluation.keep_adversarials: true")
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

    @property
    def is_of_tables(self) -> bool:
        """Whether of some models there are rows alone, which can be reported but not run."""
        return any(isinstance(group, TableGroup) for group in self.models)

    def num_shards(self, attack_id: str) -> int:
        """Into how many jobs an attack on one model is divided."""
        num_images = self.attacks[attack_id].num_images or self.evaluation.num_images
        return math.ceil(num_images / (self.evaluation.shard_size or num_images))

    def to_yaml(self) -> str:
        """The complete configuration as YAML that ``load_config`` reads back."""
        values = json.loads(self.model_dump_json(by_alias=True))
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
