"""Somebody else's tensors in a user's network: ``weights:`` and ``import`` take the same files."""

import warnings
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from robust_ham import windowed
from robust_ham.errors import RequestError
from robust_ham.models import checkpoints, factories
from robust_ham.models.windows import window_2d

MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2471, 0.2435, 0.2616])


class Net(nn.Module):
    """Two convolutions of one shape, so that nothing but a name tells them apart."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 10)

    def forward(self, x):
        x = self.norm(self.conv1(self.stem(x).relu())).relu()
        return self.fc(self.conv2(x).amax((2, 3)))


class NetWithBuffers(Net):
    """RobustBench's layout of Rice2020Overfitting and others: mu and sigma among the weights."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mu", MEAN.reshape(1, 3, 1, 1).clone())
        self.register_buffer("sigma", STD.reshape(1, 3, 1, 1).clone())

    def forward(self, x):
        return super().forward((x - self.mu) / self.sigma)


class Normalizer(nn.Module):
    """RobustBench's ImageNormalizer, MadryLab's InputNormalize."""

    def __init__(self, names=("mean", "std"), mean=MEAN, std=STD):
        super().__init__()
        self.names = names
        for name, values in zip(names, (mean, std), strict=True):
            self.register_buffer(name, values.reshape(-1, 1, 1).clone())

    def forward(self, x):
        mean, std = (getattr(self, name) for name in self.names)
        return (x - mean) / std


def normalized(network, **constants):
    """RobustBench's normalize_model."""
    return nn.Sequential(OrderedDict(normalize=Normalizer(**constants), model=network))


class AttackerModel(nn.Module):
    """MadryLab's: the network twice, once in its attacker, and its normaliser twice."""

    def __init__(self, network):
        super().__init__()
        self.normalizer = Normalizer(("new_mean", "new_std"))
        self.model = network
        self.attacker = nn.Module()
        self.attacker.normalize = Normalizer(("new_mean", "new_std"))
        self.attacker.model = network


def trained(kind=Net, seed=1):
    """A network whose tensors are all random, counters too."""
    torch.manual_seed(seed)
    network = kind()
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point() and not name.endswith(("mu", "sigma", "mean", "std")):
            tensor.normal_()
    return network.eval()


IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
STATE = trained().state_dict()
OTHER = trained(seed=2).state_dict()


