"""The suite from Python: evaluate, compare, windowed; a custom attack; the snippets of the docs."""

import doctest
import functools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import fashion_images, zoo_model
from torch import nn

import robust_ham
from attacks import deepfool
from robust_ham import compare, evaluate, load_images, load_model, windowed
from robust_ham.errors import RequestError
from robust_ham.models import checkpoints
from robust_ham.models.checkpoints import ZOO

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)


@pytest.fixture(scope="module")
def attacked():
    images, labels = fashion_images(40)
    models = {f"k5-{w}-s{s}": zoo_model(5, w, s) for s in (0, 1, 2) for w in ("none", "hamming")}
    return evaluate(models, images, labels, steps=20, progress=False)


def arm(rows, window):
    return rows[rows["model_id"].str.contains(window)]


def test_rows_of_several_networks(attacked):
    assert len(attacked) == 6 * 40
    assert attacked["model_id"].nunique() == 6
    assert set(attacked["status"]) <= {"already_wrong", "fooled", "survived"}
    fooled = attacked[attacked["status"] == "fooled"]
    assert (fooled["adversarial_prediction"] != fooled["label"]).all()
    assert fooled["l2"].between(0.01, 5).all()
    assert attacked["sample_id"].tolist() == list(range(40)) * 6


def test_one_network_uint8_images_and_another_attack():
    images, labels = fashion_images(12)
    pixels = (images * 255).round().byte()
    rows = evaluate(zoo_model(3, "none"), pixels, labels.int(), "spatial_shift", progress=False)
    floats = evaluate(zoo_model(3, "none"), pixels / 255, labels, "spatial_shift", progress=False)
    pd.testing.assert_frame_equal(rows, floats)
    assert set(rows["model_id"]) == {"model"}
    assert rows["l2"].isna().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(3)}, r"expected images \(N, C, H, W\) and labels \(N,\), got"),
        ({"images": torch.zeros(28, 28)}, "expected images"),
        ({"images": torch.zeros(0, 1, 28, 28), "labels": torch.zeros(0)}, "at least one image"),
        ({"attack": "deepfol"}, "expected one of deepfool"),
        ({"stepps": 3}, "unknown option of deepfool"),
        ({"attack": "no_such:fn"}, "attack no_such:fn: ModuleNotFoundError"),
        ({"attack": "math:nothing"}, "attack math:nothing: no such function"),
    ],
)
def test_evaluate_refuses(change, message):
    images, labels = fashion_images(4)
    arguments = {"images": images, "labels": labels} | change
    with pytest.raises((ValueError, RequestError), match=message):
        evaluate(zoo_model(3, "none"), progress=False, **arguments)


def fast_gradient(model, images, labels, eps=8 / 255, *, norm="linf"):
    """A typical custom attack: positional options, without annotations."""
    moved = images.clone().requires_grad_(True)
    loss = nn.functional.cross_entropy(model(moved), labels)
    (gradient,) = torch.autograd.grad(loss, moved)
    return (images + eps * gradient.sign()).clamp(0, 1)


def rows_of(*arguments, **options):
    return evaluate(*arguments, progress=False, **options)


def test_a_function_is_an_attack():
    images, labels = fashion_images(12)
    model = zoo_model(3, "none")
    rows = rows_of(model, images, labels, fast_gradient, eps="16/255")
    wrong = model(fast_gradient(model, images, labels, 16 / 255)).argmax(1) != labels
    assert (rows["adversarial_prediction"] != rows["label"]).tolist() == wrong.tolist()
    assert rows.loc[rows["status"] == "fooled", "linf"].max() == pytest.approx(16 / 255, rel=1e-5)
    half = functools.partial(fast_gradient, eps=8 / 255)
    pd.testing.assert_frame_equal(
        rows_of(model, images, labels, half), rows_of(model, images, labels, fast_gradient)
    )
    named = rows_of(model, images, labels, "deepfool", steps=5)
    pd.testing.assert_frame_equal(rows_of(model, images, labels, deepfool, steps=5), named)
    assert named["normal_cosine"].notna().any()


def test_a_function_is_a_model():
    images, labels = fashion_images(8)
    model = zoo_model(3, "none")
    rows = rows_of({"module": model, "function": model.forward}, images, labels, steps=5)
    module, function = (rows[rows["model_id"] == name] for name in ("module", "function"))
    assert module["status"].tolist() == function["status"].tolist()
    np.testing.assert_allclose(module["l2"], function["l2"], rtol=1e-4)


def test_arrays_and_lists_are_tensors():
    images, labels = fashion_images(4)
    model = zoo_model(3, "none")
    expected = rows_of(model, images, labels, "spatial_shift")
    pixels = (images * 255).round().byte()
    for x, y in [
        (images.numpy(), labels.numpy()),
        (images.double().numpy()[::-1][::-1], labels.numpy().astype(np.uint8)),
        (pixels.numpy(), labels.float()),
        (images.tolist(), labels.tolist()),
        (list(images), pd.Series(labels.numpy())),
    ]:
        pd.testing.assert_frame_equal(rows_of(model, x, y, "spatial_shift"), expected)


