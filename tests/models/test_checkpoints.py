"""Checkpoints: whole, safe, and never taken for another network."""

import json
import re
import sys

import pandas as pd
import pytest
import torch
from conftest import SPEC, zoo_model
from safetensors.torch import load_file, save_file

from robust_ham.config.models import FactoryGroup
from robust_ham.errors import RequestError
from robust_ham.models import checkpoints, factories
from robust_ham.models.build import build
from robust_ham.models.layers import WindowedConv2d


def test_round_trip(saved):
    folder, model = saved
    loaded, card = checkpoints.load(folder)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    assert not loaded.training
    assert isinstance(loaded.conv1, WindowedConv2d)
    assert card["schema"] == 1
    assert sorted(p.name for p in folder.iterdir()) == [
        "model.json",
        "model.safetensors",
        "training.csv",
    ]


def test_the_card_decides_what_the_weights_mean(saved):
    folder, _ = saved
    card = json.loads((folder / "model.json").read_text())
    card["model"]["window"] = "none"
    (folder / "model.json").write_text(json.dumps(card))
    plain, _ = checkpoints.load(folder)  # the same keys and shapes: another function
    assert not isinstance(plain.conv1, WindowedConv2d)


def test_nothing_half_written(saved, monkeypatch):
    folder, model = saved

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_csv", full)
    other = folder.with_name("other")
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(other, model, checkpoints.read_card(folder), pd.DataFrame())
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def assert_refused(folder, message):
    with pytest.raises(RequestError, match=message) as error:
        checkpoints.load(folder)
    assert "\n" not in str(error.value)


def test_damaged_files_are_named(saved):
    folder, _ = saved
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert_refused(folder, r"model.safetensors: SHA-256 differs from the one in model.json")
    weights.unlink()
    assert_refused(folder, "model.safetensors: no such file")
    card = (folder / "model.json").read_text()
    for content in ("{", "[]", "{}", card.replace('"schema": 1', '"schema": 9')):
        (folder / "model.json").write_text(content)
        assert_refused(folder, "model.json")
    (folder / "model.json").write_text(card.replace("hamming", "humming"))
    assert_refused(folder, "model.json: model: window: expected")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("linear.bias"), "no tensor linear.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected tensor extra"),
        (
            lambda s: s.update({"linear.bias": torch.zeros(9)}),
            r"linear.bias has shape \(9,\), expected \(10,\)",
        ),
        (lambda s: s["linear.bias"].fill_(torch.nan), "linear.bias has values that are not finite"),
    ],
)
def test_weights_that_do_not_fit_are_named(saved, tmp_path, change, message):
    folder, model = saved
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(RequestError, match=message):
        factories.load_weights(model, tmp_path / "other.safetensors")


def test_pth_files_are_read_without_running_code(saved, tmp_path):
    _, model = saved
    torch.save({"state_dict": model.state_dict()}, tmp_path / "good.pth")
    fresh = build(SPEC.model_copy(update={"seed": 9}), 1, 10)
    factories.load_weights(fresh, tmp_path / "good.pth")
    assert torch.equal(fresh.linear.weight, model.linear.weight)

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "was here"), "w"))

    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("evil.pth", "junk.pth", "list.pth"):
        with pytest.raises(RequestError, match=name):
            factories.load_weights(fresh, tmp_path / name)
    assert not (tmp_path / "was here").exists()


