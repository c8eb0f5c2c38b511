"""Class folders: files as torchvision's ImageFolder finds them, labels of known data sets."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import assert_refused, mnist_like, png
from torchvision.datasets import CIFAR10, MNIST, FashionMNIST, ImageFolder
from torchvision.models._meta import _IMAGENET_CATEGORIES

from robust_ham.config.datasets import DATASETS
from robust_ham.config.experiment import DatasetConfig
from robust_ham.data.datasets import Dataset, load_split
from robust_ham.data.formats.class_names import labels_of_folders
from robust_ham.errors import RequestError

REAL = Path(__file__).parents[3] / "shared/datasets/imagenet_sample"
IMAGE = mnist_like(1, 8)[0][0]
CONTENT = png(IMAGE)


def write(folder, *paths, content=CONTENT):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def labels(root, name="mine", split="test", **options):
    return load_split(DatasetConfig(name=name, **options), split, root).labels.tolist()


# --- which files ---------------------------------------------------------------------------------


def test_files_are_those_that_image_folder_finds(tmp_path):
    target = tmp_path / "mine/train"
    for i, suffix in enumerate(
        ("jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp", "PNG", "JPEG", "Tif")
    ):
        write(target, f"a/{i}.{suffix}", f"b/deep/er/{i}.{suffix}")
    write(target, "b/wrong name.jpg", "b/directory.png/0.png")  # a PNG file, a folder
    write(tmp_path, "elsewhere/x.png")
    (target / "a/link.png").symlink_to(tmp_path / "elsewhere/x.png")
    (target / "a/folder").symlink_to(tmp_path / "elsewhere")
    (target / "c").symlink_to(tmp_path / "elsewhere")
    reference = ImageFolder(target)
    config = DatasetConfig(name="mine", stream=True, image_size=8)
    files = Dataset(config, tmp_path).train
    found = zip(map(str, files.files), files.labels.tolist(), strict=True)
    assert sorted(found) == sorted(reference.samples)
    assert len(files) == 29
    split = load_split(DatasetConfig(name="mine"), "train", tmp_path)
    assert torch.equal(split.labels, files.labels)
    assert np.array_equal(split.images.numpy(), np.broadcast_to(IMAGE, (29, 1, 8, 8)))


@pytest.mark.parametrize("name", ["x.gif", "x.npy", "x.jp2", "x", "x.png.bak", "x.mat", "x.PBM"])
def test_what_may_be_an_image_is_never_skipped(tmp_path, name):
    write(tmp_path / "mine/test", "a/0.png", "b/0.png", f"b/{name}")
    assert_refused("mine", tmp_path, f"b/{name}: expected an image \\(.bmp .jpeg .*convert it or")


def test_notes_and_hidden_files_are_reported(tmp_path, caplog):
    write(
        tmp_path / "mine/test",
        *("a/0.png", "b/0.png", "a/boxes.txt", "b/._0.png", "b/.ipynb_checkpoints/0.png"),
        *("READ\nME.md", "a/Thumbs.db", ".cache/x.png"),
    )
    with caplog.at_level(logging.WARNING):
        assert labels(tmp_path) == [0, 1]
    assert "test: ignored 6 hidden files, notes or other folders, such as .cache" in caplog.text
    assert "READ\\nME.md, " in caplog.text


def test_notes_without_suffix_and_folders_left_behind_are_reported(tmp_path, caplog):
    write(tmp_path / "mine/train", "a/0.png", "b/0.png", "@eaDir/0.png")
    write(
        tmp_path / "mine/test",
        *("a/0.png", "b/0.png", "a/README", "b/LICENSE", "a/Icon\r", "a/__MACOSX/0.png"),
        *("__MACOSX/a/0.png", "__pycache__/x.pyc"),
    )
    with caplog.at_level(logging.WARNING):
        assert labels(tmp_path) == [0, 1]
    assert "test: ignored 6 hidden files, notes or other folders, such as __MACOSX" in caplog.text


def test_images_outside_of_the_classes_and_broken_links_are_refused(tmp_path):
    write(tmp_path / "mine/test", "a/0.png", "b/0.png", "c.JPG")
    assert_refused("mine", tmp_path, "test/c.JPG: an image outside of the class folders")
    (tmp_path / "mine/test/c.JPG").unlink()
    (tmp_path / "mine/test/a/1.png").symlink_to("gone.png")
    assert_refused("mine", tmp_path, "a/1.png: expected a file, got a broken link")
    (tmp_path / "mine/test/a/1.png").unlink()
    (tmp_path / "mine/test/a/2.png").symlink_to("2.png")
    assert_refused("mine", tmp_path, "a/2.png: expected a file, got a broken link")
    (tmp_path / "mine/test/a/2.png").unlink()
    (tmp_path / "mine/test/a/loop").symlink_to(tmp_path / "mine/test")
    assert_refused("mine", tmp_path, "loop.*: a symbolic link to a folder above it")


# --- which classes -------------------------------------------------------------------------------


def test_every_class_has_images_and_there_are_two(tmp_path):
    write(tmp_path / "mine/test", "a/0.png")
    assert_refused("mine", tmp_path, "test: expected at least 2 classes, got only a")
    (tmp_path / "mine/test/b").mkdir()
    assert_refused("mine", tmp_path, "test/b: no image files")
    write(tmp_path / "mine/train", "a/0.png")
    config = DatasetConfig(name="mine", stream=True, image_size=8)
    with pytest.raises(RequestError, match="train: expected at least 2 classes, got only a"):
        _ = Dataset(config, tmp_path).train


def test_classes_of_train_and_test_are_the_same(tmp_path):
    write(tmp_path / "mine", "train/a/0.png", "train/b/0.png", "val/a/0.png", "val/c/0.png")
    assert_refused("mine", tmp_path, "val: class c is not in .*train")
    (tmp_path / "mine/val/c").rename(tmp_path / "mine/val/b")
    assert labels(tmp_path) == [0, 1]
    write(tmp_path / "mine", "train/aa/0.png")
    assert_refused("mine", tmp_path, "val: class aa of .*train is missing; expected the same")


def test_numbers_are_labels(tmp_path):
    write(tmp_path / "mine/test", *(f"{label}/{i}.png" for label in range(12) for i in range(2)))
    write(tmp_path / "mine/test", "11/2.png")
    assert labels(tmp_path) == [*range(12), *range(12), 11]
    write(tmp_path / "padded/test", *(f"{label:03}/0.png" for label in range(12)))
    assert labels(tmp_path, "padded") == list(range(12))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1", "2", "3"], "named by numbers: expected 0 … 2, got 1 … 3; rename them"),
        (["0", "2"], "expected 0 … 1, got 0 … 2"),
        (["1", "01"], "class folders 01 and 1 both have label 1"),
    ],
)
def test_numbers_that_do_not_count_from_zero_are_refused(tmp_path, names, message):
    write(tmp_path / "mine/test", *(f"{name}/0.png" for name in names))
    assert_refused("mine", tmp_path, message)


# --- known data sets -----------------------------------------------------------------------------


def test_names_of_known_classes_are_those_of_torchvision():
    for data_set, kind in (("mnist", MNIST), ("fashion_mnist", FashionMNIST)):
        names = [name.replace("/", "_") for name in kind.classes]
        assert list(labels_of_folders(data_set, names, Path()).values()) == list(range(10))
    assert sorted(DATASETS["cifar100"].classes) == list(DATASETS["cifar100"].classes)
    assert CIFAR10.base_folder == "cifar-10-batches-py"


def test_names_of_real_imagenet_folders_are_at_their_place_in_torchvisions_list():
    """WordNet ids in sorted order are the order of torchvision's categories."""
    pairs = {
        "n01440764": "tench",
        "n02110185": "Siberian husky",
        "n04399382": "teddy",
        "n07747607": "orange",
        "n09332890": "lakeside",
        "n15075141": "toilet tissue",
    }
    found = labels_of_folders("imagenet", list(pairs), Path())
    assert {wnid: _IMAGENET_CATEGORIES[label] for wnid, label in found.items()} == pairs


