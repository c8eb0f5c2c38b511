"""Gradients of the tape are those of autograd, and pruning with them keeps the answer."""

import logging

import pytest
import torch
from conftest import fashion_images, zoo_model
from torch import nn
from torch.nn import functional as F

from attacks import band_deepfool, deepfool, superdeepfool
from attacks.deepfool import Found, run_audited
from attacks.utils import linearise
from attacks.utils.boundary import Boundary, Rivals
from attacks.utils.model import attack_mode
from attacks.utils.prepare import FastCopy, prepare
from attacks.utils.pruning import Factors
from attacks.utils.refine import refined
from robust_ham.config.models import ResNet18CifarGroup
from robust_ham.models.build import build


class Residual(nn.Module):
    """Shortcuts, strides, groups, a normalisation, pooling and operations without rules."""

    def __init__(self, channels=3):
        super().__init__()
        self.register_buffer("mean", torch.full((channels, 1, 1), 0.4))
        self.stem = nn.Conv2d(channels, 16, 3, padding=1)
        self.down = nn.Conv2d(16, 24, 1, stride=2, bias=False)
        self.one = nn.Conv2d(16, 24, 3, stride=2, padding=1, dilation=2)
        self.two = nn.Conv2d(24, 24, 3, padding=2, groups=4)
        self.norm = nn.BatchNorm2d(24)
        self.drop = nn.Dropout(0.5)
        self.pool = nn.MaxPool2d(2)
        self.linear = nn.Linear(48, 7)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x):
        x = F.relu((x - self.mean) / 0.25)
        x = torch.relu(self.stem(x))
        short = self.down(x)
        x = self.one(x)[:, :, : short.shape[2], : short.shape[3]]
        x = F.pad(x, (0, short.shape[3] - x.shape[3], 0, short.shape[2] - x.shape[2])) + short
        x = self.two(self.norm(x).relu())  # BatchNorm that nothing fuses
        left, right = self.pool(F.gelu(x)).chunk(2, 1)
        x = torch.cat([left * 2, right + left, left.sigmoid() * right, left], 1)
        x = self.drop(x).mean((2, 3))
        return 3 * self.linear(x.view(x.size(0), -1))


class PreActivation(nn.Module):
    """ReLU of an input that others use too; a sum of a ReLU; one layer called twice."""

    def __init__(self, channels=3):
        super().__init__()
        self.stem = nn.Conv2d(channels, 16, 5, padding=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(2))
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.linear = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        for norm in self.norms:
            x = x + self.conv(F.relu(norm(x)))
        x = F.relu(x) + x
        x = x + x
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class InPlace(nn.Module):
    """Activations that overwrite their inputs, as modules and functions; one is called twice."""

    def __init__(self, channels=3):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels if i == 0 else 8, 8, 3, padding=1) for i in range(5)
        )
        self.silu, self.swish = nn.SiLU(inplace=True), nn.Hardswish(inplace=True)
        self.leaky = nn.LeakyReLU(0.1, inplace=True)
        self.linear = nn.Linear(8, 6)

    def forward(self, x):
        x = self.silu(self.convs[0](x))
        x = F.relu6(self.swish(self.convs[1](x)), inplace=True)
        x = F.elu(self.convs[2](x), 0.7, inplace=True)
        short = self.leaky(self.convs[3](x))
        x = self.leaky(self.convs[4](short)) + short
        return self.linear(x.amax((2, 3)))


def resnet(channels=3):
    group = ResNet18CifarGroup(architecture="resnet18_cifar", kernel_size=3, width=1 / 16)
    return build(group, channels, 10)


