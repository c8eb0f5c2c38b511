"""Whatever happens to a run: nothing finished is lost, nothing damaged is believed.

The short versions; `make test-faults` runs the long ones.
"""

import multiprocessing
import os
import random
import re
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from faulty_runs import (
    CONFIG,
    NUM_JOBS,
    Listening,
    results,
    run_as_nobody,
    run_here,
    run_in_child,
    run_until_killed,
)
from image_files import write_idx

from robust_ham.analysis.run import Run
from robust_ham.config.experiment import DatasetConfig
from robust_ham.config.files import parse_config
from robust_ham.data.datasets import load_split
from robust_ham.errors import RequestError
from robust_ham.progress import no_progress
from robust_ham.runs.attempt import Attempt, run_job
from robust_ham.runs.plan.context import Context
from robust_ham.runs.plan.job import list_jobs
from robust_ham.runs.plan.keys import run_key
from robust_ham.runs.plan.plan import make_plan
from robust_ham.runs.runner import inline
from robust_ham.runs.status import PROCESS, read_status
from robust_ham.storage import files, parquet_tables
from robust_ham.storage.locks import try_lock
from robust_ham.storage.receipts import check, kept_rows, write_kept
from robust_ham.storage.run_folder import RunFolder

FORKS = multiprocessing.get_context("forkserver")


def write_data(root, first=0):
    """Some images of the package as a data set of its own, which is read at once."""
    for split, stem, count in (("train", "train", 1000), ("test", "t10k", 40)):
        found = load_split(DatasetConfig(), split)
        rows = slice(first, first + count)
        images, labels = found.images[rows, 0].numpy(), found.labels[rows].numpy()
        write_idx(root / "FashionMNIST" / "raw", stem, images, labels)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """An uninterrupted run: its folder, and its results."""
    folder = tmp_path_factory.mktemp("whole")
    assert list(run_here(folder, data).outcomes.values()).count("done") == NUM_JOBS + 1
    return folder, results(folder)


@pytest.fixture(scope="module")
def children():
    """Starts processes that have imported everything, but computed nothing."""
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}  # of them alone
    FORKS.set_forkserver_preload(["faulty_runs"])

    def start(function, *args):
        process = FORKS.Process(target=function, args=args)
        process.start()
        return process

    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setenv(name, value)
        start(time.sleep, 0).join()
    return start


def finished_files(folder):
    """Inode of every result that has its receipt."""
    receipts = folder / "receipts"
    made = [p.relative_to(receipts).with_suffix("") for p in receipts.rglob("*.json")]
    places = [folder / p for p in made if p.parts[0] in ("models", "samples", "predictions")]
    return {place: place.stat().st_ino for place in places if place.exists()}


# --- killed --------------------------------------------------------------------------------------


def test_killed_at_every_rename(whole, data, tmp_path, monkeypatch):
    """What a killed process leaves is what the disk holds then: here, before each rename."""
    _, expected = whole
    folder, real, states = tmp_path / "run", os.replace, []

    def replace(source, target):
        states.append(tmp_path / f"state{len(states)}")
        shutil.copytree(folder, states[-1])
        return real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        run_here(folder, data)
    assert results(folder) == expected
    assert len(states) > 60
    for state in states:
        kept = finished_files(state)
        monitor = run_here(state, data)
        assert results(state) == expected
        assert finished_files(state).items() >= kept.items()  # nothing finished was made anew
        assert all(re.search(r"\d jobs? in ", line) for line in monitor.notes)
        assert not list(state.rglob(".*tmp*"))
        shutil.rmtree(state)


def killed_at_random_moments(count, data, tmp_path, children):
    """Of each of ``count`` runs: whether it was killed, what it had finished, and what was made
    of it by the same command, its results and what became of its jobs."""
    seed = time.time_ns()
    print(f"seed {seed}")
    moments, start = random.Random(seed), time.monotonic()
    children(run_in_child, tmp_path / "timed", data).join()
    duration = time.monotonic() - start
    for i in range(count):
        folder = tmp_path / str(i)
        process = children(run_until_killed, folder, data)
        process.join(moments.uniform(0.1, 1.0) * duration)
        process.kill()
        process.join()
        folder.mkdir(exist_ok=True)
        kept = finished_files(folder)
        children(run_in_child, folder, data, tmp_path / "report").join()
        outcomes = files.read_json(tmp_path / "report")["outcomes"]
        yield process.exitcode == -signal.SIGKILL, folder, kept, outcomes
        shutil.rmtree(folder)


