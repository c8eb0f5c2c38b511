"""Which files of a folder are a split: complete shards of one generation, with labels."""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import assert_refused, mnist_like, png, write_folders, write_idx, write_parquet

from robust_ham.config.experiment import DatasetConfig
from robust_ham.data import datasets
from robust_ham.data.datasets import Dataset, available, load_split, load_train_validation
from robust_ham.errors import RequestError

IMAGES, LABELS = mnist_like(12, 8)
LABELS = LABELS % 3


def write_shard(folder, name, start):
    write_parquet(folder / name, IMAGES[start : start + 3], LABELS[start : start + 3])


def loaded(root, name="mine"):
    return load_split(DatasetConfig(name=name), "test", root)


@pytest.mark.parametrize(
    "names",
    [
        ["test.parquet"],
        ["test-0.parquet", "test-1.parquet"],
        ["test-00000-of-00002.parquet", "test-00001-of-00002.parquet"],
        ["test-00001-of-00002.parquet", "test-00002-of-00002.parquet"],
        ["test-00000-of-00002-0123456789abcdef.parquet", "test-00001-of-00002-ab12cd34.parquet"],
        ["data/test-00000-of-00001.parquet"],
        ["validation-00000-of-00001.parquet"],
        ["val.parquet"],
        ["plain_text/test-00000-of-00002.parquet", "plain_text/test-00001-of-00002.parquet"],
        ["mine/test-00000-of-00001.parquet"],
        ["default/test/0000.parquet", "default/test/0001.parquet"],
        ["test/0000.parquet"],
        ["test/test-00000-of-00001.parquet"],
        ["data/validation/0000.parquet"],
    ],
)
def test_complete_shards_are_read_in_order(tmp_path, names):
    for i, name in enumerate(names):
        write_shard(tmp_path / "mine", name, 3 * i)
    split = loaded(tmp_path)
    assert np.array_equal(split.images[:, 0].numpy(), IMAGES[: 3 * len(names)])
    assert available_place(tmp_path) == str(tmp_path / "cifar10")


def available_place(root):
    (root / "mine").rename(root / "cifar10")
    return available("cifar10", root)


def test_a_train_file_without_number(tmp_path):
    write_shard(tmp_path / "mine", "train.parquet", 0)
    train, _ = load_train_validation(DatasetConfig(name="mine"), tmp_path)
    assert len(train) == 3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["test-00000-of-00003", "test-00002-of-00003"], "test-00001-of-00003.parquet is missing"),
        (["test-00000-of-00002"], "test-00001-of-00002.parquet is missing beside test-00000"),
        (["test-00001-of-00002"], "test-00000-of-00002.parquet is missing"),
        (["test-00001-of-00003", "test-00002-of-00003"], "test-00000-of-00003.parquet is missing"),
        (["test-00001-of-00003", "test-00003-of-00003"], "test-00002-of-00003.parquet is missing"),
        (["test-0", "test-2"], "test-1.parquet is missing beside test-0.parquet"),
        (["test-1"], "test-0.parquet is missing"),
        (["test-00000-of-00001", "test-00001-of-00001"], "expected 1 files test-\\*, got 2"),
        (["test-00000-of-00000"], "expected 0 files"),
        (["test-00000-of-00001", "test-00000-of-00002"], "are from two exports; remove one"),
        (
            ["test-00000-of-00001-aaaaaaaa", "test-00000-of-00001-bbbbbbbb"],
            "-aaaaaaaa.parquet and test-00000-of-00001-bbbbbbbb.parquet are from two exports",
        ),
        (["test", "test-00000-of-00001"], "test.parquet .*two exports"),
        (["test-0", "test-00000-of-00001"], "two exports"),
        (["test-0", "test-00000"], "two exports"),
        (["test-0", "data/test-0"], "test-0.parquet and data/test-0.parquet both contain the test"),
        (["val-0", "validation-0"], "validation-0.parquet and val-0.parquet both contain the test"),
        (["test-0", "test-corrupted-0"], "test-corrupted-0.parquet: expected test.parquet, test-0"),
        (["test-0", "test-corrupted-00000-of-00001"], "move it to another folder"),
        (["test-a", "test-b"], "test-a.parquet: expected test.parquet"),
        (["fine/test-0", "coarse/test-0"], "coarse/ and fine/ both contain parquet files"),
        (["one/train-0", "two/test/0000"], "one/ and two/ both contain parquet files"),
        (
            ["one/test-0", "one/test/0000"],
            "one/test-0.parquet and one/test/0000.parquet both contain",
        ),
        (["default/test/0000", "default/test/0002"], "test: 0001.parquet is missing beside 0000"),
        (
            ["test/0000", "test/test-0"],
            "test: 0000.parquet and test-0.parquet are named differently",
        ),
    ],
)
def test_incomplete_or_ambiguous_shards_are_refused(tmp_path, names, message):
    for i, name in enumerate(names):
        write_shard(tmp_path / "mine", f"{name}.parquet", 3 * i)
    assert_refused("mine", tmp_path, message)
    (tmp_path / "mine").rename(tmp_path / "cifar10")
    assert str(tmp_path / "cifar10") in available("cifar10", tmp_path)


