"""Misspelt names and lists in place of single values are answered with a suggestion."""

import pytest

from robust_ham.config.files import load_config, parse_config, parse_dataset, parse_network
from robust_ham.config.sections import AttackConfig, DatasetConfig
from robust_ham.config.suggestions import did_you_mean
from robust_ham.data.datasets import load_split
from robust_ham.errors import RequestError
from robust_ham.evaluation.options import attack_options
from robust_ham.evaluation.registry import attack_function
from robust_ham.models.windows import window_2d

CONFIG = """
name: test
models: [{architecture: cnn}]
attacks: {d: {attack: deepfool}, s: {attack: spatial_grid}}
"""
LIST = "got a list; "
SWEEP = LIST + "to run one model for each value, use sweep: "


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("epoch", "epochs"),  # a letter is missing
        ("epochss", "epochs"),  # a letter too many
        ("ephocs", "epochs"),  # two are swapped
        ("Epochs", "epochs"),
        ("batchsize", "batch_size"),
        ("batch-size", "batch_size"),
        ("batch size", "batch_size"),
        ("zzz", None),
        ("", None),
        ("epochs" * 1000, None),
        (3, None),
        (None, None),
    ],
)
def test_did_you_mean(name, suggestion):
    expected = f"; did you mean {suggestion}?" if suggestion else ""
    assert did_you_mean(name, ["epochs", "batch_size"]) == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # keys: of the file, of a section, of lists of sections, of a section elsewhere
        ("trainig.lr=1", "trainig: unknown key; did you mean training?"),
        ("Name=1", "Name: unknown key; did you mean name?"),
        ("shema=1", "shema: unknown key; did you mean schema?"),
        ("training.epoch=3", "training.epoch: unknown key; did you mean epochs?"),
        ("dataset.imagesize=3", "dataset.imagesize: unknown key; did you mean image_size?"),
        ("models.0.kernelsize=3", "models.0.kernelsize: unknown key; did you mean kernel_size?"),
        ("models.0.match.widht=3", "models.0.match.widht: unknown key; did you mean width?"),
        ("models.0.sweep={seeds: [3]}", "window_layers; did you mean seed?"),
        ("models.0.training={epoch: 3}", "training.epoch: unknown key; did you mean epochs?"),
        ("endpoints=[{metrics: x}]", "endpoints.0.metrics: unknown key; did you mean metric?"),
        ("epochs=3", "epochs: unknown key; did you mean training.epochs?"),
        ("num_images=3", "num_images: unknown key; did you mean evaluation.num_images?"),
        ("xyz=3", "xyz: unknown key$"),
        # values
        ("models.0.window=haming", "got 'haming'; did you mean hamming?"),
        ("models.0.window=Hamming", "got 'Hamming'; did you mean hamming?"),
        ("models.0.architecture=resnet-18", "got 'resnet-18'; did you mean resnet18?"),
        ("training.schedule=onecycle", "got 'onecycle'; did you mean one_cycle?"),
        ("training.augment=[flips]", "got 'flips'; did you mean flip?"),
        ("training.precision=fp32", "got 'fp32'$"),
        ("endpoints=[{metric: robust_area, attack: bets}]", "got 'bets'; did you mean best?"),
        (
            "transfer={attack: D, budget: 1}",
            "transfer.attack: needs one of d, got 'D'; did you mean d?",
        ),
        # lists
        ("models.0.kernel_size=[3, 5]", SWEEP + r"\{kernel_size: \[3, 5\]\}"),
        ("models.0.window=[none, hann]", SWEEP + r"\{window: \['none', 'hann'\]\}"),
        ("models.0.seed=[0, 1, 2]", SWEEP + r"\{seed: \[0, 1, 2\]\}"),
        ("models.0.first_kernel=[3, 5]", SWEEP + r"\{first_kernel: \[3, 5\]\}"),
        ("models.0.architecture=[cnn, resnet18]", "; add one group of models for each$"),
        ("training.lr=[0.1, 0.2]", LIST + "only keys of models can take several values"),
        ("dataset.name=[mnist, cifar10]", LIST + "only keys of models can take several values"),
    ],
)
def test_suggestions_for_a_configuration(override, message):
    with pytest.raises(RequestError, match=message) as error:
        parse_config(CONFIG, [override])
    assert "\n" not in str(error.value)


def test_suggestions_for_sections_on_the_command_line():
    with pytest.raises(RequestError, match="--as: widht: unknown key; did you mean width?"):
        parse_network("--as", "{architecture: cnn, widht: 2}")
    with pytest.raises(RequestError, match="--data: streem: unknown key; did you mean stream?"):
        parse_dataset("--data", "{name: mnist, streem: true}")


def test_a_suggestion_for_the_name_of_a_configuration():
    with pytest.raises(RequestError, match="; did you mean quickstart?"):
        load_config("quick-start")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("fashion-mnist", "fashion_mnist"), ("CIFAR10", "cifar10"), ("imagnet", "imagenet")],
)
def test_a_suggestion_for_the_name_of_a_data_set(name, suggestion):
    with pytest.raises(RequestError, match=f"not found in .*; did you mean {suggestion}?"):
        load_split(DatasetConfig(name=name), "test")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("deepfol", "deepfool"),
        ("LinfPGD", "foolbox:LinfPGD"),
        ("pgd", "foolbox:PGD"),
        ("DDN", "foolbox:DDNAttack"),
        ("ddnattack", "foolbox:DDNAttack"),
        ("foolbox:LinfPGDD", "LinfPGD"),
    ],
)
def test_a_suggestion_for_an_attack(name, suggestion):
    with pytest.raises(ValueError, match=f"did you mean {suggestion}\\?$"):
        attack_function(name)


def test_a_suggestion_for_the_budget_of_an_attack_of_foolbox():
    config = AttackConfig(attack="foolbox:LinfPGD", eps=0.1)
    with pytest.raises(RequestError, match="did you mean epsilon\\?$"):
        attack_options(config, "pgd")


def test_a_suggestion_for_a_window():
    with pytest.raises(ValueError, match="got 'haming'; did you mean hamming?"):
        window_2d("haming", 3, 3)
