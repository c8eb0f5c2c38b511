"""Batches from memory and from files: every image once, draws of their own, shares of processes."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from test_train import squares
from torch.nn import functional as F
from torchvision.transforms import v2

from robust_ham.config.experiment import DatasetConfig, TrainingConfig
from robust_ham.data.datasets import Dataset
from robust_ham.errors import RequestError
from robust_ham.training.batches import Share, make_batches, pixel_statistics

CPU = torch.device("cpu")


def whole(epoch):
    """Batches of one part each."""
    for size, parts in epoch:
        ((images, labels),) = parts
        assert size == len(labels)
        yield images, labels


def test_a_batch_is_crops_and_flips_of_its_own_images():
    split = squares(40, channels=3)
    batches = make_batches(split, TrainingConfig(batch_size=16), 0, CPU)
    padded = F.pad(split.images, (4,) * 4)
    seen, moves = [], set()
    for images, labels in whole(batches.epoch(0)):
        assert images.is_contiguous(memory_format=torch.channels_last)
        for image, label in zip((images * 255).round().byte(), labels, strict=True):
            origin = None
            for i in range(len(split)):
                crops = padded[i].unfold(1, 10, 1).unfold(2, 10, 1)  # (C, 9, 9, 10, 10)
                for flipped in (False, True):
                    wanted = image.flip(2) if flipped else image
                    same = (crops == wanted[:, None, None]).flatten(3).all(3).all(0)
                    if same.any():
                        origin = i
                        moves.add((*same.nonzero()[0].tolist(), flipped))
            assert origin is not None
            assert split.labels[origin] == label
            seen.append(origin)
    assert sorted(seen) == list(range(40))  # every image once
    assert len(moves) > 20  # each image its own crop and flip


def test_twins_see_the_same_batches_and_epochs_differ():
    make = lambda: make_batches(squares(), TrainingConfig(batch_size=50), 3, CPU)  # noqa: E731
    first = [images for images, _ in whole(make().epoch(1))]
    again = [images for images, _ in whole(make().epoch(1))]
    other = [images for images, _ in whole(make().epoch(2))]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_without_augmentation_images_pass_unchanged():
    split = squares(20)
    images, labels = next(whole(make_batches(split, TrainingConfig(augment=()), 0, CPU).epoch(0)))
    rows = [
        (split.images == image).flatten(1).all(1).nonzero().item()
        for image in (images * 255).round().byte()
    ]
    assert sorted(rows) == list(range(20))
    assert torch.equal(split.labels[rows], labels)


@pytest.mark.parametrize("batch_size", [30, 37, 48])
def test_shares_are_the_whole_batch_in_order(batch_size):
    config = TrainingConfig(batch_size=batch_size)
    split = squares(100)
    alone = whole(make_batches(split, config, 0, CPU).epoch(0))
    shares = [Share(4, range(2)), Share(4, range(2, 4))]
    together = zip(
        *(make_batches(split, config, 0, CPU, share).epoch(0) for share in shares), strict=True
    )
    for (images, labels), parts in zip(alone, together, strict=False):
        found = list(itertools.chain.from_iterable(part for _, part in parts))
        assert {size for size, _ in parts} == {len(labels)}
        assert torch.equal(torch.cat([i for i, _ in found]), images)
        assert torch.equal(torch.cat([k for _, k in found]), labels)
        sizes = [len(k) for _, k in found]
        assert max(sizes) - min(sizes) <= 1


def test_a_last_batch_with_fewer_images_than_parts_is_left_out():
    split = squares(98)
    batches = make_batches(split, TrainingConfig(batch_size=48), 0, CPU, Share(3, range(3)))
    assert len(batches) == 2  # 48, 48, and not 2
    assert [size for size, _ in batches.epoch(0)] == [48, 48]


def test_fewer_images_than_parts_are_refused():
    share = Share(3, range(3))
    with pytest.raises(RequestError, match=r"training.batch_size: expected at least the 3 parts"):
        make_batches(squares(10), TrainingConfig(batch_size=2), 0, CPU, share)
    with pytest.raises(RequestError, match=r"training images: expected at least the 3 parts"):
        make_batches(squares(2), TrainingConfig(batch_size=4), 0, CPU, share)


@pytest.fixture
def folder(tmp_path):
    """Class folders with images of several sizes, one of them grey."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(["cat", "dog", "owl"]):
        for i in range(5 + label):
            shape = (20 + i, 30, 3) if i else (20, 30)
            path = tmp_path / "animals" / "train" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return tmp_path / "animals"


