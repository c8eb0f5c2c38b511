"""Batches, schedules, determinism, and a golden value that guards VERSION."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from robust_ham.config import CnnGroup, TrainingConfig
from robust_ham.models import Normalize, build
from robust_ham.splits import Split
from robust_ham.training import (
    VERSION,
    Batches,
    TrainingError,
    evaluate_split,
    make_scheduler,
    resolve_precision,
    train,
)

CPU = torch.device("cpu")
SPEC = CnnGroup(depth=2, widths=(4,), first_kernel="same", kernel_size=3)
FAST = TrainingConfig(epochs=2, batch_size=32, lr=0.1)


def squares(count=150, channels=1, size=10):
    """Images whose class is the place of a bright square."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 60, (count, channels, size, size), generator=generator)
    for i, label in enumerate(labels):
        images[i, :, 3:7, 1 + 4 * label : 5 + 4 * label] += 150
    return Split(images.byte(), labels, 2, "squares")


def run(spec=SPEC, config=FAST, split=None, precision="float32"):
    split = split or squares()
    return train(spec, config, split, split, device=CPU, precision=precision)


def test_same_seed_same_weights_and_another_seed_others():
    first, second = run()[0].state_dict(), run()[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = run(SPEC.model_copy(update={"seed": 1}))[0].state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    run()
    assert torch.equal(torch.get_rng_state(), before)


def test_golden_value():
    """If this fails on purpose, raise VERSION: old checkpoints are not what would be trained."""
    _, curve = run()
    assert VERSION == 1
    assert curve["train_loss"].tolist() == pytest.approx(GOLDEN, rel=1e-4)


GOLDEN = [0.704571, 0.690778]


def test_curve_has_a_row_per_epoch():
    model, curve = run()
    assert list(curve) == [
        "epoch",
        "lr",
        "train_loss",
        "train_accuracy",
        "validation_loss",
        "validation_accuracy",
    ]
    assert curve["epoch"].tolist() == [1, 2]
    loss, accuracy = evaluate_split(model, squares(), CPU, "float32")
    assert curve["validation_loss"].iloc[-1] == pytest.approx(loss)
    assert curve["validation_accuracy"].iloc[-1] == accuracy
    assert not model.training


def test_it_learns():
    config = TrainingConfig(epochs=8, batch_size=16, lr=0.3, augment=())
    assert run(config=config)[1]["validation_accuracy"].iloc[-1] >= 0.95


def test_bf16_stays_near_float32():
    a, b = run(precision="float32")[1], run(precision="bf16")[1]
    assert a["train_loss"].iloc[-1] == pytest.approx(b["train_loss"].iloc[-1], rel=0.05)


def test_a_batch_is_crops_and_flips_of_its_own_images():
    split = squares(40, channels=3)
    batches = Batches(split, TrainingConfig(batch_size=16), seed=0, device=CPU)
    padded = F.pad(split.images, (4,) * 4)
    seen, moves = [], set()
    for images, labels in batches.epoch(0):
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
    make = lambda: Batches(squares(), TrainingConfig(batch_size=50), seed=3, device=CPU)  # noqa: E731
    first = [images for images, _ in make().epoch(1)]
    again = [images for images, _ in make().epoch(1)]
    other = [images for images, _ in make().epoch(2)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_without_augmentation_images_pass_unchanged():
    split = squares(20)
    images, labels = next(Batches(split, TrainingConfig(augment=()), 0, CPU).epoch(0))
    rows = [
        (split.images == image).flatten(1).all(1).nonzero().item()
        for image in (images * 255).round().byte()
    ]
    assert sorted(rows) == list(range(20))
    assert torch.equal(split.labels[rows], labels)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"schedule": "step", "milestones": (1, 3)}, [1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        ({"schedule": "constant"}, [1] * 8),
    ],
)
def test_schedules(config, expected):
    config = TrainingConfig(lr=1, epochs=4, **config)
    assert learning_rates(config) == pytest.approx(expected)


def test_one_cycle_rises_for_30_percent_and_falls_to_nearly_zero():
    rates = learning_rates(TrainingConfig(lr=1, epochs=10), steps=10)
    assert rates[0] == pytest.approx(1 / 25)
    assert int(np.argmax(rates)) == 29
    assert max(rates) == pytest.approx(1)
    assert rates[-1] < 1e-4


def learning_rates(config, steps=2):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    scheduler = make_scheduler(optimizer, config, steps)
    rates = []
    for _ in range(config.epochs * steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def test_a_loss_that_is_not_finite_stops_with_a_reason():
    with pytest.raises(TrainingError, match=r"loss is (nan|inf) in epoch \d: lower training.lr"):
        run(config=TrainingConfig(epochs=3, batch_size=16, lr=1e30, schedule="constant"))


def test_normalisation_is_measured_on_the_training_images():
    spec = SPEC.model_copy(update={"normalize": True})
    split = squares(channels=3)
    model, _ = run(spec, split=split)
    normalize = next(m for m in model.modules() if isinstance(m, Normalize))
    pixels = split.images.double() / 255
    torch.testing.assert_close(normalize.mean.flatten().double(), pixels.mean((0, 2, 3)))
    expected = pixels.std((0, 2, 3), correction=0)
    torch.testing.assert_close(normalize.std.flatten().double(), expected)


def test_precision_is_resolved_before_it_is_used():
    assert resolve_precision("float32", CPU) == "float32"
    assert resolve_precision("bf16", CPU) == "bf16"
    assert resolve_precision("auto", CPU) in ("bf16", "float32")


def test_training_starts_from_the_built_weights():
    config = TrainingConfig(epochs=1, batch_size=150, lr=1e-12, schedule="constant")
    trained, start = run(config=config)[0].state_dict(), build(SPEC, 1, 2).state_dict()
    torch.testing.assert_close(trained["conv1.weight"], start["conv1.weight"])
