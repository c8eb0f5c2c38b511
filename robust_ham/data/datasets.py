"""Find a data set in the first place that has it (contract 4), and load its splits."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from torch import Tensor

from robust_ham.config.datasets import DATASETS
from robust_ham.config.experiment import DatasetConfig
from robust_ham.config.suggestions import did_you_mean
from robust_ham.data.formats import describe_test_files, read_files, read_parquet_or_folders
from robust_ham.data.formats.idx import idx_file, read_idx_folder
from robust_ham.data.formats.torchvision_files import download, read_cifar
from robust_ham.data.label_checks import check_cut
from robust_ham.data.splits import FileSplit, Split, SplitName
from robust_ham.errors import RequestError

PACKAGED = Path(__file__).parent / "packaged"


class Dataset:
    """The splits of a configured data set and their hashes, loaded on first use."""

    def __init__(self, config: DatasetConfig, data_root: Path | None = None) -> None:
        self.config = config
        self.data_root = data_root

    @cached_property
    def _train_validation(self) -> tuple[Split | FileSplit, Split | None]:
        if self.config.stream:
            return load_files(self.config, self.data_root), None
        return load_train_validation(self.config, self.data_root)

    @cached_property
    def test(self) -> Split:
        """The test split."""
        split = load_split(self.config, "test", self.data_root)
        num_test = _num_used(self.config.num_test, split, "num_test", self.config)
        check_cut(split.labels, slice(num_test), "num_test", split.source)
        return split[:num_test]

    def test_before_subsampling(self) -> Split | None:
        """Load the whole test split as stored; None if ``image_size`` leaves out no pixel."""
        known = DATASETS.get(self.config.name)
        if self.config.image_size is None or known is None or not known.is_subsampled:
            return None
        stored = self.config.model_copy(update={"image_size": None})
        split = load_split(stored, "test", self.data_root)
        return split if split.image_shape != self.test.image_shape else None

    @property
    def train(self) -> Split | FileSplit:
        """The training images."""
        return self._train_validation[0]

    @property
    def validation(self) -> Split:
        """The images held out of the training split; without any, the test split."""
        return self._train_validation[1] or self.test

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of ``train`` and ``validation``, on which a trained model depends."""
        return {"train": self.train.hash(), "validation": self.validation.hash()}

    @cached_property
    def test_hash(self) -> str:
        """SHA-256 of the test split."""
        return self.test.hash()


def load_train_validation(
    config: DatasetConfig, data_root: Path | None = None
) -> tuple[Split, Split | None]:
    """Load the training images, and the images held out after them (None without validation).

    Raises:
        RequestError: the data set is missing or damaged, or has too few images.
    """
    split = load_split(config, "train", data_root)
    held_out = config.num_validation
    num_train = _num_used(config.num_train, split, "num_train", config, held_out)
    check_cut(
        split.labels,
        slice(num_train),
        "num_train" if config.num_train else "num_validation",
        split.source,
    )
    if not held_out:
        return split[:num_train], None
    rows = slice(num_train, num_train + held_out)
    check_cut(split.labels, rows, "num_validation", split.source)
    return split[:num_train], split[rows]


def load_files(config: DatasetConfig, data_root: Path | None = None) -> FileSplit:
    """List training images that stay on the disk, in the first place that has class folders.

    Raises:
        RequestError: no place has them (the message lists the places), or there are too few.
    """
    places = [
        place for place, reader in _places(config, data_root) if reader is read_parquet_or_folders
    ]
    for place in places:
        split = read_files(place, config)
        if split is not None:
            num_train = _num_used(config.num_train, split, "num_train", config)
            check_cut(split.labels, slice(num_train), "num_train", split.source)
            return split[:num_train]
    searched = ", ".join(f"{place}/train" for place in places) or "any place"
    hint = did_you_mean(config.name, DATASETS) if config.name not in DATASETS else ""
    raise RequestError(f"dataset {config.name} (train): no class folders in {searched}{hint}")


def _num_used(
    requested: int | None,
    split: Split | FileSplit,
    key: str,
    config: DatasetConfig,
    held_out: int = 0,
) -> int:
    """Return how many images to use: as requested, or all that are not held out."""
    count = requested or len(split) - held_out
    if not 0 < count <= len(split) - held_out:
        facts = DATASETS.get(config.name)
        hint = f"; to get all of them: {facts.how_to_get}" if facts else ""
        kept = f" + {held_out} held out" if held_out else ""
        raise RequestError(
            f"dataset.{key}: expected at most {len(split)} images ({split.source}), got "
            f"{count}{kept}{hint}"
        )
    return count


