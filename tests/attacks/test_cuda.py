"""Attacks on a GPU, if present: same result as on the CPU, without TF32 and autocast."""

import copy

import pytest
import torch
from conftest import fashion_images, zoo_model

from attacks import deepfool, spatial_grid, stadv, superdeepfool

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.mark.parametrize("attack", [deepfool, superdeepfool, spatial_grid, stadv])
def test_the_same_answer_as_on_the_cpu(attack):
    model = zoo_model(7, "hamming")
    images, labels = fashion_images(30)
    here = attack(model, images, labels)
    with torch.autocast("cuda"):
        there = attack(copy.deepcopy(model).cuda(), images.cuda(), labels.cuda())
    assert there.images.device.type == "cuda"
    agree = (there.fooled.cpu() == here.fooled).float().mean()
    assert agree >= 0.95
    far, near = ((o.images.cpu() - images).flatten(1).norm(dim=1).mean() for o in (there, here))
    assert far.item() == pytest.approx(near.item(), rel=0.02)
