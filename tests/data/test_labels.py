"""Labels: which column, from 0, every class there, and no class lost when a split is cut."""

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_files import assert_refused, mnist_like, png, write_idx, write_parquet

from robust_ham.config.datasets import DATASETS
from robust_ham.config.experiment import DatasetConfig
from robust_ham.data.datasets import Dataset, load_split, load_train_validation
from robust_ham.data.label_checks import check_cut, check_labels
from robust_ham.errors import RequestError

REAL = Path(__file__).parents[3] / "shared/datasets"
CELLS = [{"bytes": png(pixels), "path": None} for pixels in mnist_like(4, 8)[0]]


def write_table(root, columns, name="mine", names=None):
    table = pa.table(columns)
    if names is not None:
        feature = {"label": {"names": names, "_type": "ClassLabel"}}
        about = json.dumps({"info": {"features": feature}})
        table = table.replace_schema_metadata({"huggingface": about})
    (root / name).mkdir(exist_ok=True)
    pq.write_table(table, root / name / "test.parquet")


def labels(root, name="mine"):
    return load_split(DatasetConfig(name=name), "test", root).labels.tolist()


# --- columns -------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", ["image", "img"])
@pytest.mark.parametrize("label", ["label", "labels", "fine_label", "coarse_label"])
@pytest.mark.parametrize("kind", [pa.int64(), pa.uint8(), pa.int16()])
def test_columns_of_images_and_labels(tmp_path, image, label, kind):
    write_table(tmp_path, {"id": [5] * 4, image: CELLS, label: pa.array([1, 0, 2, 1], kind)})
    assert labels(tmp_path) == [1, 0, 2, 1]


def test_cifar100_is_known_by_its_fine_labels(tmp_path):
    columns = {"img": CELLS, "fine_label": [99, 3, 7, 5], "coarse_label": [0, 1, 1, 0]}
    write_table(tmp_path, columns, "cifar100")
    assert labels(tmp_path, "cifar100") == [99, 3, 7, 5]
    write_table(tmp_path, columns)
    assert_refused("mine", tmp_path, "expected one column, got fine_label and coarse_label; drop")
    del columns["fine_label"]
    write_table(tmp_path, columns, "cifar100")
    assert_refused("cifar100", tmp_path, "expected columns image .* got img, coarse_label")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": CELLS, "target": [0, 1, 0, 1]}, "and label .or labels., got image, target"),
        ({"pixels": CELLS, "label": [0, 1, 0, 1]}, "expected columns image .* got pixels, label"),
        (
            {"image": CELLS, "img": CELLS, "label": [0] * 4},
            "expected one column, got image and img",
        ),
        ({"image": CELLS, "label": [0] * 4, "labels": [1] * 4}, "got label and labels"),
        ({"image": CELLS, "label": [0.0, 1.0, 0.0, 1.0]}, "expected whole numbers, got double"),
        ({"image": CELLS, "label": list("abab")}, "label: expected whole numbers, got string"),
        ({"image": CELLS, "label": [True, False] * 2}, "expected whole numbers, got bool"),
        ({"image": CELLS, "labels": [[0], [1], [0], [1]]}, "expected whole numbers, got list"),
        ({"image": CELLS, "label": [0, 1, None, 1]}, "label: expected a label in every row"),
    ],
)
def test_other_columns_are_refused(tmp_path, columns, message):
    write_table(tmp_path, columns)
    assert_refused("mine", tmp_path, message)


def test_names_of_classes_must_be_those_of_a_known_data_set(tmp_path):
    fashion = [name.split("|")[0] for name in DATASETS["fashion_mnist"].classes]
    columns = {"image": CELLS, "label": [0, 1, 2, 3]}
    for name, names in (
        ("fashion_mnist", ["T - shirt / top", *fashion[1:]]),  # as on the hub
        ("mnist", list("0123456789")),
        ("cifar10", [names.split("|")[0] for names in DATASETS["cifar10"].classes]),
        ("mine", ["w", "x", "y", "z"]),
    ):
        write_table(tmp_path, columns, name, names)
        assert labels(tmp_path, name) == [0, 1, 2, 3]
    write_table(tmp_path, columns, "mnist", fashion)
    assert_refused("mnist", tmp_path, "class 0 is named 'T-shirt/top': expected 'zero' of mnist")
    write_table(tmp_path, columns, "fashion_mnist", sorted(fashion))
    assert_refused("fashion_mnist", tmp_path, "class 0 is named 'Ankle boot': expected 'T-shirt")


def test_the_number_of_classes_is_that_of_the_names(tmp_path):
    columns = {"image": CELLS, "label": [0, 1, 2, 1]}
    write_table(tmp_path, columns, names=["cat", "dog", "eel"])
    assert load_split(DatasetConfig(name="mine"), "test", tmp_path).num_classes == 3
    for values, message in [
        ([0, 1, 0, 1], "no image of class 2: expected images of all 3 classes"),
        ([1, 2, 1, 2], "no image of class 0: expected images of all 3 classes"),
        ([0, 1, 2, 3], "label out of range: expected 0 … 2, got 3"),
        ([1, 2, 3, 1], "expected 0 … 2, got 3; labels must begin at 0, not at 1"),
    ]:
        write_table(tmp_path, columns | {"label": values}, names=["cat", "dog", "eel"])
        assert_refused("mine", tmp_path, message)


def test_shards_name_the_same_classes(tmp_path):
    for number, names in enumerate((["cat", "dog"], ["dog", "cat"])):
        write_table(tmp_path, {"image": CELLS, "label": [0, 1, 0, 1]}, names=names)
        (tmp_path / "mine/test.parquet").rename(tmp_path / f"mine/test-{number}.parquet")
    assert_refused("mine", tmp_path, "test-1.parquet: its class names differ .* test-0.parquet")


