"""Links, pipes and sockets in the place of any file of a run: one line, and no verb waits."""

import os
import shutil
import signal
import socket

import numpy as np
import pytest
from image_files import assert_refused, mnist_like, write_folders, write_idx
from test_curves import CONFIG  # noqa: F401
from test_page import folder  # noqa: F401

from robust_ham.analysis.run import Run
from robust_ham.config.experiment import DatasetConfig
from robust_ham.data.datasets import load_split
from robust_ham.errors import RequestError
from robust_ham.models.importing.state_dicts import read_network
from robust_ham.storage import locks
from robust_ham.storage.files import file_hash, read_json
from robust_ham.storage.output_folder import claim
from robust_ham.storage.run_folder import RunFolder
from robust_ham.storage.run_logs import note_failure


@pytest.fixture(autouse=True)
def _no_verb_waits():
    """A read that waits for a pipe or does not end is stopped."""
    signal.alarm(60)
    yield
    signal.alarm(0)


def make_socket(path, monkeypatch):
    monkeypatch.chdir(path.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


SPECIAL = {
    "pipe": lambda path, _: os.mkfifo(path),
    "socket": make_socket,
    "endless": lambda path, _: path.symlink_to("/dev/zero"),
    "loop": lambda path, _: path.symlink_to(path.name),
    "dangling": lambda path, _: path.symlink_to("nothing"),
}


def places(run):
    """A file of every kind that a run has, present or not."""
    model_id = Run(run).specs[0].model_id
    model = run.model(model_id)
    return [
        *(run.config, run.manifest, run.failures, run.checksums, run.inputs, run.log, run.timings),
        *(run.summary, run.gate, run.kernels, run.transfer, run.report),
        *(run.figures / "x.svg", run.lock("start"), run.lock(model_id), run.shared_key),
        *(model / "model.json", model / "training.csv", model / "model.safetensors"),
        *(run.samples(model_id, "d"), run.predictions(model_id), run.gallery(model_id, "d")),
        *(run.grid(model_id, "s"), run.spectrum(model_id, "d"), run.unfinished(model_id)),
        *(run.receipt(model), run.receipt(run.samples(model_id, "d"))),
        run.shard(model_id, "d", 0) / "samples.parquet",
    ]


def put(path, kind, monkeypatch):
    """Put something special in the place of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    SPECIAL[kind](path, monkeypatch)


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_named_in_every_verb(kind, folder, tmp_path, run_cli, monkeypatch):  # noqa: F811
    whole = tmp_path / "whole"
    shutil.copytree(folder.root, whole)
    for i, place in enumerate(places(folder)):
        name = place.relative_to(folder.root).as_posix()
        run = RunFolder(tmp_path / f"run{i}")
        shutil.copytree(whole, run.root)
        put(run.root / name, kind, monkeypatch)
        for words in (
            ("status", run.root),
            ("report", run.root),
            ("compare", whole, run.root, "--out", tmp_path / "compared"),
            ("explain", "leakage", "--run", run.root, "--out", tmp_path / "explained"),
        ):
            code, printed, errors = run_cli(*words)
            assert (code, printed, errors.count("\n")) == (2, "", 1), (name, words[0], errors)
            assert f"{name}: a " in errors
            assert "a run folder must not hold any" in errors
        shutil.rmtree(run.root)


def test_verify_names_all_of_them(folder, tmp_path, run_cli, monkeypatch):  # noqa: F811
    for i, place in enumerate(places(folder)[2::4]):
        name = place.relative_to(folder.root).as_posix()
        run = RunFolder(tmp_path / f"run{i}")
        shutil.copytree(folder.root, run.root)
        put(run.root / name, "pipe", monkeypatch)
        code, _, errors = run_cli("verify", run.root, "--data-root", tmp_path)
        assert code in (2, 3), (name, errors)
        expected = f"{name} is a pipe (FIFO), not a file"
        assert expected in errors or f"{name}: expected a file, got a pipe" in errors
        assert "Traceback" not in errors
        shutil.rmtree(run.root)


@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_a_run_neither_waits_nor_writes_there(kind, tmp_path, run_cli, monkeypatch):
    for name in ("run.log", "failures.jsonl", "timings.csv", "locks/start.lock", "config.yaml"):
        out = tmp_path / name.replace("/", "+")
        claim(out, "quickstart")
        put(out / name, kind, monkeypatch)
        code, _, errors = run_cli("run", "quickstart", "--out", out)
        assert code == 2
        assert f"{name}: a " in errors
        there = {p.name for p in out.rglob("*") if not p.is_dir()}
        assert there == {"manifest.json", name.rpartition("/")[2]}


def test_each_reader_refuses_them_by_itself(tmp_path, monkeypatch):
    """Another process may put them there after the folder was looked at."""
    run = RunFolder(tmp_path)
    for kind in ("pipe", "endless", "socket"):
        path = tmp_path / kind
        put(path, kind, monkeypatch)
        for read in (read_json, file_hash, locks.owner, locks.try_lock):
            with pytest.raises(RequestError, match=f"{kind}: expected a file, got a"):
                read(path)
        put(run.failures, kind, monkeypatch)
        with pytest.raises(RequestError, match="failures.jsonl: expected a file, got a"):
            note_failure(run, "cell", "error", "reason")


def test_what_the_user_names_may_be_a_link_but_no_pipe(tmp_path, run_cli, monkeypatch):
    for name in ("mine.yaml", "table.csv", "table.parquet", "info.json", "a.pth", "a.safetensors"):
        put(tmp_path / name, "pipe", monkeypatch)
    for words in (
        ("run", tmp_path / "mine.yaml"),
        *(("report", tmp_path / name) for name in ("table.csv", "table.parquet", "info.json")),
    ):
        code, _, errors = run_cli(*words)
        assert (code, errors.count("\n")) == (2, 1)
        assert "expected a file, got a pipe" in errors
    for name in ("a.pth", "a.safetensors"):
        with pytest.raises(RequestError, match=f"{name}: expected a file, got a pipe"):
            read_network(tmp_path / name)


def test_data_sets_may_hold_links_but_no_pipes(tmp_path, monkeypatch):
    images, labels = mnist_like(20)
    write_idx(tmp_path / "elsewhere", "t10k", images, labels)
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for path in sorted((tmp_path / "elsewhere").iterdir()):
        (raw / path.name).symlink_to(path)
    split = load_split(DatasetConfig(name="mnist"), "test", tmp_path)
    assert np.array_equal(split.images[:, 0].numpy(), images)
    for name in ("t10k-images-idx3-ubyte", "t10k-images-idx3-ubyte.gz"):
        (raw / "t10k-images-idx3-ubyte").unlink(missing_ok=True)
        put(raw / name, "pipe", monkeypatch)
        assert_refused("mnist", tmp_path, f"{name}: expected a file, got a pipe")
        (raw / name).unlink()
    put(tmp_path / "table/test-0.parquet", "pipe", monkeypatch)
    assert_refused("table", tmp_path, "test-0.parquet: expected a file, got a pipe")
    write_folders(tmp_path / "folders/test", images, labels % 2)
    put(tmp_path / "folders/test/class0/x.png", "endless", monkeypatch)
    assert_refused("folders", tmp_path, "x.png: expected a file, got a broken link or a device")
