"""Map class names to labels."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from robust_ham.config.datasets import DATASETS
from robust_ham.errors import RequestError
from robust_ham.regular_files import read_text

_WNID = re.compile(r"n\d{8}(?![0-9])")


def has_wnids(names: list[str]) -> bool:
    """Whether all names begin with a WordNet id, as ImageNet's class folders do."""
    return all(_WNID.match(name) for name in names)


def labels_of_folders(data_set: str, names: list[str], where: Path) -> dict[str, int]:
    """Map each class folder to its label.

    In a named data set, the class name determines the label. Otherwise, folders that are all whole
    numbers are their own labels, and other folders are numbered in sorted order, as
    ``torchvision.datasets.ImageFolder`` does.

    Raises:
        RequestError: a folder is not a class of a named data set, two folders are the same class,
            or numbers do not count from 0.
    """
    if data_set in DATASETS:
        labels = {name: _checked_label(data_set, name, where) for name in names}
    elif all(_is_number(name) for name in names):
        labels = {name: int(name) for name in names}
    else:
        labels = {name: label for label, name in enumerate(sorted(names))}
    names_of_label: dict[int, str] = {}
    for name, label in labels.items():
        if label in names_of_label:
            raise RequestError(
                f"{where}: class folders {names_of_label[label]} and {name} both have label {label}"
            )
        names_of_label[label] = name
    if data_set not in DATASETS and set(labels.values()) != set(range(len(labels))):
        low, high = min(labels.values()), max(labels.values())
        raise RequestError(
            f"{where}: class folders named by numbers: expected 0 … {len(labels) - 1}, got "
            f"{low} … {high}; rename them (names with a letter are numbered in sorted order)"
        )
    return labels


def are_other_labels(labels: dict[str, int], data_set: str) -> bool:
    """Whether all folders are classes of a named data set, and it gives them other labels."""
    known = {name: _label_of(data_set, name) for name in labels}
    return None not in known.values() and known != labels


def check_class_names(data_set: str, names: list[str], where: Path) -> None:
    """Check class names, in the order of their labels, against a named data set.

    Raises:
        RequestError: a name belongs to another label.
    """
    if data_set not in DATASETS or not DATASETS[data_set].classes:
        return
    for label, name in enumerate(names):
        if _label_of(data_set, name) != label:
            raise RequestError(
                f"{where}: class {label} is named {name!r}: expected "
                f"{_names_of(data_set)[label]!r} of {data_set}"
            )


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def _checked_label(data_set: str, name: str, where: Path) -> int:
    label = _label_of(data_set, name)
    if label is None:
        last = DATASETS[data_set].num_classes - 1
        example = _names_of(data_set)[0]
        raise RequestError(
            f"{where}: class folder {name} is not a class of {data_set}: expected a name like "
            f"{example}, or 0 … {last}"
        )
    return label


def _label_of(data_set: str, name: str) -> int | None:
    if _is_number(name):
        label = int(name)
        return label if label < DATASETS[data_set].num_classes else None
    return _known_labels(data_set).get(_plain(name))


def _plain(name: str) -> str:
    """Keep letters and digits, in lower case; of ImageNet's folders, the WordNet id."""
    wnid = _WNID.match(name)
    return wnid[0] if wnid else re.sub(r"[\W_]", "", name.lower())


@cache
def _names_of(data_set: str) -> list[str]:
    known = DATASETS[data_set]
    if known.classes_file:
        text = read_text(Path(__file__).with_name(known.classes_file), 1_000_000, follow_links=True)
        return text.split()
    return [names.split("|")[0] for names in known.classes]


@cache
def _known_labels(data_set: str) -> dict[str, int]:
    if DATASETS[data_set].classes_file:
        return {wnid: label for label, wnid in enumerate(_names_of(data_set))}
    labels = {}
    for label, names in enumerate(DATASETS[data_set].classes):
        for name in names.split("|"):
            labels[_plain(name)] = label
            labels[_plain(f"{label} - {name}")] = label  # torchvision's MNIST.classes
    return labels
