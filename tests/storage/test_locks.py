"""Locks: one owner at a time, freed by its death; where there are none, by its silence."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from robust_ham.storage import locks
from robust_ham.storage.locks import locked, owner, remove_dead, try_lock

HOLD = """
import sys, time
from pathlib import Path
from robust_ham.storage.locks import try_lock
assert try_lock(Path(sys.argv[1])) is not None
print("held", flush=True)
time.sleep(60)
"""


def break_locks(monkeypatch, number=errno.ENOLCK):
    """Let the kernel answer every request for a lock with an error."""

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture(params=["kernel", "lease"])
def kind(request, monkeypatch):
    if request.param == "lease":
        break_locks(monkeypatch)
    return request.param


def test_one_owner_at_a_time(kind, tmp_path):
    path = tmp_path / "a" / "cell.lock"
    assert owner(path) is None
    lock = try_lock(path)
    assert owner(path)["pid"] == os.getpid()
    assert try_lock(path) is None
    lock.release()
    assert owner(path) is None
    again = try_lock(path)
    assert again is not None
    again.release()
    assert list(path.parent.iterdir()) == []


def test_a_lock_is_waited_for(kind, tmp_path):
    path, waits = tmp_path / "cell.lock", []
    lock = try_lock(path)
    threading.Timer(0.3, lock.release).start()
    with locked(path, lambda: waits.append(1)):
        assert try_lock(path) is None
    assert waits


def test_the_kernel_frees_the_lock_of_a_dead_process(tmp_path):
    path = tmp_path / "cell.lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    assert try_lock(path) is None
    assert owner(path)["pid"] == process.pid
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert owner(path) is None
    try_lock(path).release()


def test_a_child_does_not_keep_the_lock_of_its_parent(tmp_path):
    path = tmp_path / "cell.lock"
    lock = try_lock(path)
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        lock.release()
        again = try_lock(path)
        assert again is not None
        again.release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_of_many_that_try_at_once_one_has_it(kind, tmp_path):
    path, held, most = tmp_path / "cell.lock", [], []

    def work():
        for _ in range(20):
            with locked(path):
                held.append(1)
                most.append(len(held))
                time.sleep(0.0005)
                held.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 160
    assert max(most) == 1


def test_a_folder_that_others_remove_meanwhile_is_made_again(tmp_path, monkeypatch):
    """Between the steps of making it, and before the file in it is opened."""
    path, tries, real_mkdir, real_open = tmp_path / "locks" / "cell.lock", [], os.mkdir, os.open

    def mkdir(*asked):
        tries.append("mkdir")
        if len(tries) == 1:
            raise FileExistsError  # it was there, and is not any more
        real_mkdir(*asked)

    def open_(*asked):
        tries.append("open")
        if len(tries) == 3:
            path.parent.rmdir()
        return real_open(*asked)

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", mkdir)
        patch.setattr(os, "open", open_)
        lock = try_lock(path)
    assert tries == ["mkdir", "mkdir", "open", "mkdir", "open"]
    lock.release()
    path.parent.rmdir()
    path.parent.touch()
    with pytest.raises(FileExistsError):
        try_lock(path)


def test_locks_of_the_dead_are_removed_and_others_stay(kind, tmp_path):
    said = json.dumps({"host": "gone", "pid": 1, "since": 0})
    (tmp_path / "dead.lock").touch()
    (tmp_path / "cell.lock").write_text(said)
    theirs = {"mine.lock": "", "yarn.lock": "left-pad@1.0", "Gemfile.lock": "{}", "a.txt": said}
    for name, content in theirs.items():
        (tmp_path / name).write_text(content)
    lock = try_lock(tmp_path / "held.lock")
    remove_dead(tmp_path, re.compile(r"dead\.lock"))
    assert owner(tmp_path / "held.lock") is not None
    lock.release()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == theirs


def test_no_space_for_what_a_lock_says_leaves_it_free(tmp_path, monkeypatch):
    path = tmp_path / "cell.lock"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            try_lock(path)
    assert not path.exists()
    lock = try_lock(path)
    assert lock is not None
    lock.release()


def test_to_ask_who_holds_a_lock_writes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "dead.lock"
    path.touch()
    monkeypatch.setattr(Path, "touch", None)
    assert owner(path) is None


LEASE = "filelock/2\npid=1\nhost=gone\nmode=lease\ntoken=00ff\nduration=0.4\n"
"""What a process of another machine writes that holds a lease of 0.4 seconds."""


def test_a_silent_owner_is_taken_for_dead(tmp_path, monkeypatch):
    break_locks(monkeypatch, errno.ENOTSUP)
    monkeypatch.setattr(locks, "RENEWAL_SECONDS", 0.1)
    monkeypatch.setattr(locks, "LEASE_SECONDS", 0.4)
    path = tmp_path / "cell.lock"
    lock = try_lock(path)
    time.sleep(0.8)
    assert owner(path) is not None  # it has been renewed
    assert try_lock(path) is None
    lock.release()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "cell.lock.held").write_text(LEASE)
    path.write_text(json.dumps({"host": "gone", "pid": 1, "since": 0}))
    assert owner(path) == {"host": "gone", "pid": 1, "since": 0}
    assert try_lock(path) is None
    time.sleep(0.5)
    assert owner(path) is None
    deadline = time.monotonic() + 10
    while (taken := try_lock(path)) is None:
        assert time.monotonic() < deadline
    assert owner(path)["pid"] == os.getpid()
    taken.release()
    assert list(tmp_path.iterdir()) == []


def test_another_error_is_not_hidden(tmp_path, monkeypatch):
    break_locks(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        try_lock(tmp_path / "cell.lock")


def test_a_holder_that_was_taken_for_dead_leaves_its_successor_alone(tmp_path, monkeypatch):
    break_locks(monkeypatch, errno.ENOLCK)
    monkeypatch.setattr(locks, "LEASE_SECONDS", 0.4)
    monkeypatch.setattr(locks, "RENEWAL_SECONDS", 0.1)
    path, place = tmp_path / "cell.lock", tmp_path / "cell.lock.held"
    lock = try_lock(path)
    place.unlink()
    place.write_text(LEASE)
    successor = json.dumps({"host": "other", "pid": 1, "since": 0})
    path.write_text(successor)
    lock.release()
    assert (path.read_text(), place.read_text()) == (successor, LEASE)
    path.unlink()
    remove_dead(tmp_path, re.compile("x"))
    assert place.exists()  # it may be renewed
    time.sleep(0.5)
    remove_dead(tmp_path, re.compile("x"))
    assert not place.exists()