@pytest.mark.parametrize(
    ("name", "folders", "expected"),
    [
        ("imagenet", ["n01440764", "n02110185", "n15075141"], [0, 250, 999]),
        ("imagenet", ["n15075141_toilet_tissue", "n01440764-tench"], [0, 999]),
        ("imagenet", ["0", "10", "9"], [0, 9, 10]),
        ("cifar100", ["worm", "apple", "Aquarium Fish"], [0, 1, 99]),
        ("cifar100", ["0", "99", "10", "9"], [0, 9, 10, 99]),
        ("fashion_mnist", ["Ankle boot", "T-shirt_top", "Bag"], [0, 8, 9]),
        ("fashion_mnist", ["ankle_boot", "tshirt"], [0, 9]),
        ("cifar10", ["truck", "plane", "automobile"], [0, 1, 9]),
        ("mnist", ["7 - seven", "three"], [3, 7]),
    ],
)
def test_folders_of_known_data_sets_have_their_labels(tmp_path, name, folders, expected, caplog):
    write(tmp_path / name / "test", *(f"{folder}/0.png" for folder in folders))
    with caplog.at_level(logging.WARNING):
        assert labels(tmp_path, name) == expected
    assert f"test: has {len(folders)} of the " in caplog.text


@pytest.mark.parametrize(
    ("name", "folders", "message"),
    [
        (
            "imagenet",
            ["n01440764", "n00000001"],
            "n00000001 is not a class of imagenet: .* like n01",
        ),
        ("imagenet", ["tench", "goldfish"], "class folder goldfish is not a class of imagenet"),
        ("imagenet", ["0", "1000"], "1000 is not a class of imagenet: .* or 0 … 999"),
        ("cifar10", ["cat", "kitten"], "kitten is not a class of cifar10: .* airplane, or 0 … 9"),
        ("cifar10", [str(i) for i in range(1, 11)], "class folder 10 is not a class of cifar10"),
        ("cifar10", ["cat", "3"], "class folders 3 and cat both have label 3"),
        ("cifar10", ["class0", "class1"], "class0 is not a class of cifar10"),
        ("cifar10", ["cat"], "expected at least 2 classes, got only cat"),
    ],
)
def test_other_folders_of_known_data_sets_are_refused(tmp_path, name, folders, message):
    write(tmp_path / name / "test", *(f"{folder}/0.png" for folder in folders))
    assert_refused(name, tmp_path, message)


