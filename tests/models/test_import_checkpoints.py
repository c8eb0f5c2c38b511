"""Checkpoints of others: read without running them, mapped, and never taken for their twins."""

import argparse
import os
import pickle
import sys
import types
from collections import OrderedDict
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from conftest import fashion_images, zoo_model
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from robust_ham.config.files import parse_dataset
from robust_ham.data.datasets import Dataset
from robust_ham.data.splits import to_float
from robust_ham.errors import RequestError
from robust_ham.models import checkpoints, safe_load
from robust_ham.models.checkpoints import ZOO
from robust_ham.models.importing import state_dicts

DATA = "{name: fashion_mnist, num_test: 200}"
ZOO_NET = "architecture: cnn, depth: 3, widths: [16, 32], first_kernel: same"


class TheirConv(nn.Conv2d):
    """A windowed convolution as others write it; the buffer is saved where the file has one."""

    def __init__(self, *args, power=1.0, stored=False, **kwargs):
        super().__init__(*args, bias=False, **kwargs)
        rows, columns = map(np.hamming, self.kernel_size)
        window = torch.from_numpy(np.outer(rows, columns) ** power).float()
        self.register_buffer("hamming2d", window, persistent=stored)

    def forward(self, x):
        weight = self.weight * self.hamming2d
        return F.conv2d(x, weight, None, self.stride, self.padding)


