"""Windows put into, folded into and taken out of networks that know nothing of them."""

import warnings

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from attacks.utils.prepare import prepare
from robust_ham.models.applied_window import OTHER_WINDOW, windows_of
from robust_ham.models.kernel_spectra import effective_kernels
from robust_ham.models.layers import WindowedConv2d
from robust_ham.models.surgery import folded, unwindowed, windowed
from robust_ham.models.windows import window_2d


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 6, 5, stride=2)
    )


def logits(model, size=64):
    torch.manual_seed(1)
    with torch.no_grad():
        return model.eval()(torch.rand(2, 3, size, size))


@pytest.mark.parametrize("name", ["resnet50", "convnext_tiny"])
def test_torchvision_networks_fold_to_the_same_logits(name):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=10)
    for block in model.modules():
        if hasattr(block, "layer_scale"):  # 1e-6 at first, which would hide the convolutions
            nn.init.ones_(block.layer_scale)
    before = logits(model)
    changed = windowed(model)
    assert any(isinstance(m, WindowedConv2d) for m in changed.modules())
    plain = folded(changed)
    assert not any(isinstance(m, WindowedConv2d) for m in plain.modules())
    torch.testing.assert_close(logits(plain), logits(changed), rtol=1e-4, atol=1e-5)
    assert (logits(changed) - before).abs().max() > 1e-3  # another function
    torch.testing.assert_close(logits(unwindowed(changed)), before, rtol=0, atol=0)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)  # left as it was


def test_only_odd_kernels_above_one_by_default():
    torch.manual_seed(0)
    changed = windowed(torchvision.models.convnext_tiny(num_classes=10))
    sizes = {m.kernel_size for m in changed.modules() if isinstance(m, nn.Conv2d)}
    tapered = {m.kernel_size for m in changed.modules() if isinstance(m, WindowedConv2d)}
    assert tapered == {(7, 7)}
    assert sizes == {(7, 7), (4, 4), (2, 2)}


def test_the_window_multiplies_the_weights_it_had():
    model = small()
    changed = windowed(model, "hann", layers=["0"])
    expected = model[0].weight * window_2d("hann", 3, 3).float()
    torch.testing.assert_close(folded(changed)[0].weight, expected)
    assert type(changed[3]) is nn.Conv2d


def test_padding_with_zeros_keeps_the_function_and_the_sizes():
    model = small()
    larger = windowed(model, "none", kernel_size=9, layers=["0"])
    assert larger[0].weight.shape == (8, 3, 9, 9)
    torch.testing.assert_close(logits(larger), logits(model), rtol=1e-5, atol=1e-6)
    back = windowed(larger, "none", kernel_size=3, layers=["0"])
    torch.testing.assert_close(back[0].weight, model[0].weight, rtol=0, atol=0)


def test_drawn_anew():
    model = small()
    larger = windowed(model, kernel_size=7, layers=["0"], resize="draw")
    assert (larger[0].weight != 0).all()
    torch.testing.assert_close(larger[0].bias, model[0].bias, rtol=0, atol=0)


def test_shared_modules_stay_shared_and_a_bare_convolution_works():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    changed = windowed(nn.Sequential(conv, nn.ReLU(), conv))
    assert changed[0] is changed[2]
    assert isinstance(windowed(conv), WindowedConv2d)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Linear(2, 2), {}, "no convolution is selected"),
        (small(), {"layers": ["9"]}, "no convolution matches '9'"),
        (small(), {"kernel_size": 4}, "kernel_size: expected an odd number, got 4"),
        (small(), {"resize": "stretch"}, "resize: expected pad or draw"),
        (small(), {"window": "hunning"}, "window: expected one of"),
        (small(), {"kernel_size": 1, "layers": ["3"]}, "3 has too little padding"),
        (
            nn.Sequential(nn.Conv2d(1, 1, 4)),
            {"layers": ["0"], "kernel_size": 5},
            "cannot be resized",
        ),
    ],
)
def test_wrong_requests(model, options, message):
    with pytest.raises(ValueError, match=message):
        windowed(model, **options)


# --- convolutions of other kinds -----------------------------------------------------------------


