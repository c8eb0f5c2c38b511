"""Read one folder per class, as ``torchvision.datasets.ImageFolder`` does."""

from __future__ import annotations

import itertools
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from robust_ham.config.datasets import DATASETS
from robust_ham.config.experiment import DatasetConfig
from robust_ham.data.formats.class_names import are_other_labels, has_wnids, labels_of_folders
from robust_ham.data.formats.images import Pixels, open_image, pixels_of, short_side
from robust_ham.data.label_checks import check_cut
from robust_ham.data.splits import FileSplit, Split
from robust_ham.errors import RequestError, printable
from robust_ham.regular_files import is_regular

log = logging.getLogger(__name__)

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
"""As ``torchvision.datasets.folder.IMG_EXTENSIONS``; upper case is accepted, too."""
_NOTE_SUFFIXES = {".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".html"}
_NOTE_NAMES = {
    *("thumbs.db", "desktop.ini", "icon\r"),
    *("readme", "license", "licence", "copying", "notice", "authors", "citation", "changelog"),
    *("md5sums", "sha1sums", "sha256sums"),
}
"""In lower case. Other files without a suffix are refused: they may be images."""
_NEVER_CLASSES = {
    *("__MACOSX", "__pycache__", "@eaDir", "lost+found"),
    *("$RECYCLE.BIN", "System Volume Information"),
}
"""Folders that archivers, Python and file systems create."""
_DECODED_AT_ONCE = 256


@dataclass(frozen=True)
class ClassFolders:
    """Image files below ``<split>/<class>/``, ordered so that classes take turns."""

    folder: Path
    files: list[Path]
    labels: list[int]
    num_classes: int

    def read(self, config: DatasetConfig, limit: int | None) -> Split:
        """Decode all images, or the first ``limit``.

        Raises:
            RequestError: an image cannot be read, or the images do not fit into memory.
        """
        files, labels = self.files[:limit], torch.tensor(self.labels, dtype=torch.int64)
        if limit is not None:
            check_cut(labels, slice(limit), "num_test", str(self.folder))
        pixels = Pixels(self.folder, len(files))
        with ThreadPoolExecutor() as pool:  # decoding releases the GIL
            bounds = [0, *range(1, len(files), _DECODED_AT_ONCE), len(files)]
            for start, stop in itertools.pairwise(bounds):  # the first alone: it sets the size
                part = files[start:stop]
                for image in pool.map(lambda file: pixels_of(open_image(file), config), part):
                    pixels.add(image)
        return Split(pixels.tensor(), labels[:limit], self.num_classes, str(self.folder))

    def as_files(self, config: DatasetConfig) -> FileSplit:
        """Return the same images as files, without decoding them."""
        size = config.image_size
        assert size is not None  # checked with the configuration
        return FileSplit(
            self.files,
            torch.tensor(self.labels, dtype=torch.int64),
            self.num_classes,
            str(self.folder),
            size,
            short_side(config.name, size),
        )


def holds_images_only(folder: Path) -> bool:
    """Whether a folder contains images but no class folders, so that they have no labels."""
    entries = _entries(folder)
    return any(_is_image(entry) for entry in entries) and not any(map(_is_class, entries))


def find_class_folders(folder: Path, data_set: str) -> ClassFolders:
    """List the image files of a split and their labels, without opening them.

    Raises:
        RequestError: there are fewer than two classes, a class has no images, the classes differ
            from those of the training folder, or a file is neither an image nor a note.
    """
    left_out: list[Path] = []
    labels = labels_of_folders(data_set, _class_names(folder, left_out), folder)
    _check_classes(folder, labels, data_set)
    turns: list[tuple[int, int, Path]] = []  # turn, label, file
    for name, label in labels.items():
        images = _images_below(folder / name, left_out, ())
        if not images:
            raise RequestError(f"{folder / name}: no image files")
        turns += [(turn, label, file) for turn, file in enumerate(images)]
    if len(labels) < 2:
        raise RequestError(f"{folder}: expected at least 2 classes, got only {', '.join(labels)}")
    if left_out:
        examples = ", ".join(str(path.relative_to(folder)) for path in left_out[:3])
        _warn(
            f"{folder}: ignored {len(left_out)} hidden files, notes or other folders, such as "
            f"{examples}"
        )
    turns.sort()
    num_classes = DATASETS[data_set].num_classes if data_set in DATASETS else len(labels)
    return ClassFolders(
        folder, [file for *_, file in turns], [label for _, label, _ in turns], num_classes
    )


def _class_names(folder: Path, left_out: list[Path]) -> list[str]:
    names = []
    for entry in _entries(folder):
        if _is_class(entry):
            names.append(entry.name)
        elif _is_image(entry):
            raise RequestError(
                f"{entry.path}: an image outside of the class folders; move it into one"
            )
        else:
            left_out.append(Path(entry.path))
    if not names:
        raise RequestError(f"{folder}: expected one sub-folder per class")
    return names


def _check_classes(folder: Path, labels: dict[str, int], data_set: str) -> None:
    """Compare the classes with those of a named data set, or of the training folder.

    Raises:
        RequestError: they are another named data set's, or differ from the training folder's.
    """
    if data_set in DATASETS:
        num_classes = DATASETS[data_set].num_classes
        if len(labels) < num_classes:
            _warn(f"{folder}: has {len(labels)} of the {num_classes} classes of {data_set}")
        return
    names, named_as = list(labels), folder.parent.name
    if named_as in DATASETS and are_other_labels(labels, named_as):
        raise RequestError(
            f"{folder}: class folders of {named_as}, whose labels are not in this order: expected "
            f"dataset.name: {named_as} and --data-root {folder.parents[1]}"
        )
    if has_wnids(names):
        _warn(
            f"{folder}: labels are 0 … {len(names) - 1} in the order of the folders; "
            "for ImageNet's own labels, name the data set imagenet"
        )
    train = folder.parent / "train"
    if train == folder or not train.is_dir():
        return
    classes = {entry.name for entry in os.scandir(train) if _is_class(entry)}
    extra, missing = sorted(set(names) - classes), sorted(classes - set(names))
    if extra:
        raise RequestError(f"{folder}: class {extra[0]} is not in {train}")
    if missing:
        raise RequestError(
            f"{folder}: class {missing[0]} of {train} is missing; expected the same classes in both"
        )


def _warn(line: str) -> None:
    log.warning("%s", printable(line))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    return sorted(os.scandir(folder), key=lambda entry: entry.name)


def _is_hidden(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith(".") or entry.name in _NEVER_CLASSES


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Whether a file has the name of an image."""
    return _suffix(entry) in _IMAGE_SUFFIXES and not _is_hidden(entry)


def _suffix(entry: os.DirEntry[str]) -> str:
    return os.path.splitext(entry.name)[1].lower()


def _is_class(entry: os.DirEntry[str]) -> bool:
    return _is_folder(entry) and not _is_hidden(entry)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()


def _images_below(folder: Path, left_out: list[Path], above: tuple[Path, ...]) -> list[Path]:
    """List image files at any depth; those of a folder come before those of its sub-folders."""
    above = (*above, folder.resolve())
    if above[-1] in above[:-1]:
        raise RequestError(f"{folder}: a symbolic link to a folder above it; remove the link")
    images, deeper = list[Path](), list[Path]()
    for entry in _entries(folder):
        path = folder / entry.name
        if _is_hidden(entry):
            left_out.append(path)
        elif _is_folder(entry):
            deeper += _images_below(path, left_out, above)
        elif _is_image(entry):
            if not is_regular(path, follow_links=True):
                raise RequestError(f"{path}: expected a file, got a broken link or a device")
            images.append(path)
        elif _suffix(entry) in _NOTE_SUFFIXES or entry.name.lower() in _NOTE_NAMES:
            left_out.append(path)
        else:
            raise RequestError(
                f"{path}: expected an image ({' '.join(sorted(_IMAGE_SUFFIXES))}); convert it or "
                "move it out of the class folder"
            )
    return images + deeper