def prefixed(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def without(state, *endings):
    return {name: tensor for name, tensor in state.items() if not name.endswith(endings)}


LAYOUTS = {
    "bare": STATE,
    "state_dict": {"state_dict": STATE, "epoch": 3, "optimizer": {"state": {}, "lr": 0.1}},
    "model_state_dict": {"model_state_dict": STATE, "loss": 0.5},
    "model": {"model": STATE, "best_acc": torch.tensor(0.9)},
    "net": {"net": prefixed("module.", STATE), "acc": 93.1, "epoch": 9},
    "ema": {"ema": {"state_dict": STATE, "decay": 0.99}},
    "model_ema": {"model_ema": prefixed("module.", STATE)},
    "params": {"params": STATE},
    "nested": {"checkpoint": {"model": {"weights": STATE}}},
    "DataParallel": prefixed("module.", STATE),
    "compiled": prefixed("_orig_mod.", STATE),
    "AveragedModel": prefixed("module.", STATE) | {"n_averaged": torch.tensor(7)},
    "both": prefixed("module._orig_mod.model.", STATE),
    "Lightning": {"state_dict": prefixed("model.", STATE), "hyper_parameters": {"lr": 1e-3}},
    "net.": prefixed("net.", STATE),
    "wrapped inside": {n.replace("conv1.", "conv1.module."): t for n, t in STATE.items()},
    "backbone": {n if n[:2] == "fc" else f"backbone.{n}": t for n, t in STATE.items()},
    "without counters": without(STATE, "num_batches_tracked"),
    "reversed": dict(reversed(STATE.items())),
    "half": {n: t.half() if t.is_floating_point() else t for n, t in STATE.items()},
    "named_parameters": dict(trained().named_parameters()) | without(STATE, "weight", "bias"),
    "the attacker's copy": {
        **prefixed("module.model.", STATE),
        **prefixed("module.attacker.model.", STATE),
    },
}


IS_BARE = {name: all(map(torch.is_tensor, layout.values())) for name, layout in LAYOUTS.items()}
FILES = [(name, suffix) for name in LAYOUTS for suffix in (".pth", ".pt", ".ckpt")]
FILES += [(name, ".safetensors") for name, is_bare in IS_BARE.items() if is_bare]


@pytest.mark.parametrize(("layout", "suffix"), FILES)
def test_layouts(tmp_path, layout, suffix):
    content, path = LAYOUTS[layout], tmp_path / f"net{suffix}"
    if suffix == ".safetensors":
        save_file({name: tensor.detach().clone() for name, tensor in content.items()}, path)
    else:
        torch.save(content, path)
    network = Net().eval()
    factories.load_weights(network, path)
    exact = {"atol": 2e-3, "rtol": 2e-3} if layout == "half" else {"atol": 0, "rtol": 0}
    for name, tensor in without(STATE, "num_batches_tracked").items():
        torch.testing.assert_close(network.state_dict()[name], tensor, **exact)


def refused(tmp_path, content, network=None, key=None, suffix=".pth"):
    """The one line with which ``content`` is refused as the weights of a network."""
    path = tmp_path / f"refused{suffix}"
    save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
    with pytest.raises(RequestError) as error:
        factories.load_weights(Net() if network is None else network, path, key)
    assert "\n" not in str(error.value)
    assert path.name in str(error.value)
    return str(error.value)


# --- several networks ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ({"model": STATE, "model_ema": OTHER}, ["model", "model_ema"]),
        ({"state_dict": STATE, "state_dict_ema": OTHER}, ["state_dict", "state_dict_ema"]),
        ({"params": STATE, "params_ema": OTHER, "epoch": 1}, ["params", "params_ema"]),
        ({"last": STATE, "best": OTHER}, ["last", "best"]),
        (
            {"state_dict": prefixed("model.", STATE) | prefixed("ema_model.module.", OTHER)},
            ["state_dict.model", "state_dict.ema_model"],
        ),
        (
            prefixed("module.net.", STATE) | prefixed("module.ema.", OTHER),
            ["module.net", "module.ema"],
        ),
    ],
)
def test_averaged_weights_beside_raw_ones_are_asked_for(tmp_path, content, keys):
    message = refused(tmp_path, content)
    assert "choose one with weights_key: " in message
    for key, state in zip(keys, (STATE, OTHER), strict=True):
        assert key in message
        network = Net()
        factories.load_weights(network, tmp_path / "refused.pth", key)
        assert torch.equal(network.conv2.weight, state["conv2.weight"])
    with pytest.raises(RequestError, match=r"weights_key: no state dict 'emma' \("):
        factories.load_weights(Net(), tmp_path / "refused.pth", "emma")


def test_a_network_held_twice_with_the_same_values_is_one(tmp_path):
    content = prefixed("model.", STATE) | prefixed("attacker.model.", STATE)
    torch.save(content, tmp_path / "twice.pth")
    network = Net()
    factories.load_weights(network, tmp_path / "twice.pth")
    assert torch.equal(network.conv2.weight, STATE["conv2.weight"])


# --- tensors that only one of both has -----------------------------------------------------------


def test_extra_and_missing_tensors_are_named(tmp_path):
    extra = {"criterion.weight": torch.ones(10), "aux.0.weight": torch.ones(2, 2)}
    message = refused(tmp_path, STATE | extra)
    assert "unexpected tensor criterion.weight, aux.0.weight" in message
    lightning = {"state_dict": prefixed("model.", STATE) | extra}
    message = refused(tmp_path, lightning)
    assert "unexpected tensor criterion.weight, aux.0.weight; " in message
    assert message.endswith("weights_key state_dict.model leaves it out")
    factories.load_weights(Net(), tmp_path / "refused.pth", "state_dict.model")
    message = refused(tmp_path, without(STATE, "fc.bias", "running_mean"), suffix=".safetensors")
    assert "no tensor norm.running_mean, fc.bias" in message
    message = refused(tmp_path, {n.replace("conv", "c"): t for n, t in STATE.items()} | extra)
    assert "no tensor conv1.weight" in message
    assert "unexpected tensor c1.weight, c1.bias, c2.weight, c2.bias and 2 more" in message
    stray = STATE | {"epoch": 3, "name": "x"}
    for content in (stray, {"model": stray}):
        message = refused(tmp_path, content)
        assert "contains no state dict: epoch, name beside its tensors; " in message


