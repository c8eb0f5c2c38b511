"""Custom attacks: options, norm, perturbation size and kind."""

import copy
import math
import sys
from functools import partial

import pytest
import torch
from conftest import fashion_images, zoo_model

from attacks import AttackOutcome
from robust_ham import evaluate
from robust_ham.config.experiment import AttackConfig
from robust_ham.config.user_code import like_default, source_hash
from robust_ham.errors import RequestError
from robust_ham.evaluation.options import (
    attack_options,
    check_attack_options,
    recipe_of,
    resolve_attack,
)
from robust_ham.evaluation.registry import attack_function

SHAPE = (1, 28, 28)
CODE = """
import functools, math
from typing import TYPE_CHECKING, Literal, Optional
import torch.nn.functional as F
if TYPE_CHECKING:
    from torch import Tensor

def pgd(model, images, labels, eps=8 / 255, alpha=0.01, steps=10, norm="linf", loss=F.relu):
    return images
def upper(model, images, labels, *, norm="Linf"): return images
def order(model, images, labels, *, norm=math.inf): return images
def two(model, images, labels, *, norm=2): return images
def taxi(model, images, labels, *, norm="l1"): return images
def plain(model, images, labels): return images
def late(model: "Tensor", images: "Tensor", labels: "Tensor", *, steps=3): return images
def maybe(model, images, labels, *, eps: Optional[float] = None, steps: int | None = None,
          norm: Literal["l2", "linf"] = "linf", mode=None, sizes=(0.1,), verbose=False, title="x"):
    return images
def anything(model, images, labels, **options): return images
def asks(model, images, labels, *, radius): return images
def taken(model, images, labels, *, budget=0.03): return images
def short(model, images): return images
strong = functools.partial(pgd, eps=16 / 255)
class Pgd:
    def __call__(self, model, images, labels, eps=0.1): return images
called = Pgd()
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def config(name, **values):
    return AttackConfig.model_validate({"attack": f"mine:{name}"} | values)


def resolved(name, **values):
    attack_config = resolve_attack(config(name, **values), "a")
    check_attack_options(attack_config, "a", SHAPE)
    assert resolve_attack(attack_config, "a") == attack_config
    return attack_config


@pytest.mark.parametrize(
    ("name", "values", "norm", "given"),
    [
        ("pgd", {}, "linf", "linf"),
        ("pgd", {"norm": "l2"}, "l2", "l2"),
        ("upper", {}, "linf", "Linf"),
        ("order", {}, "linf", math.inf),
        ("order", {"norm": "l2"}, "l2", 2.0),
        ("two", {}, "l2", 2),
        ("two", {"norm": "inf"}, "linf", math.inf),
        ("maybe", {}, "linf", "linf"),
    ],
)
def test_the_norm_is_the_functions(name, values, norm, given):
    attack_config = resolved(name, **values)
    assert attack_config.norm == norm
    assert attack_options(attack_config, "a")["norm"] == given
    assert (
        AttackConfig.model_validate_json(attack_config.model_dump_json()).norm == norm
    )  # as a report


def test_the_norm_of_a_function_without_the_option_is_declared():
    attack_config = resolved("plain", norm="linf", kind="minimum_norm", budget="8/255")
    assert (attack_config.norm, attack_config.main_budget, attack_options(attack_config, "a")) == (
        "linf",
        8 / 255,
        {},
    )
    with pytest.raises(RequestError, match=r"attacks.a.norm: expected l2 or linf, got 'l1'"):
        resolved("plain", norm="l1")


def test_a_norm_in_which_no_distances_are_counted():
    assert not resolved("taxi").has_budget
    with pytest.raises(
        RequestError, match=r"a.norm: distances are measured in l2 or linf, got 'l1'"
    ):
        resolved("taxi", kind="minimum_norm")


def test_a_size_makes_an_attack_one_of_fixed_epsilon():
    attack_config = resolved("pgd")
    assert (attack_config.kind, attack_config.has_budget, attack_config.options["eps"]) == (
        "fixed_epsilon",
        False,
        8 / 255,
    )
    assert resolved("strong").options["eps"] == 16 / 255
    assert resolved("called").options["eps"] == 0.1
    assert resolved("plain").kind is None
    assert resolved("maybe").kind is None
    assert resolved("maybe", eps=0.1).kind == "fixed_epsilon"
    assert resolved("anything", eps=0.1).kind == "fixed_epsilon"


@pytest.mark.parametrize(
    ("name", "why"), [("pgd", "works within its eps"), ("plain", "may work within a fixed size")]
)
@pytest.mark.parametrize("given", [{"budget": 0.03}, {"budgets": [0.01, 0.03]}])
def test_a_budget_needs_a_kind(name, why, given):
    with pytest.raises(RequestError, match=f"^attacks.a.kind: mine:{name} {why}, and has a budget"):
        resolved(name, **given)
    assert resolved(name, kind="minimum_norm", **given).has_budget
    with pytest.raises(
        RequestError, match=rf"attacks.a.budget: mine:{name} has no distance budget"
    ):
        resolved(name, kind="fixed_epsilon", **given)


def test_runs_older_than_the_key_kind_keep_their_meaning():
    assert config("plain", budget=0.1).has_budget
    assert not config("plain").has_budget


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("pgd", "eps", 8, "attacks.a.eps: expected at most 1, .* got 8; did you mean 8/255?"),
        ("pgd", "eps", -0.1, "attacks.a.eps: expected at most 1, .* got -0.1"),
        ("called", "eps", 2, "got 2; did you mean 2/255. If it is an L2 distance, add norm: l2"),
        ("anything", "epsilon", 8, "attacks.a.epsilon: expected at most 1"),
        ("anything", "max_epsilon", 8, "attacks.a.max_epsilon: expected at most 1"),
        ("pgd", "alpha", "2/x", "attacks.a.alpha: expected a number such as 0.5 or 8/255"),
        ("pgd", "alpha", True, "attacks.a.alpha: expected a number, got true"),
        ("pgd", "steps", "many", "attacks.a.steps: expected a number such as"),
        ("pgd", "norm", 2, "attacks.a.norm: expected text, got 2"),
        ("pgd", "epss", 2, r"unknown option of mine:pgd \(eps, alpha, steps, norm, loss\)"),
        ("maybe", "steps", 2.5, "attacks.a.steps: expected int | None, got 2.5"),
        ("maybe", "verbose", 1, "attacks.a.verbose: expected true or false, got 1"),
        ("asks", "radius", None, "attacks.a.radius: mine:asks has no default"),
        ("taken", "budget", 0.03, "attack mine:taken: its option budget has the name of a key"),
        ("taken", "seeds", None, "attack mine:taken: its option budget has the name of a key"),
        ("short", "x", None, "attack mine:short: expected a function of model, images and labels"),
    ],
)
def test_options_that_are_refused(name, key, value, message):
    with pytest.raises(RequestError, match=message) as error:
        resolved(name, **({key: value} if value is not None else {}))
    assert "\n" not in str(error.value)


def test_options_are_parsed_as_their_defaults_suggest():
    given = {"eps": "4/255", "alpha": "1e-2", "steps": "2e1"}
    options = attack_options(config("pgd", **given), "a")
    assert (options["eps"], options["alpha"], options["steps"]) == (4 / 255, 0.01, 20)
    assert type(options["steps"]) is int
    assert attack_options(config("pgd", eps=1), "a")["eps"] == 1.0
    given = {"eps": "8/255", "steps": 3, "mode": "2/255", "sizes": ["1/255", 1], "title": "5"}
    options = attack_options(config("maybe", **given), "a")
    assert (options["eps"], options["steps"], options["mode"]) == (8 / 255, 3, 2 / 255)
    assert (options["sizes"], options["title"]) == ((1 / 255, 1.0), "5")
    for text in ("fast", "5"):  # a 5 in quotes
        assert attack_options(config("maybe", mode=text), "a")["mode"] == text
    assert attack_options(config("late", steps="5"), "a") == {"steps": 5}
    assert attack_options(config("anything", a="1e-1", b=[1]), "a") == {"a": 0.1, "b": [1]}
    assert attack_options(config("asks", radius="1/2"), "a") == {"radius": 0.5}


@pytest.mark.parametrize(
    ("value", "default", "expected"),
    [
        ("1/2", 0.0, 0.5),
        (3, 0.5, 3.0),
        (2.5, 1, 2.5),
        ("3", 1, 3),
        ("x", None, "x"),
        (True, None, True),
    ],
)
def test_like_default(value, default, expected):
    converted = like_default(value, default)
    assert (converted, type(converted)) == (expected, type(expected))


def test_defaults_that_json_cannot_say_are_in_a_recipe_by_name():
    assert recipe_of(attack_options(config("pgd"), "a"))["loss"] == "relu"
    assert recipe_of({"norm": math.inf, "steps": 3}) == {"norm": "inf", "steps": 3}


def test_the_code_of_partials_and_objects_counts():
    import mine

    assert len({source_hash(f) for f in (mine.pgd, mine.strong, mine.called)}) == 1
    assert source_hash(mine.called) != ""


def test_an_attack_may_overwrite_its_images():
    def overwrites(model, images, labels):
        return images.zero_()

    images, labels = torch.ones(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)
    function = attack_function("own:overwrites", overwrites)[0]
    outcome = function(lambda x: x.flatten(1), images, labels)
    assert (outcome.images == 0).all()
    assert (images == 1).all()


def test_partial_functions_have_their_own_defaults():
    def pgd(model, images, labels, eps=0.1, norm="l2"):
        return images

    attack_config = resolve_attack(
        AttackConfig(attack="own:p"), "p", partial(pgd, norm="linf", eps=0.2)
    )
    assert (attack_config.norm, attack_config.options["eps"]) == ("linf", 0.2)


# --- catalogue and foolbox -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "norm"),
    [
        ({"attack": "foolbox:LinfPGD", "epsilon": "8/255"}, "linf"),
        ({"attack": "foolbox:FGSM", "epsilon": "8/255"}, "linf"),
        ({"attack": "foolbox:LinfAdditiveUniformNoiseAttack", "epsilon": 0.1}, "linf"),
        ({"attack": "foolbox:LinfDeepFoolAttack"}, "linf"),
        ({"attack": "foolbox:HopSkipJumpAttack", "constraint": "linf", "steps": 1}, "linf"),
        ({"attack": "foolbox:HopSkipJumpAttack", "steps": 1}, "l2"),
        ({"attack": "foolbox:L2PGD", "epsilon": 2.0}, "l2"),
        ({"attack": "foolbox:DDNAttack"}, "l2"),
        ({"attack": "foolbox"}, "l2"),
        ({"attack": "foolbox:PointwiseAttack"}, "l2"),
        ({"attack": "foolbox:GaussianBlurAttack"}, "l2"),
        ({"attack": "foolbox:EADAttack", "norm": "l2"}, "l2"),
        ({"attack": "foolbox:L1PGD", "epsilon": 40}, "l2"),  # a size in L1; it has no distances
        ({"attack": "deepfool", "norm": "linf"}, "linf"),
    ],
)
def test_an_attack_of_foolbox_is_measured_in_its_norm(values, norm):
    attack_config = resolve_attack(AttackConfig.model_validate(values), "a")
    check_attack_options(attack_config, "a", SHAPE)
    assert attack_config.norm == norm
    assert attack_config.has_budget == ("epsilon" not in values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"attack": "foolbox:LinfPGD", "epsilon": 8},
            "a.epsilon: expected at most 1, .*did you mean 8/255?",
        ),
        ({"attack": "foolbox:L2PGD", "epsilon": 128}, "a.epsilon: expected at most 28, .* got 128"),
        ({"attack": "deepfool", "norm": "linf", "budget": 8}, "a.budget: expected at most 1"),
        (
            {"attack": "deepfool", "norm": "linf", "budgets": [1, 2, 4, 8]},
            "a.budgets.1: expected at most 1, .*got 2; did you mean 2/255?",
        ),
        ({"attack": "deepfool", "budget": 29}, "a.budget: expected at most 28, .* got 29$"),
        ({"attack": "foolbox:"}, "attacks.a.attack: expected one of deepfool, .* got 'foolbox:'"),
        ({"attack": "foolbox:EADAttack"}, "a.norm: foolbox's EADAttack minimises l1: set norm: l2"),
        (
            {"attack": "spatial_grid", "budget": 0.1},
            "a.budget: spatial_grid has no distance budget",
        ),
    ],
)
def test_distances_that_cannot_be(values, message):
    with pytest.raises(RequestError, match=message):
        check_attack_options(resolve_attack(AttackConfig.model_validate(values), "a"), "a", SHAPE)


# --- what a custom attack may return -------------------------------------------------------------


def returning(change, **fields):
    """An attack that returns an outcome with some fields replaced."""

    def attack(model, images, labels):
        zeros = torch.zeros_like(labels)
        values = {"forwards": zeros, "backwards": zeros} | fields
        return AttackOutcome(change(images), zeros.bool(), **values)

    return attack


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.clone().requires_grad_(),
        lambda x: x.double(),
        lambda x: x.half().float(),
    ],
)
def test_images_of_an_outcome_are_judged_in_whatever_float_type(change):
    rows = evaluate(zoo_model(3, "none"), *fashion_images(4), returning(change), progress=False)
    assert set(rows["status"]) <= {"survived", "already_wrong", "fooled"}


def test_an_attack_may_return_an_array():
    attack = lambda model, images, labels: images.numpy()  # noqa: E731
    rows = evaluate(zoo_model(3, "none"), *fashion_images(4), attack, progress=False)
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"transform": torch.zeros(4, 2)}, r"transform: expected shape \(4, 3\), got \(4, 2\)"),
        ({"margins": torch.zeros(3, 5)}, r"margins: expected shape \(4, T\), got \(3, 5\)"),
        ({"forwards": torch.zeros(3)}, r"forwards: expected shape \(4\), got \(3,\)"),
    ],
)
def test_fields_of_the_wrong_shape_are_named(fields, message):
    attack = returning(lambda x: x, **fields)
    with pytest.raises(RequestError, match=message):
        evaluate(zoo_model(3, "none"), *fashion_images(4), attack, progress=False)


def test_an_attack_that_changes_the_model_is_refused_and_the_model_given_back():
    model = copy.deepcopy(zoo_model(3, "none"))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def attack(model, images, labels):
        for parameter in model.parameters():
            parameter.data.zero_()
        return images

    with pytest.raises(RequestError, match="the attack has changed the model's parameters"):
        evaluate(model, *fashion_images(4), attack, progress=False)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_an_option_called_prune_is_the_functions_own():
    def attack(model, images, labels, prune=0.3):
        return images * (1 - prune)

    rows = evaluate(zoo_model(3, "none"), *fashion_images(4), attack, progress=False)
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attack": "depfool"}, "a.attack: expected one of .*; did you mean deepfool?"),
        ({"attack": "DeepFool"}, "got 'DeepFool'; did you mean deepfool?"),
        ({"attack": "spatial-grid"}, "; did you mean spatial_grid?"),
        ({"attack": "foolbox:DDNAtack"}, "got 'DDNAtack'; did you mean DDNAttack?"),
        ({"attack": "foolbox:l2pgd"}, "; did you mean L2PGD?"),
        ({"attack": "xyz"}, "got 'xyz'$"),
        ({"attack": "deepfool", "overshot": 0.1}, r"a.overshot: .*\); did you mean overshoot?"),
        ({"attack": "deepfool", "Steps": 1}, "; did you mean steps?"),
        ({"attack": "deepfool", "budgest": [1]}, "; did you mean budgets?"),
        ({"attack": "foolbox:L2PGD", "step": 1}, "; did you mean steps?"),
        ({"attack": "mine:pgd", "alfa": 1}, "; did you mean alpha?"),
        ({"attack": "deepfool", "norm": ["l2", "linf"]}, "; configure one attack for each$"),
        ({"attack": "deepfool", "steps": [1, 2]}, "; configure one attack for each$"),
    ],
)
def test_suggestions_for_attacks_and_options(values, message):
    with pytest.raises(RequestError, match=message) as error:
        attack_options(AttackConfig.model_validate(values), "a")
    assert "\n" not in str(error.value)