def paper_network(zoo_net, windowed):
    """The released script's nn.Sequential, with the weights of a network of the zoo."""
    conv = TheirConv if windowed else lambda *a, **k: nn.Conv2d(*a, bias=False, **k)
    layers, kernel = [], zoo_net.conv1.kernel_size[0]
    for i, (before, after) in enumerate([(1, 16), (16, 32), (32, 32)]):
        layers.append(conv(before, after, kernel, stride=1 if i else 2, padding=kernel // 2))
        layers += [nn.BatchNorm2d(after), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    values = list(zoo_net.state_dict().values())
    network.load_state_dict(dict(zip(network.state_dict(), values, strict=True)))
    return network.eval()


@torch.no_grad()
def right_per_class(network):
    images, labels = data_images()
    right = network(images).argmax(1) == labels
    counts = [labels[right].bincount(minlength=10), labels.bincount(minlength=10)]
    return [count.double().numpy() for count in counts]


@cache
def data_images(data=DATA):
    """The test images that ``data`` means, in [0, 1], and their labels."""
    split = Dataset(parse_dataset("--dataset", data)).test
    return to_float(split.images), split.labels


@torch.no_grad()
def accuracy(network, data=DATA):
    images, labels = data_images(data)
    return float((network(images).argmax(1) == labels).double().mean())


@pytest.fixture
def paper_file(tmp_path):
    """Both networks in one file, an argparse.Namespace and NumPy arrays."""
    nets = [paper_network(zoo_model(3, window), window != "none") for window in ("none", "hamming")]
    (right, seen), (right_win, _) = map(right_per_class, nets)
    content = {
        "state_dict": nets[0].state_dict(),
        "state_dict_win": nets[1].state_dict(),
        "args": argparse.Namespace(seed=None, n_layers=3, save="/save_dir"),
        "training_loss": np.linspace(2, 1, 7),
        "accuracy": right,
        "accuracy_win": right_win,
        "class_counter": seen,
        "best": np.float64(0.5),
        "names": np.array(["a", "b"]),
    }
    path = tmp_path / "model_all_win_wd_3_layers.pth"
    torch.save(content, path)
    return path, nets, content


@pytest.fixture
def run_import(run_cli, tmp_path):
    """``robust-ham import`` into ``tmp_path/in``: exit code, output, errors."""

    def run(path, network, *options, data=DATA):
        given = ["--dataset", data, "--out", tmp_path / "in"]
        return run_cli("import", path, "--as", network, *given, *options)

    return run


def assert_refused(result, tmp_path, message):
    code, _, errors = result
    assert code == 2, errors
    assert message in errors
    assert errors.startswith("robust-ham: ")
    assert errors.count("\n") == 1
    assert not (tmp_path / "in").exists()


def assert_same(tmp_path, name, network, images, factory=None):
    loaded, card = checkpoints.load(tmp_path / "in" / name, factory)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), network(images), atol=1e-6, rtol=1e-6)
    return card


# --- layouts ---------------------------------------------------------------------------------


def test_both_networks_of_the_papers_file(paper_file, run_import, tmp_path):
    path, nets, content = paper_file
    images, _ = fashion_images(64)
    for key, window, net in zip(
        ("state_dict", "state_dict_win"), ("none", "hamming"), nets, strict=True
    ):
        network = f"{{{ZOO_NET}, kernel_size: 3, window: {window}}}"
        code, printed, errors = run_import(path, network, "--key", key)
        assert (code, errors) == (0, "")
        card = assert_same(tmp_path, f"cnn3-w16x32-k3-{window}-s0", net, images)
        right = content["accuracy" + key.removeprefix("state_dict")].sum() / 200
        assert card["test_accuracy"] == pytest.approx(right)
        assert card["source"]["stated_accuracy"] == pytest.approx(right)
        assert (card["source"]["key"], card["source"]["file"]) == (key, path.name)
        assert f"with window {window}" in printed
        assert str(tmp_path) not in str(card)


def test_the_papers_file_says_which_is_windowed_and_how_good(paper_file, run_import, tmp_path):
    path, _, content = paper_file
    network = f"{{{ZOO_NET}, kernel_size: 3}}"
    refused = run_import(path, network)
    assert_refused(
        refused, tmp_path, "several networks; choose one with --key: state_dict, state_dict_win"
    )
    refused = run_import(path, network, "--key", "state_dict_wn")
    assert_refused(refused, tmp_path, "no state dict 'state_dict_wn'")
    refused = run_import(path, network, "--key", "state_dict_win")
    assert_refused(refused, tmp_path, "declares a windowed network; --as has window none")
    content["accuracy"] += 1
    torch.save(content, path)
    refused = run_import(path, network, "--key", "state_dict")
    assert_refused(refused, tmp_path, "but the file states 0.9")


def replication(hamming, factorised=False, kernel=7):
    """torchvision's ResNet-18 as the replication on CIFAR-10 changes it, with few channels."""
    network = torchvision.models.resnet18(num_classes=10)
    network.conv1 = nn.Conv2d(1, 64, 3, 1, 1, bias=False)
    network.maxpool = nn.Identity()

    def conv(before, after, shape, stride):
        padding = (shape[0] // 2, shape[1] // 2)
        if hamming:
            made = TheirConv(
                before, after, shape, stride=stride, padding=padding, power=0.5, stored=True
            )
        else:
            made = nn.Conv2d(before, after, shape, stride, padding, bias=False)
        return made

    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                before, after = max(1, child.in_channels // 16), child.out_channels // 16
                if child.kernel_size == (1, 1):
                    made = nn.Conv2d(before, after, 1, child.stride, bias=False)
                elif factorised:
                    s = child.stride[0]
                    made = nn.Sequential(
                        OrderedDict(
                            conv1=conv(before, after, (kernel, 1), (s, 1)),
                            conv2=conv(after, after, (1, kernel), (1, s)),
                        )
                    )
                else:
                    made = conv(before, after, (kernel, kernel), child.stride)
                setattr(module, name, made)
            elif isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.BatchNorm2d(child.num_features // 16))
    network.fc = nn.Linear(32, 10)
    return network.eval()


def lightning_file(path, network, monkeypatch, **hyper_parameters):
    """What Lightning wrote: before 1.5 a class as a key, with torch 2.0 to 2.3 a function."""
    parts = "pytorch_lightning", "callbacks", "model_checkpoint"
    for i in range(len(parts)):
        name = ".".join(parts[: i + 1])
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    callback = type("ModelCheckpoint", (), {"__module__": ".".join(parts)})
    sys.modules[".".join(parts)].ModelCheckpoint = callback

    class OneCycleLR:
        __module__, __qualname__ = "torch.optim.lr_scheduler", "OneCycleLR"

        @staticmethod
        def annealing(share):
            return share

        annealing.__func__.__module__ = __module__
        annealing.__func__.__qualname__ = f"{__qualname__}.annealing"

    monkeypatch.setattr(torch.optim.lr_scheduler, "OneCycleLR", OneCycleLR)
    optimizer = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.9)
    network(torch.rand(2, 1, 28, 28)).sum().backward()
    optimizer.step()
    network.zero_grad()
    content = {
        "epoch": 40,
        "pytorch-lightning_version": "1.1.6",
        "callbacks": {callback: {"best_model_score": torch.tensor(0.9), "best_model_path": ""}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"anneal_func": OneCycleLR.annealing}],
        "state_dict": {f"model.{k}": v for k, v in network.state_dict().items()},
        "hparams_name": "kwargs",
        "hyper_parameters": {"kernel": 7, "padding": 3, "wm": 1 / 16, **hyper_parameters},
    }
    torch.save(content, path)
    for i in range(len(parts)):
        monkeypatch.delitem(sys.modules, ".".join(parts[: i + 1]))
    return path


NORMALIZED = ["--mean", "0.3", "--std", "90/255"]


def normalized(network, mean=(0.3,), std=(90 / 255,)):
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (mean, std))
    return lambda images: network((images - mean) / std)


@pytest.mark.parametrize("factorised", [False, True])
def test_lightning_with_stored_windows(run_import, tmp_path, monkeypatch, factorised):
    network = replication(True, factorised)
    path = lightning_file(tmp_path / "epoch=39.ckpt", network, monkeypatch, hamming=True)
    spec = f"architecture: resnet18_cifar, kernel_size: 7, width: 1/16, factorised: {factorised}"
    result = run_import(path, f"{{{spec}, window: hamming_sqrt}}", *NORMALIZED)
    assert (result[0], result[2]) == (0, "")
    name = "resnet18-x0.0625" + ("-factorised" if factorised else "") + "-k7-hamming_sqrt-s0"
    card = assert_same(tmp_path, name, normalized(network), fashion_images(16)[0])
    assert "readings" not in card["source"]  # the stored windows prove it
    assert card["source"]["std"] == pytest.approx([90 / 255])
    (tmp_path / "in").rename(tmp_path / "before")
    for window, message in [
        ("hamming", "conv1.conv1 has the window" if factorised else "conv1 has the window"),
        ("none", "hamming_sqrt; the expected network has none"),
    ]:
        refused = run_import(path, f"{{{spec}, window: {window}}}", *NORMALIZED)
        assert_refused(refused, tmp_path, message)


def test_lightning_without_windows_and_what_it_says(run_import, tmp_path, monkeypatch):
    network = replication(False)
    path = lightning_file(tmp_path / "plain.ckpt", network, monkeypatch, hamming=False)
    spec = "architecture: resnet18_cifar, kernel_size: 7, width: 1/16"
    refused = run_import(path, f"{{{spec}, window: hamming_sqrt}}", *NORMALIZED)
    assert_refused(refused, tmp_path, "declares a plain network; --as has window hamming_sqrt")
    refused = run_import(path, f"{{{spec}}}")
    assert_refused(refused, tmp_path, "--mean, --std: required with normalize: true")
    refused = run_import(path, f"{{{spec}}}", *NORMALIZED)
    assert_refused(refused, tmp_path, "cannot tell whether the network is windowed")
    stated = accuracy(normalized(network))
    assert run_import(path, f"{{{spec}}}", *NORMALIZED, "--accuracy", stated)[0] == 0
    assert_same(tmp_path, "resnet18-x0.0625-k7-none-s0", normalized(network), fashion_images(16)[0])
    (tmp_path / "in").rename(tmp_path / "before")
    for said, message in [
        ({"padding": 1}, "declares padding 1 for kernels of 7"),
        ({"big_first": True}, "declares big_first"),
        ({"first_downsampling": True}, "declares first_downsampling True; --as has False"),
    ]:
        lightning_file(path, network, monkeypatch, **said)
        assert_refused(run_import(path, f"{{{spec}}}", *NORMALIZED), tmp_path, message)


def test_a_window_that_is_missing_in_one_layer(run_import, tmp_path):
    state = replication(True).state_dict()
    del state["layer2.0.conv1.hamming2d"]
    torch.save(state, tmp_path / "net.pt")
    spec = "{architecture: resnet18_cifar, kernel_size: 7, width: 1/16, window: hamming_sqrt}"
    refused = run_import(tmp_path / "net.pt", spec, *NORMALIZED)
    assert_refused(refused, tmp_path, "layer2.0.conv1 has no window; the expected network has one")


def test_torchvisions_names_in_safetensors(run_import, tmp_path):
    """safetensors keeps no order: only names say which tensor is which (timm saves so)."""
    network = replication(False, kernel=3)
    state = {k: v.clone() for k, v in network.state_dict().items() if "num_batches" not in k}
    save_file(state, tmp_path / "model.safetensors")
    spec = "{architecture: resnet18_cifar, kernel_size: 3, width: 1/16, normalize: false}"
    result = run_import(tmp_path / "model.safetensors", spec, "--accuracy", accuracy(network))
    assert (result[0], result[2]) == (0, "")
    assert_same(tmp_path, "resnet18-x0.0625-raw-k3-none-s0", network, fashion_images(16)[0])
    (tmp_path / "in").rename(tmp_path / "before")
    save_file({f"x{k}": v for k, v in state.items()}, tmp_path / "renamed.safetensors")
    refused = run_import(tmp_path / "renamed.safetensors", spec)
    assert_refused(refused, tmp_path, "not the expected network: no tensor conv1.weight")


def test_half_precision(run_import, tmp_path):
    net = zoo_model(7, "hamming")
    state = {name: t.half() if t.is_floating_point() else t for name, t in net.state_dict().items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "half.pth")
    network = f"{{{ZOO_NET}, window: hamming}}"
    assert run_import(tmp_path / "half.pth", network, "--key", "model")[0] == 0
    loaded, _ = checkpoints.load(tmp_path / "in" / "cnn3-w16x32-k7-hamming-s0")
    assert torch.equal(loaded.conv2.weight, net.conv2.weight.half().float())


@pytest.fixture
def colour_data(tmp_path):
    """A folder of 12 colour images of two classes."""
    noise = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / "colours" / "test" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return str(tmp_path / "colours")


IMAGENET = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]


