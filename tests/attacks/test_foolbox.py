"""The foolbox adapter: the contract, and the same answers as foolbox called by hand."""

from __future__ import annotations

import inspect
import random
import subprocess
import sys

import foolbox
import numpy as np
import pytest
import torch
from conftest import TINY_RUN, fashion_images, zoo_model
from torch import Tensor, nn

from attacks import ATTACKS, foolbox_attack
from attacks.adapters.foolbox import foolbox_attack_names, foolbox_parameters
from robust_ham.api import evaluate
from robust_ham.config.experiment import AttackConfig
from robust_ham.config.files import parse_config
from robust_ham.errors import RequestError
from robust_ham.evaluation.options import attack_options, check_attack_options
from robust_ham.evaluation.registry import attack_function


def test_same_images_as_foolbox_by_hand() -> None:
    model = zoo_model(7, "none")
    images, labels = fashion_images(40)
    outcome = foolbox_attack(model, images, labels, attack="L2DeepFoolAttack")
    right = model(images).argmax(1) == labels
    by_hand = foolbox.attacks.L2DeepFoolAttack()
    wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device="cpu")
    _, expected, success = by_hand(wrapped, images[right], labels[right], epsilons=None)
    torch.testing.assert_close(outcome.images[right], expected, atol=1e-4, rtol=0)
    assert torch.equal(outcome.fooled[right], success)
    assert torch.equal(outcome.images[~right], images[~right])
    assert outcome.fooled[~right].all()


def test_passes_of_ddn() -> None:
    """One forward and one backward per step; two judgements, and one on the caller's model."""
    model = zoo_model(3, "none")
    images, labels = fashion_images(30)
    outcome = foolbox_attack(model, images, labels, attack="DDNAttack", steps=15)
    right = model(images).argmax(1) == labels
    assert right.any()
    assert not right.all()
    assert outcome.fooled[right].all()
    assert set(outcome.backwards[right].tolist()) == {15}
    assert set(outcome.backwards[~right].tolist()) == {0}
    assert set(outcome.forwards[~right].tolist()) == {2}
    assert all(15 < passes <= 20 for passes in outcome.forwards[right].tolist())


