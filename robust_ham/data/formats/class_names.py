"""From the names of classes to labels."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from robust_ham.data.splits import KNOWN
from robust_ham.errors import RequestError
from robust_ham.regular_files import read_text

_WNID = re.compile(r"n\d{8}(?![0-9])")

CLASS_NAMES = {
    "mnist": "zero, one, two, three, four, five, six, seven, eight, nine",
    "fashion_mnist": "T-shirt/top|T-shirt, Trouser, Pullover, Dress, Coat, Sandal, Shirt, "
    "Sneaker, Bag, Ankle boot",
    "cifar10": "airplane|plane, automobile|car, bird, cat, deer, dog, frog, horse, ship, truck",
    "cifar100": "apple, aquarium_fish, baby, bear, beaver, bed, bee, beetle, bicycle, bottle, "
    "bowl, boy, bridge, bus, butterfly, camel, can, castle, caterpillar, cattle, chair, "
    "chimpanzee, clock, cloud, cockroach, couch, crab, crocodile, cup, dinosaur, dolphin, "
    "elephant, flatfish, forest, fox, girl, hamster, house, kangaroo, keyboard, lamp, lawn_mower, "
    "leopard, lion, lizard, lobster, man, maple_tree, motorcycle, mountain, mouse, mushroom, "
    "oak_tree, orange, orchid, otter, palm_tree, pear, pickup_truck, pine_tree, plain, plate, "
    "poppy, porcupine, possum, rabbit, raccoon, ray, road, rocket, rose, sea, seal, shark, shrew, "
    "skunk, skyscraper, snail, snake, spider, squirrel, streetcar, sunflower, sweet_pepper, table, "
    "tank, telephone, television, tiger, tractor, train, trout, tulip, turtle, wardrobe, whale, "
    "willow_tree, wolf, woman, worm",
}
"""Classes of known data sets in the order of their labels; ``|`` separates names of one class."""


def has_wnids(names: list[str]) -> bool:
    """Whether all names are, or begin with, WordNet ids, as ImageNet's class folders."""
    return all(_WNID.match(name) for name in names)


def labels_of_folders(data_set: str, names: list[str], where: Path) -> dict[str, int]:
    """The label of each class folder.

    Of a data set that is known by name, a folder's name fixes its label. Otherwise labels are the
    order of the sorted names, as in ``torchvision.datasets.ImageFolder``; where all names are
    whole numbers, these are the labels.

    Raises:
        RequestError: a folder is not a class of a known data set, two are the same class, or
            numbers do not count from 0.
    """
    if data_set in KNOWN:
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
    if data_set not in KNOWN and set(labels.values()) != set(range(len(labels))):
        low, high = min(labels.values()), max(labels.values())
        raise RequestError(
            f"{where}: class folders named by numbers: expected 0 … {len(labels) - 1}, got "
            f"{low} … {high}; rename them (names with a letter are numbered in sorted order)"
        )
    return labels


def are_other_labels(labels: dict[str, int], data_set: str) -> bool:
    """Whether class folders are all classes of a known data set, and have other labels there."""
    known = {name: _label_of(data_set, name) for name in labels}
    return None not in known.values() and known != labels


def check_class_names(data_set: str, names: list[str], where: Path) -> None:
    """Check names listed in the order of labels against those of a known data set.

    Raises:
        RequestError: a name is not the class of its label.
    """
    if data_set not in CLASS_NAMES:
        return
    for label, name in enumerate(names):
        if _label_of(data_set, name) != label:
            raise RequestError(
                f"{where}: its class {label} is named {name!r}: expected "
                f"{_names_of(data_set)[label]!r} of {data_set}"
            )


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def _checked_label(data_set: str, name: str, where: Path) -> int:
    label = _label_of(data_set, name)
    if label is None:
        last = KNOWN[data_set].num_classes - 1
        example = _names_of(data_set)[0]
        raise RequestError(
            f"{where}: class folder {name} is not a class of {data_set}: expected a name like "
            f"{example}, or 0 … {last}"
        )
    return label


def _label_of(data_set: str, name: str) -> int | None:
    if _is_number(name):
        label = int(name)
        return label if label < KNOWN[data_set].num_classes else None
    return _known_labels(data_set).get(_plain(name))


def _plain(name: str) -> str:
    """Letters and digits in lower case; of ImageNet's folders, the WordNet id."""
    wnid = _WNID.match(name)
    return wnid[0] if wnid else re.sub(r"[\W_]", "", name.lower())


@cache
def _names_of(data_set: str) -> list[str]:
    if data_set == "imagenet":
        text = read_text(
            Path(__file__).with_name("imagenet_wnids.txt"), 1_000_000, follow_links=True
        )
        return text.split()
    return [name.split("|")[0] for name in CLASS_NAMES[data_set].split(", ")]


@cache
def _known_labels(data_set: str) -> dict[str, int]:
    if data_set == "imagenet":
        return {wnid: label for label, wnid in enumerate(_names_of(data_set))}
    labels = {}
    for label, names in enumerate(CLASS_NAMES[data_set].split(", ")):
        for name in names.split("|"):
            labels[_plain(name)] = label
            labels[_plain(f"{label} - {name}")] = label  # torchvision's MNIST.classes
    return labels