def imagenet(network):
    return normalized(network, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_torchvision_and_a_users_own_network(
    run_import, run_cli, tmp_path, colour_data, monkeypatch
):
    (tmp_path / "their_nets.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.body = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(1800, 2))\n"
        "    def forward(self, x):\n"
        "        return self.body(x)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import their_nets

    images = torch.rand(4, 3, 32, 32)
    network = torchvision.models.resnet18(num_classes=2).eval()
    state = {f"module.{k}": v for k, v in network.state_dict().items()}
    best = {"epoch": 90, "arch": "resnet18", "best_prec1": 67.1, "state_dict": state}
    torch.save(best, tmp_path / "checkpoint.pth.tar")
    path, stated = tmp_path / "checkpoint.pth.tar", accuracy(imagenet(network), colour_data)
    result = run_import(path, "resnet18", *IMAGENET, "--accuracy", stated, data=colour_data)
    assert (result[0], result[2]) == (0, "")
    assert_same(tmp_path, "imagenet-resnet18-k3-none-s0", imagenet(network), images)

    own = their_nets.Net()
    torch.save(own.state_dict(), tmp_path / "own.pth")
    spec = "factory: 'their_nets:Net', kernel_size: 3, normalize: true"
    result = run_import(tmp_path / "own.pth", f"{{{spec}}}", *IMAGENET, data=colour_data)
    assert (result[0], result[2]) == (0, "")
    own_id, factory = "their_nets-Net-k3-none-s0", "their_nets:Net"
    assert_same(tmp_path, own_id, imagenet(own), images, factory)
    with pytest.raises(
        RequestError, match="names factory .*, which the configuration does not name"
    ):
        checkpoints.load(tmp_path / "in" / own_id)
    config = tmp_path / "own.yaml"
    config.write_text(
        f"name: own\ndataset: {{name: {colour_data}}}\n"
        f"models: [{{{spec}, source: in}}]\n"
        "attacks: {d: {attack: deepfool, steps: 2}}\nevaluation: {num_images: 4, gate: false}\n"
    )
    code, _, errors = run_cli("run", config, "--stop-after", "attack")
    assert (code, errors) == (0, "")
    assert len(pd.read_parquet("results/own/samples/their_nets-Net-k3-none-s0/d.parquet")) == 4
    code, _, errors = run_cli("run", config, "-o", "models.0.source=train")
    assert code == 2
    assert "models.normalize: not available for a factory unless it was imported" in errors


# --- a user's own network --------------------------------------------------------------------


TWO_ALIKE = """
import copy

import torch
from torch import nn
from conftest import zoo_model

class Zoo(nn.Module):
    \"\"\"A network of the zoo whose middle layers are alike, under names of its own.\"\"\"
    names = "conv1", "conv2"
    def __init__(self):
        super().__init__()
        self.zoo = copy.deepcopy(zoo_model(3, "none"))  # weights are loaded into it
        for name in self.names:  # the identity, and twice its input
            self.add_module(name, nn.Conv2d(1, 1, 1))
    def forward(self, x):
        first, second = (getattr(self, name) for name in self.names)
        return self.zoo(second(first(x).relu()))

class Renamed(Zoo):
    names = "first", "second"

class Swapped(Zoo):
    def __init__(self):
        super().__init__()
        self.conv1 = self._modules.pop("conv1")  # defined after conv2

class Normalizing(Zoo):
    def __init__(self):
        super().__init__()
        self.register_buffer("mu", torch.full((1, 1, 1, 1), 0.2))
        self.register_buffer("sigma", torch.full((1, 1, 1, 1), 2.0))
    def forward(self, x):
        return super().forward((x - self.mu) / self.sigma)

def failing():
    raise OSError("no such\\nfile")
"""


@pytest.fixture
def two_alike(tmp_path, monkeypatch):
    """Their network, of which conv1 adds 1 and conv2 takes it away, and its accuracy."""
    (tmp_path / "two_alike.py").write_text(TWO_ALIKE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "two_alike", raising=False)
    import two_alike

    network = two_alike.Zoo().eval()
    with torch.no_grad():
        for conv, shift in ((network.conv1, 1.0), (network.conv2, -1.0)):
            conv.weight.fill_(1)
            conv.bias.fill_(shift)
    return network, accuracy(network)


def factory(name, more=""):
    return f"{{factory: 'two_alike:{name}', kernel_size: 3{more}}}"


def test_a_factory_is_paired_by_name(two_alike, run_import, tmp_path):
    """Not by order: conv1 and conv2 have one shape, and the network defines them the other way."""
    network, right = two_alike
    torch.save({"net": network.state_dict()}, tmp_path / "net.pth")
    code, printed, errors = run_import(tmp_path / "net.pth", factory("Swapped"))
    assert (code, errors) == (0, "")
    assert f"{right:6.2%} accuracy on all 200 test images" in printed
    name = "two_alike-Swapped-k3-none-s0"
    assert_same(tmp_path, name, network, fashion_images(16)[0], "two_alike:Swapped")


def test_a_factory_paired_by_order_needs_the_published_accuracy(two_alike, run_import, tmp_path):
    network, right = two_alike
    state, path = network.state_dict(), tmp_path / "net.pth"
    torch.save(state, path)
    refused = run_import(path, factory("Renamed"))
    assert_refused(
        refused,
        tmp_path,
        "first and second have the same shapes, so their order is uncertain: give the published",
    )
    *others, w1, b1, w2, b2 = state
    torch.save({name: state[name] for name in (*others, w2, b2, w1, b1)}, path)
    refused = run_import(path, factory("Renamed"), "--accuracy", right)
    assert_refused(refused, tmp_path, f"but --accuracy states {right:.4f}")
    torch.save(state, path)
    code, _, errors = run_import(path, factory("Renamed"), "--accuracy", right)
    assert (code, errors) == (0, "")
    name = "two_alike-Renamed-k3-none-s0"
    assert_same(tmp_path, name, network, fashion_images(16)[0], "two_alike:Renamed")


def test_chance_confirms_no_order(two_alike, run_import, tmp_path):
    network, _ = two_alike
    nn.init.zeros_(network.conv2.weight)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    options = ["--accuracy", accuracy(network)]
    refused = run_import(tmp_path / "net.pth", factory("Renamed"), *options)
    assert_refused(
        refused, tmp_path, "accuracy is at chance level, so it does not confirm the order of first"
    )


def test_normalisation_inside_a_file(two_alike, run_import, tmp_path):
    network, _ = two_alike
    path = tmp_path / "net.pth"
    shifted = {"mu": torch.full((1, 1, 1, 1), 0.3), "sigma": torch.full((1, 1, 1, 1), 90 / 255)}
    content = {
        "state_dict": {f"module.{n}": t for n, t in (network.state_dict() | shifted).items()}
    }
    torch.save(content, path)
    refused = run_import(path, factory("Zoo"))
    assert_refused(refused, tmp_path, "a normalisation (module.mu, module.sigma), but the network")
    options = factory("Zoo", ", normalize: true"), *NORMALIZED
    assert_refused(run_import(path, *options), tmp_path, "--mean, --std: ")
    images = fashion_images(16)[0]
    for name, more in (("Zoo", ", normalize: true"), ("Normalizing", "")):
        code, _, errors = run_import(path, factory(name, more))
        assert (code, errors) == (0, "")
        own, where = f"two_alike-{name}-k3-none-s0", f"two_alike:{name}"
        assert_same(tmp_path, own, normalized(network), images, where)
    (tmp_path / "in").rename(tmp_path / "before")
    refused = run_import(path, factory("Normalizing", ", normalize: true"))
    assert_refused(refused, tmp_path, "cannot match its normalisations")
    bigger = content["state_dict"] | {"criterion.weight": torch.ones(10)}
    torch.save({"state_dict": bigger}, path)
    refused = run_import(path, factory("Normalizing"))
    assert_refused(refused, tmp_path, "unexpected tensor criterion.weight")


def test_what_a_factory_raises_or_claims_wrongly(two_alike, run_import, tmp_path):
    torch.save(two_alike[0].state_dict(), tmp_path / "net.pth")
    refused = run_import(tmp_path / "net.pth", factory("failing"))
    assert_refused(
        refused, tmp_path, "factory two_alike:failing: OSError: no such file (in failing"
    )
    refused = run_import(tmp_path / "net.pth", factory("Zoo", ", window: hamming"))
    assert_refused(refused, tmp_path, "window: hamming, but none of its layers has one")


# --- windowed is not plain -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "asked"),
    [("none", "hamming"), ("none", "blackman"), ("hamming", "none"), ("hamming", "hamming_sqrt")],
)
def test_a_network_is_not_taken_for_its_twin(run_import, tmp_path, window, asked):
    path = ZOO / "fashion_mnist" / f"cnn3-w16x32-k7-{window}-s0" / "model.safetensors"
    refused = run_import(path, f"{{{ZOO_NET}, kernel_size: 7, window: {asked}}}")
    assert_refused(refused, tmp_path, f"--as has window {asked}, but accuracy on 200 test images")
    assert f"% with {window}\n" in refused[2]


def test_the_readings_are_on_the_card(run_import, tmp_path):
    folder = ZOO / "fashion_mnist" / "cnn3-w16x32-k7-hamming-s0"
    network = f"{{{ZOO_NET}, kernel_size: 7, window: hamming}}"
    code, printed, _ = run_import(folder / "model.safetensors", network)
    assert code == 0
    assert f"in a config, under models: {{source: {tmp_path / 'in'}, architecture: cnn" in printed
    card = checkpoints.read_card(tmp_path / "in" / folder.name)
    readings = card["source"]["readings"]
    assert readings["hamming"] > 0.85
    assert max(readings["none"], readings["hamming_sqrt"]) < 0.75
    assert card["weights_sha256"] == checkpoints.read_card(folder)["weights_sha256"]
    zoo = checkpoints.read_card(folder)
    assert card["model"] == zoo["model"]
    for name in ("params", "flops", "effective_width", "effective_width_learned"):
        assert card[name] == pytest.approx(zoo[name])
    assert run_import(folder / "model.safetensors", network)[1].count("already there") == 1
    code, _, errors = run_import(
        folder.parent / "cnn3-w16x32-k7-hamming-s1/model.safetensors", network
    )
    assert code == 2
    remedy = "choose another folder with --out, or add a prefix in --as"
    assert f"contains another model: {remedy}" in errors


# --- files that must not be believed ---------------------------------------------------------


class Runs:
    """Runs a function when it is unpickled without care."""

    def __init__(self, function, *args):
        self.reduced = (function, args)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("old_format", [False, True])
def test_nothing_that_a_file_names_is_run(tmp_path, old_format):
    witness = tmp_path / "was here"
    for function, args, name in [
        (os.system, (f"touch '{witness}'",), "posix.system"),
        (eval, (f"open({str(witness)!r}, 'w')",), "eval"),
        (open, (str(witness), "w"), "open"),
        (np.save, (str(witness), 1), "numpy.save"),
    ]:
        content = {"state_dict": nn.Linear(2, 2).state_dict(), "args": Runs(function, *args)}
        path = tmp_path / "evil.pth"
        torch.save(content, path, _use_new_zipfile_serialization=not old_format)
        with pytest.raises(RequestError, match=rf"evil.pth: refused, because it names \S*{name}"):
            state_dicts.read_network(path)
    assert not list(tmp_path.glob("was here*"))


def test_stand_ins_do_nothing(tmp_path):
    """What is on the list stands for itself no more: getattr gets nothing, an array no pointers."""

    class Pointers:
        def __reduce__(self):
            return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)

    array = np.zeros(1)
    function, args, state = array.__reduce__()
    state = (*state[:2], Pointers(), False, b"A" * 8)
    crafted = type("Array", (), {"__reduce__": lambda _: (function, args, state)})()
    content = {
        "state_dict": nn.Linear(2, 2).state_dict(),
        "accuracy": crafted,
        "class_counter": np.ones(3),
        "method": Runs(getattr, nn.Linear(1, 1).state_dict(), "clear"),
    }
    torch.save(content, tmp_path / "odd.pth")
    loaded = safe_load.read_torch_file(tmp_path / "odd.pth")
    assert loaded["accuracy"].numbers is None
    assert loaded["class_counter"].numbers.tolist() == [1, 1, 1]
    assert type(loaded["method"]) is safe_load._Discarded
    assert state_dicts.read_network(tmp_path / "odd.pth").accuracy is None