def files_of(folder, **keys):
    return Dataset(DatasetConfig(name=str(folder), stream=True, image_size=12, **keys)).train


def test_files_are_every_image_once_and_draws_do_not_depend_on_workers(folder, monkeypatch):
    split = files_of(folder)
    assert len(split) == 18
    assert split.labels[:6].tolist() == [0, 1, 2, 0, 1, 2]  # classes take turns
    config = TrainingConfig(batch_size=7, augment=("flip", "resized_crop"))
    epochs = []
    for workers in (0, 1, 2):
        monkeypatch.setattr(
            "robust_ham.training.batches._num_workers", lambda workers=workers: workers
        )
        batches = make_batches(split, config, 5, CPU)
        assert len(batches) == 3
        epochs.append(list(whole(batches.epoch(2))))
    labels = torch.cat([k for _, k in epochs[0]])
    assert labels.bincount().tolist() == [5, 6, 7]
    for images, other in zip(epochs[0], epochs[1], strict=True):
        assert images[0].shape[1:] == (3, 12, 12)
        assert 0 <= images[0].min() <= images[0].max() <= 1
        assert torch.equal(images[0], other[0])
    assert all(torch.equal(a[0], b[0]) for a, b in zip(epochs[0], epochs[2], strict=True))
    another = list(whole(make_batches(split, config, 5, CPU).epoch(3)))
    assert not torch.equal(another[0][0], epochs[0][0][0])


def test_global_random_state_is_left_alone_by_files(folder, monkeypatch):
    monkeypatch.setattr("robust_ham.training.batches._num_workers", lambda: 0)
    config = TrainingConfig(augment=("flip", "resized_crop"))
    before = torch.get_rng_state()
    list(make_batches(files_of(folder), config, 5, CPU).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_augmentation_files_are_resized_and_cropped_as_test_images_are(folder):
    split = files_of(folder)
    config = TrainingConfig(batch_size=18, augment=())
    images, labels = next(whole(make_batches(split, config, 0, CPU).epoch(0)))
    memory = Dataset(DatasetConfig(name=str(folder), image_size=12)).train
    expected = {(memory.images[i].numpy().tobytes(), int(memory.labels[i])) for i in range(18)}
    bytes_of = lambda image: (image * 255).round().byte().contiguous().numpy().tobytes()  # noqa: E731
    found = {(bytes_of(image), int(k)) for image, k in zip(images, labels, strict=True)}
    assert found == expected


def test_crops_are_the_recipe_of_the_reference(folder, monkeypatch):
    asked = {}
    original = v2.RandomResizedCrop.__init__

    def noted(self, size, **options):
        asked.update(options, size=size)
        original(self, size, **options)

    monkeypatch.setattr(v2.RandomResizedCrop, "__init__", noted)
    monkeypatch.setattr("robust_ham.training.batches._num_workers", lambda: 0)
    config = TrainingConfig(augment=("resized_crop",))
    next(make_batches(files_of(folder), config, 0, CPU).epoch(0))
    assert asked == {"size": 12, "scale": (0.1, 1.0), "ratio": (0.8, 1.25)}


def test_a_damaged_file_is_named_in_one_line(folder):
    damaged = folder / "train" / "dog" / "2.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    batches = make_batches(files_of(folder), TrainingConfig(augment=()), 0, CPU)
    with pytest.raises(RequestError) as raised:
        list(batches.epoch(0))
    assert str(raised.value) == f"{damaged}: not a readable image"


def test_statistics_of_files_are_those_of_the_same_images_in_memory(folder):
    memory = Dataset(DatasetConfig(name=str(folder), image_size=12)).train
    for found, expected in zip(
        pixel_statistics(files_of(folder)), pixel_statistics(memory), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_a_hash_of_files_tells_what_was_used(folder):
    one = files_of(folder).hash()
    assert one == files_of(folder).hash()
    assert one != files_of(folder, num_train=17).hash()
    (folder / "train" / "cat" / "1.png").write_bytes(b"x")
    assert one != files_of(folder).hash()


def test_more_files_asked_for_than_found_are_refused(folder):
    with pytest.raises(RequestError, match=r"num_train: expected at most 18 images .* got 19"):
        files_of(folder, num_train=19)
    with pytest.raises(RequestError, match=r"no class folders in .*/train"):
        files_of(folder.parent)
