"""Images found without gradients: a random search, and checks that rest on it."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import fashion_images, zoo_model
from torch import nn

from attacks import deepfool
from robust_ham.runs.jobs import attack_checks
from robust_ham.runs.jobs.black_box import random_search

IMAGES, LABELS = fashion_images(attack_checks.NUM_IMAGES)
LARGEST = {"l2": 1.0, "linf": 4 / 255}


def distances(model, norm):
    outcome = deepfool(model, IMAGES, LABELS, norm=norm, steps=200)
    moved = (outcome.images - IMAGES).flatten(1)
    return (moved.norm(dim=1) if norm == "l2" else moved.abs().amax(1)).double().numpy()


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(("size", "window"), [(5, "none"), (7, "hamming"), (11, "none")])
def test_a_random_search_comes_no_nearer_than_a_sound_attack(size, window, norm):
    model = zoo_model(size, window)
    found = distances(model, norm)
    args = (norm, LARGEST[norm])
    finding = attack_checks.check_random_search(model, IMAGES, LABELS, found, *args)
    assert finding.severity == "pass"
    weak = attack_checks.check_random_search(model, IMAGES, LABELS, 4 * found, *args)
    assert weak.severity == "fail"
    assert weak.value > 0.5
    assert (
        "a random search of 100 queries finds adversarial images more than 5% closer on"
        in weak.reason
    )


def test_images_that_survived_are_searched_within_the_largest_budget():
    model = zoo_model(7, "none")
    survived = np.where(distances(model, "l2") > 0, np.inf, 0.0)
    args = (model, IMAGES, LABELS, survived, "l2")
    assert attack_checks.check_random_search(*args, 3.0).severity == "fail"
    assert attack_checks.check_random_search(*args, 1e-3).severity == "pass"
    assert attack_checks.check_random_search(*args[:3], np.zeros(32), "l2", 1.0).severity == "pass"


class Brightness(nn.Module):
    """Two classes on either side of mean brightness 0.6, and no gradient anywhere."""

    def forward(self, x):
        margin = (0.6 - x.flatten(1).mean(1)).sign()
        return torch.stack([margin, -margin], 1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_what_is_found_lies_within_epsilon_and_nothing_is_found_where_nothing_is(norm):
    """A grey image changes class when its 64 pixels brighten by 0.1 on average."""
    images, labels = torch.full((3, 1, 8, 8), 0.5), torch.zeros(3, dtype=torch.int64)
    least = 0.1 if norm == "linf" else 0.1 * 8
    none = random_search(Brightness(), images, labels, np.full(3, 0.9 * least), norm)
    assert not none.any()
    images[1:] += torch.tensor([0.05, 0.2]).view(2, 1, 1, 1)
    labels[2] = 1
    epsilon = np.array([0.9 * least, 20 * least, 0.9 * least])
    assert not random_search(Brightness(), images, labels, epsilon, norm)[[0, 2]].any()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_search_depends_on_the_image_alone(norm):
    model = zoo_model(7, "none")
    epsilon = 2 * distances(model, norm) + 1e-3
    together = random_search(model, IMAGES, LABELS, epsilon, norm)
    assert 0 < together.sum() < 32
    rows = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    again = random_search(model, IMAGES[rows], LABELS[rows], epsilon[rows], norm)
    assert (again == together[rows]).all()
    alone = [
        random_search(model, IMAGES[i : i + 1], LABELS[i : i + 1], epsilon[i : i + 1], norm)[0]
        for i in range(8)
    ]
    assert alone == together[:8].tolist()
    assert random_search(model, IMAGES[:0], LABELS[:0], epsilon[:0], norm).shape == (0,)


def test_images_of_any_shape_are_searched():
    images = torch.rand(2, 3, 1, 9, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(27, 4))
    labels = model(images).argmax(1)
    assert random_search(model, images, labels, np.full(2, 30.0), "linf").all()
    assert random_search(model, images, labels, np.full(2, 1e-6), "l2").sum() == 0


# --- attacks within epsilon ------------------------------------------------------------------


def rows(statuses, linf=0.1, ids=None):
    count = len(statuses)
    right = [status != "already_wrong" for status in statuses]
    return pd.DataFrame(
        {
            "sample_id": list(range(count)) if ids is None else ids,
            "label": 1,
            "clean_prediction": [int(r) for r in right],
            "status": statuses,
            "linf": linf,
            "margin": 1.0,
        }
    )


def test_an_attack_that_another_beats_at_the_same_epsilon_fails():
    pgd = rows(["survived"] * 30 + ["fooled"] * 70)
    fgsm = rows(["survived"] * 25 + ["fooled"] * 75)
    finding = attack_checks.check_weaker(pgd, {"fgsm": fgsm}, "linf", 0.1)
    assert finding.severity == "fail"
    assert finding.value == pytest.approx(0.05)
    assert finding.reason == (
        "at epsilon = 0.1, fgsm fools 75.0% of the images, this attack 70.0%: too weak"
    )
    assert attack_checks.check_weaker(fgsm, {"pgd": pgd}, "linf", 0.1).severity == "pass"
    slightly = rows(["survived"] * 28 + ["fooled"] * 72)
    assert attack_checks.check_weaker(pgd, {"other": slightly}, "linf", 0.1).severity == "pass"
    assert attack_checks.check_weaker(pgd, {}, "linf", 0.1).severity == "pass"


def test_only_shared_images_are_compared_and_one_image_never_decides():
    own = rows(["survived"] * 4, ids=[0, 1, 2, 3])
    other = rows(["fooled", "survived", "fooled"], ids=[3, 2, 9])
    finding = attack_checks.check_weaker(own, {"other": other}, "linf", 0.1)
    assert (finding.severity, finding.value, finding.limit) == ("pass", 0.5, 0.5)
    other = rows(["fooled", "fooled", "survived"], ids=[3, 2, 1])
    assert attack_checks.check_weaker(own, {"other": other}, "linf", 0.1).severity == "fail"


def test_an_attack_that_goes_beyond_epsilon_fails_and_beats_no_other():
    beyond = rows(["fooled"] * 10, linf=[0.1] * 8 + [0.3] * 2)
    finding = attack_checks.check_within_epsilon(beyond, "linf", 0.1)
    assert finding.severity == "fail"
    assert finding.reason == "2 images are moved farther than epsilon = 0.1, up to 0.3"
    rounded = rows(["fooled"] * 10, linf=float(np.float32(8) / np.float32(255)) + 3e-8)
    assert attack_checks.check_within_epsilon(rounded, "linf", 8 / 255).severity == "pass"
    own = rows(["fooled"] * 8 + ["survived"] * 2)
    assert attack_checks.check_weaker(own, {"beyond": beyond}, "linf", 0.1).severity == "pass"


def test_a_random_search_within_epsilon_shows_up_an_attack_that_does_nothing():
    model = zoo_model(7, "none")
    right = model(IMAGES).argmax(1) == LABELS
    idle = rows(["survived" if r else "already_wrong" for r in right])
    args = (model, IMAGES, LABELS, idle, "linf")
    assert attack_checks.check_random_search_within(*args, 16 / 255).severity == "fail"
    assert attack_checks.check_random_search_within(*args, 1e-4).severity == "pass"


def test_invalid_images_fail_with_the_remedy():
    found = rows(["invalid", "invalid", "fooled", "survived", "already_wrong"])
    finding = attack_checks.check_valid(found)
    assert finding.severity == "fail"
    assert finding.value == 2
    assert finding.reason == (
        "2 of 5 returned images are invalid: 2 with pixels outside [0, 1] (the attack must clamp "
        "what it returns: images.clamp(0, 1))"
    )
    found.loc[0, "margin"] = np.inf
    assert "1 with pixels or logits that are not finite" in attack_checks.check_valid(found).reason
    assert attack_checks.check_valid(rows(["fooled", "survived"])).severity == "pass"


def test_deepfool_alone_in_linf_is_warned_of_up_to_a_third_of_the_images():
    model = zoo_model(3, "hamming")
    found = distances(model, "linf")
    found[(model(IMAGES).argmax(1) != LABELS).numpy()] = 0
    args = (model, IMAGES, LABELS)
    finding = attack_checks.check_random_search(*args, found, "linf", 0.1, only_deepfool=True)
    assert finding.severity == "warn"
    assert 0.05 < finding.value < 0.33
    assert attack_checks.check_random_search(*args, found, "linf", 0.1).severity == "fail"
    far = attack_checks.check_random_search(*args, 4 * found, "linf", 0.1, only_deepfool=True)
    assert far.severity == "fail"
