"""Data sets in every layout, the balanced order, and what broken ones say."""

import gzip
import hashlib
import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_files import assert_refused, mnist_like, png, write_folders, write_idx, write_parquet

from robust_ham.config.datasets import DATASETS
from robust_ham.config.experiment import DatasetConfig
from robust_ham.data.datasets import Dataset, load_files, load_split, load_train_validation
from robust_ham.data.splits import balanced_order, to_float
from robust_ham.errors import RequestError


def test_the_package_holds_fashion_mnist(monkeypatch, tmp_path):
    row = replace(DATASETS["fashion_mnist"], system_folder=str(tmp_path))
    monkeypatch.setitem(DATASETS, "fashion_mnist", row)
    monkeypatch.delenv("ROBUST_HAM_DATA", raising=False)
    dataset = Dataset(DatasetConfig(name="fashion_mnist"))
    assert dataset.test.images.shape == (10_000, 1, 28, 28)
    assert dataset.train.images.shape == (10_000, 1, 28, 28)
    assert dataset.test.images.dtype == torch.uint8
    assert torch.bincount(dataset.test.labels).tolist() == [1000] * 10
    assert dataset.test.labels[:5].tolist() == [9, 2, 1, 1, 6]  # as published
    assert dataset.train.labels[:5].tolist() == [9, 0, 0, 3, 0]


def test_every_layout_gives_the_same_data(tmp_path):
    images, labels = mnist_like()
    turn = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)])
    taking_turns = np.lexsort((labels, turn))  # the order of a folder per class
    images, labels = images[taking_turns], labels[taking_turns]
    write_idx(tmp_path / "a/MNIST/raw", "t10k", images, labels)
    write_idx(tmp_path / "b/MNIST/raw", "t10k", images, labels, compress=True)
    write_parquet(tmp_path / "c/mnist/test-00000-of-00002.parquet", images[:20], labels[:20])
    write_parquet(tmp_path / "c/mnist/test-00001-of-00002.parquet", images[20:], labels[20:])
    write_parquet(
        tmp_path / "d/mnist/data/test-0.parquet", images, labels, image="img", label="fine_label"
    )
    write_folders(tmp_path / "e/mnist/test", images, labels, prefix="")
    splits = [load_split(DatasetConfig(name="mnist"), "test", tmp_path / x) for x in "abcde"]
    for split in splits:
        assert np.array_equal(split.images[:, 0].numpy(), images)
        assert np.array_equal(split.labels.numpy(), labels)
    assert len({split.hash() for split in splits}) == 1


