"""SuperDeepFool: the closed form, tighter than DeepFool, and the contract."""

import pytest
import torch
from conftest import fashion_images, zoo_model
from test_deepfool import affine_case, closed_form

from attacks import deepfool, superdeepfool


def norms(outcome, x):
    return (outcome.images.double() - x.double()).flatten(1).norm(dim=1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("count", [1, 16])
def test_affine_classifier_ends_just_beyond_the_boundary(dtype, tolerance, count):
    model, x, labels = affine_case(count, dtype=dtype)
    outcome = superdeepfool(model, x, labels)
    ratio = norms(outcome, x) / closed_form(model, x, labels, "l2")
    assert outcome.fooled.all()
    assert (ratio >= 1.001 - tolerance).all()
    assert (ratio <= 1.002).all()  # 0.1 % beyond the boundary, and 2⁻¹² from bisection


@pytest.mark.parametrize("window", ["none", "hamming"])
def test_tighter_than_deepfool_and_fools_the_same(window):
    model = zoo_model(7, window)
    x, y = fashion_images(60)
    plain, tight = deepfool(model, x, y), superdeepfool(model, x, y)
    assert torch.equal(plain.fooled, tight.fooled)
    assert torch.equal(tight.fooled, model(tight.images).argmax(1) != y)
    a, b = norms(plain, x), norms(tight, x)
    assert (b <= a + 1e-6).all()
    assert b.mean() < 0.95 * a.mean()
    assert ((tight.images >= 0) & (tight.images <= 1)).all()


def test_batch_invariance():
    model = zoo_model(3, "none")
    x, y = fashion_images(16)
    together = norms(superdeepfool(model, x, y), x)
    alone = torch.cat(
        [norms(superdeepfool(model, x[i : i + 1], y[i : i + 1]), x[i : i + 1]) for i in range(16)]
    )
    assert ((together - alone).abs() <= 1e-4 * together.clamp_min(1e-3)).all()


def test_wrong_before_nan_and_empty():
    model, x, labels = affine_case()
    x, y = x.clone(), labels.clone()
    y[0] = (y[0] + 1) % 5
    x[1, 0, 0, 0] = torch.nan
    outcome = superdeepfool(model, x, y)
    assert torch.equal(outcome.images[0], x[0])
    assert outcome.fooled[0]
    assert not outcome.fooled[1]
    assert outcome.fooled[2:].all()
    assert len(superdeepfool(model, x[:0], y[:0]).fooled) == 0


def test_bad_options_are_refused():
    model, x, labels = affine_case()
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        superdeepfool(model, x[:0], labels[:0], steps=0)