def test_a_recursive_method_is_refused(tmp_path):
    """torch 1.x saved OneCycleLR with a bound method and all that hangs on it."""
    scheduler = argparse.Namespace()
    scheduler.anneal_func = types.MethodType(scheduler.__class__.__repr__, scheduler)
    content = {"state_dict": nn.Linear(2, 2).state_dict(), "s": scheduler.anneal_func}
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(
        RequestError, match="not written by torch.save .*; .* only the model's state_dict"
    ):
        state_dicts.read_network(tmp_path / "old.ckpt")


def test_pickled_networks_are_refused_by_name(run_import, tmp_path):
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "whole.pth")
    refused = run_import(tmp_path / "whole.pth", "cnn")
    assert_refused(refused, tmp_path, "names torch.nn.modules.container.Sequential")
    assert "save only the model's state_dict()" in refused[2]


def test_files_that_do_not_fit_are_named(run_import, tmp_path):
    good = zoo_model(7, "none").state_dict()
    path = tmp_path / "net.pth"

    def refuse(content, message, network=f"{{{ZOO_NET}}}", *options, data=DATA):
        torch.save(content, path)
        assert_refused(run_import(path, network, *options, data=data), tmp_path, message)

    assert_refused(run_import(tmp_path / "gone.pth", "cnn"), tmp_path, "gone.pth: no such file")
    torch.save(good, path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"junk", pickle.dumps([1])):
        path.write_bytes(content)
        refused = run_import(path, f"{{{ZOO_NET}}}")
        assert_refused(refused, tmp_path, "net.pth: damaged, or not")
    (tmp_path / "net.safetensors").write_bytes(b"junk")
    refused = run_import(tmp_path / "net.safetensors", "cnn")
    assert_refused(refused, tmp_path, "damaged or not a safetensors file")
    refuse([1, 2], "contains no state dict")
    refuse({"optimizer": {"state": {0: {"momentum": torch.ones(2, 2)}}}}, "contains no state dict")
    nan = good | {"conv2.weight": good["conv2.weight"] * torch.nan}
    refuse(nan, "conv2.weight has values that are not finite")
    whole_numbers = good | {"conv2.weight": good["conv2.weight"].to(torch.int8)}
    refuse(whole_numbers, "conv2.weight: expected values like torch.float32, got torch.int8")
    sparse = good | {"linear.weight": good["linear.weight"].to_sparse()}
    refuse(sparse, "linear.weight: expected a dense tensor")
    refuse(good, "7 layers, 3 of them convolutions; the expected network has 13", "cnn")
    shape = "conv1.weight has shape (16, 1, 7, 7), expected (16, 1, 5, 5)"
    refuse(good, shape, f"{{{ZOO_NET}, kernel_size: 5}}")
    mixed = {"conv1.bias": torch.zeros(16), **good}
    refuse(mixed, "not the expected network: unexpected tensor conv1.bias")
    renamed = {name.replace("conv1", "first"): tensor for name, tensor in mixed.items()}
    refuse(renamed, "first (bias (16,), weight (16, 1, 7, 7)) stands where")
    refuse(renamed, "no tensor conv1.weight; unexpected tensor first.bias, first.weight")
    classes = good | {"linear.weight": torch.ones(100, 32), "linear.bias": torch.ones(100)}
    refuse(classes, "classes: expected 10 (fashion_mnist), got 100")
    channels = good | {"conv1.weight": torch.ones(16, 3, 7, 7)}
    refuse(channels, "channels: expected 1 (fashion_mnist), got 3")
    refuse(good, "but --accuracy states 0.9500", f"{{{ZOO_NET}}}", "--accuracy", "0.95")


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        ("resnet51", [], "--as: architecture: expected one of cnn"),
        ("{kernel_size: 4}", [], "--as: kernel_size: expected an odd number"),
        ("{kernle_size: 3}", [], "--as: kernle_size: unknown key"),
        ("{sweep: {seed: [1]}}", [], "--as: sweep: not allowed for a single trained network"),
        ("[cnn]", [], "--as: expected a name or a mapping of keys"),
        ("{", [], "--as: not valid YAML"),
        ("cnn", ["--mean", "0.5"], "--mean, --std: only with normalize: true"),
        ("{normalize: true}", ["--mean", "0.5"], "--mean, --std: required"),
        ("{normalize: true}", ["--mean", "1,1", "--std", "1"], "--mean: expected 1 numbers, got 2"),
        ("{normalize: true}", ["--mean", "a", "--std", "1"], "--mean: expected a number such as"),
        ("{normalize: true}", ["--mean", "1", "--std", "0"], "--std: expected numbers above 0"),
        (
            "{normalize: true}",
            ["--mean", "1", "--std", "nan"],
            "--std: expected a finite number, got 'nan'",
        ),
        ("{widths: [4, 4, 4], depth: 2}", [], "--as: widths: expected at most depth"),
        ("resnet18", [], "--as: resnet18: expected colour images"),
        ("{factory: 'no_module:f'}", [], "factory no_module:f: ModuleNotFoundError"),
        (
            "{factory: 'a:f', weights: b}",
            [],
            "--as: weights: not allowed for a single trained network",
        ),
        ("{factory: 'a:f', weights_key: b}", [], "--as: weights_key: only with weights"),
        ("cnn", ["--accuracy", "93"], "--accuracy"),
        ("cnn", ["--dataset", "{nam: x}"], "--dataset: nam: unknown key"),
        ("cnn", ["--dataset", "nothing"], "nothing (test): not found"),
    ],
)
def test_requests_that_are_wrong(run_import, tmp_path, network, options, message):
    path = ZOO / "fashion_mnist" / "cnn3-w16x32-k3-none-s0" / "model.safetensors"
    assert_refused(run_import(path, network, *options), tmp_path, message)


