"""Configurations are strict and documented; errors are one line that names the culprit."""

import json
import re

import pytest

from robust_ham.config.files import (
    config_folder,
    config_keys,
    load_config,
    parse_config,
    shipped_configs,
)
from robust_ham.errors import RequestError
from robust_ham.models.checkpoints import describe, training_identity

MINIMAL = """
name: test
models: [{architecture: cnn}]
attacks: {d: {attack: deepfool}}
"""


def parsed(extra="", overrides=(), base=MINIMAL):
    return parse_config(base + extra, list(overrides))


def test_numbers_as_people_write_them():
    config = parsed(overrides=["training.weight_decay=5e-4", "attacks.d.budgets=[0.5/255, 8/255]"])
    assert config.training.weight_decay == 5e-4
    assert config.attacks["d"].budgets == (0.5 / 255, 8 / 255)
    assert config.attacks["d"].curve_budgets[-1] == 8 / 255


def test_a_sweep_is_the_product_of_its_lists():
    config = parsed(overrides=["models.0.sweep={kernel_size: [3, 5], window: [none, hamming]}"])
    assert [spec.model_id for spec in config.model_specs()] == [
        "cnn6-w128x256-f7-k3-none-s0",
        "cnn6-w128x256-f7-k3-hamming-s0",
        "cnn6-w128x256-f7-k5-none-s0",
        "cnn6-w128x256-f7-k5-hamming-s0",
    ]


def test_defaults_by_norm():
    config = parsed(overrides=["attacks.inf={attack: deepfool, norm: linf}"])
    assert config.attacks["inf"].curve_budgets == (0.5 / 255, 1 / 255, 2 / 255, 4 / 255)
    assert config.attacks["inf"].main_budget == 2 / 255
    assert config.attacks["d"].curve_budgets == (0.05, 0.1, 0.25, 0.5)


def test_a_group_may_differ_in_its_training():
    config = parsed(
        overrides=[
            "training.lr=0.3",
            "models=[{depth: 3}, {depth: 3, prefix: plain, training: {weight_decay: 0}}]",
        ]
    )
    first, second = (config.training_of(spec) for spec in config.model_specs())
    assert first == config.training
    assert second == config.training.model_copy(update={"weight_decay": 0.0})
    described = [describe(spec) for spec in config.model_specs()]
    assert described[0] == described[1] | {"prefix": None}  # the training is described separately
    identities = [training_identity(config, spec) for spec in config.model_specs()]
    assert identities[0]["training"]["weight_decay"] == 5e-4
    assert identities[1]["training"]["weight_decay"] == 0


def test_the_resolved_configuration_reads_back_equal():
    for name in shipped_configs():
        config = load_config(name)
        assert parse_config(config.to_yaml()) == config


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configs_open_with_their_command(name):
    config = load_config(name)
    assert config.name == name
    first = shipped_configs()[name].read_text().splitlines()[0]
    verb = "bench" if name.startswith("bench_") else "run"
    assert first.startswith(f"# robust-ham {verb} {name} ")
    assert any(word in first for word in ("minute", "second", "hour", "days"))


def test_schema_file_is_the_schema():
    """`make schema` writes it."""
    from robust_ham.config.experiment import Config

    stored = json.loads((config_folder() / "schema.json").read_text())
    assert stored == Config.model_json_schema(by_alias=True)


def test_every_key_is_documented():
    rows = config_keys()
    assert len(rows) > 40
    assert all(all(key) for key in rows)
    assert ("schema", "1", "1", "version of this layout") in rows
    assert any(key.name == "models[cnn].depth" and key.default == "6" for key in rows)


def test_list_keys_prints_the_bounds_of_every_number():
    allowed = {key.name: key.allowed for key in config_keys()}
    assert allowed["evaluation.threads"] == "whole number, 1 to 1,024"
    assert allowed["training.lr"] == "number, above 0 to 1e+30"
    assert allowed["training.momentum"] == "number, 0 to below 1"
    assert allowed["models[cnn].widths"] == "list of whole number, 1 to 65,536, at most 100"
    assert allowed["models[cnn].first_kernel"] == "whole number, 1 to 99 or same"
    assert allowed["interaction"] == (
        "list of whole number, 1 to 99 and whole number, 1 to 99 or null"
    )
    assert allowed["dataset.stream"] == "true or false"


