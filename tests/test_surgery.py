"""Windows put into, folded into and taken out of networks that know nothing of them."""

import pytest
import torch
import torchvision
from torch import nn

from robust_ham.layers import WindowedConv2d
from robust_ham.models.surgery import folded, unwindowed, windowed
from robust_ham.windows import window_2d


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


class Own(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Linear(2, 2), {}, "no convolution was chosen"),
        (small(), {"layers": ["9"]}, "no convolution is called 9"),
        (small(), {"kernel_size": 4}, "kernel_size: expected an odd number, got 4"),
        (small(), {"resize": "stretch"}, "resize: expected pad or draw"),
        (small(), {"window": "hunning"}, "window: expected one of"),
        (small(), {"kernel_size": 1, "layers": ["3"]}, "3 has too little padding"),
        (nn.Sequential(Own(1, 1, 3)), {"layers": ["0"]}, "0 is a Own"),
        (nn.Sequential(nn.Conv2d(1, 1, 4)), {"layers": ["0"], "kernel_size": 5}, "not resized"),
    ],
)
def test_wrong_requests(model, options, message):
    with pytest.raises(ValueError, match=message):
        windowed(model, **options)