NETWORKS = {
    "in place": InPlace,
    "residual": Residual,
    "pre-activation": PreActivation,
    "resnet": resnet,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("channels", "size"), [(1, 12), (3, 12), (3, 9), (4, 16)])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_pairs_are_those_of_autograd(name, channels, size, dtype):
    torch.manual_seed(1)
    model = NETWORKS[name](channels).eval().to(dtype)
    images = torch.rand(6, channels, size, size + 2, dtype=dtype)
    rows = torch.tensor([5, 0, 0, 3, 1, 5, 2])
    with attack_mode(model):
        fast = prepare(model, images)
        assert isinstance(fast, FastCopy)
        assert fast.tape
        recording = fast.tape.record(images)
        inputs = images.clone().requires_grad_()
        logits = model(inputs)
        torch.testing.assert_close(recording.logits, logits.detach(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(fast.tape.logits(images), recording.logits)
        seeds = torch.randn(len(rows), logits.shape[1], dtype=dtype)
        expected = [
            torch.autograd.grad((logits[row] * seed).sum(), inputs, retain_graph=True)[0][row]
            for row, seed in zip(rows, seeds, strict=True)
        ]
        gradients, arrived = recording.gradients(rows, seeds)
        assert arrived.tolist() == list(range(len(rows)))
        scale = float(torch.stack(expected).abs().max())
        torch.testing.assert_close(gradients, torch.stack(expected), atol=1e-4 * scale, rtol=1e-3)

        seen = []

        def drop(pairs, norms, cut):
            seen.append((pairs.tolist(), cut.layers_ahead, cut.work_ahead))
            assert len(pairs) == len(norms)
            return pairs % 2 == 0

        some, arrived = recording.gradients(rows, seeds, drop)
        assert arrived.tolist() == [0, 2, 4, 6]
        torch.testing.assert_close(some, gradients[arrived], atol=1e-5 * scale, rtol=1e-4)
        assert seen[0][0] == list(range(7))
        assert all(pairs == [0, 2, 4, 6] for pairs, _, _ in seen[1:])
        ahead = [part[1:] for part in seen]
        assert ahead == sorted(ahead, reverse=True)
        assert all(0 < share <= 1 for part in ahead for share in part)


class MixesImages(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 5)

    def forward(self, x):
        x = x.flatten(1)
        return self.linear(x - x.mean(0))


class HalfLogits(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 5)

    def forward(self, x):
        return self.linear(x.flatten(1)).half()


@pytest.mark.parametrize("kind", [MixesImages, HalfLogits])
def test_networks_that_the_tape_would_change_get_none(kind):
    model, images = kind().eval(), torch.rand(4, 1, 8, 8)
    with attack_mode(model):
        fast = prepare(model, images)
        assert not (isinstance(fast, FastCopy) and fast.tape)


def cases():
    for kernel_size in (3, 7, 11):
        for window in ("none", "hamming"):
            yield f"zoo {kernel_size} {window}", zoo_model(kernel_size, window), 1
    torch.manual_seed(0)
    yield "residual", Residual().eval(), 3
    yield "pre-activation", PreActivation().eval(), 3
    yield "untrained resnet", resnet().eval(), 3
    yield "affine", nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval(), 1
    unequal = nn.Sequential(nn.Flatten(), nn.Linear(784, 60), nn.ReLU(), nn.Linear(60, 40)).eval()
    unequal[3].weight.data *= torch.logspace(-1, 1, 40)[:, None]
    yield "rows of unequal size", unequal, 1
    yield (
        "convolutional head",
        nn.Sequential(
            nn.Conv2d(1, 12, 5, stride=2),
            nn.ReLU(),
            nn.Conv2d(12, 9, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ).eval(),
        1,
    )


CASES = list(cases())


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("index", range(len(CASES)), ids=[name for name, _, _ in CASES])
def test_pruning_keeps_the_answer(index, norm, monkeypatch):
    """With and without a tape: status equal, mean norm within 1e-4, 99 % within 1 %."""
    _, model, channels = CASES[index]
    x, y = fashion_images(100)
    if channels == 3:
        x = x[:40, :, ::2, ::2].repeat(1, 3, 1, 1) * torch.tensor([1, 0.9, 0.8]).view(3, 1, 1)
    with torch.no_grad():
        y = y[: len(x)] if channels == 1 and index < 6 else model(x).argmax(1)
    outcomes = {"pruned": deepfool(model, x, y, norm=norm)}
    outcomes["full"] = deepfool(model, x, y, norm=norm, prune=None)
    with monkeypatch.context() as patch:
        patch.setattr(FastCopy, "tape", property(lambda _: None, lambda *_: None), raising=False)
        outcomes["autograd"] = deepfool(model, x, y, norm=norm)
    order = 2 if norm == "l2" else torch.inf
    norms = {
        name: torch.linalg.vector_norm((o.images - x).flatten(1).double(), ord=order, dim=1)
        for name, o in outcomes.items()
    }
    for name in ("pruned", "autograd"):
        assert torch.equal(outcomes[name].fooled, outcomes["full"].fooled)
        close = (norms[name] - norms["full"]).abs() <= 0.01 * norms["full"]
        assert close.double().mean() >= 0.99
        assert float(norms[name].mean() / norms["full"].mean()) == pytest.approx(1, rel=1e-4)
    assert outcomes["pruned"].backwards.sum() < 0.75 * outcomes["full"].backwards.sum()


@pytest.mark.parametrize("attack", [deepfool, superdeepfool, band_deepfool])
def test_an_audit_that_fails_turns_pruning_off(attack, monkeypatch, caplog):
    """With wrong norms of the last step, and no room for error, the nearest class is missed."""
    model = zoo_model(7, "none")
    x, y = fashion_images(40)
    full = attack(model, x, y, prune=None)
    right = Boundary.rivals

    def wrong(boundary):
        rivals = right(boundary)
        norms = torch.ones_like(rivals.norms)
        norms[:, -1] = 1e9  # the farthest class seems to be the nearest
        return Rivals(rivals.classes, norms)

    monkeypatch.setattr(Boundary, "rivals", wrong)
    monkeypatch.setattr(linearise, "sufficient", lambda *_: Factors(1.0, 1.0))
    with caplog.at_level(logging.WARNING):
        outcome = attack(model, x, y)
    assert (
        "pruning is not exact for this network, so it is off (slower, same result)" in caplog.text
    )
    torch.testing.assert_close(outcome.images, full.images)
    assert (outcome.forwards >= full.forwards).all()


class EqualRows(nn.Module):
    """The last class is the first once more: their gap and its gradient are 0 everywhere."""

    def __init__(self):
        super().__init__()
        self.base = zoo_model(7, "none")

    def forward(self, x):
        logits = self.base(x)
        return torch.cat([logits, logits[:, :1]], 1)


class LateClass(nn.Module):
    """Class 2 has no gradient at first; after a step, it is nearer than class 1."""

    def forward(self, x):
        a = x.flatten(1)[:, 0]
        return torch.stack([0 * a, a - 0.9, 30 * (a - 0.52).relu() - 3.6], 1)


@pytest.mark.parametrize("attack", [deepfool, superdeepfool])
def test_classes_without_a_gradient_hide_no_others(attack):
    model = EqualRows()
    x, y = fashion_images(40)
    pruned, full = attack(model, x, y), attack(model, x, y, prune=None)
    assert full.fooled.double().mean() > 0.9
    assert torch.equal(pruned.fooled, full.fooled)
    torch.testing.assert_close(pruned.images, full.images, atol=1e-4, rtol=0)
    images, labels = torch.full((40, 1, 1, 2), 0.5), torch.zeros(40, dtype=torch.int64)
    pruned, full = (attack(LateClass(), images, labels, prune=p) for p in (2.5, None))
    torch.testing.assert_close(pruned.images, full.images)


def test_a_network_changed_in_place_or_by_an_attribute_gets_a_new_copy():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    images = torch.rand(4, 1, 8, 8)
    with attack_mode(model):
        first = prepare(model, images)
        assert prepare(model, images) is first
        with torch.no_grad():
            model[0].weight.mul_(2)
        second = prepare(model, images)
        assert second is not first
        model[0].weight.data.mul_(2)  # torch does not count this change
        third = prepare(model, images)
        assert third is not second
        torch.testing.assert_close(third(images), model(images))


def test_passes_of_both_attempts_are_counted():
    def attempt(prune):
        passes = torch.full((4,), 1.5)
        return Found(
            torch.zeros(4, 1, 2, 2),
            torch.ones(4, dtype=torch.bool),
            None,
            None,
            prune is not None,
            passes,
            passes + 2,
        )

    outcome = run_audited(attempt, 2.0)
    assert outcome.forwards.tolist() == [3] * 4
    assert outcome.backwards.tolist() == [7] * 4


def test_refined_images_end_just_beyond_the_boundary():
    model = zoo_model(7, "none")
    x, y = fashion_images(60)
    outcome = deepfool(model, x, y)
    rows = (outcome.images != x).flatten(1).any(1)
    x, y, fooling = x[rows], y[rows], outcome.images[rows]
    with attack_mode(model):
        nearer, forwards = refined(model, x, fooling, y)
    assert forwards.mean() < 8  # bisection alone: 13
    share = (nearer - x).flatten(1).norm(dim=1) / (fooling - x).flatten(1).norm(dim=1)
    with torch.no_grad():
        assert (model(nearer).argmax(1) != y).all()
        inner = x + (0.999 / 1.001 - 2**-12) * (nearer - x)
        assert (model(inner).argmax(1) == y)[share < 0.99].all()
    assert (share <= 1).all()
    none, no_forwards = refined(model, x[:0], fooling[:0], y[:0])
    assert len(none) == len(no_forwards) == 0