@pytest.mark.parametrize("count", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_random_moments(count, whole, data, tmp_path, children):
    num_killed = 0
    for killed, folder, kept, outcomes in killed_at_random_moments(count, data, tmp_path, children):
        num_killed += killed
        assert results(folder) == whole[1]
        assert finished_files(folder).items() >= kept.items()  # nothing finished was made anew
        attacks = [path for path in kept if "samples" in path.parts]
        there = [name for name, outcome in outcomes.items() if outcome == "already there"]
        assert len(there) >= 2 * len(attacks)  # both shards of each
    assert num_killed > count / 3


# --- shared --------------------------------------------------------------------------------------


def test_processes_share_a_folder_and_make_each_result_once(whole, data, tmp_path, children):
    _, expected = whole
    folder = tmp_path / "run"
    places = [tmp_path / f"{i}.json" for i in range(3)]
    processes = [children(run_in_child, folder, data, place) for place in places]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert results(folder) == expected
    done = [files.read_json(place)["outcomes"] for place in places]
    for name in done[0]:
        if name != "transfer":
            assert sum(outcomes[name] == "done" for outcomes in done) == 1
    assert not (folder / "locks").exists()


def test_a_run_that_begins_or_ends_leaves_alone_what_a_report_is_writing(whole, data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    with files.writing(folder / "claims.csv") as temporary:
        shutil.copyfile(folder / "claims.csv", temporary)
        run_here(folder, data)
    assert results(folder) == whole[1]


def test_a_job_that_failed_here_and_was_done_elsewhere_is_done(whole, data, tmp_path):
    """As where one machine has too little memory."""
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)

    def one_fails(context, ledger):
        inline(context, ledger)
        name = context.plan.jobs[0].name
        ledger.ended[name] = Attempt("failed: no memory", 0.0, "OutOfMemoryError")

    run_here(folder, data, executor=one_fails)
    assert results(folder) == whole[1]


def test_locks_of_killed_processes_do_not_stay(whole, data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    (folder / "locks").mkdir()
    for name in (f"{PROCESS}0123.lock", "ray-4567.lock", "tables.lock"):
        (folder / "locks" / name).touch()
    run_here(folder, data)
    assert not (folder / "locks").exists()


def test_a_table_that_is_kept_is_believed_at_any_moment(tmp_path, monkeypatch):
    """By one who reads while it is written anew, and after its process was killed there."""
    run = RunFolder(tmp_path / "run")
    old, new = (pd.DataFrame({"key": list(keys)}) for keys in ("ab", "abc"))
    write_kept(run, run.transfer, old)
    real, states = os.replace, []

    def replace(source, target):
        real(source, target)
        check(run, run.transfer, run.transfer)
        states.append(RunFolder(tmp_path / f"state{len(states)}"))
        shutil.copytree(run.root, states[-1].root)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        write_kept(run, run.transfer, new)
    whole = results(run.root)
    assert len(states) == 3
    for state in states:
        kept = kept_rows(state, state.transfer, ["key"])
        assert kept.equals(old) or kept.equals(new)
        if kept.equals(new):
            assert results(state.root).items() >= whole.items()
        write_kept(state, state.transfer, new)
        assert results(state.root).items() >= whole.items()
    run.transfer.write_text("key\nx\n")
    with pytest.raises(RequestError, match="has changed since it was written"):
        check(run, run.transfer, run.transfer)


def test_a_receipt_of_a_shard_that_is_missing_does_not_stop_a_run(whole, data, tmp_path):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(whole[0], run.root)
    context = Context(make_plan(parse_config(CONFIG), data), run, torch.device("cpu"))
    job = next(job for job in context.plan.jobs if job.attack_id is not None)
    rows = job.result(run)
    rows.unlink()
    run.receipt(rows).unlink()
    run_job(context, job, no_progress)
    shutil.rmtree(run.root / "shards")
    run_here(run.root, data)
    assert results(run.root) == whole[1]


def test_a_job_that_another_process_is_at_is_waited_for_without_a_bar(data, tmp_path):
    folder = RunFolder(tmp_path / "run")
    run_here(folder.root, data)
    (job,) = (c for c in list_jobs(Run(folder).config) if c.name.endswith("none-s0/shift/1of2"))
    job.result(folder).unlink()
    lock, begun, noted = try_lock(folder.lock(job.name)), [], []

    class Watching(Listening):
        def job_started(self, name):
            begun.append(name)
            return super().job_started(name)

        def note(self, line):
            noted.append(line)
            if "waiting for another" in line:
                threading.Timer(1, lock.release).start()

    run_here(folder.root, data, monitor=Watching())
    assert noted.count("waiting for another process: 1 job left") == 1
    assert begun.count(job.name) == 1


@pytest.mark.parametrize("killed", ["before its receipt", "half written"])
def test_a_model_without_its_receipt_does_not_stop_the_others(whole, data, tmp_path, killed):
    """Its process was killed; another, which takes part already, comes to the same job."""
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(whole[0], folder.root)
    model = sorted((folder.root / "models").iterdir())[0]
    folder.receipt(model).unlink()
    if killed == "half written":
        (model / "training.csv").unlink()
    context = Context(make_plan(parse_config(CONFIG), data), folder, torch.device("cpu"))
    other = try_lock(folder.lock(f"{PROCESS}other"))
    files.write_text(folder.shared_key, run_key(context))
    before = model.stat().st_ino
    monitor = run_here(folder.root, data)
    other.release()
    assert results(folder.root) == whole[1]
    adopted = killed == "before its receipt"
    assert (model.stat().st_ino == before) == adopted
    assert (monitor.outcomes[model.name] == "already there") == adopted


def test_who_leaves_last_removes_what_the_killed_had_begun(whole, data, tmp_path):
    begun = (
        tmp_path / "run" / "samples" / "cnn2-w8-k3-none-s0" / ".shift.parquet.6c10206f.tmp.parquet"
    )

    class Watching(Listening):
        def job_ended(self, name, outcome, seconds):
            begun.parent.mkdir(parents=True, exist_ok=True)
            begun.touch()

    run_here(tmp_path / "run", data, monitor=Watching())
    assert not begun.exists()
    assert results(tmp_path / "run") == whole[1]


def test_one_of_two_processes_is_killed(whole, data, tmp_path, children):
    _, expected = whole
    folder = tmp_path / "run"
    first = children(run_until_killed, folder, data)
    second = children(run_in_child, folder, data)
    first.join(1)
    first.kill()
    second.join()
    assert second.exitcode == 0
    assert results(folder) == expected


def test_another_configuration_is_refused_while_one_is_run(data, tmp_path, children):
    folder = tmp_path / "run"
    process = children(run_until_killed, folder, data)
    try:
        while not (folder / "inputs.parquet").exists():
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGSTOP)
        assert len(read_status(folder).running) <= 1
        assert read_status(folder).num_processes == 1
        with pytest.raises(RequestError, match="running in this folder with another configuration"):
            run_here(folder, data, CONFIG.replace("steps: 10", "steps: 11"))
        other = write_data(tmp_path / "other", first=50)
        with pytest.raises(RequestError, match="or with other data"):
            run_here(folder, other)
    finally:
        process.kill()
        process.join()


# --- the disk ------------------------------------------------------------------------------------


def test_a_folder_that_may_not_be_written(whole, data, children):
    with tempfile.TemporaryDirectory() as place:  # one that any user may enter
        os.chmod(place, 0o755)
        folder = Path(place, "run")
        shutil.copytree(whole[0], folder)
        shutil.copytree(data, Path(place, "data"))
        folders = [folder, *(p for p in folder.rglob("*") if p.is_dir())]
        for path in folders:
            path.chmod(0o555)
        reading, writing = FORKS.Pipe(duplex=False)
        process = children(run_as_nobody, folder, Path(place, "data"), writing)
        assert reading.poll(60)
        assert reading.recv() == "PermissionError"
        process.join()
        for path in folders:
            path.chmod(0o755)
        assert results(folder) == whole[1]


# --- damage --------------------------------------------------------------------------------------


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(flipped, id="a bit flipped"),
        pytest.param(lambda c: c[: len(c) // 2], id="half", marks=pytest.mark.slow),
        pytest.param(lambda c: b"", id="empty", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_file_is_made_anew(whole, data, tmp_path, damage):
    original, expected = whole
    folder = tmp_path / "run"
    shutil.copytree(original, folder)
    for name, content in expected.items():
        (folder / name).write_bytes(damage(content))
        monitor = run_here(folder, data)
        assert results(folder) == expected, name
        part = name.partition("/")[0]
        if part in ("models", "predictions", "samples", "gallery", "adversarials", "grids"):
            assert monitor.notes[0].startswith(f"{name} has changed since it was written"), name
            assert "done" in monitor.outcomes.values()


@pytest.mark.slow
def test_a_missing_file_is_made_anew(whole, data, tmp_path):
    original, expected = whole
    folder = tmp_path / "run"
    shutil.copytree(original, folder)
    for name in expected:
        (folder / name).unlink()
        run_here(folder, data)
        assert results(folder) == expected, name


def test_data_that_change_under_a_run_are_never_mixed(data, tmp_path):
    folder, root = tmp_path / "run", tmp_path / "data"
    shutil.copytree(data, root)
    run_here(folder, root)
    before = results(folder)
    images = next(root.rglob("train-images-idx3-ubyte"))
    content = bytearray(images.read_bytes())
    content[16 + 784 * 3 + 400] ^= 255
    images.write_bytes(content)
    monitor = run_here(folder, root)
    assert "already there" not in monitor.outcomes.values()
    run_here(tmp_path / "fresh", root)
    after = results(folder)
    assert after == results(tmp_path / "fresh")
    changed = [name for name in before if before[name] != after[name]]
    assert any(name.endswith(".safetensors") for name in changed)


def test_shards_give_what_one_job_gives(whole, data, tmp_path):
    """Contract 1: the same status, and norms within 1e-5, whatever is in a batch."""
    run_here(tmp_path / "run", data, CONFIG.replace("shard_size: 6", "shard_size: null"))
    for path in sorted((whole[0] / "samples").rglob("*.parquet")):
        one, other = (
            parquet_tables.read_table(p)
            for p in (path, tmp_path / "run" / path.relative_to(whole[0]))
        )
        assert one["status"].tolist() == other["status"].tolist()
        for norm in ("l2", "linf"):
            np.testing.assert_allclose(one[norm], other[norm], rtol=1e-5)
    assert not list((tmp_path / "run").rglob("shards"))
