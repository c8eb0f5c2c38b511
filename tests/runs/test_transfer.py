"""Transfer between models: rescaled perturbations, right images only, nothing done twice."""

import numpy as np
import pandas as pd
import pytest
import torch

from robust_ham.config.files import parse_config
from robust_ham.errors import RequestError
from robust_ham.models.predict import logits_of
from robust_ham.runs.jobs import transfer
from robust_ham.runs.jobs.model import load_model
from robust_ham.runs.plan.context import Context
from robust_ham.runs.plan.plan import make_plan
from robust_ham.runs.runner import run_plan
from robust_ham.storage.parquet_tables import read_table
from robust_ham.storage.run_folder import RunFolder

CPU = torch.device("cpu")
TRANSFER = """
schema: 1
name: transfer
dataset: {name: fashion_mnist}
models:
  - architecture: cnn
    source: zoo
    depth: 3
    widths: [16, 32]
    first_kernel: same
    sweep: {kernel_size: [5], window: [none, hamming]}
attacks:
  deepfool_l2: {attack: deepfool}
  spatial_shift: {attack: spatial_shift, stop: first}
transfer: {attack: deepfool_l2, budget: 1.5}
evaluation: {num_images: 20, gate: false, keep_adversarials: true}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfer")
    plan = make_plan(parse_config(TRANSFER))
    assert run_plan(plan, folder, CPU).num_failed == 0
    return Context(plan, RunFolder(folder), CPU)


def test_every_pair_is_counted_from_the_rescaled_images(finished):
    table = pd.read_csv(finished.run.transfer)
    names = [spec.model_id for spec in finished.plan.config.model_specs()]
    pairs = [(a, b) for a in names for b in names]
    assert list(zip(table["source_id"], table["target_id"], strict=True)) == pairs
    attacked = finished.plan.attacked
    moved = transfer.rescaled(finished, finished.plan.config.transfer, names[0])
    samples = {n: read_table(finished.run.samples(n, "deepfool_l2")) for n in names}
    fooled = np.array(samples[names[0]]["status"] == "fooled")
    length = (moved - attacked.images).flatten(1).norm(dim=1)[torch.from_numpy(fooled)]
    assert (length <= 1.5 + 1e-5).all()  # clipping only shortens
    assert length.max() > 1.2
    model, _ = load_model(finished, finished.plan.config.model_specs()[1])
    right = np.array(samples[names[1]]["clean_prediction"] == samples[names[1]]["label"])
    predicted = logits_of(model, moved, CPU).argmax(1)
    wrong = (predicted != attacked.labels).numpy()
    row = table.iloc[1]
    assert row["num_images"] == (fooled & right).sum()
    assert row["num_fooled"] == (fooled & right & wrong).sum()


def test_a_model_is_fooled_by_its_own_images_when_they_are_long_enough(finished):
    table = pd.read_csv(finished.run.transfer)
    own = table[table["source_id"] == table["target_id"]]
    assert (own["num_fooled"] >= 0.9 * own["num_images"]).all()


def test_the_second_time_nothing_is_computed(finished, monkeypatch):
    before = finished.run.transfer.read_bytes()

    def refuse(*args):
        raise AssertionError("computed again")

    monkeypatch.setattr(transfer, "rescaled", refuse)
    transfer.write_transfer(finished, finished.plan.config.transfer)
    assert finished.run.transfer.read_bytes() == before


def test_missing_and_damaged_images_are_named(finished, tmp_path):
    asked, name = finished.plan.config.transfer, finished.plan.config.model_specs()[0].model_id
    path = finished.run.adversarials(name, "deepfool_l2")
    content = path.read_bytes()
    try:
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(RequestError, match=r"deepfool_l2\.npz has changed since"):
            transfer.rescaled(finished, asked, name)
        path.unlink()
        with pytest.raises(RequestError, match=r"deepfool_l2\.npz: no such file"):
            transfer.rescaled(finished, asked, name)
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "attack: deepfool_l2, budget",
            "attack: spatial_shift, budget",
            "needs one of deepfool_l2",
        ),
        ("keep_adversarials: true", "keep_adversarials: false", "keep_adversarials: true"),
        ("budget: 1.5}", "budget: 0}", "transfer.budget"),
    ],
)
def test_what_cannot_be_transferred_is_refused(old, new, message):
    with pytest.raises(RequestError, match=message):
        parse_config(TRANSFER.replace(old, new))
