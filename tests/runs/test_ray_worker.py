"""A job on a worker, without Ray: what it refuses and what it computes."""

import dataclasses
import shutil

import pytest
import torch
from faulty_runs import CONFIG, results, run_here
from test_faults import write_data

from robust_ham.config.files import parse_config
from robust_ham.errors import RequestError
from robust_ham.progress import no_progress
from robust_ham.runs.attempt import already_there, run_job
from robust_ham.runs.jobs.model import help_train
from robust_ham.runs.plan.context import Context
from robust_ham.runs.plan.keys import run_key
from robust_ham.runs.plan.plan import make_plan
from robust_ham.runs.ray_worker import run_on_worker
from robust_ham.runs.worker_setup import WorkerSetup
from robust_ham.storage.run_folder import RunFolder
from robust_ham.training.train import TrainingError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run_here(folder, data)
    return folder


def context_of(folder, data, config=CONFIG):
    return Context(make_plan(parse_config(config), data), RunFolder(folder), CPU)


REAL_JOB = WorkerSetup.of


def job_elsewhere(context, data, token="no token"):
    """Of a worker that does not see the folder."""
    return dataclasses.replace(REAL_JOB(context, data, token), folder="/nowhere")


def test_a_worker_with_other_data_is_refused(data, tmp_path):
    context = context_of(tmp_path, data)
    context.run.lock("token").parent.mkdir()
    context.run.lock("token").touch()
    setup = REAL_JOB(context, data, context.run.lock("token").name)
    other = dataclasses.replace(setup, data_root=str(write_data(tmp_path / "other", first=50)))
    with pytest.raises(RequestError, match="has other data, code or precision than the driver"):
        run_on_worker(other, context.plan.jobs[0], no_progress)
    elsewhere = job_elsewhere(context, data)
    with pytest.raises(RequestError, match="does not see the run folder /nowhere"):
        run_on_worker(elsewhere, context.plan.jobs[0], no_progress)


@pytest.mark.parametrize("change", ["steps: 10", "epochs: 2", "threads: 1", "num_images: 12"])
def test_the_key_of_a_run_is_of_all_that_decides_it(data, tmp_path, monkeypatch, change):
    key = run_key(context_of(tmp_path, data))
    assert run_key(context_of(tmp_path, data)) == key
    name, _, number = change.partition(": ")
    changed = CONFIG.replace(change, f"{name}: {int(number) - 1 or 2}")
    assert run_key(context_of(tmp_path, data, changed)) != key
    for module in ("robust_ham.training.train.VERSION", "robust_ham.evaluation.evaluate.VERSION"):
        with monkeypatch.context() as patch:
            patch.setattr(module, 999)
            assert run_key(context_of(tmp_path, data)) != key


def test_what_is_there_is_not_computed_again(whole, data, tmp_path):
    """A shard that the driver has; a model whose predictions alone are missing."""
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(whole, folder.root)
    context = context_of(folder.root, data)
    model, attack = context.plan.jobs[0], context.plan.jobs[1]
    assert (attack.shard, attack.num_shards) == (0, 2)
    rows = attack.result(folder)
    folder.receipt(rows).unlink()
    assert already_there(context, attack) is None
    run_job(context, attack, no_progress)
    assert not folder.receipt(rows).exists()  # the other shard is missing
    assert already_there(context, attack) is not None
    run_job(context, context.plan.jobs[2], no_progress)
    assert rows.read_bytes() == (whole / rows.relative_to(folder.root)).read_bytes()

    folder.receipt(folder.predictions(model.name)).unlink()
    steps = []
    folder.lock("token").parent.mkdir(exist_ok=True)
    folder.lock("token").touch()
    setup = REAL_JOB(context, data, folder.lock("token").name)
    attempt = run_on_worker(setup, model, lambda done, total: steps.append(done))
    assert (attempt.outcome, steps) == ("done", [])  # it was not trained
    folder.lock("token").unlink()
    assert results(folder.root) == results(whole)


def test_shards_of_a_process_that_was_killed_while_it_removed_them(whole, data, tmp_path):
    """Their whole is there; what is left of them goes, whoever comes next."""
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(whole, folder.root)
    context = context_of(folder.root, data)
    first, second = context.plan.jobs[1:3]
    assert (first.shard, second.shard, first.attack_id) == (0, 1, second.attack_id)
    left = folder.shard(first.spec.model_id, first.attack_id, 0)
    for job in (first, second):
        left.mkdir(parents=True)
        (left / "samples.parquet").touch()
        assert already_there(context, job) is not None
        assert results(folder.root) == results(whole)
        assert not (folder.root / "shards").exists()


def test_processes_that_help_to_train_skip_what_the_first_skips(data, tmp_path, monkeypatch):
    twins = CONFIG.replace(
        "training:",
        "  - {architecture: cnn, depth: 2, widths: [8], first_kernel: same, kernel_size: 3, "
        "accuracy_of: hamming, sweep: {window: [none]}}\ntraining:",
        1,
    ).replace("num_train: 1000", "num_train: 900, num_validation: 100")
    context = context_of(tmp_path, data, twins)
    tried = []

    def train(context, spec, progress):
        tried.append(spec.model_id)
        if spec.window == "hamming":
            raise TrainingError("the loss is nan")

    monkeypatch.setattr("robust_ham.runs.jobs.model._train", train)
    help_train(context)
    models = [job for job in context.plan.jobs if job.attack_id is None]
    skipped = [job.name for job in models if any("hamming" in name for name in job.needs)]
    assert len(skipped) == 1
    assert tried == [job.name for job in models if job.name not in skipped]
