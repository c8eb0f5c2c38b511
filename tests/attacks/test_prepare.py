"""The fast copy computes the same function; unusual models are attacked themselves."""

import pytest
import torch
from awkward_models import AWKWARD, SHAPE
from conftest import fashion_images, zoo_model
from torch import nn

from attacks import AttackOutcome, deepfool
from attacks.utils.confirm import run_confirmed
from attacks.utils.model import attack_mode
from attacks.utils.prepare import FastCopy, prepare
from robust_ham.config.models import ResNet18CifarGroup
from robust_ham.models.build import build
from robust_ham.models.layers import WindowedConv2d


def modules_of(model, kind):
    return [m for m in model.modules() if isinstance(m, kind)]


def test_windows_are_folded_and_batchnorm_is_fused():
    model = zoo_model(7, "hamming")
    x, _ = fashion_images(8)
    fast = prepare(model, x)
    assert fast is not model
    assert not modules_of(fast, WindowedConv2d)
    assert not modules_of(fast, nn.BatchNorm2d)
    assert len(modules_of(model, WindowedConv2d)) == len(modules_of(model, nn.BatchNorm2d)) == 3
    torch.testing.assert_close(fast(x), model(x), atol=1e-4, rtol=1e-4)


def test_resnets_with_shortcuts_are_fused():
    spec = ResNet18CifarGroup(
        architecture="resnet18_cifar", kernel_size=3, width=1 / 16, window="hamming"
    )
    model = build(spec, 3, 10)
    for module in modules_of(model, nn.BatchNorm2d):
        module.running_mean.uniform_(-1, 1)
        module.running_var.uniform_(0.5, 2)
    x = torch.rand(4, 3, 32, 32)
    fast = prepare(model.eval(), x)
    assert not modules_of(fast, nn.BatchNorm2d)
    torch.testing.assert_close(fast(x), model(x), atol=1e-4, rtol=1e-4)


class DataDependent(nn.Module):
    """Cannot be traced: the path depends on the values."""

    def __init__(self):
        super().__init__()
        self.conv = WindowedConv2d(1, 3, 3)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.bn(self.conv(x)).amax((2, 3))
        return x if x.sum() > 0 else 2 * x


def test_a_model_that_cannot_be_traced_is_used_as_it_is():
    model = DataDependent().eval()
    assert prepare(model, torch.rand(4, 1, 8, 8)) is model
    assert modules_of(model, WindowedConv2d)


def test_a_copy_with_other_logits_is_not_used():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    model.register_forward_hook(lambda module, args, logits: 2 * logits)  # lost when traced
    assert prepare(model, torch.rand(2, 1, 2, 2)) is model


def test_functions_and_models_that_cannot_be_copied_are_used_as_they_are():
    def function(x):
        return x.flatten(1)

    class NoCopy(nn.Module):
        def __deepcopy__(self, memo):
            raise TypeError("cannot be copied")

        def forward(self, x):
            return x.flatten(1)

    model = NoCopy()
    x = torch.rand(2, 1, 2, 2)
    assert prepare(function, x) is function
    assert prepare(model, x) is model
    assert deepfool(model, x, model(x).argmax(1)).fooled.all()


def test_what_the_copy_finds_is_confirmed_on_the_callers_model():
    """A search whose claims count only if the caller's model confirms them."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    x = torch.rand(3, 1, 2, 2)
    labels = model(x).argmax(1)
    searched = []

    def search(searched_model, images, labels):
        searched.append(searched_model)
        is_model = not isinstance(searched_model, FastCopy)
        counts = torch.ones(len(images), dtype=torch.int64)
        claims = torch.full((len(images),), not is_model)
        return AttackOutcome(images.clone(), claims, counts, counts.clone())

    outcome = run_confirmed(search, model, x, labels)
    assert [isinstance(each, FastCopy) for each in searched] == [True, False]
    assert not outcome.fooled.any()  # the first search made false claims
    assert outcome.forwards.tolist() == [3, 3, 3]  # two searches and the confirmation


def test_a_copy_that_turns_out_to_be_another_function_is_given_up(caplog):
    """The search changes the model, which only the comparison afterwards can detect."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    x = torch.rand(12, 1, 2, 2)
    labels = model(x).argmax(1)
    searched = []

    def search(searched_model, images, labels):
        fast = isinstance(searched_model, FastCopy)
        if fast:
            model[1].weight.data = -model[1].weight.data
        searched.append((fast, len(images)))
        counts = torch.ones(len(images), dtype=torch.int64)
        return AttackOutcome(images.clone(), counts.bool() & (not fast), counts, counts.clone())

    outcome = run_confirmed(search, model, x, labels)
    assert searched == [(True, 12), (False, 12)]
    assert outcome.fooled.all()
    assert "differs from it" in caplog.text


def test_images_that_the_copy_cannot_fool_are_tried_on_the_model():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    x = torch.rand(5, 1, 2, 2)
    labels = model(x).argmax(1)
    searched = []

    def search(searched_model, images, labels):
        searched.append((isinstance(searched_model, FastCopy), len(images)))
        counts = torch.ones(len(images), dtype=torch.int64)
        return AttackOutcome(images.clone(), counts.bool() & False, counts, counts.clone())

    run_confirmed(search, model, x, labels)
    assert searched == [(True, 5), (False, 5)]
    searched.clear()
    run_confirmed(search, model, x, labels, retry_survivors=False)
    assert searched == [(True, 5)]


@pytest.mark.parametrize("name", ["ViewAfterPooling", "ViewAfterMaxPooling", "Transformer"])
def test_sound_networks_of_others_get_a_copy(name):
    torch.manual_seed(0)
    model = AWKWARD[name]().eval()
    x = torch.rand(9, *SHAPE)
    fast = prepare(model, x)
    assert isinstance(fast, FastCopy)
    torch.testing.assert_close(fast(x), model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "StraightThrough",
        "BackwardPassDifferentiableApproximation",
        "BackwardOfItsOwn",
        "MemberWithoutGradient",
        "AsksWhetherThereAreGradients",
        "FullBackwardHook",
        "ForwardHook",
        "TensorHook",
        "CopiesAreTheOriginal",
        "PartOfTheCopyIsTheOriginal",
        "AutocastInside",
        "Scripted",
        "CheckpointedReentrant",
    ],
)
def test_networks_that_a_trace_would_change_get_none(name):
    torch.manual_seed(0)
    model = AWKWARD[name]().eval()
    with attack_mode(model):
        assert prepare(model, torch.rand(9, *SHAPE)) is model
