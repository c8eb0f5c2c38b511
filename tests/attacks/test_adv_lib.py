"""FMN of adversarial-library: refused without the library; with it, contract and closed forms."""

from __future__ import annotations

import random
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import TINY_RUN, fashion_images, zoo_model
from test_deepfool import Affine, affine_case, closed_form
from torch import nn

from attacks import fmn
from attacks.adapters.adv_lib import INSTALL_ADV_LIB, import_adv_lib
from robust_ham.config.experiment import AttackConfig
from robust_ham.errors import RequestError
from robust_ham.evaluation.options import attack_options, check_attack_options

needs_adv_lib = pytest.mark.skipif(
    find_spec("adv_lib") is None, reason=f"adv-lib is not installed: {INSTALL_ADV_LIB}"
)


def forget(monkeypatch, *packages):
    """Import packages again, and restore the imported modules after the test."""
    for name in [*packages, *sys.modules]:
        if name.partition(".")[0] in packages:
            monkeypatch.setitem(sys.modules, name, None)
            del sys.modules[name]


class Absent:
    """An import finder that hides adv_lib."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "adv_lib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture
def without_adv_lib(monkeypatch):
    forget(monkeypatch, "adv_lib")
    monkeypatch.setattr(sys, "meta_path", [Absent, *sys.meta_path])


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    """Create an adv_lib that consists of these lines."""

    def pretend(lines):
        forget(monkeypatch, "adv_lib", "distutils", "visdom")
        (tmp_path / "adv_lib").mkdir()
        (tmp_path / "adv_lib" / "__init__.py").write_text(lines)
        monkeypatch.syspath_prepend(tmp_path)

    return pretend


@pytest.mark.usefixtures("without_adv_lib")
def test_refused_without_adv_lib():
    x, y = fashion_images(2)
    with pytest.raises(ModuleNotFoundError, match="adv-lib is not installed") as error:
        fmn(zoo_model(3, "none"), x, y)
    assert error.value.name == "adv-lib"
    with pytest.raises(RequestError) as refused:
        check_attack_options(AttackConfig(attack="fmn"), "near", (1, 28, 28))
    assert str(refused.value) == (
        "attacks.near: adv-lib is not installed: pip install tqdm; pip install --no-deps adv-lib"
    )


@pytest.mark.usefixtures("without_adv_lib")
def test_a_run_without_adv_lib_ends_before_any_compute(run_cli, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY_RUN.replace("spatial_shift: {", "near: {attack: fmn}\n  shift: {"))
    code, _, err = run_cli("run", config, "--out", tmp_path / "run")
    assert code == 2
    assert INSTALL_ADV_LIB in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.glob("run/models/*"))


@pytest.mark.usefixtures("without_adv_lib")
def test_listed_without_adv_lib(run_cli):
    code, out, err = run_cli("list", "attacks")
    assert code == 0, err
    assert "fmn" in out


@pytest.mark.parametrize(
    ("missing", "remedy"), [("tqdm", INSTALL_ADV_LIB), ("distutils", "pip install setuptools")]
)
def test_what_adv_lib_lacks_is_named(monkeypatch, pretended, missing, remedy):
    pretended(f"import {missing}")
    monkeypatch.setitem(sys.modules, missing, None)
    expected = f"adv-lib needs {missing}, which is not installed: {remedy}"
    with pytest.raises(ModuleNotFoundError, match=expected):
        import_adv_lib("adv_lib")


def test_visdom_is_stood_in_for_while_adv_lib_is_imported(pretended):
    pretended("import visdom\nclient = visdom.Visdom")
    assert hasattr(import_adv_lib("adv_lib"), "client")
    assert "visdom" not in sys.modules or find_spec("visdom") is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l1"}, "norm: expected l2 or linf, got 'l1'"),
        ({"steps": 1}, "steps: expected at least 2, got 1"),
        ({"max_stepsize": 0.0}, "max_stepsize: expected a positive number"),
        ({"max_stepsize": float("nan")}, "max_stepsize: expected a positive number"),
        ({"gamma": 1.0}, "gamma: expected a number between 0 and 1, got 1.0"),
    ],
)
def test_wrong_requests(options, message):
    x, y = fashion_images(2)
    with pytest.raises(ValueError, match=message):
        fmn(zoo_model(3, "none"), x, y, **options)


def test_in_a_config():
    config = AttackConfig(attack="fmn", norm="linf", steps=30, budget="8/255")
    assert config.has_budget
    assert config.norm == "linf"
    assert config.main_budget == 8 / 255
    assert AttackConfig(attack="fmn").norm == "l2"
    assert attack_options(config, "near") == {
        "norm": "linf",
        "steps": 30,
        "max_stepsize": 1.0,
        "gamma": 0.05,
    }
    with pytest.raises(RequestError, match="attacks.near.stepps: unknown option of fmn"):
        attack_options(AttackConfig(attack="fmn", stepps=3), "near")
    with pytest.raises(RequestError, match="attacks.near.callback: unknown option of fmn"):
        attack_options(AttackConfig(attack="fmn", callback="http://x"), "near")


def sizes(outcome, x, norm):
    r = (outcome.images.double() - x.double()).flatten(1)
    return torch.linalg.vector_norm(r, ord=2 if norm == "l2" else torch.inf, dim=1)


@needs_adv_lib
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_affine_classifier(norm, dtype):
    model, x, labels = affine_case(dtype=dtype)
    outcome = fmn(model, x, labels, norm=norm)
    nearest = closed_form(model, x, labels, norm)
    assert outcome.fooled.all()
    assert outcome.images.dtype == dtype
    assert (sizes(outcome, x, norm) <= 1.02 * nearest).all()
    assert (sizes(outcome, x, norm) >= (1 - 1e-4) * nearest).all()


@needs_adv_lib
def test_memory_layout_does_not_matter():
    """adv_lib projects ``delta.flatten(1)`` in place, which has no effect on a copy."""
    model, x, labels = affine_case()
    x = x.view(-1, 3, 2, 2)
    plain, last = (
        fmn(model, x.contiguous(memory_format=layout), labels)
        for layout in (torch.contiguous_format, torch.channels_last)
    )
    torch.testing.assert_close(last.images, plain.images, atol=1e-6, rtol=0)


@needs_adv_lib
def test_same_images_as_adv_lib_by_hand():
    model = zoo_model(3, "none").eval()
    x, y = fashion_images(6)
    right = model(x).argmax(1) == y
    outcome = fmn(model, x, y, steps=12, max_stepsize=0.1, gamma=0.1)
    by_hand = import_adv_lib("adv_lib.attacks").fmn
    expected = by_hand(model, x[right], y[right], norm=2, steps=12, α_init=0.1, γ_init=0.1)
    torch.testing.assert_close(outcome.images[right], expected, atol=1e-4, rtol=0)
    assert torch.equal(outcome.fooled[right], model(expected).argmax(1) != y[right])
    assert outcome.fooled[right].any()


@needs_adv_lib
def test_passes():
    """One forward and one backward per step; two judgements, and one on the caller's model."""
    model = zoo_model(3, "none")
    x, y = fashion_images(12)
    y = y.clone()
    y[4] = (model(x[4:5]).argmax(1).item() + 1) % 10
    outcome = fmn(model, x, y, steps=7, norm="linf")
    right = model(x).argmax(1) == y
    assert set(outcome.backwards[right].tolist()) == {7}
    assert set(outcome.backwards[~right].tolist()) == {0}
    assert set(outcome.forwards[right].tolist()) == {1 + 7 + 1 + 1}
    assert set(outcome.forwards[~right].tolist()) == {2}
    assert outcome.fooled[~right].all()
    assert torch.equal(outcome.images[~right], x[~right])


