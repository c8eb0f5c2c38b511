"""Check a configuration and turn it into jobs, before any computation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from robust_ham.config.experiment import BEST, Config, TrainingConfig
from robust_ham.config.fields import first_error
from robust_ham.config.models import FactoryGroup, ModelGroup
from robust_ham.data.datasets import Dataset
from robust_ham.data.splits import Split
from robust_ham.errors import RequestError
from robust_ham.evaluation.evaluate import AttackedImages, attacked_images
from robust_ham.evaluation.memory import check_attack_memory, check_images_memory
from robust_ham.evaluation.options import check_attack_options, check_distance, resolve_attack
from robust_ham.models import checkpoints, factories
from robust_ham.models.build import MODELS
from robust_ham.models.checkpoints import source_folder
from robust_ham.models.matching import resolve_matches
from robust_ham.models.size import check_weights
from robust_ham.runs.plan.job import Job, list_jobs
from robust_ham.storage.run_folder import CARD


@dataclass(frozen=True)
class Plan:
    """A checked configuration with its data and jobs."""

    config: Config
    dataset: Dataset
    attacked: AttackedImages
    jobs: list[Job]

    def attacked_by(self, attack_id: str) -> AttackedImages:
        """Return the images of an attack: all attacked images, or the first ``num_images``."""
        return self.attacked[: self.config.attacks[attack_id].num_images]

    def shard_of(self, job: Job) -> AttackedImages:
        """Return the images of a job: one shard of its attack's images."""
        assert job.attack_id is not None
        attacked, size = self.attacked_by(job.attack_id), self.config.evaluation.shard_size
        return attacked if size is None else attacked[job.shard * size : (job.shard + 1) * size]


def make_plan(config: Config, data_root: Path | None = None, *, attack: bool = True) -> Plan:
    """Check the configuration against the data, then list the jobs.

    Raises:
        RequestError: the data, a model, an attack or an option is missing or invalid.
    """
    if config.is_of_tables:
        raise RequestError(
            f"{config.name}: its models are imported tables (architecture: table), which can be "
            "reported but not run"
        )
    dataset = Dataset(config.dataset, data_root)
    test = dataset.test
    try:
        config = resolve_matches(config, test.image_shape, test.num_classes)
    except ValueError as error:
        raise RequestError(f"models: {error}") from None
    specs = config.model_specs()
    for spec in specs:
        _check_model(config, spec, dataset)
    config = _resolve_attacks(config)
    _check_attacks(config, test.image_shape)
    if any(spec.is_trained_here for spec in specs):
        _check_splits_agree(config, dataset)
    elif config.training != TrainingConfig() and all(s.source == "factory" for s in specs):
        raise RequestError("training: this configuration trains no model")
    split = test if config.evaluation.split == "test" else dataset.train
    if not isinstance(split, Split):
        raise RequestError("evaluation.split: train is not available with dataset.stream: true")
    if config.evaluation.num_images <= len(split):
        check_images_memory(config, config.evaluation.num_images, split.image_shape)
    attacked = attacked_images(split, config.evaluation.num_images, config.evaluation.seed)
    return Plan(config, dataset, attacked, list_jobs(config, attack=attack))


def _resolve_attacks(config: Config) -> Config:
    """Add to the configuration what the attack functions declare, for the report."""
    attacks = {name: resolve_attack(attack, name) for name, attack in config.attacks.items()}
    if attacks == config.attacks:
        return config
    try:
        values = config.model_dump(by_alias=True)
        return Config.model_validate(values | {"attacks": attacks})
    except ValidationError as error:
        raise RequestError(f"{config.name}: {first_error(error)}") from None


def _check_attacks(config: Config, image_shape: tuple[int, int, int]) -> None:
    for attack_id, attack in config.attacks.items():
        check_attack_options(attack, attack_id, image_shape)
        num_images = attack.num_images or config.evaluation.num_images
        check_attack_memory(
            attack,
            attack_id,
            image_shape,
            min(num_images, config.evaluation.shard_size or num_images),
            config.evaluation.batch_size,
        )
    for i, endpoint in enumerate(config.endpoints):
        known = config.attacks.get(endpoint.attack)
        norm = known.norm if known else "linf" if endpoint.attack == BEST["linf"] else "l2"
        if endpoint.budget is not None:
            check_distance(endpoint.budget, norm, image_shape, f"endpoints.{i}.budget")
    if config.transfer is not None:
        check_distance(config.transfer.budget, "l2", image_shape, "transfer.budget")