# --- using what was imported -----------------------------------------------------------------


CONFIG = """
name: theirs
dataset: {name: fashion_mnist, num_test: 200}
models: [{source: COLLECTION, depth: 3, widths: [16, 32], first_kernel: same, kernel_size: 3}]
attacks: {deepfool_l2: {attack: deepfool, budget: 0.25}}
evaluation: {num_images: 16}
"""


def test_an_imported_network_is_attacked(paper_file, run_import, run_cli, tmp_path):
    run_import(paper_file[0], f"{{{ZOO_NET}, kernel_size: 3}}", "--key", "state_dict")
    config, out = tmp_path / "theirs.yaml", tmp_path / "out"
    config.write_text(CONFIG.replace("COLLECTION", str(tmp_path / "in")))
    code, _, errors = run_cli("run", config, "--out", out)
    assert (code, errors) == (0, "")
    name = "cnn3-w16x32-k3-none-s0"
    assert [p.name for p in (out / "models" / name).iterdir()] == ["model.json"]
    summary = pd.read_csv(out / "summary.csv")
    assert summary["test_accuracy"].tolist() == [paper_file[2]["accuracy"].sum() / 200]
    assert (out / "report.html").is_file()
    assert run_cli("run", config, "--out", out)[1].count("already there") == 2
    again = tmp_path / "again"  # the models/ of a run are a collection, too
    code, _, errors = run_cli(
        "run", config, "-o", f"models.0.source={ZOO / 'fashion_mnist'}", "--out", again
    )
    assert code == 2  # these were measured on all 10,000 test images
    assert "was made for other images than this fashion_mnist" in errors

    weights = tmp_path / "in" / name / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    code, _, errors = run_cli("run", config, "--out", again)
    assert code == 2
    assert "SHA-256 differs from the one in model.json" in errors
    card = weights.with_name("model.json")
    card.write_text(card.read_text().replace('"test_accuracy": 0.', '"test_accuracy": 0.1'))
    weights.write_bytes(whole)
    code, _, errors = run_cli("run", config, "--out", again)
    assert code == 2
    assert "not the model that the card describes" in errors
    code, _, errors = run_cli("run", config, "-o", "models.0.kernel_size=5", "--out", again)
    assert code == 2
    assert f"cnn3-w16x32-k5-none-s0 is not in {tmp_path / 'in'} ({name})" in errors