class Conv2dSame(nn.Conv2d):
    """As timm's: padded in forward, so that the output is ⌈input / stride⌉."""

    def forward(self, x):
        padding = []
        for i in (1, 0):
            size, k, stride = x.shape[2 + i], self.kernel_size[i], self.stride[i]
            total = max((-(-size // stride) - 1) * stride + k - size, 0)
            padding += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, padding), self.weight, self.bias, self.stride)


class StdConv2d(nn.Conv2d):
    """As timm's: the weight is standardised in forward, which would undo a window."""

    def forward(self, x):
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class TheirWindow(nn.Conv2d):
    """A windowed convolution that is none of ours."""

    def forward(self, x):
        window = window_2d("hann", *self.kernel_size).to(self.weight)
        return F.conv2d(x, self.weight * window, self.bias, padding=self.padding)


def plain_conv(kind=nn.Conv2d, **options):
    torch.manual_seed(2)
    return kind(4, 6, 5, padding=2, **options)


def old(norm, conv):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in many networks
        return norm(conv)


KINDS = {
    "plain": plain_conv,
    "grouped": lambda: plain_conv(groups=2),
    "reflect": lambda: plain_conv(padding_mode="reflect"),
    "subclass": lambda: plain_conv(Conv2dSame),
    "spectral_norm": lambda: spectral_norm(plain_conv()),
    "weight_norm": lambda: old(weight_norm, plain_conv()),
    "pruned": lambda: prune.random_unstructured(plain_conv(), "weight", 0.3),
    "parametrized spectral_norm": lambda: parametrizations.spectral_norm(plain_conv()),
    "parametrized weight_norm": lambda: parametrizations.weight_norm(plain_conv()),
    "parametrized subclass": lambda: parametrizations.spectral_norm(plain_conv(Conv2dSame)),
}


def with_weight(network, weight):
    """What the network answers when its convolution has this weight."""
    conv = network[0]
    given = {"bias": conv.bias, "padding_mode": conv.padding_mode, "groups": conv.groups}
    exact = nn.Conv2d(4, 6, 5, padding=2, groups=conv.groups, padding_mode=conv.padding_mode)
    exact.weight = nn.Parameter(weight)
    exact.bias = given["bias"]
    return exact(IMAGES)


IMAGES = torch.randn(2, 4, 9, 11, generator=torch.Generator().manual_seed(3))
WINDOW = window_2d("hamming", 5, 5).float()


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_convolution_is_windowed_last(kind, trained):
    network = nn.Sequential(KINDS[kind]())
    if trained:  # leaves a weight with a history of gradients behind
        network(IMAGES).sum().backward()
    plain = network.eval()(IMAGES)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    expected = with_weight(network, network[0].weight.detach() * WINDOW)
    changed = windowed(network)
    torch.testing.assert_close(changed(IMAGES), expected)
    torch.testing.assert_close(folded(changed)(IMAGES), expected)
    torch.testing.assert_close(unwindowed(changed)(IMAGES), plain)
    torch.testing.assert_close(windowed(windowed(network, "hann"))(IMAGES), expected)
    torch.testing.assert_close(prepare(changed, IMAGES)(IMAGES), expected)
    assert windows_of(changed) == {"0": "hamming"}
    assert windows_of(folded(changed)) == windows_of(unwindowed(changed)) == {"0": "none"}
    torch.testing.assert_close(effective_kernels(changed[0]), effective_kernels(folded(changed)[0]))
    assert before.keys() == network.state_dict().keys()  # the caller's is left as it was
    assert all(torch.equal(t, network.state_dict()[n]) for n, t in before.items())
    torch.testing.assert_close(network(IMAGES), plain, rtol=0, atol=0)
    if kind != "subclass":
        assert before.keys() == changed.state_dict().keys()
    changed.train()(IMAGES).sum().backward()
    assert all(p.grad is not None for p in changed.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_folded_after_other_weights_were_loaded(kind):
    changed = windowed(nn.Sequential(KINDS[kind]())).eval()
    changed(IMAGES)
    generator = torch.Generator().manual_seed(4)
    state = {
        name: tensor if name.endswith("mask") else torch.randn(tensor.shape, generator=generator)
        for name, tensor in changed.state_dict().items()
    }
    changed.load_state_dict(state)
    plain = folded(changed)
    torch.testing.assert_close(plain(IMAGES), changed(IMAGES))
    assert not any(isinstance(m, WindowedConv2d) for m in plain.modules())


def test_pruning_masks_stay_in_force():
    network = nn.Sequential(prune.random_unstructured(plain_conv(), "weight", 0.5))
    changed = windowed(network)
    torch.optim.SGD(changed.parameters(), 1.0).step()
    changed(IMAGES).square().sum().backward()
    torch.optim.SGD(changed.parameters(), 1.0).step()
    mask = network[0].weight_mask == 0
    assert mask.sum() > 100
    assert (effective_kernels(changed[0])[mask] == 0).all()


def test_hooks_flags_and_dtypes_stay():
    network = small().double()
    network[0].weight.requires_grad_(False)
    network[0].eval()
    seen = []
    network[0].register_forward_hook(lambda _, args, output: seen.append("after") or output * 2)
    network[0].register_forward_pre_hook(lambda _, args: seen.append("before"))
    images = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    changed = windowed(network)
    assert [p.requires_grad for p in changed[0].parameters()] == [False, True]
    assert not changed[0].training
    assert changed[3].training
    assert changed[0].weight.dtype == changed[0].window.dtype == torch.float64
    expected = 2 * F.conv2d(
        images, network[0].weight * window_2d("hamming", 3, 3), network[0].bias, padding=1
    )
    for model in (changed, folded(changed)):
        seen.clear()
        torch.testing.assert_close(model[0](images), expected)
        assert seen == ["before", "after"]
    larger = windowed(network, kernel_size=7, layers=["0"])
    assert not larger[0].weight.requires_grad
    assert larger[0](images).shape == expected.shape
    assert seen == ["before", "after"] * 2


@pytest.mark.parametrize("kind", [nn.Conv2d, Conv2dSame])
def test_convolutions_that_share_a_weight_still_do(kind):
    first, second = kind(4, 4, 3, padding=1), kind(4, 4, 3, padding=1)
    second.weight = first.weight
    network = nn.Sequential(first, second)
    changed = windowed(network)
    assert len(list(changed.parameters())) == 3
    images = IMAGES[..., :9]
    torch.testing.assert_close(folded(changed)(images), changed(images))
    torch.testing.assert_close(unwindowed(changed)(images), network(images))
    if kind is nn.Conv2d:
        larger = windowed(network, kernel_size=5)
        assert larger[0].weight is larger[1].weight
        assert larger[0].weight.shape == (4, 4, 5, 5)


class Replaced(nn.Conv2d):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.forward = lambda x: x


class OwnKernel(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(4, 4, 3, 3))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (plain_conv(StdConv2d), "1 is a StdConv2d whose forward does more with its weight"),
        (plain_conv(TheirWindow), "1 is a TheirWindow whose forward does more with its weight"),
        (Replaced(4, 4, 3), "1 is a Replaced whose forward was replaced"),
        (nn.LazyConv2d(4, 3), "1 is a LazyConv2d without weights yet: run one batch"),
        (
            spectral_norm(plain_conv(Conv2dSame)),
            "1 is a Conv2dSame with a weight that a hook computes",
        ),
        (
            nn.ConvTranspose2d(4, 4, 3),
            "1.weight is a kernel of a ConvTranspose2d, not of an nn.Conv2d",
        ),
        (OwnKernel(), "1.kernel is a kernel of a OwnKernel, not of an nn.Conv2d"),
        (
            parametrizations.spectral_norm(nn.ConvTranspose2d(4, 4, 3)),
            "is a kernel of a ParametrizedConvTranspose2d, not of an nn.Conv2d",
        ),
    ],
)
def test_what_cannot_be_windowed_is_listed_and_left_out_only_when_told(other, message):
    network = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), other)
    with pytest.raises(ValueError, match=message) as error:
        windowed(network)
    assert "allow_partial=True" in str(error.value)
    assert "\n" not in str(error.value)
    changed = windowed(network, allow_partial=True)
    assert isinstance(changed[0], WindowedConv2d)
    assert type(changed[1]) is type(other)
    assert isinstance(windowed(network, layers=["0"])[0], WindowedConv2d)


def test_only_plain_convolutions_are_resized():
    network = nn.Sequential(nn.Conv2d(4, 4, 5), plain_conv(Conv2dSame))
    with pytest.raises(ValueError, match="1 is a Conv2dSame that cannot be resized"):
        windowed(network, kernel_size=7, layers=["1"])
    assert windows_of(windowed(network, kernel_size=5, layers=["1"]))["1"] == "hamming"
    narrow = nn.Sequential(nn.Conv2d(4, 4, 5, padding=2), nn.Conv2d(4, 4, 5))
    with pytest.raises(
        ValueError, match=r"layers: 1 has too little padding to become \(3, 3\); set all"
    ):
        windowed(narrow, kernel_size=3)
    part = windowed(narrow, kernel_size=3, allow_partial=True)
    assert [conv.kernel_size for conv in part] == [(3, 3), (5, 5)]
    assert windows_of(part) == {"0": "hamming", "1": "none"}


def test_windows_of_others_are_recognised():
    network = nn.Sequential(plain_conv(TheirWindow), plain_conv(StdConv2d), plain_conv(Conv2dSame))
    nn.init.zeros_(network[0].weight)
    assert windows_of(network) == {"0": "hann", "1": OTHER_WINDOW, "2": "none"}
