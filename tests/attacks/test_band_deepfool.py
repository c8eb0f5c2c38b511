"""Band-limited DeepFool: the rings, closed forms within them, and the contract."""

from itertools import pairwise

import pytest
import torch
from conftest import fashion_images
from torch import nn

from attacks import band_deepfool, deepfool
from attacks.band_deepfool import ring_masks

SHAPES = [(28, 28), (32, 32), (7, 5), (5, 8), (8, 5), (32, 64), (1, 9), (20, 20)]


def radii(height, width):
    y, x = torch.meshgrid(
        torch.fft.fftfreq(height, dtype=torch.float64),
        torch.fft.fftfreq(width, dtype=torch.float64),
        indexing="ij",
    )
    return (y**2 + x**2).sqrt()


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_rings_partition_the_plane_by_radius(height, width, bands):
    masks = ring_masks(height, width, bands)
    assert masks.shape == (bands, height, width)
    assert (masks.sum(0) == 1).all()
    assert masks[0, 0, 0]
    negated = masks.flip(1, 2).roll((1, 1), dims=(1, 2))
    assert torch.equal(masks, negated)
    radius = radii(height, width)
    for inner, outer in pairwise(masks):
        assert radius[inner].max() <= radius[outer].min() + 1e-12


@pytest.mark.parametrize(
    ("height", "width", "bands", "sizes"),
    [
        (28, 28, 4, [195, 196, 196, 197]),
        (28, 28, 2, [391, 393]),
        (32, 32, 4, [255, 256, 256, 257]),
        (7, 5, 4, [9, 8, 8, 10]),
        (7, 5, 3, [11, 12, 12]),
        (32, 64, 4, [511, 512, 512, 513]),
        (1, 1, 1, [1]),
    ],
)
def test_ring_sizes(height, width, bands, sizes):
    assert ring_masks(height, width, bands).sum((1, 2)).tolist() == sizes


def test_ring_sizes_never_differ_by_more_than_two():
    for height in range(1, 11):
        for width in range(1, 11):
            for bands in range(1, max(1, height * width // 2) + 1):
                sizes = ring_masks(height, width, bands).sum((1, 2))
                assert sizes.min() >= 1
                assert sizes.max() - sizes.min() <= 2


def test_rings_worked_by_hand():
    """Squared radii of 4 × 4, in sixteenths: rows 0 1 2 −1 against columns 0 1 2 −1."""
    # 0 1 4 1     By radius: 0; 1 (two pairs); 2 (two pairs); 4 (two of their own); 5 (two pairs,
    # 1 2 5 2     and two more); 8. Eight of 16 are impossible (1 + 2 n): seven, then nine.
    # 4 5 8 5     Of the pairs at 2 the first in row-major order, (1, 1) with (3, 3), goes in.
    # 1 2 5 2
    low = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]]).bool()
    assert torch.equal(ring_masks(4, 4, 2), torch.stack([low, ~low]))


class Affine(nn.Module):
    """Logits A x of images (N, 2, 6, 9), with A a random matrix."""

    def __init__(self, classes, dtype):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        weight = torch.randn(classes, 2 * 6 * 9, generator=generator, dtype=torch.float64)
        self.weight = weight.to(dtype)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


def affine_case(classes=5, dtype=torch.float64, count=12):
    model = Affine(classes, dtype)
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(count, 2, 6, 9, generator=generator, dtype=torch.float64)
    x = (0.5 + 0.02 * noise).to(dtype)
    return model, x, model(x).argmax(1)


def basis(mask):
    """Orthonormal real images (n, H, W) of one ring, written out as cosines and sines."""
    height, width = mask.shape
    y = torch.arange(height, dtype=torch.float64)[:, None] / height
    x = torch.arange(width, dtype=torch.float64) / width
    waves = []
    for row, column in mask.nonzero().tolist():
        partner = (-row % height, -column % width)
        phase = 2 * torch.pi * (row * y + column * x)
        wave = phase.sin() if (row, column) > partner else phase.cos()
        waves.append(wave / wave.norm())
    return torch.stack(waves)


