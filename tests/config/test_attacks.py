"""The table of facts about attacks is complete and used everywhere; a new attack needs a row."""

import ast
import inspect
import math
from pathlib import Path

import pytest
import torch
from conftest import TINY_RUN

from attacks import ATTACKS, AttackOutcome, misclassified, predict_logits
from robust_ham.config.attacks import ATTACK_FACTS, AttackFacts, attack_facts, parse_norm
from robust_ham.config.experiment import AttackConfig
from robust_ham.evaluation.registry import attack_function, num_candidates

ROOT = Path(__file__).parents[2]
NOT_FUNCTIONS = {"best", "foolbox:SpatialAttack"}


def config(attack, **values):
    return AttackConfig.model_validate({"attack": attack} | values)


def test_every_attack_has_a_row():
    assert ATTACK_FACTS.keys() - NOT_FUNCTIONS == ATTACKS.keys()


@pytest.mark.parametrize("name", ATTACKS)
def test_the_norms_of_a_row_are_those_of_the_function(name):
    parameter = inspect.signature(ATTACKS[name]).parameters.get("norm")
    norms = attack_facts(name).norms
    if parameter is not None:
        assert set(norms) == {"l2", "linf"}
        assert norms[0] == parameter.default
    else:
        assert len(norms) < 2


@pytest.mark.parametrize("name", [n for n, row in ATTACK_FACTS.items() if row.candidates])
def test_few_candidates_are_about_a_thousand(name):
    options = {n: p.default for n, p in attack_function(name)[1].items()}
    few = options | dict(attack_facts(name).few_candidates)
    assert 750 <= num_candidates(name, few, (1, 224, 224)) <= 1000


@pytest.mark.parametrize(
    ("name", "library", "catalogue_name", "library_attack"),
    [
        ("deepfool", "robust-ham", "deepfool", ""),
        ("fmn", "adversarial-library", "fmn", ""),
        ("foolbox", "foolbox", "foolbox", "DDNAttack"),
        ("foolbox:L2PGD", "foolbox", "foolbox", "L2PGD"),
        ("foolbox:SpatialAttack", "foolbox", "foolbox", "SpatialAttack"),
        ("package.module:function", "user code", "", ""),
        ("deepfool:function", "user code", "", ""),
        ("table", "robust-ham", "table", ""),
    ],
)
def test_where_an_attack_comes_from(name, library, catalogue_name, library_attack):
    facts = attack_facts(name)
    assert facts.name == name
    assert facts.library == library
    assert facts.catalogue_name == catalogue_name
    assert facts.library_attack == library_attack


@pytest.mark.parametrize(
    ("attack", "values", "has_budget", "competes"),
    [
        ("deepfool", {}, True, True),
        ("deepfool", {"num_images": 5}, True, False),
        ("deepfool", {"norm": "none"}, False, False),
        ("band_deepfool", {}, True, False),
        ("foolbox:L2PGD", {"epsilon": 0.5}, False, False),
        ("foolbox:SpatialAttack", {}, False, False),
        ("spatial_grid", {}, False, False),
        ("stadv", {}, False, False),
        ("mine:attack", {}, False, False),
        ("mine:attack", {"budget": 0.5}, True, True),
        ("mine:attack", {"kind": "minimum_norm"}, True, True),
        ("table", {}, True, True),
    ],
)
def test_budgets_and_competition(attack, values, has_budget, competes):
    attack_config = config(attack, **values)
    assert attack_config.has_budget is has_budget
    assert attack_config.competes is competes


@pytest.mark.parametrize(
    ("attack", "values", "label"),
    [
        ("deepfool", {}, "DeepFool L2"),
        ("deepfool", {"norm": "linf"}, "DeepFool L∞"),
        ("best", {"norm": "linf"}, "best of the minimum-norm attacks L∞"),
        ("band_deepfool", {"band": 1, "bands": 6}, "DeepFool L2, band 2 of 6"),
        ("spatial_shift", {}, "whole-pixel shifts"),
        ("foolbox:L2PGD", {}, ""),
        ("mine:attack", {"band": "low"}, ""),
    ],
)
def test_labels(attack, values, label):
    assert config(attack, **values).label == label


@pytest.mark.parametrize(
    ("spelled", "norm"),
    [
        *[(s, "linf") for s in ("linf", "Linf", "L_inf", "l-inf", "inf", "L∞", math.inf)],
        *[(s, "l2") for s in ("l2", "L2", "L_2", "2", 2, 2.0)],
        *[(s, None) for s in ("l1", "none", "batch", 1, True, None, math.nan, -math.inf)],
    ],
)
def test_names_of_norms(spelled, norm):
    assert parse_norm(spelled) == norm


def texts_decided_on(tree):
    """Yield string constants in comparisons and in calls of ``startswith`` or ``removeprefix``."""
    for node in ast.walk(tree):
        is_test = isinstance(node, ast.Call) and getattr(node.func, "attr", "") in (
            "startswith",
            "removeprefix",
        )
        if isinstance(node, ast.Compare) or is_test:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                    yield inner.value


@pytest.mark.parametrize("path", sorted(ROOT.glob("robust_ham/**/*.py")), ids=lambda p: p.name)
def test_no_code_decides_by_the_name_of_an_attack(path):
    ours = [name for name in ATTACKS if attack_facts(name).library == "robust-ham"]
    for text in texts_decided_on(ast.parse(path.read_text())):
        decides = text in ours or text.rstrip("_") in ("spatial", "foolbox:")
        assert not decides, f"{path}: {text!r}: read config/attacks.py instead"


def test_a_decision_by_name_is_found():
    source = 'x = name.startswith(("spatial_", "a")) or name == "deepfool"'
    assert set(texts_decided_on(ast.parse(source))) == {"spatial_", "a", "deepfool"}


def negative(model, images, labels, *, share: float = 1.0):
    """Blend each image with its negative."""
    moved = (1 - share) * images + share * (1 - images)
    right = ~misclassified(predict_logits(model, images), labels)
    moved = torch.where(right[:, None, None, None], moved, images)
    fooled = misclassified(predict_logits(model, moved), labels)
    passes = torch.full_like(labels, 2)
    return AttackOutcome(moved, fooled, passes, torch.zeros_like(labels))


def test_a_new_attack_needs_its_function_and_its_row_alone(tmp_path, monkeypatch, run_cli):
    row = AttackFacts(
        name="negative", kind="minimum_norm", norms=("linf",), label="Photographic negative {norm}"
    )
    monkeypatch.setitem(ATTACKS, "negative", negative)
    monkeypatch.setitem(ATTACK_FACTS, "negative", row)
    text = TINY_RUN.replace("spatial_shift: {", "n: {attack: negative, budgets: [0.5, 1]}\n  s: {")
    (tmp_path / "tiny.yaml").write_text(text)
    code, _, errors = run_cli("run", tmp_path / "tiny.yaml", "--out", tmp_path / "out")
    assert code == 0, errors
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Photographic negative L∞" in page
    assert "L∞ &gt; 1" in page or "L∞ > 1" in page
    assert "negative" in run_cli("list", "attacks")[1]