@pytest.mark.skipif(not REAL.is_dir(), reason="no real data sets here")
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist"])
def test_names_of_real_data_sets_are_known(name):
    schema = pq.read_schema(REAL / name / "test-00000-of-00001.parquet")
    names = json.loads(schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    expected = [name.split("|")[0] for name in DATASETS[name].classes]
    assert names == (expected if name != "mnist" else list("0123456789"))


# --- which classes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("mine", [1, 2, 3, 1], "labels begin at 1: expected 0 … 2"),
        ("mine", [5, 6, 7, 8], "labels begin at 5: expected 0 … 3"),
        ("mine", [0, 1, 3, 0], "no image of class 2: expected images of all 4 classes"),
        ("mine", [0, 0, 0, 0], "expected labels of at least 2 classes, got only 0"),
        ("mine", [1, 1, 1, 1], "expected labels of at least 2 classes, got only 1"),
        ("cifar10", [3, 3, 3, 3], "expected labels of at least 2 classes, got only 3"),
        ("cifar10", [1, 2, 3, 10], "expected 0 … 9, got 10; labels must begin at 0, not at 1"),
        ("cifar10", [0, 2, 3, 10], "expected 0 … 9, got 10$"),
        ("cifar10", [0, 2, 3, -2], "expected 0 … 9, got -2$"),
    ],
)
def test_labels_that_cannot_be_right_are_refused(tmp_path, name, values, message):
    write_table(tmp_path, {"image": CELLS, "label": values}, name)
    assert_refused(name, tmp_path, message)


def test_idx_labels_that_begin_at_1(tmp_path):
    images, found = mnist_like(30)
    write_idx(tmp_path / "MNIST/raw", "t10k", images, found + 1)
    assert_refused("mnist", tmp_path, "label out of range: .* 10; labels must begin at 0, not at 1")


def test_known_data_sets_have_all_classes_unless_there_are_few_images():
    draw = np.random.default_rng(0)
    for count in (2, 5, 20, 60, 1000):
        assert check_labels(draw.integers(0, 10, count), "mnist", Path("x")) == 10
    with pytest.raises(RequestError, match="x: no image of class 0: expected images of all 10"):
        check_labels(draw.integers(1, 10, 300), "mnist", Path("x"))
    with pytest.raises(RequestError, match="x: no image of class 10: expected images of all 100"):
        check_labels(np.arange(1000) % 10, "cifar100", Path("x"))  # CIFAR-10 under its name


# --- cuts ----------------------------------------------------------------------------------------


def sorted_by_class(count, num_classes=10):
    return torch.arange(count) * num_classes // count


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        (sorted_by_class(30), slice(10)),
        (sorted_by_class(30), slice(27)),
        (sorted_by_class(6, 2), slice(3)),
        (sorted_by_class(10_000, 100), slice(40)),
        (sorted_by_class(10_000, 100), slice(9000, 10_000)),
        (sorted_by_class(60_000, 2) * 5 + torch.arange(60_000) % 5, slice(1000)),  # in two halves
        (torch.cat([torch.arange(9).repeat(100), torch.full((100,), 9)]), slice(900)),
    ],
)
def test_cuts_of_a_split_ordered_by_class_are_refused(stored, kept):
    with pytest.raises(RequestError, match=r"dataset.num_train: .* ordered by class; use all"):
        check_cut(stored, kept, "num_train", "x")


def test_cuts_of_shuffled_splits_pass_and_say_what_is_missing(caplog):
    draw = np.random.default_rng(0)
    shuffled = torch.from_numpy(draw.permutation(np.arange(10_000) % 100))
    with caplog.at_level(logging.WARNING):
        check_cut(shuffled, slice(5000), "num_test", "x")
        assert not caplog.text
        check_cut(shuffled, slice(40), "num_test", "x")
    present = len(set(shuffled[:40].tolist()))
    line = f"dataset.num_test: {present} of the 100 classes of x occur in the 40 images used"
    assert caplog.messages == [line]
    for count in (1, 2, 5, 10, 20, 60):
        check_cut(torch.from_numpy(draw.integers(0, 10, 500)), slice(count), "num_test", "x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 20}, "dataset.num_train: 7 of the 10 classes of .* in the 20 images"),
        ({"num_validation": 6}, "dataset.num_validation: 8 of the 10 classes"),
        ({"num_train": 3, "num_validation": 27}, "dataset.num_train: 1 of the 10 classes"),
    ],
)
def test_a_training_split_ordered_by_class_is_not_cut(tmp_path, options, message):
    images, found = mnist_like(30)
    write_idx(tmp_path / "MNIST/raw", "train", images, np.sort(found))
    with pytest.raises(RequestError, match=message):
        load_train_validation(DatasetConfig(name="mnist", **options), tmp_path)
    assert len(load_train_validation(DatasetConfig(name="mnist"), tmp_path)[0]) == 30


def test_validation_images_have_all_classes(tmp_path):
    images, found = mnist_like(300)
    found[200:] = 3
    write_idx(tmp_path / "MNIST/raw", "train", images, found)
    with pytest.raises(RequestError, match="num_validation: 1 of the 10 classes of .* 100 images"):
        load_train_validation(DatasetConfig(name="mnist", num_validation=100), tmp_path)


def test_a_test_split_ordered_by_class_is_not_cut(tmp_path):
    images, found = mnist_like(30, 8)
    write_parquet(tmp_path / "mine/test.parquet", images, np.sort(found))
    with pytest.raises(RequestError, match="dataset.num_test: 4 of the 10 classes .* 12 images"):
        _ = Dataset(DatasetConfig(name="mine", num_test=12), tmp_path).test
    assert len(Dataset(DatasetConfig(name="mine", num_test=30), tmp_path).test) == 30
