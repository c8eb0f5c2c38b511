"""Keys of jobs: results of earlier runs stay valid only while these values do not change."""

import shutil

import pytest
import torch

from robust_ham.config.files import parse_config
from robust_ham.models.checkpoints import source_folder
from robust_ham.runs.plan.context import Context
from robust_ham.runs.plan.keys import attack_key, attack_recipe, model_key, predictions_key
from robust_ham.runs.plan.plan import make_plan
from robust_ham.storage.run_folder import RunFolder

CONFIG = """
schema: 1
name: pinned
dataset: {name: fashion_mnist, num_train: 256, num_validation: 100}
models:
  - architecture: cnn
    depth: 2
    widths: [4]
    first_kernel: same
    kernel_size: 3
    sweep: {window: [none, hamming]}
  - architecture: cnn
    depth: 2
    widths: [4]
    first_kernel: same
    kernel_size: 3
    accuracy_of: hamming
  - {architecture: cnn, depth: 3, widths: [16, 32], first_kernel: same, kernel_size: 3, source: zoo}
training: {epochs: 1, batch_size: 64, lr: 0.1, precision: float32}
attacks:
  deepfool_l2: {attack: deepfool, budget: 0.25, budgets: [0.1, 0.25, 0.5], steps: 10}
  spatial_shift: {attack: spatial_shift, stop: first, num_images: 8}
evaluation: {num_images: 20, gate: false, threads: 1, shard_size: 10}
"""
ZOO_MODEL = "cnn3-w16x32-k3-none-s0"


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """A plan whose zoo model is in the run folder already."""
    run = RunFolder(tmp_path_factory.mktemp("pinned"))
    context = Context(make_plan(parse_config(CONFIG)), run, torch.device("cpu"))
    source = source_folder(context.plan.config, spec_of(context, ZOO_MODEL))
    shutil.copytree(source, run.model(ZOO_MODEL))
    return context


def spec_of(context, model_id):
    specs = {spec.model_id: spec for spec in context.plan.config.model_specs()}
    return specs[model_id]


@pytest.mark.parametrize(
    ("model_id", "key"),
    [
        ("cnn2-w4-k3-none-s0", "feddc1b40f0ed45f8b93d0526a261f20da4d0eb90482b8379e0cf113441f0be2"),
        (
            "cnn2-w4-k3-hamming-s0",
            "ae6d6a6f226fea366e581456d6e5c28865e9a68c15fb5ce04de74015b46a24d3",
        ),
        (
            "cnn2-w4-as_hamming-k3-none-s0",
            "41900bbcfeb029141b127f3bd808f0a5ff264d30c8718b8953f2d5e1ace9b771",
        ),
        (ZOO_MODEL, "a8aaa8bd3eba43964d96e06da874dbf8dd6016d4ec4601a25b300aff25fd9d9c"),
    ],
)
def test_key_of_a_model(context, model_id, key):
    assert model_key(context, spec_of(context, model_id)) == key


@pytest.mark.parametrize(
    ("attack_id", "recipe"),
    [
        ("deepfool_l2", "5639d8199f2aa1a7840fb27675a26e86f7bd6109776834e33b8fc54b84f61db4"),
        ("spatial_shift", "d0ce7838e4659c9080b3b570340fbc15e2f1096f7fa243d746d535906bba5612"),
    ],
)
def test_recipe_of_an_attack(context, attack_id, recipe):
    assert attack_recipe(context, attack_id) == recipe


def test_keys_of_a_finished_model(context):
    spec = spec_of(context, ZOO_MODEL)
    predictions = predictions_key(context, spec)
    assert predictions == "33c44ff3a879ef6ea38f186be1897c254e358600cf7e154f51adfc369927f800"
    attack = attack_key(context, spec, "deepfool_l2").digest
    assert attack == "3f58b69adb49267087310482a32ae9b08a615a3969f1cc9944c3a17d3ebb53ea"