def overwriting(x):
    return zoo_model(3, "none")(x.sub_(0.1))


IMAGES, LABELS = fashion_images(4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"images": IMAGES * 255},
            r"pixels in \[0, 1\], got 0 … 255: divide by 255, or pass",
        ),
        ({"images": (IMAGES - 0.5) / 0.5}, "got -1 … 1: normalise inside the model"),
        ({"images": (IMAGES * 255).int()}, r"expected uint8 or floats in \[0, 1\], got int32"),
        ({"images": IMAGES > 0.5}, "expected uint8 or floats .* got bool"),
        ({"images": [[1], [2, 3]]}, "images: expected an array of numbers: "),
        ({"images": "abc"}, "images: expected an array of numbers: "),
        (
            {"images": IMAGES.permute(0, 2, 3, 1)},
            r"model: failed on .* shape \(28, 28, 1\): RuntimeError.*; expected images \(N",
        ),
        ({"labels": LABELS + 0.5}, "labels: expected whole numbers, got float32 such as"),
        ({"labels": LABELS > 3}, "labels: expected whole numbers, got bool"),
        ({"labels": [0, 1, -1, 2]}, r"labels: expected 0 … 9, .* got -1 \(image 2\)$"),
        ({"labels": [1, 2, 10, 3]}, r"got 10 \(image 2\); do they begin at 1\?"),
        ({"labels": [0, 2, 12, 3]}, r"got 12 \(image 2\)$"),
        ({"labels": LABELS + 1}, "model predicts the class before the label for .* of images"),
        ({"labels": nn.functional.one_hot(LABELS, 10)}, r"labels \(N,\), got .* \(4, 10\)"),
        ({"models": []}, r"model: expected a network or a function, got \[\]"),
        ({"models": nn.Linear}, "model: expected a network or a function"),
        ({"models": {}}, "expected at least one model"),
        ({"attack": 3}, "attack: expected a name or a function, got int"),
        ({"attack": lambda x, y: x}, "expected a function of model, images and labels"),
        ({"attack": max}, "attack custom:max: expected a function written in Python"),
        ({"attack": lambda m, x, y, budget=1: x, "budget": 1}, "its option budget has the name"),
        (
            {"budget": 0.3},
            "budget: a key of configurations, not an option of deepfool; pass",
        ),
        ({"budgets": [0.3]}, "budgets: a key of configurations"),
        ({"num_images": 2}, "num_images: a key of configurations, not an option of deepfool$"),
        ({"seeds": [2]}, "seeds: a key of configurations"),
        ({"kind": "minimum_norm"}, "kind: a key of configurations"),
        ({"steps": True}, "steps: expected int, got True"),
        ({"attack": "band_deepfool", "band": "x"}, "band: expected a whole number"),
        (
            {"attack": fast_gradient, "eps": 8},
            "eps: expected at most 1, .* got 8; did you mean 8/255?",
        ),
        ({"attack": fast_gradient, "epsilon": 0.1}, r"unknown option of custom:.* \(eps, norm\)"),
        ({"attack": "foolbox:LinfPGD", "epsilon": 8}, "epsilon: expected at most 1, .* 8/255?"),
    ],
)
def test_arguments_of_evaluate_are_checked(change, message):
    arguments = {"models": zoo_model(3, "none"), "images": IMAGES, "labels": LABELS} | change
    with pytest.raises((ValueError, RequestError), match=message) as error:
        evaluate(progress=False, **arguments)
    assert "\n" not in str(error.value)


def test_arguments_are_never_changed():
    images, labels = IMAGES.numpy().copy(), LABELS.numpy().copy()
    rows_of(zoo_model(3, "none"), images, labels, lambda m, x, y: x.mul_(0))
    assert (images == IMAGES.numpy()).all()
    rows_of(overwriting, images, labels, lambda m, x, y: x)
    assert (images == IMAGES.numpy()).all()
    assert (labels == LABELS.numpy()).all()


def test_compare_is_the_statistics_of_a_study(attacked):
    comparison = compare(arm(attacked, "hamming"), arm(attacked, "none"), budget=0.5)
    areas = {w: arm(attacked, w)["l2"].clip(upper=0.5).mean() for w in ("none", "hamming")}
    assert comparison.effect == pytest.approx(areas["hamming"] / areas["none"])
    assert (comparison.num_networks, comparison.num_images) == (3, 40)
    assert comparison.verdict == "worse"
    assert comparison.high < 0.95
    assert str(comparison).startswith("robust_area 0.")
    assert ": worse (×0." in str(comparison)