def test_factories(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(
        "from torch import nn\n"
        "def small():\n    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))\n"
        "def wrong():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    model = factories.load_factory(FactoryGroup(factory="my_models:small"))
    assert model(torch.zeros(1, 1, 2, 2)).shape == (1, 2)
    for factory, message in [
        ("my_models:wrong", "expected a torch.nn.Module"),
        ("my_models:absent", "no such function"),
        ("absent_module:small", "No module named 'absent_module'"),
    ]:
        with pytest.raises(RequestError, match=message):
            factories.load_factory(FactoryGroup(factory=factory))
    with pytest.raises(RequestError, match=r"weights gone.pth: no such file"):
        factories.load_factory(FactoryGroup(factory="my_models:small", weights="gone.pth"))


# --- what a user's network claims, and what it raises ------------------------------------------


OWN_NETS = """
import torch
from torch import nn
from torch.nn import functional as F
from robust_ham import windowed
from robust_ham.models.surgery import folded
from robust_ham.models.windows import window_2d

class Taper(nn.Conv2d):
    def forward(self, x):
        window = window_2d("hamming", *self.kernel_size).to(self.weight)
        return F.conv2d(x, self.weight * window, self.bias)

class Standardised(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)

def with_conv(conv):
    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 10))

def plain():
    return with_conv(nn.Conv2d(1, 2, 5))
def hamming():
    return windowed(plain())
def hann():
    return windowed(plain(), "hann")
def both():
    return nn.Sequential(windowed(nn.Conv2d(1, 1, 5)), *hann())
def same_values():
    return folded(hamming())
def taper():
    return with_conv(Taper(1, 2, 5))
def standardised():
    return with_conv(Standardised(1, 2, 5))
def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
def factorised():
    return nn.Sequential(nn.Conv2d(1, 2, (1, 5)), *with_conv(nn.Conv2d(2, 2, (5, 1))))

def needs_an_argument(width):
    return plain()
def raises():
    raise KeyError("no such\\nthing")
def leaves():
    raise SystemExit(3)

class Answers(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer, self.linear = answer, nn.Linear(784, 10)
    def forward(self, x):
        return self.answer(self.linear(x.flatten(1)))

def a_dict():
    return Answers(lambda logits: {"out": logits})
def a_tuple():
    return Answers(lambda logits: (logits, logits))
def a_map():
    return Answers(lambda logits: logits[..., None, None])
def one_row():
    return Answers(lambda logits: logits.mean(0, keepdim=True))
def colour():
    return with_conv(nn.Conv2d(3, 2, 5))

def broken_answer(logits):
    assert logits.shape[0] == 0, "of my own"
def broken():
    return Answers(broken_answer)
"""


@pytest.fixture
def own_nets(tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(OWN_NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("plain", {}),
        ("hamming", {"window": "hamming"}),
        ("hann", {"window": "hann"}),
        ("taper", {"window": "hamming"}),
        ("standardised", {}),
        ("same_values", {"window": "hamming", "label_only": True}),
        ("plain", {"window": "hamming", "kernel_size": 9, "label_only": True}),
        ("linear", {"kernel_size": 7}),
        ("factorised", {}),
    ],
)
def test_labels_that_a_users_network_bears_out(own_nets, name, labels):
    factories.load_factory(
        FactoryGroup(factory=f"own_nets:{name}", **({"kernel_size": 5} | labels))
    )


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("plain", {"window": "hamming"}, "window: hamming, but none of its layers has one"),
        ("same_values", {"window": "hamming"}, "window: hamming, but none of its layers has one"),
        ("standardised", {"window": "hann"}, "window: hann, but none of its layers has one"),
        ("linear", {"window": "hamming"}, "window: hamming, but none of its layers has one"),
        ("hamming", {}, "window: none, but its layer 0 has the window hamming"),
        ("taper", {}, "window: none, but its layer 0 has the window hamming"),
        ("hann", {"window": "hamming"}, "window: hamming, but its layer 0 has the window hann"),
        ("both", {"window": "hamming"}, "window: hamming, but its layer 1 has the window hann"),
        ("plain", {"kernel_size": 7}, "kernel_size: 7, but its kernels are 5×5"),
    ],
)
def test_labels_that_a_users_network_does_not_bear_out(own_nets, name, labels, message):
    spec = FactoryGroup(factory=f"own_nets:{name}", **({"kernel_size": 5} | labels))
    with pytest.raises(RequestError, match=f"factory own_nets:{name}: {message}.*label_only: true"):
        factories.load_factory(spec)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("needs_an_argument", r"TypeError: .*'width'"),
        ("raises", r"KeyError: 'no such\\nthing' \(in raises, own_nets.py:\d+\)"),
        ("leaves", r"SystemExit: 3 \(in leaves, own_nets.py:\d+\)"),
        ("a_dict", r"forward on images \(1, 28, 28\): expected .* got a dict"),
        ("a_tuple", "expected a tensor of logits .* got a tuple"),
        ("a_map", r"got \(2, 10, 1, 1\)"),
        ("one_row", r"got \(1, 10\)"),
        ("colour", r"forward on images \(1, 28, 28\): RuntimeError: .* to have 3 channels"),
        ("broken", r"AssertionError: of my own \(in broken_answer, own_nets.py:\d+\)"),
    ],
)
def test_what_a_users_code_raises_is_one_line(own_nets, run_cli, tmp_path, name, message):
    config = tmp_path / "own.yaml"
    config.write_text(
        "name: own\ndataset: {name: fashion_mnist, num_test: 100}\n"
        f"models: [{{factory: 'own_nets:{name}', label_only: true, pretrained: true}}]\n"
        "attacks: {d: {attack: deepfool}}\nevaluation: {num_images: 10, gate: false}\n"
    )
    code, _, errors = run_cli("run", config)
    assert code == 2, errors
    assert re.search(f"robust-ham: factory own_nets:{name}: .*{message}", errors.splitlines()[-1])
    assert "Traceback" not in errors


def test_weights_of_a_factory_in_a_run(own_nets, run_cli, tmp_path):
    """Averaged weights beside raw ones, DataParallel's names, and the accuracy they have."""
    (tmp_path / "our_zoo.py").write_text(
        "from robust_ham.config.models import CnnGroup\nfrom robust_ham.models.build import build\n"
        "def net():\n"
        "    spec = CnnGroup(depth=3, widths=(16, 32), first_kernel='same', kernel_size=7)\n"
        "    return build(spec, 1, 10)\n"
    )
    raw, average = zoo_model(7, "none", 1).state_dict(), zoo_model(7, "none").state_dict()
    content = {"model": raw, "model_ema": {f"module.{n}": t for n, t in average.items()}}
    torch.save(content, "weights.pth")
    config = tmp_path / "own.yaml"
    config.write_text(
        "name: own\ndataset: {name: fashion_mnist, num_test: 200}\n"
        "models: [{factory: 'our_zoo:net', weights: weights.pth}]\n"
        "attacks: {d: {attack: deepfool, steps: 2}}\nevaluation: {num_images: 8, gate: false}\n"
    )
    only = ["--stop-after", "attack"]
    code, _, errors = run_cli("run", config, *only)
    assert code == 2
    assert (
        "weights.pth: contains several networks; choose one with weights_key: model, model_ema"
        in errors
    )
    code, _, errors = run_cli("run", config, "-o", "models.0.weights_key=model_ema", *only)
    assert (code, errors) == (0, "")
    card = json.loads(
        (tmp_path / "results/own/models/our_zoo-net-k7-none-s0/model.json").read_text()
    )
    assert card["test_accuracy"] > 0.85
    assert "label_only" not in card["model"]
