"""stAdv: flows worked out by hand, gradients, and the contract."""

import pytest
import torch
from conftest import fashion_images, zoo_model
from test_deepfool import affine_case

from attacks import stadv
from attacks.stadv import flow_loss
from attacks.utils.warp import shift, warp_flow


def test_a_zero_flow_is_the_identity():
    x, _ = fashion_images(4)
    assert (warp_flow(x, torch.zeros(4, 2, 28, 28)) - x).abs().max() <= 3e-6


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, -2), (-1, 2)])
def test_a_constant_flow_is_a_shift_and_costs_nothing(right, down):
    x = torch.rand(2, 3, 9, 14, generator=torch.Generator().manual_seed(0))
    flow = -torch.tensor([right, down]).float().view(1, 2, 1, 1).expand(2, 2, 9, 14)
    assert (warp_flow(x, flow) - shift(x, right, down, "zeros")).abs().max() <= 1e-5
    assert flow_loss(flow).abs().max() <= 1e-6


def test_flow_loss_of_a_hand_made_flow():
    flow = torch.zeros(1, 2, 2, 2)
    flow[0, :, 0, 0] = torch.tensor([3.0, 4.0])  # two neighbours, each pair met twice
    assert flow_loss(flow).item() == pytest.approx(2 * 2 * 5, rel=1e-3)


def test_gradients_agree_with_finite_differences():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 1, 5, 6, generator=generator, dtype=torch.float64)
    # away from the pixel grid, where bilinear interpolation has its kinks
    flow = 0.3 + 0.2 * torch.rand(1, 2, 5, 6, generator=generator, dtype=torch.float64)
    flow.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: warp_flow(x, f).sum() + flow_loss(f).sum(), flow)


@pytest.mark.parametrize("window", ["none", "hamming"])
@pytest.mark.parametrize(("tau", "least"), [(0.005, 1.0), (0.05, 0.6)])
def test_fools_by_a_flow_the_more_the_less_smooth_it_must_be(window, tau, least):
    model = zoo_model(5, window)
    x, y = fashion_images(20)
    outcome = stadv(model, x, y, tau=tau)
    assert torch.equal(outcome.fooled, model(outcome.images).argmax(1) != y)
    assert outcome.fooled.float().mean() >= least
    assert ((outcome.images >= 0) & (outcome.images <= 1)).all()
    right = model(x).argmax(1) == y
    assert (outcome.backwards[right] >= 1).all()
    assert torch.equal(outcome.images[~right], x[~right])


def test_batch_invariance_and_seed():
    model = zoo_model(3, "none")
    x, y = fashion_images(8)
    together = stadv(model, x, y, steps=20)
    for i in range(8):
        alone = stadv(model, x[i : i + 1], y[i : i + 1], steps=20)
        assert alone.fooled[0] == together.fooled[i]
        assert (alone.images[0] - together.images[i]).abs().max() <= 1e-3
    other = stadv(model, x, y, steps=20, seed=1)
    assert not torch.equal(other.images, together.images)


def test_nan_empty_and_bad_options():
    model, x, labels = affine_case()
    x = x.clone()
    x[1, 0, 0, 0] = torch.nan
    outcome = stadv(model, x, labels, steps=3)
    assert not outcome.fooled[1]
    assert outcome.forwards[1] <= 1
    assert len(stadv(model, x[:0], labels[:0]).fooled) == 0
    for options, message in [
        ({"tau": -1.0}, "tau: expected at least 0"),
        ({"kappa": -1.0}, "kappa: expected at least 0"),
        ({"steps": 0}, "steps: expected at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            stadv(model, x[:0], labels[:0], **options)