def test_colour_images_keep_their_channels_in_order(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    write_parquet(tmp_path / "mine/test-0.parquet", pixels, [0, 1, 0, 1])
    split = load_split(DatasetConfig(name="mine"), "test", tmp_path)
    assert split.num_classes == 2
    assert np.array_equal(split.images.numpy(), pixels.transpose(0, 3, 1, 2))


def test_a_folder_may_be_named_by_its_path(tmp_path):
    images, labels = mnist_like(4, 8)
    write_folders(tmp_path / "some where/val", images, labels)
    split = load_split(DatasetConfig(name=str(tmp_path / "some where")), "test")
    assert len(split) == 4


def test_order_of_the_places(tmp_path, monkeypatch):
    images, labels = mnist_like(10)
    for i, name in enumerate(("option", "variable", "config")):
        write_idx(tmp_path / name / "MNIST/raw", "t10k", images + i, labels)
    config = DatasetConfig(name="mnist", data_root=str(tmp_path / "config"))
    assert load_split(config, "test").images[0, 0, 0, 0] == images[0, 0, 0] + 2
    monkeypatch.setenv("ROBUST_HAM_DATA", str(tmp_path / "variable"))
    assert load_split(config, "test").images[0, 0, 0, 0] == images[0, 0, 0] + 1
    assert load_split(config, "test", tmp_path / "option").images[0, 0, 0, 0] == images[0, 0, 0]


def test_subsampling_takes_every_second_pixel(tmp_path):
    images, labels = mnist_like()
    write_idx(tmp_path / "MNIST/raw", "t10k", images, labels)
    split = load_split(DatasetConfig(name="mnist", image_size=14), "test", tmp_path)
    assert np.array_equal(split.images[:, 0].numpy(), images[:, ::2, ::2])
    with pytest.raises(RequestError, match="image_size: expected a divisor of 28×28, got 20"):
        load_split(DatasetConfig(name="mnist", image_size=20), "test", tmp_path)


def test_folders_are_resized_and_cropped_when_asked(tmp_path):
    stream = np.random.default_rng(0)
    for i, shape in enumerate([(40, 30, 3), (20, 64, 3)]):
        target = tmp_path / f"photos/val/class{i}"
        target.mkdir(parents=True)
        (target / "a.png").write_bytes(png(stream.integers(0, 256, shape, np.uint8)))
    with pytest.raises(RequestError, match="images of different sizes"):
        load_split(DatasetConfig(name="photos"), "test", tmp_path)
    split = load_split(DatasetConfig(name="photos", image_size=16), "test", tmp_path)
    assert split.images.shape == (2, 3, 16, 16)


def test_classes_are_those_of_the_training_folders(tmp_path):
    images, labels = mnist_like(9, 8)
    write_folders(tmp_path / "pets/train", images, labels % 3)
    write_folders(tmp_path / "pets/test", images[[0, 2]], labels[[0, 2]])
    (tmp_path / "pets/test/.hidden").mkdir()
    assert_refused("pets", tmp_path, "test: class class1 of .*train is missing")
    write_folders(tmp_path / "pets/test", images[[1]], labels[[1]])
    split = load_split(DatasetConfig(name="pets"), "test", tmp_path)
    assert split.labels.tolist() == [0, 1, 2]
    assert split.num_classes == 3
    write_folders(tmp_path / "pets/test", images[:1], labels[:1] + 7)
    assert_refused("pets", tmp_path, "class class7 is not in .*train")


def test_held_out_images_follow_the_training_images(tmp_path):
    images, labels = mnist_like(30)
    write_idx(tmp_path / "MNIST/raw", "train", images, labels)

    def splits(**options):
        return load_train_validation(DatasetConfig(name="mnist", **options), tmp_path)

    train, validation = splits(num_train=20, num_validation=5)
    assert np.array_equal(train.images[:, 0].numpy(), images[:20])
    assert np.array_equal(validation.images[:, 0].numpy(), images[20:25])
    assert len(splits(num_validation=5)[0]) == 25
    assert splits()[1] is None
    with pytest.raises(RequestError, match=r"num_train: expected at most 30 .* got 28 \+ 5 held"):
        splits(num_train=28, num_validation=5)


def test_too_few_training_images_name_the_debian_package(monkeypatch, tmp_path):
    row = replace(DATASETS["fashion_mnist"], system_folder=str(tmp_path))
    monkeypatch.setitem(DATASETS, "fashion_mnist", row)
    with pytest.raises(
        RequestError, match="expected at most 10000 images .*apt-get install dataset-fashion-mnist"
    ):
        load_train_validation(DatasetConfig(name="fashion_mnist", num_train=60_000))


def test_balanced_order_is_a_permutation_with_balanced_prefixes():
    labels = torch.from_numpy(np.random.default_rng(0).permutation(np.arange(1000) % 10))
    order = balanced_order(labels, 0)
    assert sorted(order.tolist()) == list(range(1000))
    for prefix in (10, 200, 730):
        counts = np.bincount(labels.numpy()[order[:prefix]], minlength=10)
        assert counts.max() - counts.min() <= 1
    assert np.array_equal(order, balanced_order(labels, 0))
    assert not np.array_equal(order, balanced_order(labels, 1))


def test_balanced_order_of_an_unbalanced_split():
    labels = torch.tensor([0, 0, 0, 0, 2, 2, 5])
    order = balanced_order(labels, 3)
    assert sorted(order.tolist()) == list(range(7))
    assert labels[order].tolist()[:3] == [0, 2, 5]
    assert labels[order].tolist()[3:5] == [0, 2]


def test_the_hash_sees_pixels_labels_and_shape(tmp_path):
    images, labels = mnist_like(4)
    write_idx(tmp_path / "MNIST/raw", "t10k", images, labels)
    split = load_split(DatasetConfig(name="mnist"), "test", tmp_path)
    before = split.hash()
    assert split[:].hash() == before
    assert split[:3].hash() != before
    split.labels[0] += 1
    assert split.hash() != before
    split.labels[0] -= 1
    split.images[0, 0, 0, 0] ^= 1
    assert split.hash() != before


def test_to_float_is_the_pixel_over_255():
    assert to_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == [
        0,
        pytest.approx(0.2),
        1,
    ]


# --- what is wrong is said in one line that names the file --------------------------------------


def test_images_to_stream_that_are_missing(tmp_path):
    config = DatasetConfig(name="imagenet", stream=True, image_size=32)
    with pytest.raises(RequestError, match=f"no class folders in .*{tmp_path}/imagenet/train"):
        load_files(config, tmp_path)


def test_missing_data_names_the_places_and_how_to_get_it(tmp_path):
    assert_refused(
        "cifar10",
        tmp_path,
        f"not found in {tmp_path}.*to get it: --data-root FOLDER, or -o dataset.download=true",
    )
    assert_refused("nothing_such", tmp_path, "not found in .*nothing_such; to get it: --data-root")
    assert_refused("mnist", tmp_path / "gone", "--data-root: expected a folder, got .*gone")


def test_idx_files_that_are_damaged(tmp_path):
    raw = tmp_path / "MNIST/raw"
    images, labels = mnist_like(5)
    write_idx(raw, "t10k", images, labels)
    path = raw / "t10k-images-idx3-ubyte"
    whole = path.read_bytes()
    for content in (whole[:-1], whole + b"x", whole[:3], b"", b"\xff" * 16 + whole[16:]):
        path.write_bytes(content)
        assert_refused("mnist", tmp_path, "t10k-images-idx3-ubyte")
    path.unlink()
    assert_refused("mnist", tmp_path, "the test images of mnist are missing")
    (raw / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(whole)[:-20])
    assert_refused("mnist", tmp_path, "damaged IDX file")
    write_idx(raw, "t10k", images, labels[:4])
    assert_refused("mnist", tmp_path, "5 images, 4 labels")


def test_labels_out_of_range(tmp_path):
    images, labels = mnist_like(5)
    write_idx(tmp_path / "MNIST/raw", "t10k", images, labels + 9)
    assert_refused("mnist", tmp_path, "label out of range: expected 0 … 9, got 13")
    write_parquet(tmp_path / "mine/test-0.parquet", images, [0, 1, 2, -1, 0])
    assert_refused("mine", tmp_path, "label out of range: .* got -1")


def test_parquet_files_that_are_damaged(tmp_path):
    path = tmp_path / "mine/test-0.parquet"
    images, labels = mnist_like(5)
    write_parquet(path, images, labels, image="picture")
    assert_refused("mine", tmp_path, r"test-0.parquet: expected columns image \(or img\) and label")
    write_parquet(path, images, labels)
    path.write_bytes(path.read_bytes()[:-30])
    assert_refused("mine", tmp_path, "test-0.parquet: damaged or unreadable")
    pq.write_table(pa.table({"image": [{"bytes": b"no image"}], "label": [0]}), path)
    assert_refused("mine", tmp_path, "test-0.parquet row 0: not a readable image")
    pq.write_table(pa.table({"image": ["a string"], "label": [0]}), path)
    assert_refused("mine", tmp_path, "test-0.parquet row 0: expected the image as bytes")


def test_folders_of_the_wrong_layout(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/readme.txt").write_text("hello")
    assert_refused(
        "mine", tmp_path, "mine: expected test-\\*.parquet or class folders test/<class>/"
    )
    (tmp_path / "mine/test").mkdir()
    assert_refused("mine", tmp_path, "test: expected one sub-folder per class")
    (tmp_path / "mine/test/a").mkdir()
    assert_refused("mine", tmp_path, "test/a: no image files")
    (tmp_path / "mine/test/a/x.png").write_bytes(b"broken")
    assert_refused("mine", tmp_path, "test: expected at least 2 classes, got only a")
    (tmp_path / "mine/test/b").mkdir()
    (tmp_path / "mine/test/b/x.png").write_bytes(b"broken")
    assert_refused("mine", tmp_path, "x.png: not a readable image")


def test_cifar_in_torchvisions_layout(tmp_path, monkeypatch):
    """Its files are opened only after their MD5 has been checked."""
    from torchvision import datasets

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3072), np.uint8)
    batch = pickle.dumps({"data": pixels, "labels": [0, 1, 2, 3, 4, 5]})
    meta = pickle.dumps({"label_names": [str(i) for i in range(10)]})
    (folder / "test_batch").write_bytes(batch)
    (folder / "batches.meta").write_bytes(meta)
    assert_refused("cifar10", tmp_path, "cifar-10-batches-py: damaged or incomplete")
    digests = [hashlib.md5(content).hexdigest() for content in (batch, meta)]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", digests[0]]])
    monkeypatch.setattr(
        datasets.CIFAR10,
        "meta",
        {"filename": "batches.meta", "key": "label_names", "md5": digests[1]},
    )
    split = load_split(DatasetConfig(name="cifar10"), "test", tmp_path)
    assert split.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert np.array_equal(split.images.numpy().reshape(6, 3072), pixels)