@pytest.mark.parametrize(
    ("name", "folders"),
    [("imagenet", ["n01440764", "n02110185"]), ("fashion_mnist", ["Ankle boot", "Bag"])],
)
def test_a_path_to_a_known_data_set_does_not_change_its_labels(tmp_path, name, folders):
    place = tmp_path / name
    write(place / "test", *(f"{folder}/0.png" for folder in folders))
    assert_refused(str(place), None, f"expected dataset.name: {name} and --data-root {tmp_path}")
    write(tmp_path / "cifar10/test", *(f"{label}/0.png" for label in range(10)))
    assert labels(None, str(tmp_path / "cifar10")) == list(range(10))


def test_streamed_folders_of_known_data_sets_have_their_labels(tmp_path):
    write(tmp_path / "imagenet/train", "n15075141/0.png", "n01440764/0.png")
    config = DatasetConfig(name="imagenet", stream=True, image_size=8)
    train = Dataset(config, tmp_path).train
    assert train.labels.tolist() == [0, 999]
    assert train.num_classes == 1000


@pytest.mark.skipif(not REAL.is_dir(), reason="no real ImageNet images here")
def test_real_images_have_their_own_labels(tmp_path, caplog):
    (tmp_path / "imagenet").symlink_to(REAL)
    split = load_split(DatasetConfig(name="imagenet", image_size=32), "test", tmp_path)
    names = sorted(path.name for path in (REAL / "val").iterdir())
    categories = [_IMAGENET_CATEGORIES[label] for label in split.labels]
    assert split.num_classes == 1000
    for name, category in zip(names, categories, strict=True):
        file = next((REAL / "val" / name).iterdir())
        assert file.stem.split("_", 1)[1].replace("_", " ") == category.replace("'", "")
    with caplog.at_level(logging.WARNING):
        split = load_split(DatasetConfig(name=str(REAL), image_size=32), "test")
    assert split.labels.tolist() == list(range(40))
    assert "labels are 0 … 39 in the order of the folders; for ImageNet's own" in caplog.text


def test_a_cut_of_class_folders_says_which_classes_are_missing(tmp_path, caplog):
    write(tmp_path / "mine/test", *(f"{k}/{i}.png" for k in "abcd" for i in range(3)))
    with caplog.at_level(logging.WARNING):
        assert labels(tmp_path, num_test=4) == [0, 1, 2, 3]
        assert not caplog.text
        assert labels(tmp_path, num_test=3) == [0, 1, 2]
    assert "dataset.num_test: 3 of the 4 classes of" in caplog.text