def test_compare_of_equals_and_of_one(attacked):
    rows = arm(attacked, "none")
    same = compare(rows, rows)
    assert (same.effect, same.low, same.high, same.verdict) == (1, 1, 1, "equivalent")
    one = rows[rows["model_id"] == "k5-none-s0"]
    other = arm(attacked, "hamming-s0")
    alone = compare(other, one, "robust_accuracy", budget=0.25)
    assert alone.verdict == "undecided"
    assert "one seed" in alone.note
    assert np.isfinite([alone.low, alone.high]).all()
    clean = compare(arm(attacked, "hamming"), rows, "clean_accuracy")
    expected = [(t["clean_prediction"] == t["label"]).mean() for t in (arm(attacked, "ham"), rows)]
    assert (clean.other, clean.baseline) == pytest.approx(tuple(expected))


def test_compare_refuses(attacked):
    rows = arm(attacked, "none")
    with pytest.raises(ValueError, match="equal numbers of networks, got 3 and 2"):
        compare(rows, rows[rows["model_id"] != "k5-none-s1"])
    with pytest.raises(ValueError, match="the same images"):
        compare(rows, rows.assign(sample_id=rows["sample_id"] + 1))
    with pytest.raises(ValueError, match="not the same images: the label of image 0 differs"):
        compare(rows, rows.assign(label=rows["label"] + 1))
    hashed = rows.assign(sha256=[f"{i:064x}" for i in rows["sample_id"]])
    assert compare(hashed, hashed).effect == compare(hashed, rows).effect == 1
    with pytest.raises(ValueError, match="not the same images: the sha256 of image 0 differs"):
        compare(hashed, hashed.assign(sha256=[f"{i + 1:064x}" for i in rows["sample_id"]]))
    with pytest.raises(ValueError, match="metric: expected one of clean_accuracy, robust_area"):
        compare(rows, rows, "area")
    spatial = rows.assign(l2=np.nan, linf=np.nan)
    for metric, budget in (("robust_area", None), ("robust_accuracy", 0.5)):
        with pytest.raises(ValueError, match="no l2 distances: use robust_accuracy without"):
            compare(spatial, spatial, metric, budget=budget)
    assert compare(spatial, spatial, "robust_accuracy").verdict == "equivalent"


def test_one_image_says_nothing_of_others(attacked):
    one = attacked[attacked["sample_id"] == attacked["sample_id"].iloc[0]]
    for metric in ("robust_area", "clean_accuracy", "robust_accuracy"):
        comparison = compare(arm(one, "hamming"), arm(one, "none"), metric)
        assert comparison.verdict == "undecided"
        assert "one image" in comparison.note or "figure is 0" in comparison.note


def test_batches_have_images():
    with pytest.raises(ValueError, match="batch_size: expected 1 to 1,048,576, got 0"):
        evaluate(zoo_model(3, "none"), *fashion_images(2), batch_size=0)


def test_windowed_is_the_surgery():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    assert windowed(model, "hann", kernel_size=5)[0].kernel_size == (5, 5)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = robust_ham.nothing


def test_the_package_itself_needs_no_torch():
    code = "import robust_ham, sys; assert 'torch' not in sys.modules and robust_ham.__version__"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- custom attacks -----------------------------------------------------------------------------

CUSTOM = """
import torch

def to_grey(model, images, labels, *, strength: float = 1.0):
    return images + strength * (0.5 - images)

def nothing(model, images, labels):
    return None

def needs(model, images, labels, *, radius):
    return images
"""
RUN = """
name: custom
models:
  - {architecture: cnn, depth: 3, widths: [16, 32], first_kernel: same, kernel_size: 3, source: zoo}
attacks: {grey: {attack: "our_attack:to_grey", strength: 0.9}}
evaluation: {num_images: 20, gate: false}
"""


@pytest.fixture
def custom_attack(tmp_path, monkeypatch):
    (tmp_path / "our_attack.py").write_text(CUSTOM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "our_attack", raising=False)
    return tmp_path


def test_a_custom_attack(custom_attack):
    images, labels = fashion_images(20)
    rows = evaluate(
        zoo_model(3, "none"), images, labels, "our_attack:to_grey", strength=0.9, progress=False
    )
    fooled = (rows["status"] == "fooled").to_numpy()
    assert 0 < fooled.sum() < 20
    moved = (0.9 * (0.5 - images)).flatten(1).norm(dim=1).numpy()
    np.testing.assert_allclose(rows["l2"].to_numpy()[fooled], moved[fooled], rtol=1e-5)
    with pytest.raises(RequestError, match=r"images \(20, 1, 28, 28\) or an AttackOutcome"):
        evaluate(zoo_model(3, "none"), images, labels, "our_attack:nothing", progress=False)


