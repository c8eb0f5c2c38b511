"""Facts about each named data set, one row per data set. Free of torch.

To add a data set, add a row here and test it; a layout that ``data/formats`` cannot read also
needs a reader there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ACCURACY_MARGIN = 0.01
"""Differences of accuracy that count as equivalent, where a data set has no margin of its own."""

_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit
raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel
streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip
turtle wardrobe whale willow_tree wolf woman worm
"""


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """What the suite needs to know about a named data set besides its images."""

    name: str
    num_classes: int
    classes: tuple[str, ...] = ()
    """Class names in the order of the labels; ``|`` separates names of one class. Empty: they are
    in ``classes_file``."""
    classes_file: str = ""
    """File of class names in ``data/formats``, one a line."""
    short_names: tuple[str, ...] = ()
    """Class names in galleries; empty: galleries show the labels."""
    how_to_get: str
    """Instructions for a user who does not have it."""
    layout: Literal["idx", "cifar"] | None = None
    """Layout in which torchvision stores it; None: parquet files or class folders only."""
    torchvision_class: str | None = None
    """Name in ``torchvision.datasets``, where torchvision can download it."""
    torchvision_folder: str = ""
    """Folder in which torchvision stores it."""
    system_folder: str = ""
    """Where a system package installs it, as IDX files."""
    is_packaged: bool = False
    """Whether this package contains a copy of it, as IDX files."""
    ignored_labels: tuple[str, ...] = ()
    """Columns of parquet files that hold other labels."""
    resize_ratio: float = 1.0
    """Short side of an image before its central crop, as a multiple of ``image_size``."""
    accuracy_margin: float = ACCURACY_MARGIN
    """Differences of accuracy that count as equivalent."""
    images_may_be_shown: bool = False
    """Whether its licence lets a committed run or a published page show its images."""

    @property
    def is_subsampled(self) -> bool:
        """Whether ``image_size`` leaves out pixels; larger images are resized and cropped."""
        return self.torchvision_class is not None


_ROWS = (
    DatasetFacts(
        name="fashion_mnist",
        num_classes=10,
        classes=(
            *("T-shirt/top|T-shirt", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        short_names=tuple(
            "T-shirt trouser pullover dress coat sandal shirt sneaker bag boot".split()
        ),
        how_to_get="Debian's package: apt-get install dataset-fashion-mnist",
        layout="idx",
        torchvision_class="FashionMNIST",
        torchvision_folder="FashionMNIST",
        system_folder="/usr/share/datasets/fashion-mnist",
        is_packaged=True,
        accuracy_margin=0.005,
        images_may_be_shown=True,
    ),
    DatasetFacts(
        name="mnist",
        num_classes=10,
        classes=tuple("zero one two three four five six seven eight nine".split()),
        how_to_get="-o dataset.download=true",
        layout="idx",
        torchvision_class="MNIST",
        torchvision_folder="MNIST",
        accuracy_margin=0.001,
        images_may_be_shown=True,
    ),
    DatasetFacts(
        name="cifar10",
        num_classes=10,
        classes=(
            *("airplane|plane", "automobile|car"),
            *"bird cat deer dog frog horse ship truck".split(),
        ),
        short_names=tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
        how_to_get="-o dataset.download=true",
        layout="cifar",
        torchvision_class="CIFAR10",
        torchvision_folder="cifar-10-batches-py",
    ),
    DatasetFacts(
        name="cifar100",
        num_classes=100,
        classes=tuple(_CIFAR100.split()),
        how_to_get="-o dataset.download=true",
        layout="cifar",
        torchvision_class="CIFAR100",
        torchvision_folder="cifar-100-python",
        ignored_labels=("coarse_label",),
    ),
    DatasetFacts(
        name="imagenet",
        num_classes=1000,
        classes_file="imagenet_wnids.txt",
        how_to_get="image-net.org, as folders train/<class>/, val/<class>/",
        torchvision_folder="imagenet",
        resize_ratio=256 / 224,
    ),
)
DATASETS = {row.name: row for row in _ROWS}
"""Facts by name; a user's own folder has no row."""


def accuracy_margin(name: str) -> float:
    """Differences of accuracy on a data set or folder that count as equivalent."""
    return DATASETS[name].accuracy_margin if name in DATASETS else ACCURACY_MARGIN


def short_class_names(name: str) -> list[str]:
    """Class names of a data set for galleries; empty: galleries show the labels."""
    return list(DATASETS[name].short_names) if name in DATASETS else []
