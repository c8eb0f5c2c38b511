"""What git says of the checkout that the package runs from."""

import os
import subprocess
import time

import pytest

from robust_ham.runs.manifest import git_commit


def git(folder, *words):
    command = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "code.py").write_text("1\n")
    git(folder, "add", "code.py")
    git(folder, "commit", "-qm", "first")
    return folder


def test_a_commit_and_its_changes(checkout, tmp_path):
    commit = git(checkout, "rev-parse", "HEAD").strip()
    assert git_commit(checkout) == commit
    (checkout / "new.py").touch()
    assert git_commit(checkout) == commit
    (checkout / "code.py").write_text("2\n")
    assert git_commit(checkout) == f"{commit}+changes"
    assert git_commit(tmp_path) is None  # no checkout
    (tmp_path / ".git").write_text("gitdir: nowhere\n")
    assert git_commit(tmp_path) is None


def test_a_checkout_without_a_commit(tmp_path):
    git(tmp_path, "init", "-q")
    assert git_commit(tmp_path) is None


def test_the_index_is_not_written(checkout):
    """Git status writes the times of files into the index, under its lock."""
    index = checkout / ".git" / "index"
    os.utime(checkout / "code.py", (1, 1))
    before = index.read_bytes()
    lock = checkout / ".git" / "index.lock"
    lock.touch()  # somebody is committing
    assert git_commit(checkout).count("+") == 0
    lock.unlink()
    git_commit(checkout)
    assert index.read_bytes() == before
    git(checkout, "status")
    assert index.read_bytes() != before  # the test can fail


def test_the_environment_names_another_repository(checkout, tmp_path, monkeypatch):
    commit = git_commit(checkout)
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    for name, value in {
        "GIT_DIR": str(other / ".git"),
        "GIT_WORK_TREE": str(other),
        "GIT_INDEX_FILE": str(other / "index"),
        "GIT_CONFIG_COUNT": "many",
    }.items():
        monkeypatch.setenv(name, value)
    assert git_commit(checkout) == commit


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a folder away")
def test_a_checkout_that_belongs_to_somebody_else(checkout):
    commit = git_commit(checkout)
    for path in (checkout, *checkout.rglob("*")):
        os.chown(path, 65534, 65534)
    assert git_commit(checkout) == commit


def test_git_that_hangs_fails_or_is_missing(checkout, tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr("robust_ham.runs.manifest._GIT_SECONDS", 0.2)
    assert git_commit(checkout) is None
    for script in ("/bin/sleep 5", "exit 128", "kill -9 $$", "printf '\\377'"):
        (programs / "git").write_text(f"#!/bin/sh\n{script}\n")
        (programs / "git").chmod(0o755)
        start = time.monotonic()
        assert git_commit(checkout) is None
        assert time.monotonic() - start < 3
