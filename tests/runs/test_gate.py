"""The gate: every check on a sound network, and on one with a planted defect."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY_RUN, fashion_images, zoo_model
from torch import nn

from attacks import deepfool, foolbox_attack
from robust_ham.evaluation.scoring import judge
from robust_ham.runs.jobs import attack_checks, black_box, gate, model_checks

CPU = torch.device("cpu")
IMAGES, LABELS = fashion_images(attack_checks.NUM_IMAGES)


class Before(nn.Module):
    """A sound network behind a function of its input."""

    def __init__(self, change):
        super().__init__()
        self.change = change
        self.network = zoo_model(7, "none")

    def forward(self, images):
        return self.network(self.change(images))


class After(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change
        self.network = zoo_model(7, "none")

    def forward(self, images):
        return self.change(self.network(images))


def attacked(model, function=deepfool, **options):
    return judge(model, IMAGES, LABELS, function(model, IMAGES, LABELS, **options), CPU)


def persisting(model):
    """How many of some rows survive DeepFool with many steps."""

    def persist(rows):
        images, labels = IMAGES[rows], LABELS[rows]
        outcome = deepfool(model, images, labels, steps=attack_checks.MANY_STEPS, prune=None)
        return int((~outcome.fooled).sum())

    return persist


def l2(rows):
    return rows["l2"].to_numpy()


SOUND = [(3, "none"), (5, "hamming"), (7, "none"), (11, "hamming")]


@pytest.mark.parametrize(("size", "window"), SOUND)
def test_a_sound_network_passes(size, window):
    model = zoo_model(size, window)
    rows = attacked(model, steps=200)
    distances = l2(rows)
    findings = [
        model_checks.check_gradients(model, IMAGES, LABELS),
        model_checks.check_determinism(model, IMAGES, CPU),
        model_checks.check_logits(model, IMAGES, CPU),
        attack_checks.check_survivors(rows, persisting(model)),
        attack_checks.check_random_direction(model, IMAGES, LABELS, distances, "l2"),
        attack_checks.check_doubled_steps(distances, l2(attacked(model, steps=400))),
    ]
    assert [finding.severity for finding in findings] == ["pass"] * 6
    assert all(finding.reason == "" for finding in findings)


@pytest.mark.parametrize(
    "defect",
    [
        Before(lambda x: (8 * x).round() / 8),
        Before(lambda x: x.detach()),
        After(lambda y: y.detach()),
        After(lambda y: (1e4 * y).softmax(1)),
    ],
    ids=["quantised input", "detached input", "detached logits", "softmax"],
)
def test_masked_gradients_fail(defect):
    finding = model_checks.check_gradients(defect, IMAGES, LABELS)
    assert finding.severity == "fail"
    right = int((defect(IMAGES).argmax(1) == LABELS).sum())
    assert f"of {right} correctly classified images" in finding.reason


def test_a_gradient_that_is_not_finite_fails():
    model = Before(lambda x: x + 0 * (x - x.detach()).sqrt())  # right, and its gradient is NaN
    assert (model(IMAGES).argmax(1) == LABELS).any()
    assert model_checks.check_gradients(model, IMAGES, LABELS).severity == "fail"


def test_a_leaky_quantiser_is_found_by_a_random_direction():
    """round(8x)/8 + x/1000 has a gradient everywhere, and it leads nowhere."""
    model = Before(lambda x: (8 * x).round() / 8 + 1e-3 * x)
    assert model_checks.check_gradients(model, IMAGES, LABELS).severity == "pass"
    rows = attacked(model)
    findings = [
        attack_checks.check_random_direction(model, IMAGES, LABELS, l2(rows), "l2"),
        attack_checks.check_survivors(rows, persisting(model)),
    ]
    assert "fail" in {finding.severity for finding in findings}


def test_a_random_layer_fails():
    stream = torch.Generator().manual_seed(0)
    model = Before(lambda x: x + 0.01 * torch.randn(x.shape, generator=stream))
    finding = model_checks.check_determinism(model, IMAGES, CPU)
    assert finding.severity == "fail"
    assert "two passes over the same images differ" in finding.reason


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_probabilities_fail(scale):
    finding = model_checks.check_logits(After(lambda y: (scale * y).softmax(1)), IMAGES, CPU)
    assert finding.severity == "fail"
    assert "probabilities, not logits" in finding.reason


def test_logits_that_lie_in_the_unit_interval_by_chance_pass():
    assert model_checks.check_logits(After(lambda y: y.sigmoid()), IMAGES, CPU).severity == "pass"


def test_another_accuracy_than_the_cards_fails():
    assert model_checks.check_accuracy(0.9, 0.9005).severity == "pass"
    assert model_checks.check_accuracy(0.9, 0.9015).severity == "fail"


def test_an_attack_that_survives_for_want_of_steps_warns_and_a_model_without_a_way_fails():
    model = zoo_model(7, "none")
    rows = attacked(model, steps=1)
    assert (rows["status"] == "survived").mean() > 0.1
    finding = attack_checks.check_survivors(rows, persisting(model))
    assert finding.severity == "warn"
    assert "raise steps" in finding.reason
    blind = Before(lambda x: (8 * x).round() / 8)
    finding = attack_checks.check_survivors(attacked(blind), persisting(blind))
    assert finding.severity == "fail"
    assert "with 1,000 steps" in finding.reason


def test_survivors_beyond_the_checked_images_are_attacked_again_too():
    count = 300
    rows = pd.DataFrame({"clean_prediction": 1, "label": 1, "status": ["fooled"] * count})
    rows.loc[200:219, "status"] = "survived"
    seen = []
    finding = attack_checks.check_survivors(rows, lambda found: seen.extend(found) or len(found))
    assert seen == list(range(200, 220))
    assert finding.severity == "fail"
    assert attack_checks.check_survivors(rows, lambda found: 3).severity == "warn"  # 1 % of all
    assert attack_checks.check_survivors(rows, lambda found: 4).severity == "fail"
    rows.loc[:, "status"] = "survived"
    attack_checks.check_survivors(rows, lambda found: seen.append(len(found)) or 0)
    assert seen[-1] == attack_checks.NUM_IMAGES


def test_an_attack_that_does_too_much_is_no_better_than_chance():
    model = zoo_model(7, "none")
    wild = np.where(l2(attacked(model)) > 0, 20.0, 0.0)
    finding = attack_checks.check_random_direction(model, IMAGES, LABELS, wild, "l2")
    assert finding.severity == "fail"
    linf = np.where(wild > 0, 0.9, 0.0)
    assert (
        attack_checks.check_random_direction(model, IMAGES, LABELS, linf, "linf").severity == "fail"
    )


def test_an_attack_that_is_too_weak_is_shown_up_by_ddn():
    model = zoo_model(7, "none")
    distances = l2(attacked(model))
    ddn = l2(attacked(model, foolbox_attack, attack="DDNAttack", steps=100, norm="l2"))
    weak = attack_checks.check_against_ddn(1.5 * distances, ddn, "fail")
    assert weak.severity == "fail"
    assert "DDN comes" in weak.reason
    assert attack_checks.check_against_ddn(1.5 * distances, ddn, "warn").severity == "warn"
    assert attack_checks.check_against_ddn(ddn, ddn, "fail").severity == "pass"


def test_steps_that_matter_warn():
    distances = np.array([0.0, 1.0, 2.0, 3.0, np.inf])
    assert attack_checks.check_doubled_steps(distances, distances).severity == "pass"
    better = np.array([0.0, 0.9, 1.8, 2.7, np.inf])
    finding = attack_checks.check_doubled_steps(distances, better)
    assert finding.severity == "warn"
    assert "by 10.0%" in finding.reason


def test_the_black_box_warns_where_other_models_images_are_nearer():
    model = zoo_model(7, "none")
    own = l2(attacked(model))
    other = deepfool(zoo_model(9, "none"), IMAGES, LABELS).images
    best = deepfool(model, IMAGES, LABELS).images
    along = black_box.nearest_along(model, IMAGES, LABELS, [other])
    assert (along[own > 0] > 0.5 * own[own > 0]).all()
    assert attack_checks.check_black_box(own, along).severity == "pass"
    assert attack_checks.check_black_box(3 * own, along).severity == "warn"
    back = black_box.nearest_along(
        model, IMAGES, LABELS, [best]
    )  # DeepFool's own line, to its crossing
    assert (back <= 1.001 * own).all()
    assert ((back == 0) == (own == 0)).all()
    nowhere = black_box.nearest_along(model, IMAGES, LABELS, [IMAGES])
    assert np.isinf(nowhere[own > 0]).all()


def test_a_run_writes_its_findings_keeps_them_and_says_what_fails(run_cli, tmp_path, monkeypatch):
    (tmp_path / "masked.py").write_text(
        "import sys\n"
        "from conftest import zoo_model\n"
        "from torch import nn\n"
        "class Quantised(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.network = zoo_model(7, 'none')\n"
        "    def forward(self, x):\n"
        "        return self.network((8 * x).round() / 8)\n"
        "def sound():\n"
        "    return zoo_model(7, 'none')\n"
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gated.yaml").write_text(
        "name: gated\n"
        "models:\n"
        "  - {factory: 'masked:Quantised', pretrained: true, kernel_size: 7}\n"
        "  - {factory: 'masked:sound', pretrained: true, kernel_size: 7}\n"
        "attacks:\n"
        "  d: {attack: deepfool, budget: 0.25, budgets: [0.1, 0.25, 0.5]}\n"
        "  s: {attack: spatial_shift, stop: first}\n"
        "evaluation: {num_images: 40}\n"
    )
    code, out, err = run_cli("run", "gated.yaml")
    assert code == 4
    assert "not to be trusted: masked-Quantised-k7-none-s0: no usable gradient on" in err
    assert "masked-sound" not in err
    assert "gate: " in out
    table = pd.read_csv("results/gated/gate.csv", keep_default_na=False)
    assert list(table) == gate.COLUMNS
    assert set(table["attack"]) == {"", "d", "s"}
    assert set(table.loc[table["attack"] == "s", "check"]) == {"valid images"}  # no distance
    failed = table[table["severity"] == "fail"]
    assert set(failed["model_id"]) == {"masked-Quantised-k7-none-s0"}
    assert (failed["reason"] != "").all()
    summary = pd.read_csv("results/gated/summary.csv").set_index(["model_id", "attack"])["gate"]
    assert summary["masked-Quantised-k7-none-s0", "d"] == "fail"
    assert summary["masked-Quantised-k7-none-s0", "s"] == "fail"  # the model itself
    assert summary["masked-sound-k7-none-s0", "s"] == "pass"
    page = (tmp_path / "results/gated/report.html").read_text()
    assert "no usable gradient on" in page
    code, _, again = run_cli("report", "results/gated")
    assert code == 0  # the report itself is sound
    lines = [line for line in err.splitlines(True) if "not to be trusted" in line]
    assert again == "".join(lines).replace("not to be", "results/gated: not to be")

    def refuse(*_):
        raise AssertionError("checked again")

    monkeypatch.setattr(gate, "check_model", refuse)
    monkeypatch.setattr(gate, "check_attack", refuse)
    assert run_cli("run", "gated.yaml")[0] == 4
    assert pd.read_csv("results/gated/gate.csv", keep_default_na=False).equals(table)


OWN_ATTACKS = """
import torch
import torch.nn.functional as F


