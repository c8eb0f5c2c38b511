"""The sections of a configuration: their keys, defaults and allowed values. Free of torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from robust_ham.config.attacks import NORM_SYMBOLS, AttackFacts, Norm, attack_facts, parse_norm
from robust_ham.config.bounds import (
    MAX_BATCH,
    MAX_EPOCHS,
    MAX_IMAGE_SIZE,
    MAX_IMAGES,
    MAX_ITEMS,
    MAX_RATE,
    MAX_THREADS,
)
from robust_ham.config.datasets import DATASETS
from robust_ham.config.fields import Distance, Number, PathText, Section, Seed
from robust_ham.config.models import ModelGroup


class DatasetConfig(Section):
    """Images to train on, to attack and to measure accuracy on."""

    name: PathText = Field(
        "fashion_mnist",
        min_length=1,
        description=f"{', '.join(DATASETS)}, or the name or path of a folder with parquet files or "
        "one sub-folder per class",
    )
    num_train: int | None = Field(
        None,
        ge=1,
        le=MAX_IMAGES,
        description="number of training images, the first of the split; null: all",
    )
    num_validation: int = Field(
        0,
        ge=0,
        le=MAX_IMAGES,
        description="number of images after the training images to hold out for the validation "
        "columns; 0: the columns show the test split, which decides nothing",
    )
    num_test: int | None = Field(
        None,
        ge=1,
        le=MAX_IMAGES,
        description="number of test images, the first of the split; null: all",
    )
    stream: bool = Field(
        False,
        description="read training images from class folders when needed, for data sets that do "
        "not fit in memory",
    )
    image_size: int | None = Field(
        None,
        ge=1,
        le=MAX_IMAGE_SIZE,
        description="28×28 to 14 subsamples every second pixel; folders: resize, crop",
    )
    data_root: PathText | None = Field(
        None, description="folder of data sets; --data-root and ROBUST_HAM_DATA take precedence"
    )
    download: bool = Field(False, description="let torchvision download a missing data set")

    @model_validator(mode="after")
    def _can_stream(self) -> DatasetConfig:
        if self.stream and self.image_size is None:
            raise ValueError("image_size: required with stream: true")
        if self.stream and self.num_validation:
            raise ValueError("num_validation: not available with stream: true")
        return self


class TrainingConfig(Section):
    """How to train the models. The last epoch counts."""

    epochs: int = Field(10, ge=1, le=MAX_EPOCHS, description="passes over the training images")
    batch_size: int = Field(128, ge=1, le=MAX_BATCH, description="images per step")
    optimizer: Literal["sgd"] = Field("sgd", description="stochastic gradient descent")
    lr: Number = Field(0.1, gt=0, le=MAX_RATE, description="learning rate; its peak with one_cycle")
    momentum: Number = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    nesterov: bool = Field(False, description="use Nesterov momentum")
    weight_decay: Number = Field(
        5e-4, ge=0, le=MAX_RATE, description="L2 penalty on all parameters"
    )
    schedule: Literal["one_cycle", "step", "constant"] = Field(
        "one_cycle", description="one_cycle (30 % up, cosine), step (×0.1 at milestones), constant"
    )
    milestones: tuple[Annotated[int, Field(ge=0, le=MAX_EPOCHS)], ...] = Field(
        (), max_length=MAX_ITEMS, description="epochs at which step multiplies the rate by 0.1"
    )
    warmup_epochs: int = Field(
        0,
        ge=0,
        le=MAX_EPOCHS,
        description="epochs over which step and constant first raise the rate to lr",
    )
    augment: tuple[Literal["flip", "crop", "resized_crop"], ...] = Field(
        ("flip", "crop"),
        max_length=MAX_ITEMS,
        description="random changes of each image: flip (horizontal), crop (after padding by 4), "
        "resized_crop (10 to 100 % of the area, aspect ratio 0.8 to 1.25; only with stream: true)",
    )
    accumulate: int = Field(
        1,
        ge=1,
        le=MAX_BATCH,
        description="parts into which a process splits its share of a batch, to save memory",
    )
    precision: Literal["auto", "bf16", "float32"] = Field(
        "auto", description="auto: bf16 autocast where the device supports it, else float32"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> TrainingConfig:
        if self.schedule == "one_cycle" and self.warmup_epochs:
            raise ValueError("warmup_epochs: not with schedule: one_cycle, which warms up itself")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate: expected at most batch_size = {self.batch_size}")
        return self


class AttackConfig(Section):
    """One attack. Keys that are not listed here are options of the attack's function."""

    model_config = ConfigDict(extra="allow", frozen=True)

    attack: str = Field(
        description="an attack of this package (robust-ham list attacks), foolbox:NAME for an "
        "attack of foolbox, or module:function for a custom attack, which runs that module's code; "
        "for imported tables: table, with norm: none if they have no distances"
    )
    budget: Distance | None = Field(
        None, description="perturbation size for robust_accuracy; minimum-norm attacks only"
    )
    budgets: tuple[Distance, ...] | None = Field(
        None,
        min_length=1,
        max_length=MAX_ITEMS,
        description="perturbation sizes of the curve; robust_area ends at the largest",
    )
    kind: Literal["minimum_norm", "fixed_epsilon"] | None = Field(
        None,
        exclude_if=lambda kind: kind is None,
        description="custom attacks only: minimum_norm seeks the smallest perturbation, measured "
        "in its norm (l2, linf) against budget; fixed_epsilon stays within a fixed size, "
        "and images that it does not fool count as robust; an option epsilon or eps implies "
        "fixed_epsilon",
    )
    num_images: int | None = Field(
        None,
        ge=1,
        le=MAX_IMAGES,
        description="attack only the first of evaluation.num_images; null: all of them",
    )
    seeds: tuple[Seed, ...] | None = Field(
        None,
        min_length=1,
        max_length=MAX_ITEMS,
        description="attack only models of these seeds; null: all models",
    )

    @model_validator(mode="after")
    def _only_custom_attacks_have_a_kind(self) -> AttackConfig:
        if self.kind is not None and not self.facts.is_user_code:
            raise ValueError(f"kind: only for custom attacks, got {self.attack!r}")
        return self

    @model_validator(mode="after")
    def _band_is_a_number(self) -> AttackConfig:
        for name in ("band", "bands"):
            if self.in_band and type(self.options.get(name, 0)) is not int:
                raise ValueError(f"{name}: expected a whole number, got {self.options[name]!r}")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """Options of the attack's function."""
        return dict(self.model_extra or {})

    @property
    def facts(self) -> AttackFacts:
        """The attack's row in the table of facts."""
        return attack_facts(self.attack)

    @property
    def norm(self) -> Norm:
        """Norm in which this attack's distances are measured."""
        default: tuple[Norm, ...] = self.facts.norms or ("l2",)
        return parse_norm(self.options.get("norm")) or default[0]

    def attacks(self, spec: ModelGroup) -> bool:
        """Whether to attack a model."""
        return self.seeds is None or spec.seed in self.seeds

    @property
    def has_budget(self) -> bool:
        """Whether it seeks the smallest perturbation; other attacks fool an image or do not."""
        if self.kind is not None:
            return self.kind == "minimum_norm"
        if self.facts.kind is None:  # a custom attack in a run older than the key ``kind``
            return self.budget is not None or self.budgets is not None
        bounded = self.options.get("epsilon") is not None or self.options.get("norm") == "none"
        return self.facts.kind == "minimum_norm" and not bounded

    @property
    def in_band(self) -> bool:
        """Whether it limits the perturbation to one frequency band."""
        return self.facts.in_band

    @property
    def band(self) -> tuple[int, int]:
        """The frequency band, counted from 1, and the number of bands."""
        return self.options.get("band", 0) + 1, self.options.get("bands", 4)

    @property
    def label(self) -> str:
        """Title in figures; empty: the attack's id."""
        band, bands = self.band if self.in_band else (0, 0)
        return self.facts.label.format(norm=NORM_SYMBOLS[self.norm], band=band, bands=bands)

    @property
    def competes(self) -> bool:
        """Whether ``best`` includes it: a minimum-norm attack on all images of all models."""
        everything = self.num_images is None and self.seeds is None
        return self.has_budget and not self.in_band and everything

    @property
    def curve_budgets(self) -> tuple[float, ...]:
        """``budgets`` in ascending order, or the norm's defaults."""
        default = (
            (0.05, 0.1, 0.25, 0.5) if self.norm == "l2" else (0.5 / 255, 1 / 255, 2 / 255, 4 / 255)
        )
        return tuple(sorted(self.budgets or default))

    @property
    def main_budget(self) -> float:
        """``budget``, or the middle one of ``curve_budgets``."""
        return self.budget or self.curve_budgets[len(self.curve_budgets) // 2]


class EndpointConfig(Section):
    """A primary endpoint: a question that a study decides, fixed before any training."""

    metric: Literal["clean_accuracy", "robust_area", "robust_accuracy"] = Field(
        description="clean_accuracy (whole test split), robust_area or robust_accuracy"
    )
    attack: str = Field(
        "", description="attack id; best: the best of several minimum-norm attacks on each image"
    )
    budget: Distance | None = Field(
        None, description="perturbation size for robust_accuracy under a minimum-norm attack"
    )


class EvaluationConfig(Section):
    """Which images to attack, and how to compute it."""

    num_images: int = Field(
        1000,
        ge=1,
        le=MAX_IMAGES,
        description="number of images to attack, the first of a class-balanced order",
    )
    split: Literal["test", "train"] = Field("test", description="split to attack")
    seed: Seed = Field(0, description="seed of the class-balanced order")
    batch_size: int = Field(250, ge=1, le=MAX_BATCH, description="images per call of an attack")
    shard_size: int | None = Field(
        None,
        ge=1,
        le=MAX_IMAGES,
        description="images per job, so that several workers share an attack on a model; null: all "
        "of them",
    )
    threads: int = Field(
        2,
        ge=1,
        le=MAX_THREADS,
        description="CPU threads for training and attacks; part of the jobs' keys",
    )
    keep_adversarials: bool = Field(False, description="store all adversarial images")
    gate: bool = Field(
        True, description="check on 32 images whether models and minimum-norm attacks are reliable"
    )
    gallery: bool = Field(
        True,
        description="store 8 images per model and attack for the report; false if the data set's "
        "licence forbids sharing them",
    )


class TransferConfig(Section):
    """Rescale each model's adversarial images to one length and test them on all other models."""

    attack: str = Field(description="id of a minimum-norm L2 attack of the run")
    budget: Distance = Field(description="L2 length of all perturbations")