@needs_adv_lib
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_batch_invariance(norm):
    model, (x, y) = zoo_model(3, "none"), fashion_images(5)
    options = {"norm": norm, "steps": 12, "max_stepsize": 0.1}
    together = fmn(model, x, y, **options)
    order = torch.arange(4, -1, -1)
    turned = fmn(model, x[order], y[order], **options)
    alone = [fmn(model, x[i : i + 1], y[i : i + 1], **options) for i in range(5)]
    for other in (torch.cat([o.images for o in alone]), turned.images[order]):
        torch.testing.assert_close(other, together.images, atol=1e-4, rtol=0)
    assert torch.equal(torch.cat([o.fooled for o in alone]), together.fooled)


@needs_adv_lib
def test_images_that_cannot_be_attacked():
    model, x, labels = affine_case(6)
    x[2, 0, 1, 1] = torch.nan
    labels[4] = (labels[4] + 1) % 5
    outcome = fmn(model, x, labels, steps=20)
    assert outcome.fooled.tolist() == [True, True, False, True, True, True]
    untouched = [2, 4]
    torch.testing.assert_close(outcome.images[untouched], x[untouched], equal_nan=True)
    assert outcome.backwards[untouched].tolist() == [0, 0]
    empty = fmn(model, x[:0], labels[:0])
    assert empty.images.shape == (0, 1, 3, 4)


@needs_adv_lib
def test_an_image_that_is_never_fooled_comes_back_as_it_was():
    model, x, labels = affine_case(4)
    model.bias = 1e3 * nn.functional.one_hot(labels[0], 5).float()
    labels = labels[:1].repeat(4)
    outcome = fmn(model, x, labels, steps=10)
    assert not outcome.fooled.any()
    assert torch.equal(outcome.images, x)


@needs_adv_lib
def test_images_stay_in_the_box():
    model = Affine(scale=0.01)  # so flat that some images cannot reach the boundary
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(32, 1, 3, 4, generator=generator).round()
    x[:4] -= 5e-7  # within the tolerance
    outcome = fmn(model, x, model(x).argmax(1), steps=30)
    assert outcome.fooled.any()
    assert ((outcome.images >= 0) & (outcome.images <= 1)).all()


@needs_adv_lib
def test_model_and_global_random_state_are_left_alone(capfd):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.LazyLinear(3))
    x = torch.rand(6, 1, 8, 8)
    model(x)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    of_torch, of_numpy, of_python = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    fmn(model, x, torch.zeros(6, dtype=torch.int64), steps=5)
    assert torch.equal(torch.get_rng_state(), of_torch)
    assert np.array_equal(np.random.get_state()[1], of_numpy[1])  # noqa: NPY002
    assert random.getstate() == of_python
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not x.requires_grad
    assert capfd.readouterr() == ("", "")
