"""Parameter counts of the reference, twins, and what models are measured by."""

import pytest
import torch
import torchvision

from robust_ham.config.models import CnnGroup, ResNet18CifarGroup
from robust_ham.models.build import build
from robust_ham.models.cnn import cnn
from robust_ham.models.imagenet import resnet18, vgg11_bn
from robust_ham.models.layers import WindowedConv2d
from robust_ham.models.resnet import resnet18_cifar
from robust_ham.models.size import learned_width, measure_size


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("kernel_size", "classes10", "classes100"),
    [
        (3, 2_663_050, 2_686_180),
        (5, 7_387_786, 7_410_916),
        (7, 14_474_890, 14_498_020),
        (9, 23_924_362, 23_947_492),
        (11, 35_736_202, 35_759_332),
    ],
)
def test_paper_cnn_counts(kernel_size, classes10, classes100):
    with torch.device("meta"):
        for num_classes, expected in ((10, classes10), (100, classes100)):
            for window in ("none", "hamming"):
                model = cnn(
                    3, num_classes, kernel_size=kernel_size, first_kernel="same", window=window
                )
                assert count(model) == expected


@pytest.mark.parametrize(
    ("kernel_size", "expected"),
    [(3, 2_678_410), (5, 7_397_002), (9, 23_912_074), (11, 35_708_554)],
)
def test_paper_cnn_counts_with_a_first_kernel_of_seven(kernel_size, expected):
    with torch.device("meta"):
        assert count(cnn(3, 10, kernel_size=kernel_size)) == expected


def test_paper_cnn_count_with_four_layers():
    with torch.device("meta"):
        assert count(cnn(3, 10, depth=4, kernel_size=7)) == 8_051_338


def test_zoo_counts():
    with torch.device("meta"):
        models = [
            cnn(1, 10, depth=3, widths=(16, 32), kernel_size=k, first_kernel="same")
            for k in (3, 5, 7, 9, 11)
        ]
    assert sum(map(count, models)) == 444_770


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kernel_size": 3}, 11_173_962),
        ({"kernel_size": 3, "factorised": True}, 8_039_370),
        ({"kernel_size": 7}, 60_005_962),
        ({"kernel_size": 7, "window": "hamming"}, 60_005_962),
        ({"kernel_size": 7, "width": 0.4375}, 11_491_462),
        ({"kernel_size": 7, "factorised": True, "width": 0.78125}, 11_300_060),
    ],
)
def test_cifar_resnet18_counts(options, expected):
    with torch.device("meta"):
        assert count(resnet18_cifar(3, 10, **options)) == expected


@pytest.mark.parametrize(
    "group",
    [
        CnnGroup(depth=3, widths=(4, 8), kernel_size=5),
        ResNet18CifarGroup(architecture="resnet18_cifar", kernel_size=3, width=1 / 16),
    ],
)
def test_twins_start_from_the_same_raw_weights(group):
    twin = group.model_copy(update={"window": "hamming"})
    other = group.model_copy(update={"seed": 1})
    plain, windowed, reseeded = (build(g, 3, 10).state_dict() for g in (group, twin, other))
    assert plain.keys() == windowed.keys()
    assert all(torch.equal(plain[name], windowed[name]) for name in plain)
    assert any(not torch.equal(plain[name], reseeded[name]) for name in plain)


def test_building_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    build(CnnGroup(depth=2, widths=(4,), kernel_size=3), 1, 10)
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_weights_are_torchs_own_distribution():
    weight = build(CnnGroup(depth=2, widths=(64,), kernel_size=7), 3, 10).conv2.weight
    bound = (64 * 49) ** -0.5
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)


def test_all_convolutions_are_windowed_but_the_shortcuts():
    model = resnet18_cifar(3, 10, kernel_size=5, width=1 / 16, window="hamming")
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            assert isinstance(module, WindowedConv2d) != ("shortcut" in name)


@pytest.mark.parametrize(("downsampling", "side"), [("stride", 14), ("maxpool", 14), ("none", 28)])
def test_downsampling(downsampling, side):
    model = cnn(1, 10, depth=2, widths=(4,), kernel_size=3, downsampling=downsampling)
    sizes = []
    model.bn2.register_forward_hook(lambda m, i, o: sizes.append(o.shape[-1]))
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert sizes == [side]


