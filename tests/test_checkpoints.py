"""Checkpoints: whole, safe, and never taken for another network."""

import json

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from robust_ham import checkpoints
from robust_ham.config import RequestError
from robust_ham.layers import WindowedConv2d
from robust_ham.model_groups import CnnGroup, FactoryGroup
from robust_ham.models import build

SPEC = CnnGroup(depth=2, widths=(4,), first_kernel="same", kernel_size=3, window="hamming")


@pytest.fixture
def saved(tmp_path):
    model = build(SPEC, 1, 10).eval()
    card = {
        "model_id": SPEC.model_id,
        "model": checkpoints.describe(SPEC),
        "in_channels": 1,
        "num_classes": 10,
    }
    folder = tmp_path / "models" / SPEC.model_id
    checkpoints.save(folder, model, card, pd.DataFrame({"epoch": [1]}))
    return folder, model


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
    assert_refused(folder, r"model.safetensors: not the weights that the card names")
    weights.unlink()
    assert_refused(folder, "model.safetensors: no such file")
    card = (folder / "model.json").read_text()
    for content in ("{", "[]", "{}", card.replace('"schema": 1', '"schema": 9')):
        (folder / "model.json").write_text(content)
        assert_refused(folder, "model.json")
    (folder / "model.json").write_text(card.replace("hamming", "humming"))
    assert_refused(folder, "model.json: does not describe a model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("linear.bias"), "no tensor linear.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected tensor extra"),
        (
            lambda s: s.update({"linear.bias": torch.zeros(9)}),
            r"expected shape \(10,\), got \(9,\)",
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
        checkpoints.load_weights(model, tmp_path / "other.safetensors")


def test_pth_files_are_read_without_running_code(saved, tmp_path):
    _, model = saved
    torch.save({"state_dict": model.state_dict()}, tmp_path / "good.pth")
    fresh = build(SPEC.model_copy(update={"seed": 9}), 1, 10)
    checkpoints.load_weights(fresh, tmp_path / "good.pth")
    assert torch.equal(fresh.linear.weight, model.linear.weight)

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "was here"), "w"))

    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("evil.pth", "junk.pth", "list.pth"):
        with pytest.raises(RequestError, match=name):
            checkpoints.load_weights(fresh, tmp_path / name)
    assert not (tmp_path / "was here").exists()


def test_factories(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(
        "from torch import nn\n"
        "def small():\n    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))\n"
        "def wrong():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    model = checkpoints.load_factory(FactoryGroup(factory="my_models:small"))
    assert model(torch.zeros(1, 1, 2, 2)).shape == (1, 2)
    for factory, message in [
        ("my_models:wrong", "expected a torch.nn.Module"),
        ("my_models:absent", "no such function"),
        ("absent_module:small", "No module named 'absent_module'"),
    ]:
        with pytest.raises(RequestError, match=message):
            checkpoints.load_factory(FactoryGroup(factory=factory))
    with pytest.raises(RequestError, match=r"weights gone.pth: no such file"):
        checkpoints.load_factory(FactoryGroup(factory="my_models:small", weights="gone.pth"))