def test_shapes_say_what_is_wrong(tmp_path):
    gray = STATE | {"stem.weight": torch.ones(4, 1, 3, 3)}
    assert "channels: expected 3 (the network), got 1" in refused(tmp_path, gray)
    classes = STATE | {"fc.weight": torch.ones(100, 4), "fc.bias": torch.ones(100)}
    assert "classes: expected 10 (the network), got 100" in refused(tmp_path, classes)
    wide = STATE | {"conv2.weight": torch.ones(4, 4, 5, 5)}
    message = "conv2.weight has shape (4, 4, 5, 5), expected (4, 4, 3, 3)"
    assert message in refused(tmp_path, wide)


# --- order -----------------------------------------------------------------------------------


def test_names_go_before_order(tmp_path):
    """conv1 and conv2 change places, and the last layer has another name: order would swap them."""
    order = ["stem", "conv2", "norm", "conv1", "fc"]
    swapped = {n: t for layer in order for n, t in STATE.items() if n.startswith(layer)}
    torch.save(swapped, tmp_path / "swapped.pth")
    network = Net()
    factories.load_weights(network, tmp_path / "swapped.pth")
    assert torch.equal(network.conv2.weight, STATE["conv2.weight"])
    renamed = {n.replace("fc.", "head."): t for n, t in swapped.items()}
    message = refused(tmp_path, renamed)
    assert "conv2 stands where the expected network has conv1, which the file has else" in message
    assert "no tensor fc.weight, fc.bias; unexpected tensor head.weight, head.bias" in message


def test_order_alone_is_not_enough_where_layers_are_alike(tmp_path):
    renamed = {n.replace("conv", "features"): t for n, t in STATE.items()}
    message = refused(tmp_path, renamed)
    assert "conv1 and conv2 have the same shapes, so their order is uncertain" in message
    assert "robust-ham import --accuracy" in message

    class Small(nn.Module):
        def __init__(self, *names):
            super().__init__()
            layers = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Linear(6, 10)
            for name, layer in zip(names, layers, strict=True):
                self.add_module(name, layer)

    theirs, network = Small("a", "b", "c"), Small("x", "y", "z")
    torch.save(theirs.state_dict(), tmp_path / "unlike.pth")
    factories.load_weights(network, tmp_path / "unlike.pth")  # each shape occurs once
    assert torch.equal(network.y.weight, theirs.b.weight)


# --- normalisation inside --------------------------------------------------------------------

CONSTANTS = {
    "mu": {"mu": MEAN.reshape(1, 3, 1, 1) + 0.1, "sigma": STD.reshape(1, 3, 1, 1) / 2},
    "mean": {"mean": MEAN + 0.1, "std": STD / 2},
    "normalize": {"normalize.mean": MEAN + 0.1, "normalize.std": STD / 2},
    "0": {"0.mean": (MEAN + 0.1).reshape(3, 1, 1), "0.std": (STD / 2).reshape(3, 1, 1)},
    "normalizer": {"module.normalizer.new_mean": MEAN + 0.1, "module.normalizer.new_std": STD / 2},
}


@pytest.mark.parametrize("names", CONSTANTS)
@pytest.mark.parametrize("kind", [NetWithBuffers, lambda: normalized(Net())])
def test_the_normalisation_of_a_file_is_used_where_the_network_has_one(tmp_path, names, kind):
    prefix = {"normalizer": "module.model.", "0": "1.", "normalize": "model."}.get(names, "")
    torch.save({"model": prefixed(prefix, STATE) | CONSTANTS[names]}, tmp_path / "net.pth")
    network = kind().eval()
    factories.load_weights(network, tmp_path / "net.pth")
    expected = normalized(trained(), mean=MEAN + 0.1, std=STD / 2).eval()
    torch.testing.assert_close(network(IMAGES), expected(IMAGES))