def test_every_number_and_every_list_of_the_schema_is_bounded():
    """Editors, `list keys` and the configuration itself refuse the same values."""

    def unbounded(schema, path):
        if isinstance(schema, list):
            schema = dict(enumerate(schema))
        if not isinstance(schema, dict):
            return
        if schema.get("type") in ("integer", "number") and "const" not in schema:
            low = schema.keys() & {"minimum", "exclusiveMinimum"}
            if not low or not schema.keys() & {"maximum", "exclusiveMaximum"}:
                yield path
        if schema.get("type") == "array" and "maxItems" not in schema:
            yield path
        for name, part in schema.items():
            yield from unbounded(part, f"{path}/{name}")

    schema = json.loads((config_folder() / "schema.json").read_text())
    assert list(unbounded(schema, "")) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.epoch=3"], "config: training.epoch: unknown key"),
        (["trainings.epochs=3"], "config: trainings: unknown key"),
        (["training.epochs=0"], "config: training.epochs: expected a number greater than or equal"),
        (["training.epochs=many"], "config: training.epochs: .*got 'many'"),
        (["training.lr=fast"], "config: training.lr: expected a number such as .* got 'fast'"),
        (["training.lr=.inf"], "config: training.lr: .*finite"),
        (["training.schedule=cosine"], "config: training.schedule: .*one_cycle"),
        (["models.0.kernel_size=4"], "config: models.0.kernel_size: expected an odd number, got 4"),
        (["models.0.first_kernel=4"], "config: models.0.first_kernel: expected an odd number"),
        (["models.0.window=humming"], "config: models.0.window: .*'hamming'"),
        (["models.0.depht=3"], "config: models.0.depht: unknown key"),
        (["models.0.architecture=vgg"], "config: models.0.architecture: expected one of cnn"),
        (["models.0.sweep={kernel: [3]}"], "config: models.0.sweep.kernel: expected one of"),
        (["models.0.sweep={kernel_size: []}"], "sweep.kernel_size: expected at least one value"),
        (["models.0.sweep={kernel_size: [3, 4]}"], "sweep.kernel_size: expected an odd number"),
        (["models.0.sweep={seed: [1, 1]}"], "two models are called cnn6-.*; set a prefix"),
        (["models=[]"], "config: models: "),
        (["models.0.training={lrr: 1}"], "config: models: training.lrr: unknown key"),
        (["models.0.training={lr: 0}"], "config: models: training.lr: expected a number greater"),
        (
            ["training.warmup_epochs=2"],
            "config: training.warmup_epochs: not with schedule: one_cycle",
        ),
        (["training.accumulate=200"], "training.accumulate: expected at most batch_size = 128"),
        (["training.augment=[resized_crop]"], "resized_crop requires dataset.stream: true"),
        (["dataset.stream=true"], "config: dataset.image_size: required with stream: true"),
        (
            ["dataset={name: x, stream: true, image_size: 8}"],
            "training.augment: crop is for images in memory",
        ),
        (["models=3"], "config: models: "),
        (["attacks.d.budgets=[8/0]"], "config: attacks.d.budgets.0: expected a number"),
        (["attacks={}"], "config: attacks: "),
        (["attacks.a/b={attack: deepfool}"], "config: attacks"),
        (["attacks.best={attack: deepfool}"], "attacks: best is reserved for the best of all"),
        (
            ["endpoints=[{metric: robust_area, attack: x}]"],
            "config: endpoints.0.attack: robust_area needs one of d, best, got 'x'",
        ),
        (["endpoints=[{metric: robust_area}]"], "robust_area needs one of d, best, got ''"),
        (["endpoints=[{metric: robust_area, attack: best_linf}]"], "got 'best_linf'"),
        (["endpoints=[{metric: clean_accuracy, attack: d}]"], "not for clean_accuracy, got 'd'"),
        (
            ["attacks.s={attack: spatial_grid}", "endpoints=[{metric: robust_area, attack: s}]"],
            "robust_area needs one of d, best, got 's'",
        ),
        (
            ["endpoints=[{metric: robust_area, attack: d, budget: 0.1}]"],
            "config: endpoints.0.budget: not for robust_area of d",
        ),
        (["interaction=[5, 7]"], "config: interaction: no model has kernel_size 5"),
        (["interaction=[5, 4]"], "config: interaction"),
        (["name=../escape"], "config: name: expected letters, digits"),
        (["name=bench_.."], "config: name: expected letters, digits"),  # else results/bench/..
        (["name=a."], "config: name: expected letters, digits"),
        (["models.0.prefix=a.."], "config: models.0.prefix: expected letters, digits"),
        (["schema=2"], "config: schema"),
        (["evaluation.num_images=-1"], "config: evaluation.num_images: "),
        (["training"], "-o training: expected key=value"),
        (["name.deep=3"], "-o name.deep=3: name has no keys"),
        (["models.7.depth=3"], "-o models.7.depth=3: models.7 has no keys"),
        (["name=[unclosed"], "the value is not valid YAML"),
    ],
)
def test_faults_are_named_in_one_line(overrides, message):
    with pytest.raises(RequestError, match=message) as error:
        parsed(overrides=overrides)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "line 1: not valid YAML"),
        ("- a list", "expected a mapping"),
        ("", "expected a mapping"),
        ("name: x", "models: "),
        ("!!python/object/apply:os.system [echo]", "expected text, .* got python/object/apply"),
    ],
)
def test_files_that_are_no_configuration(text, message):
    with pytest.raises(RequestError, match=message):
        parse_config(text)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(
        RequestError, match=r"quikstart: no such file and no shipped config \(.*quick"
    ):
        load_config("quikstart")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match="binary.yaml: not a text file"):
        load_config(str(tmp_path / "binary.yaml"))
    (tmp_path / "large.yaml").write_text("#" * 1_000_001)
    with pytest.raises(RequestError, match="large.yaml: expected at most 1,000,000 bytes"):
        load_config(str(tmp_path / "large.yaml"))


def test_the_experiments_of_the_readme_are_valid():
    root = config_folder().parent
    pages = [root / "README.md", root / "docs/experiments.md"]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    blocks = re.findall(r"```yaml\n(schema.*?)```", text, re.DOTALL)
    names = [parse_config(block).name for block in blocks]
    assert {"my_experiment", "controls"} <= set(names)


def test_a_misspelt_key_is_named_before_the_one_that_it_leaves_out():
    text = (
        "name: a\nmodels: [{architecture: cnn, depth: 2, widths: [4], kernel_size: 3}]\nattaks: {}"
    )
    with pytest.raises(RequestError, match="attaks: unknown key"):
        parse_config(text)