def test_other_splits_are_left_alone(tmp_path):
    for name in ("test-0", "test_small-0", "testing-0", "testA", "validation-9", "val-corrupted-0"):
        write_shard(tmp_path / "mine", f"{name}.parquet", 0 if name == "test-0" else 6)
    assert np.array_equal(loaded(tmp_path).images[:, 0].numpy(), IMAGES[:3])
    (tmp_path / "mine/test-0.parquet").unlink()
    assert_refused("mine", tmp_path, "validation-0.parquet is missing")
    (tmp_path / "mine/validation-9.parquet").unlink()
    assert_refused("mine", tmp_path, "val-corrupted-0.parquet: expected val.parquet")
    (tmp_path / "mine/val-corrupted-0.parquet").unlink()
    assert_refused("mine", tmp_path, "mine: expected test-\\*.parquet")


def test_a_folder_of_another_kind_beside_the_split_is_left_alone(tmp_path):
    write_shard(tmp_path / "mine", "test-0.parquet", 0)
    for name in ("corrupted/test-0", "noisy/test/0000", "older/test-corrupted-0"):
        write_shard(tmp_path / "mine", f"{name}.parquet", 6)
    assert np.array_equal(loaded(tmp_path).images[:, 0].numpy(), IMAGES[:3])


def test_class_folders_beside_parquet_are_refused(tmp_path):
    write_shard(tmp_path / "mine", "test-0.parquet", 0)
    write_folders(tmp_path / "mine/test", IMAGES, LABELS)
    assert_refused("mine", tmp_path, "test-0.parquet and test/ both contain the test images")
    write_shard(tmp_path / "mine", "train-0.parquet", 0)
    write_folders(tmp_path / "mine/train", IMAGES, LABELS)
    config = DatasetConfig(name="mine", stream=True, image_size=8)
    with pytest.raises(RequestError, match="train-0.parquet and train/ both contain the train"):
        _ = Dataset(config, tmp_path).train


# --- a test split without labels ---------------------------------------------------------------


def write_labels(path, labels):
    cells = [{"bytes": png(pixels), "path": None} for pixels in IMAGES[: len(labels)]]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": cells, "label": labels}), path)


@pytest.mark.parametrize(
    "labels", [[-1] * 3, pa.array([None] * 3, pa.int64()), pa.nulls(3), [-1, None, -1]]
)
def test_an_unlabelled_test_split_gives_way_to_validation(tmp_path, labels, caplog):
    write_labels(tmp_path / "mine/test-00000-of-00001.parquet", labels)
    assert_refused("mine", tmp_path, "test-00000-of-00001.parquet: no labels; expected test images")
    write_shard(tmp_path / "mine", "validation-00000-of-00001.parquet", 6)
    with caplog.at_level(logging.WARNING):
        split = loaded(tmp_path)
    assert np.array_equal(split.images[:, 0].numpy(), IMAGES[6:9])
    assert "test-00000-of-00001.parquet: no labels; " in caplog.text
    assert "validation-00000-of-00001.parquet" in caplog.text