def test_global_random_state_and_seed() -> None:
    model = zoo_model(3, "none")
    images, labels = fashion_images(10)
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)

    def noise(seed: int) -> Tensor:
        options = {"attack": "L2AdditiveGaussianNoiseAttack", "epsilon": 1.0}
        return foolbox_attack(model, images, labels, seed=seed, **options).images

    first, again, other = noise(0), noise(0), noise(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    drawn = (torch.rand(1).item(), np.random.rand(), random.random())  # noqa: NPY002
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    assert drawn == (torch.rand(1).item(), np.random.rand(), random.random())  # noqa: NPY002


def test_epsilon_bounds_the_perturbation() -> None:
    model = zoo_model(5, "none")
    images, labels = fashion_images(20)
    options = {"attack": "LinfPGD", "norm": "linf", "epsilon": 4 / 255}
    outcome = foolbox_attack(model, images, labels, **options)
    assert (outcome.images - images).abs().amax() <= 4 / 255 + 1e-6
    assert 0 < outcome.fooled.float().mean() < 1


def test_images_that_cannot_be_attacked() -> None:
    model = zoo_model(3, "none")
    images, labels = fashion_images(6)
    images = images.clone()
    images[2, 0, 3, 3] = torch.nan
    outcome = foolbox_attack(model, images, labels, attack="DDNAttack", steps=5)
    assert not outcome.fooled[2]
    torch.testing.assert_close(outcome.images[2], images[2], equal_nan=True)
    empty = foolbox_attack(model, images[:0], labels[:0], attack="DDNAttack")
    assert empty.images.shape == (0, 1, 28, 28)


class _Constant(nn.Module):
    """Always class 0: no decision-based attack finds a start."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0, 0.0]]).repeat(len(images), 1) + 0 * images.sum()


def test_no_starting_point_is_a_failure_not_an_error() -> None:
    images = torch.rand(3, 1, 8, 8)
    labels = torch.tensor([0, 0, 1])
    outcome = foolbox_attack(_Constant(), images, labels, attack="BoundaryAttack", steps=3)
    assert outcome.fooled.tolist() == [False, False, True]
    assert torch.equal(outcome.images, images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack": "NoSuchAttack"}, "attack: expected an attack of foolbox"),
        ({"attack": "Attack", "steps": 3}, "foolbox's Attack|unknown option"),
        ({"attack": "DDNAttack", "stepps": 3}, "stepps: unknown option of foolbox's DDNAttack"),
        ({"attack": "FGSM", "norm": "linf"}, "epsilon: foolbox's FGSM requires"),
        ({"attack": "DDNAttack", "epsilon": 0.1}, "epsilon: not an option of foolbox's DDNAttack"),
        ({"attack": "LinfPGD", "epsilon": 0.1}, "norm: foolbox's LinfPGD measures linf"),
        ({"attack": "DDNAttack", "norm": "l3"}, "norm: expected l2 or linf"),
    ],
)
def test_wrong_requests(options: dict[str, object], message: str) -> None:
    images, labels = fashion_images(2)
    with pytest.raises(ValueError, match=message):
        foolbox_attack(zoo_model(3, "none"), images, labels, **options)


def test_l2_fmn_warns() -> None:
    images, labels = fashion_images(2)
    with pytest.warns(UserWarning, match="never projects"):
        foolbox_attack(zoo_model(3, "none"), images, labels, attack="L2FMNAttack", steps=2)


def test_works_without_git() -> None:
    code = (
        "import torch.fx.experimental.optimization, warnings; warnings.simplefilter('error');"
        "from attacks.adapters.foolbox import foolbox_attack_names, foolbox_parameters;"
        "print(len(foolbox_parameters('DDNAttack')))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) >= 3


def config_of(lines: str):
    attacks = f"attacks:\n  chosen: {lines}\n"
    before, _, after = TINY_RUN.partition("attacks:")
    return parse_config(before + attacks + after[after.index("evaluation:") :], [], origin="test")


def test_options_in_a_config() -> None:
    attack = config_of("{attack: 'foolbox:DDNAttack', steps: 30}").attacks["chosen"]
    options = attack_options(attack, "chosen")
    assert options["steps"] == 30
    assert options["epsilon"] is None
    assert attack.has_budget
    assert not config_of("{attack: 'foolbox:FGSM', epsilon: 8/255}").attacks["chosen"].has_budget


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("{attack: 'foolbox:DDNAttack', stepps: 30}", "attacks.chosen.stepps: unknown option"),
        ("{attack: 'foolbox:DDNAttack', steps: many}", "attacks.chosen.steps: expected int"),
        ("{attack: 'foolbox:Nothing'}", "attacks.chosen.attack: .*Nothing"),
        ("{attack: 'toolbox:DDNAttack'}", "attack toolbox:DDNAttack: ModuleNotFoundError"),
        ("{attack: 'foolbox:FGSM', norm: linf}", "attacks.chosen: epsilon"),
    ],
)
def test_wrong_configs(lines: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check_attack_options(config_of(lines).attacks["chosen"], "chosen", (1, 28, 28))


def test_a_run(run_cli, tmp_path) -> None:
    before, _, after = TINY_RUN.partition("attacks:")
    attacks = "attacks:\n  ddn: {attack: 'foolbox:DDNAttack', steps: 10, budget: 0.25}\n"
    config = tmp_path / "tiny.yaml"
    config.write_text(before + attacks + after[after.index("evaluation:") :])
    code, out, err = run_cli("run", config, "--out", tmp_path / "run")
    assert code == 0, err
    assert "ddn" in out


# --- no option is a path, an object or a function ------------------------------------------------


def names_of_attacks() -> list[str]:
    everything = vars(foolbox.attacks)
    classes = {n for n, c in everything.items() if isinstance(c, type)}
    names = sorted(n for n in classes if issubclass(everything[n], foolbox.Attack))
    assert names == foolbox_attack_names()
    return names


CODE = ["/tmp/x", "", "os:system", print, foolbox.attacks.LinfPGD(), ["/tmp/x"], {"a": 1}, b"x"]


def test_no_option_of_any_attack_takes_a_path_or_code() -> None:
    attacks = [*ATTACKS, *map("foolbox:{}".format, names_of_attacks())]
    assert len(attacks) > 70
    tried = set()
    for attack in attacks:
        for option, parameter in attack_function(attack)[1].items():
            if (option, str(parameter.annotation)) in tried:
                continue
            tried.add((option, str(parameter.annotation)))
            for value in CODE:
                attack_config = AttackConfig.model_construct(attack=attack)
                object.__setattr__(attack_config, "__pydantic_extra__", {option: value})
                with pytest.raises(RequestError, match=f"a.{option}: expected"):
                    attack_options(attack_config, "a")
    assert len(tried) > 60


def test_what_is_not_offered_of_foolbox() -> None:
    """By its type; review new parameters of later versions here."""
    withheld = set()
    for name in names_of_attacks():
        every = set(inspect.signature(getattr(foolbox.attacks, name)).parameters)
        withheld |= every - {p.name for p in foolbox_parameters(name)}
    assert withheld == {"distance", "init_attack", "tensorboard"}


@pytest.mark.parametrize("option", ["tensorboard", "init_attack"])
@pytest.mark.parametrize("value", ["/tmp/x", False, None])
def test_withheld_options_are_refused_from_python(option: str, value: object) -> None:
    images, labels = fashion_images(2)
    message = f"{option}: not offered: a path, an object or a function in foolbox's BoundaryAtt"
    with pytest.raises(ValueError, match=message):
        foolbox_attack(
            zoo_model(3, "none"), images, labels, attack="BoundaryAttack", **{option: value}
        )
    with pytest.raises(RequestError, match=message):
        evaluate(
            zoo_model(3, "none"),
            images,
            labels,
            "foolbox:BoundaryAttack",
            progress=False,
            **{option: value},
        )


@pytest.mark.parametrize("dry", [True, False])
def test_tensorboard_writes_nothing(run_cli, tmp_path, monkeypatch, dry: bool) -> None:
    monkeypatch.chdir(tmp_path)
    before, _, after = TINY_RUN.partition("attacks:")
    place = tmp_path / "elsewhere"
    attacks = f"attacks:\n  h: {{attack: 'foolbox:HopSkipJumpAttack', tensorboard: {place}}}\n"
    config = tmp_path / "tiny.yaml"
    config.write_text(before + attacks + after[after.index("evaluation:") :])
    code, _, errors = run_cli("run", config, *(["--dry-run"] if dry else []))
    assert code == 2
    assert errors.startswith("robust-ham: attacks.h.tensorboard: not offered: a path")
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == [config]