def load_split(config: DatasetConfig, split: SplitName, data_root: Path | None = None) -> Split:
    """Load one split of a data set from the first place that has it.

    Searches one folder (``data_root``, else ``ROBUST_HAM_DATA``, else ``config.data_root``), then
    the system's package and the copy in this package. If none of them has it and
    ``config.download`` is set, torchvision downloads it.

    Raises:
        RequestError: no place has it (the message lists the places), or a file is damaged.
    """
    places = _places(config, data_root)
    for place, reader in places:
        loaded = reader(place, config, split)
        if loaded is not None:
            return _check_and_subsample(loaded, config, place)
    known = DATASETS.get(config.name)
    if config.download and known is not None and known.torchvision_class is not None:
        root = _root(config, data_root) or Path.home() / ".cache" / "robust-ham"
        return _check_and_subsample(download(root, config, split), config, root)
    hint = "--data-root FOLDER" + (f", or {known.how_to_get}" if known else "")
    searched = ", ".join(dict.fromkeys(str(place) for place, _ in places)) or "any place"
    raise RequestError(
        f"dataset {config.name} ({split}): not found in {searched}; to get it: {hint}"
        + ("" if known else did_you_mean(config.name, DATASETS))
    )


def available(name: str, data_root: Path | None = None) -> str | None:
    """Return where the test split of ``name`` is, without decoding it; None if nowhere."""
    config = DatasetConfig(name=name)
    for place, reader in _places(config, data_root):
        if reader is read_idx_folder:
            if idx_file(place, "test", "images") is not None:
                return str(place)
        elif reader is read_cifar:
            if (place / DATASETS[name].torchvision_folder).is_dir():
                return str(place)
        elif (description := describe_test_files(place)) is not None:
            return description
    return None


# --- where to look ---------------------------------------------------------------------------

Reader = Callable[[Path, DatasetConfig, SplitName], "Split | None"]


def _root(config: DatasetConfig, data_root: Path | None) -> Path | None:
    """Return the folder of data sets, from the option, the environment or the configuration.

    Raises:
        RequestError: it is not a folder.
    """
    named = [
        ("--data-root", data_root),
        ("ROBUST_HAM_DATA", os.environ.get("ROBUST_HAM_DATA")),
        ("dataset.data_root", config.data_root),
    ]
    for origin, value in named:
        if value:
            if not Path(value).is_dir():
                raise RequestError(f"{origin}: expected a folder, got {value}")
            return Path(value)
    return None


def _places(config: DatasetConfig, data_root: Path | None) -> list[tuple[Path, Reader]]:
    name, known = config.name, DATASETS.get(config.name)
    root = _root(config, data_root)
    places: list[tuple[Path, Reader]] = []
    if root is not None:
        if known is not None and known.layout == "idx":
            places.append((root / known.torchvision_folder / "raw", read_idx_folder))
        if known is not None and known.layout == "cifar":
            places.append((root, read_cifar))
        places.append((root / name, read_parquet_or_folders))
    if known is None and Path(name).is_dir():
        places.append((Path(name), read_parquet_or_folders))
    if known is not None and known.system_folder:
        places.append((Path(known.system_folder), read_idx_folder))
    if known is not None and known.is_packaged:
        places.append((PACKAGED / name, read_idx_folder))
    return places


def _check_and_subsample(split: Split, config: DatasetConfig, place: Path) -> Split:
    """Refuse a split without images or with too few labels, then subsample it."""
    if len(split) == 0 or 0 in split.images.shape:
        raise RequestError(f"{place}: no images")
    if len(split.images) != len(split.labels):
        raise RequestError(f"{place}: {len(split.images)} images, {len(split.labels)} labels")
    return Split(
        _subsample(split.images, config.image_size), split.labels, split.num_classes, split.source
    )


def _subsample(images: Tensor, image_size: int | None) -> Tensor:
    """Keep every second (third …) pixel; a low-pass would remove the effect under test."""
    height, width = images.shape[2:]
    if image_size is None or image_size == min(height, width):
        return images
    step = min(height, width) // image_size
    if height % image_size or width % image_size or step < 1:
        raise RequestError(
            f"dataset.image_size: expected a divisor of {height}×{width}, got {image_size}"
        )
    return images[:, :, ::step, ::step].contiguous()
