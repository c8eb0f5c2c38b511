"""Named data sets, from the first place that has them (contract 4)."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from torch import Tensor

from robust_ham.config.experiment import DatasetConfig
from robust_ham.data.formats import describe_test_files, read_files, read_parquet_or_folders
from robust_ham.data.formats.idx import idx_file, read_idx_folder
from robust_ham.data.formats.torchvision_files import download, read_cifar
from robust_ham.data.splits import KNOWN, FileSplit, Split, SplitName, check_cut
from robust_ham.errors import RequestError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
PACKAGED = Path(__file__).parent / "packaged"


class Dataset:
    """The splits of a configured data set, each read when it is first asked for, with its hash."""

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
        """The whole test split as it is stored; None where ``image_size`` leaves no pixel out."""
        known = KNOWN.get(self.config.name)
        if self.config.image_size is None or known is None or not known.is_subsampled:
            return None
        stored = self.config.model_copy(update={"image_size": None})
        split = load_split(stored, "test", self.data_root)
        return split if split.image_shape != self.test.image_shape else None

    @property
    def train(self) -> Split | FileSplit:
        """The images trained on."""
        return self._train_validation[0]

    @property
    def validation(self) -> Split:
        """The images held out of the training split, or the test split where none are."""
        return self._train_validation[1] or self.test

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of ``train`` and ``validation``, the images that a trained model depends on."""
        return {"train": self.train.hash(), "validation": self.validation.hash()}

    @cached_property
    def test_hash(self) -> str:
        """SHA-256 of the test split."""
        return self.test.hash()


def load_train_validation(
    config: DatasetConfig, data_root: Path | None = None
) -> tuple[Split, Split | None]:
    """Training images, and the images held out after them (None where none are asked for).

    Raises:
        RequestError: not found, damaged, or fewer images than asked for.
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
    """Training images that stay on the disk, from the first place that has class folders.

    Raises:
        RequestError: not found (names the places), or fewer images than asked for.
    """
    places = [
        place for place, reader in _places(config, data_root) if reader is read_parquet_or_folders
    ]
    for place in places:
        found = read_files(place, config)
        if found is not None:
            num_train = _num_used(config.num_train, found, "num_train", config)
            check_cut(found.labels, slice(num_train), "num_train", found.source)
            return found[:num_train]
    searched = ", ".join(f"{place}/train" for place in places) or "any place"
    raise RequestError(f"dataset {config.name} (train): no class folders in {searched}")


def _num_used(
    asked: int | None, split: Split | FileSplit, key: str, config: DatasetConfig, held_out: int = 0
) -> int:
    """How many images to use: what was asked for, or all that are not held out."""
    count = asked or len(split) - held_out
    if not 0 < count <= len(split) - held_out:
        hint = f"; all of them: {KNOWN[config.name].get}" if config.name in KNOWN else ""
        kept = f" + {held_out} held out" if held_out else ""
        raise RequestError(
            f"dataset.{key}: asked for {count}{kept}, found {len(split)} in {split.source}{hint}"
        )
    return count


def load_split(config: DatasetConfig, split: SplitName, data_root: Path | None = None) -> Split:
    """One split of a data set, from the first place that has it.

    Looks in ``data_root``, else in the folder ``ROBUST_HAM_DATA`` names, else in
    ``config.data_root``; then in Debian's package, the copy inside this package, and last, where
    ``config.download`` allows it, at torchvision's download.

    Raises:
        RequestError: not found (names the places), or damaged (names the file).
    """
    places = _places(config, data_root)
    for place, reader in places:
        found = reader(place, config, split)
        if found is not None:
            return _checked(found, config, place)
    known = KNOWN.get(config.name)
    if config.download and known is not None and known.torchvision_class is not None:
        root = _root(config, data_root) or Path.home() / ".cache" / "robust-ham"
        return _checked(download(root, config, split), config, root)
    hint = known.get if known else "--data-root FOLDER"
    searched = ", ".join(dict.fromkeys(str(place) for place, _ in places)) or "any place"
    raise RequestError(
        f"dataset {config.name} ({split}): not found in {searched}; to get it: {hint}"
    )


def available(name: str, data_root: Path | None = None) -> str | None:
    """Where the test split of ``name`` is found, without reading it whole; None if nowhere."""
    config = DatasetConfig(name=name)
    for place, reader in _places(config, data_root):
        if reader is read_idx_folder:
            if idx_file(place, "test", "images") is not None:
                return str(place)
        elif reader is read_cifar:
            if (place / KNOWN[name].torchvision_folder).is_dir():
                return str(place)
        elif (found := describe_test_files(place)) is not None:
            return found
    return None


# --- where to look ---------------------------------------------------------------------------

Reader = Callable[[Path, DatasetConfig, SplitName], "Split | None"]


def _root(config: DatasetConfig, data_root: Path | None) -> Path | None:
    """The folder of data sets that was named, by precedence.

    Raises:
        RequestError: it is no folder.
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
    name = config.name
    root = _root(config, data_root)
    places: list[tuple[Path, Reader]] = []
    if root is not None:
        if name in {"mnist", "fashion_mnist"}:
            places.append((root / KNOWN[name].torchvision_folder / "raw", read_idx_folder))
        if name in {"cifar10", "cifar100"}:
            places.append((root, read_cifar))
        places.append((root / name, read_parquet_or_folders))
    if name not in KNOWN and Path(name).is_dir():
        places.append((Path(name), read_parquet_or_folders))
    if name == "fashion_mnist":
        places.append((DEBIAN_FASHION_MNIST, read_idx_folder))
        places.append((PACKAGED / name, read_idx_folder))
    return places


def _checked(split: Split, config: DatasetConfig, place: Path) -> Split:
    """Subsample, then refuse what no later step could make sense of."""
    if len(split) == 0 or 0 in split.images.shape:
        raise RequestError(f"{place}: no images")
    if len(split.images) != len(split.labels):
        raise RequestError(f"{place}: {len(split.images)} images, {len(split.labels)} labels")
    return Split(
        _subsample(split.images, config.image_size), split.labels, split.num_classes, split.source
    )


def _subsample(images: Tensor, image_size: int | None) -> Tensor:
    """Every second (third …) pixel, without a low-pass: that would remove the effect under test."""
    height, width = images.shape[2:]
    if image_size is None or image_size == min(height, width):
        return images
    step = min(height, width) // image_size
    if height % image_size or width % image_size or step < 1:
        raise RequestError(
            f"dataset.image_size: expected a divisor of {height}×{width}, got {image_size}"
        )
    return images[:, :, ::step, ::step].contiguous()
