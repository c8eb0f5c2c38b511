"""Screening in bfloat16 finds the answer of full precision."""

import copy
import logging

import pytest
import torch
from conftest import fashion_images, zoo_model

from attacks import spatial_grid
from attacks.utils import screening
from attacks.utils.model import attack_mode
from attacks.utils.prepare import FastCopy, prepare

COUNT = 40


@pytest.fixture
def bfloat16(monkeypatch):
    """Screen on every CPU; torch emulates bfloat16 where the CPU has none."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("window", ["none", "hamming"])
def test_screened_candidates_give_the_answer_of_all(window, monkeypatch):
    model, (x, y) = zoo_model(7, window), fashion_images(COUNT)
    screens, made = [], screening.Screen.__init__

    def recorded(screen, *args):
        screens.append(screen)
        made(screen, *args)

    monkeypatch.setattr(screening.Screen, "__init__", recorded)
    screened = spatial_grid(model, x, y, stop="first")
    assert [screen.failed for screen in screens] == [False]
    monkeypatch.setattr(FastCopy, "in_bfloat16", lambda *_: None)
    plain = spatial_grid(model, x, y, stop="first")
    assert 0 < plain.fooled.sum() < COUNT
    assert torch.equal(screened.fooled, plain.fooled)
    assert torch.equal(screened.transform, plain.transform)
    assert torch.equal(screened.images, plain.images)
    assert torch.equal(screened.forwards, plain.forwards)
    whole = spatial_grid(model, x, y)
    assert torch.equal(whole.fooled, screened.fooled)
    survived = ~whole.fooled
    assert torch.equal(whole.transform[survived], screened.transform[survived])


@pytest.mark.usefixtures("bfloat16")
def test_a_screen_that_is_not_accurate_is_not_used(monkeypatch, caplog):
    model, (x, y) = zoo_model(7, "none"), fashion_images(COUNT)
    plain = spatial_grid(model, x, y)
    low = screening.Screen._in_low_precision
    calls = []

    def wrong(screen, images, labels):
        """Right for the probes only."""
        calls.append(len(images))
        found = low(screen, images, labels)
        return found if len(calls) == 1 else -found

    monkeypatch.setattr(screening.Screen, "_in_low_precision", wrong)
    with caplog.at_level(logging.WARNING):
        outcome = spatial_grid(model, x, y, stop="first")
    assert "bfloat16 is not exact enough for this network" in caplog.text
    assert torch.equal(outcome.fooled, plain.fooled)


def test_float64_is_not_screened():
    model, (x, _) = copy.deepcopy(zoo_model(7, "none")).double(), fashion_images(4)
    with attack_mode(model):
        fast = prepare(model, x.double())
        assert fast.tape
        assert screening.low_precision(fast, x.double()) is None
