"""YAML of configurations: unique keys and no ambiguous values."""

import pytest

from robust_ham.config.files import parse_config, parse_network
from robust_ham.errors import RequestError

MINIMAL = """\
name: test
models: [{architecture: cnn}]
attacks: {d: {attack: deepfool}}
"""


def refused(text, message, overrides=()):
    with pytest.raises(RequestError, match=message) as error:
        parse_config(text, list(overrides))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("attacks:\n  e: {attack: stadv}\n", r"line 4: attacks: given twice, first on line 3$"),
        ("'attacks': {}\n", "line 4: attacks: given twice, first on line 3"),
        ("evaluation:\n  seed: 1\n  threads: 1\n  seed: 1\n", "line 7: seed: given twice, .* 5"),
        ("evaluation: {seed: 1, seed: 2}\n", "line 4: seed: given twice, first on line 4"),
        ("dataset: &a {name: mnist}\ntraining: {<<: *a, <<: *a}\n", "line 5: <<: given twice"),
        ("x: [[{a: [{b: 1, b: 1}]}]]\n", "line 4: b: given twice"),
        ("1: x\n", "line 4: expected text as a key, got 1"),
        ("on: x\n", "line 4: expected text as a key, got on"),
        ("~: x\n", "line 4: expected text as a key, got ~"),
        ("? [a]\n: x\n", "line 4: expected text as a key, got a list or mapping"),
    ],
)
def test_a_key_is_given_once_and_is_text(extra, message):
    refused(MINIMAL + extra, f"^config {message}")


def test_a_merged_key_may_be_overridden():
    config = parse_config(
        "name: t\nmodels:\n  - &a {kernel_size: 3, depth: 2}\n  - {<<: *a, kernel_size: 5}\n"
        "attacks: {d: {attack: deepfool}}\n"
    )
    assert [(m.kernel_size, m.depth) for m in config.model_specs()] == [(3, 2), (5, 2)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("010", "line 4: epochs: 010 may be octal or decimal"),
        ("-07", "line 4: epochs: -07 may be octal or decimal"),
        ("0_7", "line 4: epochs: 0_7 may be octal or decimal"),
        ("1:30", "line 4: epochs: 1:30 would be a number in base 60"),
        ('!!float "1:30"', "line 4: epochs: 1:30 would be a number in base 60"),
        ('!!int "0b1:30"', "line 4: epochs: 0b1:30 would be a number in base 60"),
        ('!!int "010"', "line 4: epochs: 010 may be octal or decimal"),
        ("-1:30.5", "line 4: epochs: -1:30.5 would be a number in base 60"),
        ("true", "training.epochs: expected a number or text, got true; YAML reads yes"),
        ("no", "training.epochs: expected a number or text, got false; YAML reads yes"),
        ("2026-01-01", "line 4: epochs: expected text, .* got timestamp; write it in quotes"),
    ],
)
def test_numbers_that_read_two_ways(value, message):
    refused(f"{MINIMAL}training: {{epochs: {value}}}\n", message)
    refused(MINIMAL, message.replace("line 4: epochs", "the value"), [f"training.epochs={value}"])


@pytest.mark.parametrize(
    "override",
    [
        "training.lr=yes",
        "training.milestones=[3, on]",
        "models.0.first_kernel=true",
        "models.0.widths=[true]",
        "models.0.sweep={seed: [0, true]}",
        "attacks.d.budget=true",
        "attacks.d.budgets=[0.1, true]",
        "attacks.d.num_images=true",
        "attacks.d.seeds=[false]",
        "schema=true",
        "name=on",
        "dataset.name=off",
    ],
)
def test_true_is_no_number_and_no_name(override):
    refused(MINIMAL, "got (true|false)", [override])


def test_what_reads_one_way_stays():
    config = parse_config(
        MINIMAL + "training: {lr: .5e-1, weight_decay: 5e-4, nesterov: yes}\n"
        "evaluation: {num_images: 1_000, seed: 0x10}\ndataset: {name: '010'}\n"
    )
    assert (config.training.lr, config.training.weight_decay) == (0.05, 5e-4)
    assert config.training.nesterov
    assert (config.evaluation.num_images, config.evaluation.seed) == (1000, 16)
    assert config.dataset.name == "010"
    for name in ("010", "08", "1:30", "2026-01-01", "on", "1e3"):
        config = parse_config(f"{MINIMAL}dataset: {{name: '{name}'}}\n")
        assert parse_config(config.to_yaml()).dataset.name == name


@pytest.mark.parametrize("text", ["1_0/255", "010/255", "1/2/3", "1/0", "0x1", "1/inf", "١"])
def test_text_that_is_no_number(text):
    refused(
        MINIMAL, "attacks.d.budget: expected a number such as 0.5", [f"attacks.d.budget='{text}'"]
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["training.epochs=1", "training.epochs=2"],
            "training.epochs=2: overrides the earlier -o training.epoch",
        ),
        (["training.epochs=1", "training={lr: 1}"], "overrides the earlier -o training.epochs=…"),
        (["training={epochs: 1, epochs: 2}"], "the value: epochs: given twice"),
    ],
)
def test_an_override_undoes_no_other(overrides, message):
    refused(MINIMAL, message, overrides)


def test_overrides_may_go_into_detail():
    config = parse_config(
        MINIMAL, ["training={epochs: 3}", "training.lr=0.5", "training.momentum=0"]
    )
    assert (config.training.epochs, config.training.lr, config.training.momentum) == (3, 0.5, 0)


def test_an_override_changes_no_alias():
    text = (
        "name: t\nmodels: [{architecture: cnn}]\nattacks:\n"
        "  a: {attack: deepfool, budgets: &l2 [0.1, 0.2]}\n"
        "  b: {attack: superdeepfool, budgets: *l2}\n"
    )
    config = parse_config(text, ["attacks.b.budgets.1=0.5"])
    assert config.attacks["a"].budgets == (0.1, 0.2)
    assert config.attacks["b"].budgets == (0.1, 0.5)


def test_options_of_the_command_line_too():
    with pytest.raises(RequestError, match="^--as: depth: given twice, first on line 1$"):
        parse_network("--as", "{architecture: cnn, depth: 3, depth: 4}")
