"""Batches, schedules, determinism, and a golden value that guards VERSION."""

import numpy as np
import pytest
import torch

from robust_ham.config.experiment import TrainingConfig
from robust_ham.config.models import CnnGroup
from robust_ham.data.splits import Split
from robust_ham.models.build import Normalize, build
from robust_ham.training.resume import Unfinished
from robust_ham.training.train import (
    VERSION,
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


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"schedule": "step", "milestones": (1, 3)}, [1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        ({"schedule": "constant"}, [1] * 8),
        ({"schedule": "constant", "warmup_epochs": 2}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (
            {"schedule": "step", "milestones": (2,), "warmup_epochs": 1},
            [0.5, 1, 1, 1, 0.1, 0.1, 0.1, 0.1],
        ),
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


def test_batches_in_parts_have_the_gradient_of_the_whole():
    spec = CnnGroup(depth=1, widths=(4,), first_kernel="same", kernel_size=3)
    one, other = (FAST.model_copy(update={"accumulate": parts}) for parts in (1, 3))
    whole, parts = run(spec, one)[1], run(spec, other)[1]
    # BatchNorm sees smaller parts: near, not equal
    assert parts["train_loss"].tolist() == pytest.approx(whole["train_loss"].tolist(), rel=0.05)
    assert parts["train_loss"].tolist() != whole["train_loss"].tolist()


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("schedule", ["one_cycle", "step"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path, schedule, momentum):
    config = TrainingConfig(
        epochs=4, batch_size=32, lr=0.1, momentum=momentum, schedule=schedule, milestones=(2,)
    )
    split = squares()
    whole, whole_curve = run(config=config)
    state = Unfinished(tmp_path / "unfinished" / "m.safetensors", key="k")

    def stop(done, total):
        if done == total - 2:  # in the middle of the fourth epoch
            raise Interrupted

    options = {"device": CPU, "precision": "float32", "unfinished": state}
    with pytest.raises(Interrupted):
        train(SPEC, config, split, split, progress=stop, **options)
    steps = []
    model, curve = train(
        SPEC, config, split, split, progress=lambda done, total: steps.append(done), **options
    )
    assert steps == list(range(16, 21))  # five batches an epoch; three epochs were kept
    assert curve.equals(whole_curve)
    ours, expected = model.state_dict(), whole.state_dict()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


DIGITS = b"0123456789"


@pytest.mark.parametrize(
    "fault", ["another key", "truncated", "a bit flipped", "a digit of the curve"]
)
def test_a_state_that_cannot_be_trusted_is_not_used(tmp_path, fault, caplog):
    path = tmp_path / "m.safetensors"
    split = squares()
    options = {"device": CPU, "precision": "float32"}
    train(SPEC, FAST, split, split, unfinished=Unfinished(path, "k"), **options)
    assert path.is_file()
    content = bytearray(path.read_bytes())
    if fault == "truncated":
        path.write_bytes(content[:-8])
    elif fault == "a bit flipped":
        content[-5] ^= 1
        path.write_bytes(content)
    elif fault == "a digit of the curve":
        content[
            next(i for i in range(content.index(b"train_loss"), 10**6) if content[i] in DIGITS)
        ] ^= 1
        path.write_bytes(content)
    key = "other" if fault == "another key" else "k"
    steps = []
    model, _ = train(
        SPEC,
        FAST,
        split,
        split,
        unfinished=Unfinished(path, key),
        progress=lambda done, total: steps.append(done),
        **options,
    )
    assert steps[0] == 1
    assert "training restarts" in caplog.text
    expected = run()[0].state_dict()
    assert all(torch.equal(model.state_dict()[name], expected[name]) for name in expected)


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
