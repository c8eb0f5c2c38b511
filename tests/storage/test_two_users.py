"""The umask decides who may read and write a run; a folder that cannot be shared is refused.

Other users are real ones: child processes of root that change their user id.
"""

import contextlib
import multiprocessing
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
import torch
from faulty_runs import results, run_here
from safetensors.torch import save_file
from test_faults import data, whole, write_data  # noqa: F401 - fixtures

from robust_ham.errors import RequestError
from robust_ham.runs.status import PROCESS, num_processes
from robust_ham.storage import files, output_folder
from robust_ham.storage.locks import try_lock
from robust_ham.storage.run_folder import RunFolder

ANNA, BERT, GROUP, STRANGER = 12_001, 12_002, 12_000, 12_003
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become other users")
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def place():
    """A folder that any user may enter, and that belongs to the group, as its new folders do."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        shared = Path(name, "shared")
        shared.mkdir()
        os.chown(shared, ANNA, GROUP)
        shared.chmod(0o2775)
        yield shared


def start(user, group, umask, function, *args):
    """Start a function as another user; the error that it ends with is sent."""
    reading, writing = FORK.Pipe(duplex=False)

    def become_and_call():
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
        os.umask(umask)
        try:
            function(*args)
        except (OSError, RequestError) as error:
            writing.send(error)
        else:
            writing.send(None)

    process = FORK.Process(target=become_and_call)
    process.start()
    return process, reading


def call(*words):
    process, reading = start(*words)
    assert reading.poll(60)
    process.join()
    return reading.recv()


def modes(folder):
    return {
        str(path.relative_to(folder)): path.stat().st_mode & 0o777
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o027, 0o077])
def test_the_umask_decides(tmp_path, mask):
    """Also for files of libraries that make theirs for one user alone, and for locks."""
    before = os.umask(mask)
    try:
        run = RunFolder(tmp_path / "run")
        output_folder.claim(run.root, "name")
        with files.writing(run.unfinished("m")) as temporary:
            save_file({"a": torch.zeros(1)}, temporary)
        with files.writing(run.gallery("m", "a")) as temporary:
            os.close(os.open(temporary, os.O_CREAT, 0o600))
        with files.writing_folder(run.model("m")) as temporary:
            save_file({"a": torch.zeros(1)}, temporary / "model.safetensors")
        with files.writing_folder(run.model("n")) as temporary:
            files.write_text(temporary / "model.json", "{}")
            (temporary / "model.json").chmod(0o644)
        lock = try_lock(run.lock("cell"))
        found = modes(run.root)
    finally:
        os.umask(before)
    lock.release()
    for name, mode in found.items():
        full = 0o777 if (run.root / name).is_dir() else 0o666
        assert mode == full & ~mask, name
    assert len(found) == 13


@as_root
def test_a_group_shares_a_run_by_its_umask(whole, place):  # noqa: F811
    """One finishes what the other has begun; whoever comes later may go on, too."""
    folder, images = place / "run", place / "data"
    shutil.copytree(whole[0], folder)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, ANNA, GROUP)
        path.chmod(0o2775 if path.is_dir() else 0o664)
    write_data(images)
    rows = sorted((folder / "samples").rglob("*.parquet"))
    rows[0].unlink()
    (folder / "config.yaml").unlink()
    assert call(BERT, GROUP, 0o002, run_here, folder, images) is None
    assert results(folder) == whole[1]
    assert rows[0].stat().st_uid == BERT
    rows[0].unlink()
    rows[1].unlink()
    assert call(ANNA, GROUP, 0o002, run_here, folder, images) is None
    assert results(folder) == whole[1]
    for path in (folder, *folder.rglob("*")):
        assert path.stat().st_mode & 0o060 == 0o060, path


def work(folder, stop):
    """Take part in a run without computing, with all kinds of locks and files."""
    run = RunFolder(folder)
    process = try_lock(run.lock(f"{PROCESS}0123"))
    while not stop.is_set():
        for name in ("start", "timings", "tables", "cell"):
            if lock := try_lock(run.lock(name)):
                lock.release()
        files.write_text(run.timings, "cell,seconds\n")
        with run.failures.open("a") as file:
            file.write("\n")
    process.release()


@contextlib.contextmanager
def at_work(folder, user, group, umask):
    """Another user who works in a folder, undisturbed until the end."""
    stop = FORK.Event()
    assert call(user, group, umask, output_folder.claim, folder, "name") is None
    process, reading = start(user, group, umask, work, folder, stop)
    while not num_processes(RunFolder(folder)):
        time.sleep(0.01)
    try:
        yield
        assert not reading.poll(0.3)
    finally:
        stop.set()
        process.join()
    assert reading.recv() is None


def claim_and_work(folder):
    """As a second process does at its start, and a little later."""
    output_folder.claim(folder, "name")
    run = RunFolder(folder)
    output_folder.refuse_unusable(run)
    for name in ("start", "timings", "tables", "cell"):
        for _ in range(20):
            if lock := try_lock(run.lock(name)):
                time.sleep(0.001)
                lock.release()


@as_root
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        pytest.param((ANNA, GROUP, 2), (BERT, GROUP, 2), None, id="a group with umask 002"),
        pytest.param((ANNA, ANNA, 0), (BERT, BERT, 0), None, id="everybody, with umask 000"),
        pytest.param((ANNA, GROUP, 2), (ANNA, ANNA, 0o22), None, id="the same user"),
        pytest.param((ANNA, GROUP, 0o22), (BERT, GROUP, 2), "not write", id="the first's umask"),
        pytest.param((ANNA, GROUP, 0o77), (BERT, GROUP, 2), "Permission denied", id="private"),
        pytest.param((ANNA, GROUP, 2), (BERT, GROUP, 0o22), "umask 0022", id="the second's umask"),
        pytest.param((ANNA, GROUP, 2), (STRANGER, STRANGER, 2), "not write", id="a stranger"),
        pytest.param((ANNA, GROUP, 0o22), (0, 0, 0o22), "umask 0022", id="root"),
    ],
)
def test_the_second_user_shares_or_is_refused_and_the_first_goes_on(place, first, second, message):
    folder = place / "run"
    with at_work(folder, *first):
        error = call(*second, claim_and_work, folder)
        if message is None:
            assert error is None
            return
        assert isinstance(error, PermissionError)
        assert message in f"{error.strerror}"
        assert error.filename.startswith(str(folder))
        owners = {path.stat().st_uid for path in (folder, folder / "locks")}
        assert owners == {ANNA}
        time.sleep(0.1)


@as_root
@pytest.mark.parametrize("name", ["models/m/model.json", "samples/m/a.parquet", "config.yaml"])
def test_a_file_that_cannot_be_read_refuses_the_second(place, name):
    folder = place / "run"
    assert call(ANNA, GROUP, 0o002, output_folder.claim, folder, "name") is None
    assert call(ANNA, GROUP, 0o002, files.write_text, folder / name, "{}") is None
    assert call(BERT, GROUP, 0o002, output_folder.claim, folder, "name") is None
    (folder / name).chmod(0o640)
    assert call(BERT, GROUP, 0o002, output_folder.claim, folder, "name") is None
    (folder / name).chmod(0o600)
    before = modes(folder)
    error = call(BERT, GROUP, 0o002, output_folder.claim, folder, "name")
    assert (error.filename, error.strerror) == (
        str(folder / name),
        "this user may not read it, so the run cannot be shared",
    )
    assert modes(folder) == before
    assert call(ANNA, GROUP, 0o002, output_folder.claim, folder, "name") is None


@as_root
@pytest.mark.parametrize("name", ["", "models", "models/m", "locks"])
def test_a_folder_that_cannot_be_written_refuses_the_second(place, name):
    folder = place / "run"
    assert call(ANNA, GROUP, 0o002, output_folder.claim, folder, "name") is None
    for made in ("models/m/model.json", "locks/asked.key"):
        assert call(ANNA, GROUP, 0o002, files.write_text, folder / made, "{}") is None
    (folder / name).chmod(0o755)
    before = modes(folder)
    error = call(BERT, GROUP, 0o002, output_folder.claim, folder, "name")
    assert (error.filename, "may not write" in error.strerror) == (str(folder / name), True)
    assert modes(folder) == before