def test_some_labels_are_not_none(tmp_path):
    write_shard(tmp_path / "mine", "validation-0.parquet", 6)
    write_labels(tmp_path / "mine/test-0.parquet", [0, -1, 1])
    assert_refused("mine", tmp_path, "label out of range: expected 0 … 1, got -1")
    write_labels(tmp_path / "mine/test-0.parquet", [0, None, 1])
    assert_refused("mine", tmp_path, "label: expected a label in every row")


def test_a_folder_of_test_images_without_classes_gives_way_to_validation(tmp_path, caplog):
    (tmp_path / "mine/test").mkdir(parents=True)
    (tmp_path / "mine/test/1.png").write_bytes(png(IMAGES[0]))
    assert_refused("mine", tmp_path, "mine/test: no labels")
    write_folders(tmp_path / "mine/val", IMAGES, LABELS)
    with caplog.at_level(logging.WARNING):
        assert len(loaded(tmp_path)) == 12
    assert "mine/test: no labels; " in caplog.text


def test_training_images_need_labels(tmp_path):
    write_labels(tmp_path / "mine/train-0.parquet", [-1] * 3)
    with pytest.raises(RequestError, match="train-0.parquet: no labels; expected train images"):
        load_train_validation(DatasetConfig(name="mine"), tmp_path)


# --- where it is found --------------------------------------------------------------------------


def test_data_root_goes_before_the_current_directory(tmp_path, monkeypatch):
    write_folders(tmp_path / "here/mine/test", IMAGES[:6], LABELS[:6])
    write_folders(tmp_path / "root/mine/test", IMAGES[6:], LABELS[6:])
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("ROBUST_HAM_DATA", raising=False)
    first = lambda *root: loaded(*root).images[0, 0].numpy()  # noqa: E731
    assert np.array_equal(first(None), IMAGES[0])
    assert np.array_equal(first(tmp_path / "root"), IMAGES[6])
    assert np.array_equal(first(tmp_path / "empty"), IMAGES[0])
    config = DatasetConfig(name="mine", data_root=str(tmp_path / "root"))
    assert np.array_equal(load_split(config, "test").images[0, 0].numpy(), IMAGES[6])
    monkeypatch.setenv("ROBUST_HAM_DATA", str(tmp_path / "root"))
    assert np.array_equal(first(None), IMAGES[6])


@pytest.mark.parametrize("compress", [False, True])
def test_published_files_under_another_name_are_refused(tmp_path, compress):
    """The package's Fashion-MNIST files, packed and unpacked, stand for the published ones."""
    packaged = load_split(DatasetConfig(name="fashion_mnist"), "test")
    images, labels = packaged.images[:, 0].numpy(), packaged.labels.numpy()
    for folder, stem in [("a/MNIST", "t10k"), ("b/FashionMNIST", "train")]:
        write_idx(tmp_path / folder / "raw", stem, images, labels, compress=compress)
    assert_refused(
        "mnist", tmp_path / "a", r"ubyte.*: expected the test split of mnist, got the file of fashi"
    )
    with pytest.raises(RequestError, match=r"the train split .*, got .* fashion_mnist \(test\)"):
        load_split(DatasetConfig(name="fashion_mnist"), "train", tmp_path / "b")
    write_idx(tmp_path / "c/FashionMNIST/raw", "t10k", images, labels, compress=compress)
    found = load_split(DatasetConfig(name="fashion_mnist"), "test", tmp_path / "c")
    assert found.hash() == packaged.hash()
    write_idx(tmp_path / "d/MNIST/raw", "t10k", images ^ 1, labels, compress=compress)
    assert_refused("mnist", tmp_path / "d", "t10k-labels-idx1-ubyte.*: expected the test split of")


def test_training_files_alone_are_not_completed_from_elsewhere(tmp_path, monkeypatch):
    write_idx(tmp_path / "FashionMNIST/raw", "train", IMAGES, LABELS)
    assert_refused("fashion_mnist", tmp_path, "raw: has train files of fashion_mnist, but no test")
    monkeypatch.setattr(datasets, "download", lambda *_: pytest.fail("asked to download"))
    (tmp_path / "FashionMNIST").rename(tmp_path / "MNIST")
    with pytest.raises(pytest.fail.Exception, match="asked to download"):
        load_split(DatasetConfig(name="mnist", download=True), "test", tmp_path)