def gradient(model, images, labels):
    inputs = images.clone().requires_grad_(True)
    F.cross_entropy(model(inputs), labels).backward()
    return inputs.grad


def unclamped(model, images, labels, *, epsilon: float = 0.1, norm: str = "linf"):
    return images + epsilon * gradient(model, images, labels).sign()


def half_unclamped(model, images, labels, *, epsilon: float = 0.1, norm: str = "linf"):
    moved = unclamped(model, images, labels, epsilon=epsilon)
    clamped = torch.arange(len(images)) % 2 == 0
    return torch.where(clamped.view(-1, 1, 1, 1), moved.clamp(0, 1), moved)


def lazy(model, images, labels, *, epsilon: float = 0.1, norm: str = "linf"):
    return images


def greedy(model, images, labels, *, epsilon: float = 0.1, norm: str = "linf"):
    return unclamped(model, images, labels, epsilon=3 * epsilon).clamp(0, 1)
"""


def test_attacks_within_epsilon_and_invalid_images_do_not_escape(run_cli, tmp_path, monkeypatch):
    (tmp_path / "attacks_of_mine.py").write_text(OWN_ATTACKS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "within.yaml").write_text(
        "name: within\n"
        "models:\n"
        "  - {architecture: cnn, source: zoo, depth: 3, widths: [16, 32], first_kernel: same,\n"
        "     sweep: {kernel_size: [3]}}\n"
        "attacks:\n"
        "  pgd: {attack: 'foolbox:LinfPGD', norm: linf, epsilon: 4/255, steps: 30,\n"
        "        rel_stepsize: 0.1}\n"
        "  short: {attack: 'foolbox:LinfPGD', norm: linf, epsilon: 4/255, steps: 10}\n"
        "  lazy: {attack: 'attacks_of_mine:lazy', norm: linf, epsilon: 4/255}\n"
        "  greedy: {attack: 'attacks_of_mine:greedy', norm: linf, epsilon: 4/255}\n"
        "  half: {attack: 'attacks_of_mine:half_unclamped', norm: linf, epsilon: 4/255}\n"
        "  fgsm: {attack: 'attacks_of_mine:unclamped', norm: linf, epsilon: 4/255}\n"
        "evaluation: {num_images: 20}\n"
    )
    code, _, err = run_cli("run", "within.yaml")
    assert code in (3, 4), err
    assert (
        "pixels outside [0, 1] (the attack must clamp"
        in (tmp_path / ("results/within/failures.jsonl")).read_text()
    )
    assert code in (3, 4)
    gated = pd.read_csv("results/within/gate.csv", keep_default_na=False)
    severity = gated.set_index(["attack", "check"])["severity"]
    assert "fgsm" not in set(gated["attack"])  # its job has failed
    assert set(severity["pgd"]) == {"pass"}
    assert severity["short", "weaker"] == "fail"  # ten steps of ε/30
    assert severity["lazy", "weaker"] == severity["lazy", "random search"] == "fail"
    assert severity["greedy", "within epsilon"] == "fail"
    assert severity["half", "valid images"] == "fail"
    reasons = gated.set_index(["attack", "check"])["reason"]
    assert "this attack 0.0%: too weak" in reasons["lazy", "weaker"]
    assert "images are moved farther than epsilon = 0.01569" in reasons["greedy", "within epsilon"]
    page = (tmp_path / "results/within/report.html").read_text()
    (invalid,) = re.findall(r"cnn3\S+/half: (\d+) of 20\.", page)
    assert int(invalid) == 10
    assert "/pgd: " not in page


def test_dropout_left_on_is_named_before_anything_is_attacked(run_cli, tmp_path, monkeypatch):
    (tmp_path / "dropping.py").write_text(
        "import torch.nn.functional as F\n"
        "from conftest import zoo_model\n"
        "from torch import nn\n"
        "class Dropping(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.network = zoo_model(3, 'none')\n"
        "    def forward(self, x):\n"
        "        return self.network(F.dropout(x, 0.6, training=True))\n"
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dropping.yaml").write_text(
        "name: dropping\n"
        "dataset: {num_test: 200}\n"
        "models:\n"
        "  - {factory: 'dropping:Dropping', kernel_size: 3, pretrained: true}\n"
        "attacks:\n"
        "  d: {attack: deepfool}\n"
        "evaluation: {num_images: 10}\n"
    )
    torch.manual_seed(0)
    code, _, err = run_cli("run", "dropping.yaml")
    assert code == 2
    assert "two passes over the same images differ: dropout or another random layer" in err
    assert "card" not in err


def test_the_others_are_from_all_over_the_run_and_never_the_model_itself():
    models = list(range(30))
    assert gate._spread_over(models, 3) == [9, 15, 21, 27]
    assert gate._spread_over([0, 1], 0) == [1]
    assert gate._spread_over([0], 0) == []
    assert len(gate._spread_over([*range(5)], 2)) == 4


def test_a_check_that_breaks_down_is_a_finding(run_cli, tmp_path, monkeypatch):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY_RUN.replace("gate: false", "gate: true"))

    def break_down(*_):
        raise RuntimeError("no such\nthing")

    monkeypatch.setattr(gate, "check_model", break_down)
    monkeypatch.setattr(gate, "check_attack", lambda *_: [])
    code, _, err = run_cli("run", path, "--out", tmp_path / "out")
    assert code == 4
    assert "cannot be checked: no such thing" in err
    assert (tmp_path / "out" / "report.html").is_file()
