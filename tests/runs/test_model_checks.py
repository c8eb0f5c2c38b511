"""Checks of a model alone: every kind of masked gradient fails, every sound network passes."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import fashion_images, zoo_model
from torch import nn

from robust_ham.models.checkpoints import ZOO
from robust_ham.runs.jobs import model_checks
from robust_ham.runs.jobs.attack_checks import NUM_IMAGES

CPU = torch.device("cpu")
IMAGES, LABELS = fashion_images(NUM_IMAGES)


def gradient_as(forward, backward):
    """A function of images with another function's gradient."""

    class Replaced(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return forward(x)

        @staticmethod
        def backward(ctx, gradient):
            return backward(gradient)

    return Replaced.apply


class Before(nn.Module):
    def __init__(self, change, network):
        super().__init__()
        self.change = change
        self.network = network

    def forward(self, x):
        return self.network(self.change(x))


class Ensemble(nn.Module):
    def __init__(self, one, other):
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x):
        with torch.no_grad():
            hidden = self.other(x)
        return self.one(x) + hidden


def blurred(x):
    return F.avg_pool2d(F.pad(x, (2, 2, 2, 2)), 5, 1)


def finite_differences(model, images=IMAGES, labels=LABELS):
    return model_checks.check_finite_differences(model, images, labels)


@pytest.mark.parametrize("folder", sorted((ZOO / "fashion_mnist").iterdir()), ids=lambda p: p.name)
def test_no_network_of_the_zoo_has_another_gradient_than_its_own(folder):
    size, window, seed = folder.name.split("-")[2:]
    finding = finite_differences(zoo_model(int(size[1:]), window, int(seed[1:])))
    assert (finding.severity, finding.value) == ("pass", 0)


@pytest.mark.parametrize(
    ("size", "window"), [(3, "none"), (7, "none"), (7, "hamming"), (11, "hamming")]
)
@pytest.mark.parametrize(
    "defect",
    [
        gradient_as(torch.clone, lambda g: g + g.roll((3, 3), (2, 3))),
        gradient_as(torch.clone, lambda g: g.flip(3)),
        gradient_as(torch.clone, lambda g: 3 * g),
        lambda x: blurred(x) + (x - blurred(x)).detach(),
        lambda x: 0.5 * x + 0.5 * x.detach(),
        gradient_as(lambda y: (15 * y).round() / 15, lambda g: g),
        lambda x: (8 * x).round() / 8 + 1e-3 * x,
    ],
    ids="shifted flipped scaled blurred half-detached straight-through leaky".split(),
)
def test_a_gradient_that_is_not_the_models_fails(defect, size, window):
    finding = finite_differences(Before(defect, zoo_model(size, window)))
    assert finding.severity == "fail"
    assert finding.value > 0.5
    assert "finite differences contradict the gradient on" in finding.reason


@pytest.mark.parametrize(("size", "window"), [(3, "none"), (7, "hamming"), (11, "none")])
def test_a_member_without_gradient_fails(size, window):
    ensemble = Ensemble(zoo_model(size, window), zoo_model(size, window, 1))
    assert finite_differences(ensemble).value > 0.8


class HalfPrecision(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=True):
            return self.network(x).float()


class Offset(nn.Module):
    def __init__(self, network, scale, offset):
        super().__init__()
        self.network, self.scale, self.offset = network, scale, offset

    def forward(self, x):
        return self.scale * self.network(x) + self.offset


def tutorial_network():
    """Max-pooling right on the image, whose black pixels are all ties."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.MaxPool2d(2),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(784, 10),
    )


@pytest.mark.parametrize(
    "model",
    [
        Before(lambda x: x.clamp(0, 1), zoo_model(7, "none")),
        Before(F.relu, zoo_model(7, "none")),
        HalfPrecision(zoo_model(7, "none")),
        HalfPrecision(zoo_model(3, "hamming")),
        Offset(zoo_model(7, "none"), 1.0, 1000.0),
        Offset(zoo_model(7, "none"), 1e-4, 1.0),
        Offset(zoo_model(7, "none"), 1e6, 0.0),
        tutorial_network(),
        nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
    ],
    ids="clamped relu bf16 bf16-k3 offset tiny huge max-pool linear".split(),
)
def test_awkward_but_sound_networks_pass(model):
    assert finite_differences(model).severity == "pass"


def test_float64_images_are_taken():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).double()
    assert finite_differences(model, IMAGES.double()).severity == "pass"


def test_an_image_is_judged_alike_in_any_batch():
    model = Before(lambda x: blurred(x) + (x - blurred(x)).detach(), zoo_model(3, "none"))
    whole = finite_differences(model).value * NUM_IMAGES
    alone = [finite_differences(model, IMAGES[i : i + 1], LABELS[i : i + 1]) for i in range(32)]
    assert whole == sum(finding.value for finding in alone)


# --- answers that differ ---------------------------------------------------------------------


class DropoutLeftOn(nn.Module):
    """Its ``train`` keeps dropout in training mode whatever is asked for."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.1)
        self.network = zoo_model(7, "none")

    def forward(self, x):
        return self.network(self.dropout(x))

    def train(self, mode=True):
        super().train(mode)
        self.dropout.train()
        return self