def closed_form(model, x, labels, mask):
    """Distance to the nearest boundary within the ring, in float64, by the explicit basis."""
    weight = model.weight.double()
    logits = x.double().flatten(1) @ weight.T
    gaps = logits.gather(1, labels[:, None]) - logits
    difference = (weight[None] - weight[labels][:, None]).unflatten(2, (2, 6, 9))
    dual = torch.einsum("nkchw,bhw->nkcb", difference, basis(mask)).flatten(2).norm(dim=2)
    return torch.where(dual > 0, gaps / dual, torch.inf).amin(1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("band", [0, 1, 2])
def test_affine_classifier_is_fooled_in_one_step_within_the_ring(dtype, tolerance, band):
    model, x, labels = affine_case(dtype=dtype)
    mask = ring_masks(6, 9, 3)[band]
    outcome = band_deepfool(model, x, labels, band=band, bands=3)
    r = outcome.images.double() - x.double()
    expected = 1.02 * closed_form(model, x, labels, mask)
    assert ((outcome.images > 0) & (outcome.images < 1)).all()
    assert outcome.fooled.all()
    assert (outcome.backwards == 4).all()  # five classes, the label excluded
    size = r.flatten(1).norm(dim=1)
    assert ((size - expected).abs() <= tolerance * expected.clamp_min(0.05)).all()
    energy = torch.fft.fft2(r).abs() ** 2
    outside = (energy * ~mask).sum((1, 2, 3)) / energy.sum((1, 2, 3))
    assert (outside <= 1e-10).all()


def test_squared_inverse_distances_add_up():
    model, x, labels = affine_case(classes=2)

    def distances(**options):
        outcome = band_deepfool(model, x, labels, overshoot=1e-6, **options)
        assert outcome.fooled.all()
        return (outcome.images - x).flatten(1).norm(dim=1)

    total = sum(distances(band=band, bands=5) ** -2 for band in range(5))
    torch.testing.assert_close(total, distances(bands=1) ** -2, rtol=1e-10, atol=0)


class SmallConv(nn.Module):
    """Two convolutions with random weights, smooth enough to be fooled in every ring."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 5, stride=2), nn.ReLU()
        )
        self.head = nn.Linear(8 * 16, 10)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)

    def forward(self, x):
        return self.head(self.layers(x).flatten(1))


def conv_case(count):
    model = SmallConv().eval()
    x = 0.2 + 0.6 * fashion_images(count)[0]
    return model, x, model(x).argmax(1)


def test_one_band_is_deepfool_bit_for_bit():
    model, x, y = conv_case(8)
    one, plain = band_deepfool(model, x, y, bands=1), deepfool(model, x, y)
    assert torch.equal(one.images, plain.images)
    assert torch.equal(one.fooled, plain.fooled)
    assert torch.equal(one.forwards, plain.forwards)
    assert torch.equal(one.backwards, plain.backwards)


@pytest.mark.parametrize("band", [0, 3])
def test_batch_invariance(band):
    model, x, y = conv_case(8)
    together = band_deepfool(model, x, y, band=band)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    shuffled = band_deepfool(model, x[order], y[order], band=band)
    alone = [band_deepfool(model, x[i : i + 1], y[i : i + 1], band=band) for i in range(len(x))]
    assert together.fooled.any()
    norms = (together.images - x).flatten(1).norm(dim=1)
    for images, fooled in (
        (torch.cat([o.images for o in alone]), torch.cat([o.fooled for o in alone])),
        (shuffled.images[order.argsort()], shuffled.fooled[order.argsort()]),
    ):
        other_norms = (images - x).flatten(1).norm(dim=1)
        assert ((other_norms - norms).abs() <= 1e-4 * norms.clamp_min(1e-3)).all()
        assert torch.equal(fooled, together.fooled)


def test_fooled_is_what_the_model_says_and_the_box_is_kept():
    model, x, y = conv_case(8)
    model.train()
    for band in range(4):
        outcome = band_deepfool(model, x, y, band=band)
        assert outcome.images.amin() >= 0
        assert outcome.images.amax() <= 1
        assert torch.equal(outcome.fooled, model(outcome.images).argmax(1) != y)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_outside_the_ring_is_a_failure(dtype):
    """Its part in the ring is a rounding error, not a direction."""
    x = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0), dtype=dtype)
    wave = (2 * torch.pi * torch.arange(28, dtype=dtype) / 28).cos().expand(28, 28)

    def model(x):
        logit = (x * wave).sum((1, 2, 3))
        return torch.stack([1 + logit, -logit], 1)

    y = model(x).argmax(1)
    for band in range(4):
        outcome = band_deepfool(model, x, y, band=band)
        assert (outcome.fooled == (band == 0)).all()
        assert band == 0 or torch.equal(outcome.images, x)


def test_wrong_before_nan_and_empty():
    model, x, labels = affine_case()
    x, y = x.clone(), labels.clone()
    y[0] = (y[0] + 1) % 5
    x[1, 0, 0, 0] = torch.nan
    outcome = band_deepfool(model, x, y, band=2)
    expected = band_deepfool(model, x[2:], y[2:], band=2)
    assert torch.equal(outcome.images[0], x[0])
    assert outcome.fooled[0]
    assert not outcome.fooled[1]
    assert outcome.fooled[2:].all()
    torch.testing.assert_close(outcome.images[2:], expected.images)
    assert band_deepfool(model, x[:0], y[:0]).images.shape == (0, 2, 6, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bands": 0}, "bands: expected 1 to 6 for images of 3 × 4, got 0"),
        ({"bands": 7}, "bands: expected 1 to 6 for images of 3 × 4, got 7"),
        ({"band": 4}, "band: expected 0 to 3, got 4"),
        ({"band": -1}, "band: expected 0 to 3, got -1"),
        ({"band": 1, "bands": 1}, "band: expected 0 to 0, got 1"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"overshoot": -0.1}, "overshoot: expected at least 0"),
        ({"candidates": 1}, "candidates: expected all or at least 2, got 1"),
    ],
)
def test_bad_options_are_refused_even_on_an_empty_batch(options, message):
    with pytest.raises(ValueError, match=message):
        band_deepfool(
            lambda x: x.flatten(1), torch.zeros(0, 1, 3, 4), torch.zeros(0).long(), **options
        )


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="images: expected floats"):
        band_deepfool(lambda x: x, torch.zeros(4), torch.zeros(4).long())