def test_the_models_of_another_run(run_cli, tmp_path):
    config = tmp_path / "first.yaml"
    small = "{depth: 2, widths: [4], first_kernel: same, kernel_size: 3}"
    config.write_text(
        "name: first\ndataset: {name: fashion_mnist, num_train: 256, num_test: 100}\n"
        f"models: [{small}]\ntraining: {{epochs: 1, precision: float32}}\n"
        "attacks: {d: {attack: deepfool, steps: 2}}\n"
        "evaluation: {num_images: 8, gate: false}\n"
    )
    first, second = tmp_path / "first", tmp_path / "second"
    only = ["--stop-after", "attack"]
    assert run_cli("run", config, "--out", first, *only)[0] == 0
    source = f"models.0.source={first / 'models'}"
    assert run_cli("run", config, "-o", source, "--out", second, *only)[0] == 0
    rows = "samples/cnn2-w4-k3-none-s0/d.parquet"
    pd.testing.assert_frame_equal(pd.read_parquet(first / rows), pd.read_parquet(second / rows))
    assert not (second / "models/cnn2-w4-k3-none-s0/model.safetensors").exists()
    code, printed, _ = run_cli("run", config, "-o", source, "--out", first, *only)  # of itself
    assert code == 0
    assert printed.count("already there") == 2
    assert not (first / "superseded").exists()
