"""What a plan refuses before any compute: networks that are not trained, kernels, distances."""

import sys

import pandas as pd
import pytest
import yaml

from robust_ham.config.files import load_config, parse_config
from robust_ham.errors import RequestError
from robust_ham.runs.plan.plan import make_plan

CONFIG = """
name: planned
models: {models}
attacks: {attacks}
evaluation: {{num_images: 10, gate: false}}
"""
ZOO = "[{depth: 3, widths: [16, 32], first_kernel: same, kernel_size: 3, source: zoo}]"
CODE = """
import copy

import torch
from conftest import zoo_model

def network():
    return copy.deepcopy(zoo_model(3, "none"))

def pgd(model, images, labels, *, eps=8 / 255, steps=5, norm="linf"):
    moved = images.clone()
    for _ in range(steps):
        moved.requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(model(moved), labels)
        (gradient,) = torch.autograd.grad(loss, moved)
        moved = moved.detach() + eps / 3 * gradient.sign()
        moved = torch.min(torch.max(moved, images - eps), images + eps).clamp(0, 1)
    return moved
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "planned.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "planned", raising=False)
    monkeypatch.chdir(tmp_path)


def plan(models=ZOO, attacks="{d: {attack: deepfool}}", *overrides):
    return make_plan(parse_config(CONFIG.format(models=models, attacks=attacks), list(overrides)))


def refused(message, *words):
    with pytest.raises(RequestError, match=message) as error:
        plan(*words)
    assert "\n" not in str(error.value)


NETWORK = "factory: 'planned:network'"


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (
            NETWORK,
            "models: planned-network-k7-none-s0 would be attacked untrained: give its weights: "
            "FILE, or pretrained: true if planned:network returns a trained network",
        ),
        (f"{NETWORK}, source: train", "models.source: got train, but a factory's network"),
        (f"{NETWORK}, pretrained: true, source: train", "models.source: got train"),
        (
            f"{NETWORK}, pretrained: true, training: {{lr: 1}}",
            "models.training: not available",
        ),
        (
            f"{NETWORK}, pretrained: true, init: compensated",
            "models.init: not available",
        ),
        (
            f"{NETWORK}, pretrained: yes, weights: a.pth",
            "models.0.pretrained: not together with weights",
        ),
        (f"{NETWORK}, source: nowhere", "is not in nowhere: no such folder"),
        ("factory: 'planned:nothing'", "factory planned:nothing: no such function"),
    ],
)
def test_a_factory_must_come_trained(group, message):
    refused(message, f"[{{{group}}}]")


def test_training_of_factories_alone_is_refused():
    models = f"[{{{NETWORK}, pretrained: true}}]"
    refused(
        "training: this configuration trains no model",
        models,
        "{d: {attack: deepfool}}",
        "training.epochs=3",
    )
    config = plan(models).config
    assert plan(models).jobs
    again = parse_config(config.to_yaml())  # as a worker of a cluster and verify read it
    assert make_plan(again).config == config
    assert yaml.safe_load(config.to_yaml())["models"][0]["pretrained"] is True


@pytest.mark.parametrize(
    ("override", "key", "size"),
    [
        ("models=[{kernel_size: 29}]", "kernel_size", 29),
        ("models=[{first_kernel: 31}]", "first_kernel", 31),
        ("models=[{architecture: resnet18_cifar, kernel_size: 33}]", "kernel_size", 33),
        ("models=[{kernel_size: 3, match: {kernel_size: 41}}]", "match.kernel_size", 41),
        ("models=[{sweep: {kernel_size: [3, 99]}}]", "kernel_size", 99),
    ],
)
def test_a_kernel_is_no_larger_than_the_image(override, key, size):
    refused(
        rf"models.{key}: expected at most 28, because images are 28×28, got {size}",
        ZOO,
        "{d: {attack: deepfool}}",
        override,
    )


def test_a_kernel_as_large_as_the_image():
    assert plan("[{kernel_size: 27}]").jobs
    refused("at most 14", "[{kernel_size: 15}]", "{d: {attack: deepfool}}", "dataset.image_size=14")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["transfer={attack: d, budget: 30}", "evaluation.keep_adversarials=true"],
            "transfer.budget: expected at most 28",
        ),
        (
            ["attacks.d.norm=linf", "endpoints=[{metric: robust_accuracy, attack: d, budget: 8}]"],
            "endpoints.0.budget: expected at most 1, .*8/255",
        ),
        (
            [
                "attacks.d.norm=linf",
                "endpoints=[{metric: robust_accuracy, attack: best_linf, budget: 8}]",
            ],
            "endpoints.0.budget: expected at most 1, .*8/255",
        ),
        (["attacks.d.budgets=[0.1, 128]"], "attacks.d.budgets.1: expected at most 28"),
    ],
)
def test_distances_are_possible(overrides, message):
    refused(message, ZOO, "{d: {attack: deepfool}}", *overrides)


def test_an_endpoint_is_checked_with_the_norm_of_the_function():
    attacks = "{p: {attack: 'planned:pgd', kind: minimum_norm}}"
    endpoint = "endpoints=[{metric: robust_area, attack: best}]"
    refused("endpoints.0.attack: robust_area needs one of p, best_linf", ZOO, attacks, endpoint)


def test_a_run_measures_an_attack_of_ones_own_in_its_norm(run_cli):
    attacks = (
        "{fixed: {attack: 'planned:pgd', eps: 16/255}, "
        "least: {attack: 'planned:pgd', kind: minimum_norm, budget: 4/255}}"
    )
    with open("own.yaml", "w") as file:
        file.write(CONFIG.format(models=ZOO, attacks=attacks))
    code, _, errors = run_cli("run", "own.yaml")
    assert (code, errors) == (0, "")
    kept = load_config("results/planned/config.yaml").attacks
    assert [attack.norm for attack in kept.values()] == ["linf", "linf"]
    assert [attack.kind for attack in kept.values()] == ["fixed_epsilon", "minimum_norm"]
    summary = pd.read_csv("results/planned/summary.csv").set_index("attack")
    assert summary.loc["least", "budget"] == pytest.approx(4 / 255)
    assert summary.loc["fixed"].isna()["budget"]
    code, _, errors = run_cli("run", "own.yaml", "-o", "attacks.fixed.budget=0.03")
    assert code == 2
    assert "attacks.fixed.kind: planned:pgd works within its eps, and has a budget" in errors
    code, printed, _ = run_cli("run", "own.yaml")
    assert (code, printed.count("already there")) == (0, 3)
