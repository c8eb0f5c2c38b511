"""A whole experiment: the sections of a configuration, and how they fit together. Free of torch."""

from __future__ import annotations

import json
import math
import os
from typing import Any, Literal

import yaml
from pydantic import AliasChoices, Field, ValidationError, field_validator, model_validator

from robust_ham.config.bounds import MAX_ITEMS, MAX_JOBS, MAX_MODELS
from robust_ham.config.fields import OddSize, SafeName, Section, first_error
from robust_ham.config.models import (
    CnnGroup,
    FactoryGroup,
    ImageNetGroup,
    ModelGroup,
    ResNet18CifarGroup,
    TableGroup,
    model_group,
)
from robust_ham.config.sections import (
    AttackConfig,
    DatasetConfig,
    EndpointConfig,
    EvaluationConfig,
    TrainingConfig,
    TransferConfig,
)
from robust_ham.config.suggestions import did_you_mean

__all__ = [
    "BEST",
    "OURS",
    "SCHEMA",
    "AttackConfig",
    "Config",
    "DatasetConfig",
    "EndpointConfig",
    "EvaluationConfig",
    "TrainingConfig",
    "TransferConfig",
]

SCHEMA = 1
OURS = "robust-ham"
"""Name of this package among the libraries of a benchmark."""
BEST = {"l2": "best", "linf": "best_linf"}
"""By norm, the id of the best of several minimum-norm attacks on each image."""

MAX_ID_BYTES = 200
"""Longest model id: a file name holds 255 bytes, and a temporary file's needs 40 more."""


class Config(Section):
    """A whole experiment: every section, and the rules that span several."""

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
        description="primary endpoints: the study decides on the window effect on these at each k; "
        "all other results are exploratory",
    )
    interaction: tuple[OddSize, OddSize] | None = Field(
        None, description="two kernel sizes: estimate how much the window effect grows between them"
    )
    transfer: TransferConfig | None = Field(
        None,
        description="transfer between all models; requires evaluation.keep_adversarials: true",
    )

    @field_validator("models", mode="before")
    @classmethod
    def _by_architecture(cls, groups: Any) -> Any:  # noqa: ANN401
        """Give each group the class of its architecture, so that an error names one key."""
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
                    f"models: {spec.model_id[:40]}… is too long for a file name: expected at "
                    f"most {MAX_ID_BYTES} bytes"
                )
            if spec.model_id in seen:
                raise ValueError(f"models: two models are called {spec.model_id}; set a prefix")
            seen.add(spec.model_id)
        return self

    @model_validator(mode="after")
    def _accuracy_twins(self) -> Config:
        specs = {spec.model_id: spec for spec in self.model_specs()}
        for spec in specs.values():
            if spec.accuracy_of is None:
                continue
            if not self.dataset.num_validation:
                raise ValueError(
                    "models.accuracy_of: requires dataset.num_validation, as test images must not "
                    "choose an epoch"
                )
            if not spec.is_trained_here or spec.accuracy_of == spec.window:
                raise ValueError("models.accuracy_of: requires source: train and another window")
            for twin in spec.accuracy_twins():
                if twin.model_id not in specs:
                    raise ValueError(
                        f"models.accuracy_of: {spec.model_id} requires the model {twin.model_id}"
                    )
            unstopped = specs[spec.accuracy_twins()[0].model_id]
            if self.training_of(unstopped) != self.training_of(spec):
                raise ValueError(
                    f"models.accuracy_of: {spec.model_id} requires the same training as "
                    f"{unstopped.model_id}"
                )
        return self

    @model_validator(mode="after")
    def _attack_ids(self) -> Config:
        for attack_id in self.attacks:
            if attack_id in BEST.values():
                raise ValueError(f"attacks: {attack_id} is reserved for the best of all attacks")
        return self

    @model_validator(mode="after")
    def _attack_subsets(self) -> Config:
        seeds = {spec.seed for spec in self.model_specs()}
        for attack_id, attack in self.attacks.items():
            if (attack.num_images or 0) > self.evaluation.num_images:
                raise ValueError(
                    f"attacks.{attack_id}.num_images: expected at most evaluation.num_images = "
                    f"{self.evaluation.num_images}, got {attack.num_images}"
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
                hint = did_you_mean(attack, known)
                raise ValueError(f"{where}: {metric} needs one of {expected}, got {attack!r}{hint}")
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
        eligible = [a for a, config in attacks if config.competes and config.norm == "l2"]
        if self.transfer.attack not in eligible:
            expected = ", ".join(eligible) or "a minimum-norm L2 attack on all images and models"
            attack = self.transfer.attack
            raise ValueError(
                f"transfer.attack: needs one of {expected}, got {attack!r}"
                + did_you_mean(attack, eligible)
            )
        if not self.evaluation.keep_adversarials:
            raise ValueError("transfer: requires evaluation.keep_adversarials: true")
        return self

    @model_validator(mode="after")
    def _trainings(self) -> Config:
        for spec in self.model_specs():
            augment = self.training_of(spec).augment
            if self.dataset.stream and "crop" in augment:
                raise ValueError(
                    "training.augment: crop is for images in memory; use resized_crop with "
                    "dataset.stream: true"
                )
            if not self.dataset.stream and "resized_crop" in augment:
                raise ValueError("training.augment: resized_crop requires dataset.stream: true")
        return self

    def training_of(self, spec: ModelGroup) -> TrainingConfig:
        """``training``, updated with the keys of the model's own ``training``."""
        try:
            return TrainingConfig.model_validate(self.training.model_dump() | spec.training)
        except ValidationError as error:
            raise ValueError(f"models: training.{first_error(error, TrainingConfig)}") from None

    def model_specs(self) -> list[ModelGroup]:
        """All models of the run, with sweeps expanded."""
        return [spec for group in self.models for spec in group.expand()]

    @property
    def is_of_tables(self) -> bool:
        """Whether some models are imported tables, which can be reported but not run."""
        return any(isinstance(group, TableGroup) for group in self.models)

    def num_shards(self, attack_id: str) -> int:
        """Number of jobs into which an attack on one model is split."""
        num_images = self.attacks[attack_id].num_images or self.evaluation.num_images
        return math.ceil(num_images / (self.evaluation.shard_size or num_images))

    def to_yaml(self) -> str:
        """The complete configuration as YAML, readable by ``load_config``."""
        values = json.loads(self.model_dump_json(by_alias=True))
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
