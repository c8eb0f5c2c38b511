"""Jobs: the epoch of a twin, and attacks on some of the images and models."""

import pandas as pd
import pytest
import torch
from conftest import TINY_RUN

from robust_ham.analysis.curves import kernel_size_curves
from robust_ham.analysis.run import Run
from robust_ham.config.files import parse_config
from robust_ham.errors import RequestError
from robust_ham.runs.jobs.model import _epoch_like_twin
from robust_ham.runs.plan.context import Context
from robust_ham.runs.plan.keys import model_identity
from robust_ham.runs.plan.plan import make_plan
from robust_ham.runs.runner import run_plan
from robust_ham.storage.files import read_json, write_csv
from robust_ham.storage.parquet_tables import read_table
from robust_ham.storage.run_folder import RunFolder
from robust_ham.training.train import TrainingError

CPU = torch.device("cpu")
TWINS = (
    TINY_RUN.replace(
        "    sweep: {kernel_size: [3], window: [none, hamming]}\n",
        "    kernel_size: 3\n    sweep: {window: [none, hamming]}\n"
        "  - {architecture: cnn, depth: 2, widths: [4], first_kernel: same, kernel_size: 3,"
        " accuracy_of: hamming}\n",
    )
    .replace("epochs: 1", "epochs: 3")
    .replace("num_train: 256", "num_train: 256, num_validation: 100")
)
LIKE = "cnn2-w4-as_hamming-k3-none-s0"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("twins")
    plan = make_plan(parse_config(TWINS), attack=False)
    assert [job.name for job in plan.jobs][-1] == LIKE  # after its twins
    assert run_plan(plan, folder, CPU).num_failed == 0
    return Context(plan, RunFolder(folder), CPU)


def curve(context, name):
    return pd.read_csv(context.run.model(name) / "training.csv")


def test_the_epoch_nearest_in_accuracy_is_kept(finished):
    like, own = curve(finished, LIKE), curve(finished, "cnn2-w4-k3-none-s0")
    other = curve(finished, "cnn2-w4-k3-hamming-s0")["validation_accuracy"].iloc[-1]
    pd.testing.assert_frame_equal(like, own.iloc[: len(like)])  # the same training, ended there
    gaps = (own["validation_accuracy"] - other).abs()
    assert gaps[len(like) - 1] == gaps.min()
    card = read_json(finished.run.model(LIKE) / "model.json")
    assert card["model"]["accuracy_of"] == "hamming"


@pytest.mark.parametrize(
    ("last", "epoch"), [([0.1, 0.2, 0.31], 2), ([0.1, 0.2, 0.9], 3), ([0.4, 0.5, 0.12], 1)]
)
def test_which_epoch_that_is(finished, tmp_path, last, epoch):
    context = Context(finished.plan, RunFolder(tmp_path), CPU)
    spec = finished.plan.jobs[-1].spec
    with pytest.raises(TrainingError, match="its twin cnn2-w4-k3-none-s0 was not trained"):
        _epoch_like_twin(context, spec)
    own = [0.1, 0.3, 0.5]
    for twin, accuracies in zip(spec.accuracy_twins(), (own, last), strict=True):
        table = pd.DataFrame({"validation_accuracy": accuracies})
        write_csv(context.run.model(twin.model_id) / "training.csv", table)
    assert _epoch_like_twin(context, spec) == epoch
    assert _epoch_like_twin(context, finished.plan.jobs[0].spec) is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("accuracy_of: hamming", "accuracy_of: none", "another window"),
        ("accuracy_of: hamming", "accuracy_of: hann", "requires the model cnn2-w4-k3-hann-s0"),
        (
            "accuracy_of: hamming",
            "seed: 7, accuracy_of: hamming",
            "requires the model cnn2-w4-k3-none-s7",
        ),
        ("accuracy_of: hamming", "accuracy_of: hamming, training: {lr: 0.3}", "the same training"),
        (", num_validation: 100", "", "num_validation"),
    ],
)
def test_a_twin_that_is_not_there_is_refused(old, new, message):
    with pytest.raises(RequestError, match=message):
        parse_config(TWINS.replace(old, new))


SOME = TINY_RUN.replace("window: [none, hamming]}", "window: [none], seed: [0, 1]}").replace(
    "  spatial_shift: {attack: spatial_shift, stop: first}\n",
    "  few: {attack: deepfool, num_images: 5, steps: 10}\n"
    "  shift: {attack: spatial_shift, num_images: 8, seeds: [1]}\n",
)


def test_an_attack_on_some_images_and_models(tmp_path):
    plan = make_plan(parse_config(SOME))
    names = [job.name for job in plan.jobs]
    assert "cnn2-w4-k3-none-s1/shift" in names
    assert "cnn2-w4-k3-none-s0/shift" not in names
    assert run_plan(plan, tmp_path, CPU).num_failed == 0
    folder = RunFolder(tmp_path)
    many, few = (
        read_table(folder.samples("cnn2-w4-k3-none-s0", a)) for a in ("deepfool_l2", "few")
    )
    assert few["sample_id"].tolist() == many["sample_id"].tolist()[:5]
    assert len(read_table(folder.samples("cnn2-w4-k3-none-s1", "shift"))) == 8
    run = Run(folder)
    assert "best" not in run.attacks  # only one is on all images
    curves = kernel_size_curves(run).set_index(["attack", "metric"])
    assert curves.loc[("shift", "robust_accuracy"), "num_seeds"] == 1
    assert curves.loc[("few", "robust_area"), "num_seeds"] == 2
    assert set(run_again(plan, tmp_path)) == {"already there"}


def run_again(plan, folder):
    outcomes = []

    class Listening:
        def started(self, num_jobs):
            assert num_jobs == len(plan.jobs)

        def job_started(self, name):
            return lambda done, total: None

        def job_ended(self, name, outcome, seconds):
            outcomes.append(outcome)

        def note(self, line):
            raise AssertionError(line)

    run_plan(plan, folder, CPU, Listening())
    return outcomes


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_images: 5", "num_images: 21", "few.num_images: expected at most .* 20, got 21"),
        ("seeds: [1]", "seeds: [3]", "shift.seeds: no model has seed 3"),
        ("seeds: [1]", "seeds: []", "attacks.shift.seeds"),
    ],
)
def test_images_and_models_that_are_not_there_are_refused(old, new, message):
    with pytest.raises(RequestError, match=message):
        parse_config(SOME.replace(old, new))


def test_a_changed_twin_changes_the_key(finished):
    spec = finished.plan.jobs[-1].spec
    before = model_identity(finished, spec)
    text = TWINS.replace("kernel_size: 3\n", "kernel_size: 3\n    training: {lr: 0.2}\n", 1)
    text = text.replace("accuracy_of: hamming", "accuracy_of: hamming, training: {lr: 0.2}")
    changed = Context(make_plan(parse_config(text), attack=False), finished.run, CPU)
    after = model_identity(changed, changed.plan.jobs[-1].spec)
    assert [t["training"]["lr"] for t in before["twins"]] == [0.1, 0.1]
    assert [t["training"]["lr"] for t in after["twins"]] == [0.2, 0.2]