def _check_splits_agree(config: Config, dataset: Dataset) -> None:
    train, test = dataset.train, dataset.test
    if train.image_shape != test.image_shape or test.num_classes != train.num_classes:
        raise RequestError(
            f"dataset {config.dataset.name}: training images {train.image_shape} of "
            f"{train.num_classes} classes, test images {test.image_shape} of {test.num_classes}"
        )


def _check_model(config: Config, spec: ModelGroup, dataset: Dataset) -> None:
    folder = source_folder(config, spec)
    if folder is not None:
        _check_source(config, spec, folder, dataset)
    if isinstance(spec, FactoryGroup):
        _check_factory(spec, imported=folder is not None)
        return
    _check_kernels(spec, dataset.test.image_shape)
    if folder is None:
        try:
            with torch.device("meta"):
                network = MODELS[type(spec)](
                    spec, dataset.test.image_shape[0], dataset.test.num_classes
                )
        except ValueError as error:
            raise RequestError(f"models: {spec.model_id}: {error}") from None
        check_weights(spec, network)


def _check_factory(spec: FactoryGroup, imported: bool) -> None:
    """Check a network made by a user's function: it must come trained."""
    if spec.normalize and not imported:
        raise RequestError("models.normalize: not available for a factory unless it was imported")
    factories.import_factory(spec)
    if spec.source == "train":
        raise RequestError(
            "models.source: got train, but a factory's network is not trained by a run: remove "
            "source and give its weights"
        )
    if spec.training or spec.init != "default":
        key = "training" if spec.training else "init"
        raise RequestError(
            f"models.{key}: not available for a factory: a run does not train its network"
        )
    if imported and (spec.weights or spec.pretrained):
        key = "weights" if spec.weights else "pretrained"
        raise RequestError(f"models.{key}: not with source: {spec.source}, which has the weights")
    if not (imported or spec.weights or spec.pretrained):
        raise RequestError(
            f"models: {spec.model_id} would be attacked untrained: give its weights: FILE, or "
            f"pretrained: true if {spec.factory} returns a trained network"
        )


def _check_kernels(spec: ModelGroup, image_shape: tuple[int, int, int]) -> None:
    _, height, width = image_shape
    sizes = {"kernel_size": spec.kernel_size, "first_kernel": getattr(spec, "first_kernel", None)}
    sizes |= {"match.kernel_size": spec.match.kernel_size if spec.match else None}
    for name, size in sizes.items():
        if isinstance(size, int) and size > min(height, width):
            raise RequestError(
                f"models.{name}: expected at most {min(height, width)}, because images are "
                f"{height}×{width}, got {size}"
            )


def _check_source(config: Config, spec: ModelGroup, folder: Path, dataset: Dataset) -> None:
    """Check a model made elsewhere: it exists, matches ``spec`` and saw the same images."""
    data = config.dataset.name
    place = f"the zoo of {data}" if spec.source == "zoo" else spec.source
    if spec.source != "zoo" and not folder.parent.is_dir():
        raise RequestError(f"models: {spec.model_id} is not in {place}: no such folder")
    if not folder.is_dir():
        names = sorted(path.name for path in folder.parent.glob("*/"))
        raise RequestError(
            f"models: {spec.model_id} is not in {place} ({', '.join(names) or 'empty'})"
        )
    card = checkpoints.read_card(folder)
    if card["model"] != checkpoints.describe(spec):
        raise RequestError(f"{folder / CARD}: describes another model than the configuration")
    if card.get("test_sha256") != dataset.test_hash:
        raise RequestError(
            f"models: {spec.model_id} of {place} was made for other images than this {data}; "
            "use source: train"
        )
