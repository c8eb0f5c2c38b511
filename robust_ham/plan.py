"""From a configuration to cells: obtaining one model, or one attack on one model.

Everything that can be refused is refused here, before any compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from robust_ham import checkpoints
from robust_ham.catalogue import check_attack
from robust_ham.cell import Cell, list_cells
from robust_ham.config import Config, RequestError
from robust_ham.data import Dataset
from robust_ham.evaluation import AttackedImages, attacked_images
from robust_ham.model_groups import FactoryGroup, ModelGroup
from robust_ham.models import MODELS
from robust_ham.models.matching import resolve_matches
from robust_ham.splits import Split

ZOO = Path(__file__).parent / "zoo"


@dataclass(frozen=True)
class Plan:
    """What a configuration asks for, checked."""

    config: Config
    dataset: Dataset
    attacked: AttackedImages
    cells: list[Cell]

    def attacked_by(self, attack_id: str) -> AttackedImages:
        """The images that an attack is run on: all that are attacked, or the first of them."""
        return self.attacked[: self.config.attacks[attack_id].num_images]

    def shard_of(self, cell: Cell) -> AttackedImages:
        """Those of them that a cell is for."""
        assert cell.attack_id is not None
        attacked, size = self.attacked_by(cell.attack_id), self.config.evaluation.shard_size
        return attacked if size is None else attacked[cell.shard * size : (cell.shard + 1) * size]


def source_folder(config: Config, spec: ModelGroup) -> Path | None:
    """Folder of a model that is made elsewhere; None for one that the run makes."""
    if spec.source == "train":
        return None
    collection = ZOO / config.dataset.name if spec.source == "zoo" else Path(spec.source)
    return collection / spec.model_id


def make_plan(config: Config, data_root: Path | None = None, *, attack: bool = True) -> Plan:
    """Read the data and list the cells: each model, followed by its attacks.

    Raises:
        RequestError: the data, an attack, a model or an option cannot be what was asked for.
    """
    if config.is_of_tables:
        raise RequestError(
            f"{config.name}: its models are known by tables alone (architecture: table); "
            "they can be reported, not run"
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
    for attack_id, attack_config in config.attacks.items():
        check_attack(attack_config, attack_id, test.image_shape)
    if any(spec.is_trained_here for spec in specs):
        _check_splits_agree(config, dataset)
    split = test if config.evaluation.split == "test" else dataset.train
    if not isinstance(split, Split):
        raise RequestError("evaluation.split: train is not for dataset.stream: true")
    attacked = attacked_images(split, config.evaluation.num_images, config.evaluation.seed)
    return Plan(config, dataset, attacked, list_cells(config, attack=attack))


def _check_splits_agree(config: Config, dataset: Dataset) -> None:
    train, test = dataset.train, dataset.test
    if train.image_shape != test.image_shape or test.num_classes > train.num_classes:
        raise RequestError(
            f"dataset {config.dataset.name}: training images {train.image_shape} of "
            f"{train.num_classes} classes, test images {test.image_shape} of {test.num_classes}"
        )


def _check_model(config: Config, spec: ModelGroup, dataset: Dataset) -> None:
    folder = source_folder(config, spec)
    if folder is not None:
        _check_source(config, spec, folder, dataset)
    elif isinstance(spec, FactoryGroup):
        if spec.normalize:
            raise RequestError("models.normalize: of a factory, only once it has been imported")
    else:
        try:
            with torch.device("meta"):
                MODELS[type(spec)](spec, dataset.test.image_shape[0], dataset.test.num_classes)
        except ValueError as error:
            raise RequestError(f"models: {spec.model_id}: {error}") from None
    if isinstance(spec, FactoryGroup):
        checkpoints.import_factory(spec)


def _check_source(config: Config, spec: ModelGroup, folder: Path, dataset: Dataset) -> None:
    """A model made elsewhere must be there, be the one asked for, and be made for these images."""
    data = config.dataset.name
    place = f"the zoo of {data}" if spec.source == "zoo" else spec.source
    if not folder.is_dir():
        have = sorted(path.name for path in folder.parent.glob("*/"))
        raise RequestError(
            f"models: {spec.model_id} is not in {place} ({', '.join(have) or 'empty'})"
        )
    card = checkpoints.read_card(folder)
    if card["model"] != checkpoints.describe(spec):
        raise RequestError(f"{folder / checkpoints.CARD}: describes another model than asked for")
    if card.get("test_sha256") != dataset.test_hash:
        raise RequestError(
            f"models: {spec.model_id} of {place} was made for other images than this {data}; "
            "use source: train"
        )