def test_it_runs_from_a_config_and_again_when_its_code_changes(custom_attack, run_cli, monkeypatch):
    (custom_attack / "custom.yaml").write_text(RUN)
    code, printed, errors = run_cli("run", "custom.yaml")
    assert (code, errors) == (0, "")
    assert "k3-none-s0/grey: done" in printed
    assert "/grey: already there" in run_cli("run", "custom.yaml")[1]
    (custom_attack / "our_attack.py").write_text(CUSTOM.replace("0.5 - images", "0.4 - images"))
    monkeypatch.delitem(sys.modules, "our_attack")
    assert "/grey: done" in run_cli("run", "custom.yaml")[1]
    code, _, errors = run_cli("run", "custom.yaml", "-o", "attacks.grey.strengh=1")
    assert code == 2
    assert "attacks.grey.strengh: unknown option of our_attack:to_grey (strength)" in errors
    code, _, errors = run_cli("run", "custom.yaml", "-o", "attacks.other.attack=our_attack:needs")
    assert (code, errors) == (
        2,
        "robust-ham: attacks.other.radius: our_attack:needs has no default\n",
    )


# --- README and docs -----------------------------------------------------------------------------


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # a snippet saves a figure
    (tmp_path / "results").symlink_to(ROOT / "results")
    images, labels = fashion_images(8)
    known = {
        "images": images,
        "labels": labels,
        "model": zoo_model(3, "none"),
    }
    monkeypatch.setattr("torchvision.models.resnet50", nn_resnet)
    defined = {}
    for block in blocks("python"):
        exec(block, defined := defined | known)
    assert len(defined["hamming_rows"]) == 3 * 20
    assert capsys.readouterr().out.startswith("robust_area 0.")  # what compare says
    assert defined["outcome"].fooled.shape == (8,)
    assert defined["worst"].margins.shape == (8, 775)
    assert defined["to_grey"](None, images, labels, strength=1.0).eq(0.5).all()
    kernels = [m.kernel_size for n, m in defined["plain"].named_modules() if n.endswith("conv2")]
    assert set(kernels) == {(7, 7)}
    assert (tmp_path / "robust_area.pdf").stat().st_size > 1000
    for name in ("effect", "table", "rows", "within", "distances"):
        assert len(defined[name]) > 0, name


def test_images_and_networks_are_those_of_a_run():
    images, labels = load_images("fashion_mnist", 8)
    expected = fashion_images(8)
    assert torch.equal(images, expected[0])
    assert torch.equal(labels, expected[1])
    model = load_model("zoo:fashion_mnist/cnn3-w16x32-k3-none-s0")
    assert not model.training
    with torch.no_grad():
        known = checkpoints.load(ZOO / "fashion_mnist" / "cnn3-w16x32-k3-none-s0")[0]
        assert torch.equal(model(images), known(images))
    with pytest.raises(RequestError, match="no such model card"):
        load_model("zoo:fashion_mnist/nothing")
    with pytest.raises(RequestError, match="expected the folder of a model, got a file"):
        load_model(__file__)
    with pytest.raises(RequestError, match="expected at most 10000"):
        load_images("fashion_mnist", 10_001)
    for none in (0, -3):
        with pytest.raises(ValueError, match=f"num_images: expected 1 to 100,000,000, got {none}"):
            load_images("fashion_mnist", none)


def nn_resnet():
    import torchvision

    return torchvision.models.resnet18()


def test_images_of_nan_are_not_blamed_on_the_labels():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    images = torch.rand(4, 1, 8, 8)
    labels = torch.full((4,), 1)
    rows = evaluate(model, images * float("nan"), labels, "deepfool", progress=False)
    assert set(rows["status"]) <= {"already_wrong", "invalid", "survived"}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 1, 8, 8).to_sparse(), "images: expected a dense tensor"),
        (torch.rand(2, 1, 8, 8, device="meta"), "images: expected .* the meta device"),
        (torch.zeros(1, 1, 8, 8).expand(10**9, 1, 8, 8), "images: expected at most .* memory"),
        (np.broadcast_to(np.zeros((1, 1, 8, 8)), (10**9, 1, 8, 8)), "images: expected at most"),
    ],
    ids=["sparse", "meta", "expanded", "broadcast"],
)
def test_tensors_without_values_are_refused(images, message):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises((ValueError, RequestError), match=message):
        evaluate(model, images, torch.zeros(2, dtype=torch.long), "deepfool")


@pytest.mark.parametrize("name", robust_ham.__all__)
def test_the_examples_of_the_api_reference_run(name):
    function = getattr(robust_ham, name)
    assert all(word in function.__doc__ for word in ("Args:", "Returns:", "Raises:", "Example:"))
    (example,) = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    report = []
    doctest.DocTestRunner(verbose=False).run(example, out=report.append)
    assert not report, "".join(report)