class BatchStatistics(DropoutLeftOn):
    def __init__(self):
        super().__init__()
        self.dropout = nn.BatchNorm2d(1)


def test_dropout_that_stays_on_is_named():
    finding = model_checks.check_determinism(DropoutLeftOn(), IMAGES, CPU)
    assert finding.severity == "fail"
    assert "two passes over the same images differ" in finding.reason
    assert "train() is overridden; still training: Dropout" in finding.reason
    functional = Before(lambda x: F.dropout(x, 0.1, training=True), zoo_model(7, "none"))
    finding = model_checks.check_determinism(functional, IMAGES, CPU)
    assert finding.severity == "fail"
    assert finding.reason.endswith("dropout or another random layer is active in eval mode")


def test_batch_norm_that_stays_on_fails_and_its_statistics_are_left_alone():
    model = BatchStatistics()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    finding = model_checks.check_determinism(model, IMAGES, CPU)
    assert finding.severity == "fail"
    assert "BatchNorm2d" in finding.reason
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_train_that_does_nothing_harms_no_network_without_such_layers():
    class Fixed(nn.Sequential):
        def train(self, mode=True):
            return self

    model = Fixed(nn.Flatten(), nn.Linear(784, 10))
    assert model_checks.check_determinism(model, IMAGES, CPU).severity == "pass"


def test_logits_that_are_not_finite_are_not_repeatable():
    broken = Before(lambda x: x * torch.nan, zoo_model(7, "none"))
    assert model_checks.check_determinism(broken, IMAGES, CPU).severity == "fail"


# --- networks at chance ----------------------------------------------------------------------


def predictions(labels, answers):
    return pd.DataFrame({"label": labels, "prediction": answers})


def test_a_network_at_chance_is_told_to_train_longer():
    labels = [i % 10 for i in range(1000)]
    finding = model_checks.check_chance(predictions(labels, 3))
    assert finding.severity == "fail"
    assert finding.value == pytest.approx(0.9)
    assert finding.limit == pytest.approx(0.9 - 2 * (0.09 / 1000) ** 0.5)
    assert finding.reason == (
        "the network predicts one class (3) for 100% of the test images; train longer"
    )
    guesses = [(i * 7) // 10 % 10 for i in range(1000)]  # independent of the labels
    finding = model_checks.check_chance(predictions(labels, guesses))
    assert finding.severity == "fail"
    assert "is no better than chance; train longer" in finding.reason
    better = [label if i % 8 == 0 else guesses[i] for i, label in enumerate(labels)]
    assert model_checks.check_chance(predictions(labels, better)).severity == "pass"


def test_classes_of_different_size_count_alike():
    labels = [0] * 970 + [1] * 30
    assert model_checks.check_chance(predictions(labels, 0)).severity == "fail"  # 97 % right
    answers = [0] * 960 + [1] * 40
    assert model_checks.check_chance(predictions(labels, answers)).severity == "pass"
    assert model_checks.check_chance(predictions([0, 0], [1, 1])).severity == "pass"  # one class


# --- gradients of which a part is kept -------------------------------------------------------


def blocks(x):
    coarse = nn.functional.interpolate(nn.functional.avg_pool2d(x, 2), scale_factor=2)
    return coarse + (x - coarse).detach()


def columns(x):
    kept = torch.zeros_like(x)
    kept[..., ::2] = 1
    return x * kept + (x * (1 - kept)).detach()


@pytest.mark.parametrize("part", [blocks, columns], ids=lambda part: part.__name__)
@pytest.mark.parametrize(("size", "window"), [(3, "none"), (11, "hamming")])
def test_a_projection_of_the_gradient_has_its_slope_and_fails_all_the_same(part, size, window):
    masked = Before(part, zoo_model(size, window))
    finding = model_checks.check_finite_differences(masked, IMAGES, LABELS)
    assert finding.severity == "fail"
    assert finding.value > 0.9


@pytest.mark.parametrize("size", [3, 7, 11])
@pytest.mark.parametrize("window", ["none", "hamming"])
def test_sound_networks_agree_with_their_gradients(size, window):
    finding = model_checks.check_finite_differences(zoo_model(size, window), IMAGES, LABELS)
    assert finding.value <= 0.04


def test_logits_that_are_not_finite_are_named():
    class NoNumber(nn.Module):
        def forward(self, x):
            return zoo_model(3, "none")(x) * torch.nan

    finding = model_checks.check_determinism(NoNumber(), IMAGES, CPU)
    assert (finding.severity, finding.reason) == ("fail", "logits are not finite")
    answers = predictions(np.arange(10).repeat(10), np.full(100, -1))
    assert "100% of the test images are not finite" in model_checks.check_chance(answers).reason