def test_without_constants_in_the_file_the_networks_own_stay(tmp_path):
    """RobustBench loads so: the files of Wong2020Fast and others have no mu and sigma."""
    torch.save(STATE, tmp_path / "net.pth")
    network = NetWithBuffers().eval()
    factories.load_weights(network, tmp_path / "net.pth")
    torch.testing.assert_close(network(IMAGES), normalized(trained())(IMAGES))
    unset = normalized(Net(), mean=torch.zeros(3), std=torch.ones(3))
    assert "no tensor normalize.mean, normalize.std" in refused(tmp_path, STATE, unset)


def test_a_normalisation_that_only_the_file_has_is_refused_with_the_remedy(tmp_path):
    for names in CONSTANTS.values():
        message = refused(tmp_path, STATE | names)
        assert f"contains a normalisation ({', '.join(names)}), but the network has none" in message
        assert "import the file with normalize: true" in message


def test_constants_of_another_kind_are_refused(tmp_path):
    large = {"mean": 255 * MEAN, "std": 255 * STD}
    message = refused(tmp_path, STATE | large, NetWithBuffers())
    assert "mean, std: expected the mean and the standard deviation of images in [0, 1]" in message
    gray = {"mu": torch.ones(1), "sigma": torch.ones(1)}
    assert "mu: expected 3 numbers, got 1" in refused(tmp_path, STATE | gray, NetWithBuffers())
    two = CONSTANTS["mu"] | {"extra.mean": MEAN, "extra.std": STD}
    message = refused(tmp_path, STATE | two, NetWithBuffers())
    assert (
        "cannot match its normalisations with the network's: the file has mu, sigma, extra.mean"
        in message
    )


def test_constants_under_the_networks_own_names_are_checked(tmp_path):
    large = {"mu": 255 * MEAN.reshape(1, 3, 1, 1), "sigma": 255 * STD.reshape(1, 3, 1, 1)}
    message = refused(tmp_path, STATE | large, NetWithBuffers())
    assert "mu, sigma: expected the mean and the standard deviation of images in [0, 1]" in message
    for std in (0, -0.25):
        zero = CONSTANTS["mu"] | {"sigma": torch.tensor([0.25, std, 0.25]).reshape(1, 3, 1, 1)}
        message = refused(tmp_path, STATE | zero, NetWithBuffers())
        assert f"sigma: expected standard deviations above 0, got [0.25, {std}" in message
    for_255 = NetWithBuffers()  # its own constants say so
    for_255.mu.mul_(255)
    for_255.sigma.mul_(255)
    torch.save(STATE | {name: 2 * t for name, t in large.items()}, tmp_path / "net.pth")
    factories.load_weights(for_255, tmp_path / "net.pth")
    assert torch.equal(for_255.mu, 2 * large["mu"])


def test_negative_variances_are_refused(tmp_path):
    variances = {"norm.running_var": torch.tensor([1.0, -0.5, 1, 1])}
    message = refused(tmp_path, STATE | variances)
    assert "norm.running_var: expected variances of at least 0, got -0.5" in message


@pytest.mark.parametrize(
    "counter",
    [torch.tensor(7.5), torch.tensor([7]), torch.tensor(torch.nan), torch.ones(2, dtype=torch.int)],
)
def test_counters_decide_nothing(tmp_path, counter):
    torch.save(STATE | {"norm.num_batches_tracked": counter}, tmp_path / "net.pth")
    network = Net().eval()
    factories.load_weights(network, tmp_path / "net.pth")
    assert network.norm.num_batches_tracked.dtype == torch.int64
    assert torch.equal(network(IMAGES), trained()(IMAGES))


def test_madrylabs_layout(tmp_path):
    theirs = nn.DataParallel(AttackerModel(trained()))
    torch.save({"model": theirs.state_dict(), "epoch": 150, "schedule": None}, tmp_path / "m.pt")
    for network in (normalized(Net()), NetWithBuffers()):
        factories.load_weights(network.eval(), tmp_path / "m.pt")
        torch.testing.assert_close(network(IMAGES), normalized(trained())(IMAGES))
    network = AttackerModel(Net())
    factories.load_weights(network, tmp_path / "m.pt")
    assert torch.equal(network.attacker.model.conv2.weight, STATE["conv2.weight"])


