"""Angles to the boundary and spectra with known answers."""

import math

import numpy as np
import pytest
import torch
from conftest import fashion_images, zoo_model

from attacks import deepfool
from robust_ham.evaluation.perturbations import SPECTRUM_COLUMNS, normal_cosines, radial_spectrum

CPU = torch.device("cpu")


class Affine(torch.nn.Module):
    """Class 1 where ⟨w, x⟩ > 0.5·Σw."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        value = ((x - 0.5) * self.weight).flatten(1).sum(1)
        return torch.stack([-value, value], 1)


WEIGHT = torch.tensor([3.0, -1, 2, 1]).view(1, 1, 2, 2)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_shortest_step_to_a_plane_has_cosine_one(norm):
    model = Affine(WEIGHT)
    images = 0.5 - 0.05 * WEIGHT.sign()
    step = WEIGHT if norm == "l2" else WEIGHT.sign()
    labels = torch.zeros(1, dtype=torch.int64)
    cosines = normal_cosines(model, images, images + 0.1 * step, labels, norm, CPU)
    assert cosines == pytest.approx([1.0], abs=1e-6)


def test_a_detour_has_the_cosine_of_its_angle():
    weight = torch.tensor([1.0, 0, 0, 0]).view(1, 1, 2, 2)
    images = torch.full((3, 1, 2, 2), 0.4)
    moved = images.clone()
    moved[0, 0, 0, 0] += 0.3
    moved[0, 0, 0, 1] += 0.4  # cosine 3/5; the third image is not moved
    moved[1, 0, 0, 0] += 0.2
    labels = torch.zeros(3, dtype=torch.int64)
    cosines = normal_cosines(Affine(weight), images, moved, labels, "l2", CPU)
    assert cosines[:2] == pytest.approx([0.6, 1.0], abs=1e-6)
    assert math.isnan(cosines[2])
    along_linf = normal_cosines(Affine(weight), images, moved, labels, "linf", CPU)
    assert along_linf[0] == pytest.approx(0.3 / 0.4, abs=1e-6)  # ⟨r, w⟩ / (0.4 · 1)


def test_deepfool_on_a_trained_network_is_near_the_normal_but_not_on_it():
    model = zoo_model(3, "none")
    images, labels = fashion_images(16)
    outcome = deepfool(model, images, labels)
    before = [p.requires_grad for p in model.parameters()]
    cosines = normal_cosines(model, images, outcome.images, labels, "l2", CPU)
    assert [p.requires_grad for p in model.parameters()] == before
    moved = (outcome.images != images).flatten(1).any(1).numpy()
    assert np.isnan(cosines[~moved]).all()
    assert ((cosines[moved] > 0.1) & (cosines[moved] < 1)).all()


@pytest.mark.parametrize(("height", "width"), [(28, 28), (14, 14), (32, 64)])
def test_a_wave_is_in_one_ring(height, width):
    across = torch.arange(width) / width * 2 * math.pi
    cycles = width // 4  # a quarter of a cycle per pixel
    wave = torch.cos(cycles * across).expand(2, 3, height, width) * torch.tensor([1.0, 100.0]).view(
        2, 1, 1, 1
    )
    table = radial_spectrum(wave)
    assert list(table.columns) == SPECTRUM_COLUMNS
    peak = table.loc[table["share"].idxmax()]
    assert peak["share"] == pytest.approx(1, abs=1e-9)
    assert peak["frequency"] == pytest.approx(cycles / width, abs=0.5 / min(height, width))
    assert table["num_bins"].sum() == height * width


def test_white_noise_is_flat_and_shares_add_up():
    noise = torch.randn(500, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    table = radial_spectrum(noise)
    assert table["share"].sum() == pytest.approx(1)
    density = table["share"] / table["num_bins"] * 256
    assert density.to_numpy() == pytest.approx(np.ones(len(table)), abs=0.15)


def test_every_image_counts_alike_and_zeros_do_not_count():
    flat = torch.ones(1, 1, 8, 8)
    checkered = torch.ones(1, 1, 8, 8)
    checkered[..., ::2, 1::2] = checkered[..., 1::2, ::2] = -1
    table = radial_spectrum(torch.cat([flat, 1000 * checkered, torch.zeros(1, 1, 8, 8)]))
    assert table["share"].iloc[[0, -1]].tolist() == pytest.approx([0.5, 0.5])
    assert radial_spectrum(torch.zeros(0, 1, 8, 8))["share"].isna().all()


def test_a_model_that_hides_its_gradient_has_no_angle():
    class Hidden(Affine):
        def forward(self, x):
            return super().forward(x.detach())

    images = torch.full((2, 1, 2, 2), 0.4)
    labels = torch.zeros(2, dtype=torch.int64)
    cosines = normal_cosines(Hidden(WEIGHT), images, images + 0.1, labels, "l2", CPU)
    assert np.isnan(cosines).all()
    assert len(normal_cosines(Affine(WEIGHT), images[:0], images[:0], labels[:0], "l2", CPU)) == 0