def test_normalisation_is_inside_the_model():
    spec = CnnGroup(depth=2, widths=(4,), kernel_size=3, normalize=True)
    model = build(spec, 3, 10).eval()
    model[0].mean.fill_(0.5)
    model[0].std.fill_(0.25)
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(model(x), model[1]((x - 0.5) / 0.25))


def test_measure_counts_what_torch_computes():
    spec = CnnGroup(depth=2, widths=(4,), kernel_size=3, first_kernel="same", downsampling="none")
    size = measure_size(build(spec, 1, 10), spec, (1, 8, 8))
    assert size.params == 36 + 144 + 16 + 50
    assert size.flops == 2 * (64 * 9 * 4 + 64 * 9 * 16 + 4 * 10)
    assert size.effective_width == 3


def test_learned_width_of_hand_made_kernels():
    layer = torch.nn.Conv2d(1, 1, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 0, 0], [1, 1, 1], [0, 0, 0]]))
    assert learned_width(layer) == pytest.approx((1 + 3) / 2)
    windowed = WindowedConv2d(1, 1, 3, bias=False, window="hann")
    torch.nn.init.ones_(windowed.weight)
    assert learned_width(windowed) == pytest.approx(1)  # Hann of three taps has one


def test_bad_arguments_name_the_culprit():
    with pytest.raises(ValueError, match="widths: expected at most depth = 1"):
        cnn(3, 10, depth=1, widths=(4, 8))
    with pytest.raises(ValueError, match="width: expected at least 1/64"):
        resnet18_cifar(3, 10, width=0.01)


@pytest.mark.parametrize(
    ("builder", "kernel_size", "expected"),
    [
        (resnet18, 3, 11_689_512),
        (resnet18, 7, 60_519_976),
        (vgg11_bn, 3, 132_868_840),
        (vgg11_bn, 7, 173_836_520),
    ],
)
def test_imagenet_counts(builder, kernel_size, expected):
    with torch.device("meta"):
        for window in ("none", "hamming"):
            assert count(builder(kernel_size=kernel_size, window=window)) == expected


def test_imagenet_resnet18_is_torchvisions_at_three():
    """Same names and shapes, so that its weights load; same logits with them."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=10).eval()
    ours = resnet18(10).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=0)


def test_imagenet_large_kernels():
    with torch.device("meta"):
        model = resnet18(10, kernel_size=7, window="hamming")
    sizes = {name: m.kernel_size for name, m in model.named_modules() if hasattr(m, "kernel_size")}
    assert sizes["conv1"] == (9, 9)
    assert sizes["layer1.0.conv1"] == (7, 7)
    assert sizes["layer2.0.downsample.0"] == (1, 1)
    assert model.conv1.padding == (4, 4)
    windowed = [m for m in model.modules() if isinstance(m, WindowedConv2d)]
    assert len(windowed) == 17


def test_window_in_the_first_layer_only():
    model = cnn(1, 10, depth=3, widths=(4,), window="hamming", window_layers="first")
    kinds = [isinstance(m, WindowedConv2d) for m in model if isinstance(m, torch.nn.Conv2d)]
    assert kinds == [True, False, False]


def test_compensated_weights_start_as_large_as_a_baselines():
    plain, compensated = (
        build(CnnGroup(depth=2, widths=(64,), kernel_size=7, window=w, init=i), 1, 10)
        for w, i in (("none", "default"), ("hamming", "compensated"))
    )
    effective = (compensated.conv2.weight * compensated.conv2.window).std()
    assert effective.item() == pytest.approx(plain.conv2.weight.std().item(), rel=0.02)


def test_first_downsampling_quarters_the_maps():
    options = {"width": 1 / 16, "kernel_size": 3}
    full, down = (resnet18_cifar(3, 10, first_downsampling=d, **options) for d in (False, True))
    assert count(full) == count(down)
    images = torch.rand(1, 3, 32, 32)
    assert full[:3](images).shape[2:] == (32, 32)
    assert down[:4](images).shape[2:] == (8, 8)
