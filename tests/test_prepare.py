"""The prepared copy computes the same, and anything odd falls back to the caller's model."""

import torch
from conftest import fashion_images, zoo_model
from torch import nn

from attacks import AttackOutcome, deepfool
from attacks.prepare import prepare, run_confirmed
from robust_ham.layers import WindowedConv2d
from robust_ham.model_groups import ResNet18CifarGroup
from robust_ham.models import build


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


def test_a_model_that_cannot_be_traced_is_still_folded():
    model = DataDependent().eval()
    x = torch.rand(4, 1, 8, 8)
    fast = prepare(model, x)
    assert not modules_of(fast, WindowedConv2d)
    assert modules_of(fast, nn.BatchNorm2d)
    torch.testing.assert_close(fast(x), model(x), atol=1e-5, rtol=1e-5)


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
    """A search that is believed only where the caller's model agrees, and repeated elsewhere."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    x = torch.rand(3, 1, 2, 2)
    labels = model(x).argmax(1)
    searched = []

    def search(searched_model, images, labels):
        searched.append(searched_model)
        own = searched_model is model
        counts = torch.ones(len(images), dtype=torch.int64)
        claims = torch.full((len(images),), not own)
        return AttackOutcome(images.clone(), claims, counts, counts.clone())

    outcome = run_confirmed(search, model, x, labels)
    assert len(searched) == 2
    assert searched[1] is model
    assert not outcome.fooled.any()  # the claims of the first search were wrong
    assert outcome.forwards.tolist() == [3, 3, 3]  # two searches and the confirmation