# --- networks of other kinds -----------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight


def test_tied_weights(tmp_path):
    theirs, network = Tied(), Tied()
    nn.init.normal_(theirs.first.weight)
    state = theirs.state_dict()
    for gone in ("first.weight", "second.weight", "none"):  # safetensors files keep one of two
        save_file({n: t.clone() for n, t in state.items() if n != gone}, tmp_path / "n.safetensors")
        factories.load_weights(network, tmp_path / "n.safetensors")
        assert torch.equal(network.first.weight, theirs.first.weight)
        assert network.first.weight is network.second.weight
    message = refused(tmp_path, state | {"second.weight": torch.ones(4, 4)}, network)
    assert "first.weight and second.weight are tied in the network but differ" in message
    checkpoints.save(tmp_path / "saved", theirs, {"model_id": "x"}, None)
    factories.load_weights(network, tmp_path / "saved" / "model.safetensors")


def test_parametrized_and_pruned_networks(tmp_path):
    def network():
        layer = nn.Conv2d(3, 4, 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            normed = nn.utils.weight_norm(nn.Conv2d(4, 4, 3))
        pruned = nn.utils.prune.random_unstructured(nn.Conv2d(4, 4, 3), "weight", 0.5)
        return nn.Sequential(nn.utils.parametrizations.spectral_norm(layer), normed, pruned).eval()

    theirs, own = network(), network()
    torch.save({"model": theirs.state_dict()}, tmp_path / "net.pth")
    factories.load_weights(own, tmp_path / "net.pth")
    torch.testing.assert_close(own(IMAGES), theirs(IMAGES))


def test_masks_of_infinity_are_values_like_others(tmp_path):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))

    torch.save(Masked().state_dict(), tmp_path / "net.pth")
    factories.load_weights(Masked(), tmp_path / "net.pth")
    broken = Masked().state_dict() | {"mask": torch.full((3, 3), torch.inf)}
    assert "mask has values that are not finite" in refused(tmp_path, broken, Masked())


def test_what_is_no_state_dict_is_named(tmp_path):
    lazy = nn.Sequential(nn.LazyConv2d(4, 3))
    message = refused(tmp_path, nn.Sequential(nn.Conv2d(3, 4, 3)).state_dict(), lazy)
    assert (
        "the network's 0.weight, 0.bias has no shape yet: let the factory run one batch" in message
    )
    torch.jit.script(nn.Sequential(nn.Linear(2, 2))).save(tmp_path / "script.pt")
    with pytest.raises(RequestError, match="script.pt: a TorchScript program, which contains code"):
        factories.load_weights(Net(), tmp_path / "script.pt")


class TheirWindow(nn.Conv2d):
    """A windowed convolution of somebody else's, whose window is saved or not."""

    def __init__(self, *args, stored, window="hamming", **kwargs):
        super().__init__(*args, **kwargs)
        values = window_2d(window, *self.kernel_size).float()
        self.register_buffer("window2d", values, persistent=stored)

    def forward(self, x):
        return F.conv2d(x, self.weight * self.window2d, self.bias, padding=self.padding)


def test_windows_stored_in_a_file_are_those_of_the_network(tmp_path):
    file = nn.Sequential(TheirWindow(3, 4, 5, stored=True)).state_dict()
    path = tmp_path / "net.pth"
    torch.save(file, path)
    for network in (
        nn.Sequential(TheirWindow(3, 4, 5, stored=True)),
        nn.Sequential(TheirWindow(3, 4, 5, stored=False)),
        windowed(nn.Sequential(nn.Conv2d(3, 4, 5))),
    ):
        factories.load_weights(network, path)
        assert torch.equal(network[0].weight, file["0.weight"])
    for network, has in (
        (nn.Sequential(nn.Conv2d(3, 4, 5)), "none"),
        (nn.Sequential(TheirWindow(3, 4, 5, stored=False, window="hann")), "hann"),
    ):
        message = refused(tmp_path, file, network)
        assert f"0 has the window hamming; the expected network has {has}" in message
