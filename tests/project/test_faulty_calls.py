"""Faults below Python: any call of the C library on a run's files may fail, or be the last.

Whatever happens, the same command goes on afterwards, and every table equals, to the byte, that of
an undisturbed run. `make test-faults` runs the long versions.
"""

import errno
import os
import random
import re
import shutil
import time

import pytest
from faulty_commands import ALL, KILLED, SHORT_WRITE, Fault, build_library, can_mount, commands
from faulty_runs import CONFIG, results
from test_faults import finished_files, write_data

QUICK = CONFIG.replace("batch_size: 16", "batch_size: 100").replace("steps: 10", "steps: 3")
KINDS = {
    "killed": KILLED,
    "short write": SHORT_WRITE,
    "EIO": errno.EIO,
    "ENOSPC": errno.ENOSPC,
    "EROFS": errno.EROFS,
    "EACCES": errno.EACCES,
}
OTHER_KINDS = {"EDQUOT": errno.EDQUOT, "EMFILE": errno.EMFILE}
KILOBYTE = 1 << 10


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faulty_calls")
    write_data(folder / "data")
    (folder / "faulty_calls.yaml").write_text(QUICK)
    return folder


@pytest.fixture(scope="module")
def words(place):
    """Of the command whose calls fail: a run without its report."""
    run = ["run", place / "faulty_calls.yaml", "--data-root", place / "data"]
    return [*run, "--stop-after", "attack", "--out"]


@pytest.fixture(scope="module")
def ham(place, words):
    """Runs command lines."""
    with commands(build_library(place), [*words, place / "warm"]) as started:
        yield started


@pytest.fixture(scope="module")
def whole(ham, place, words):
    """An undisturbed run: its folder, the number of its calls and its results."""
    folder = place / "whole"
    ended = ham.run(*words, folder, below=folder)
    assert (ended.code, ended.errors) == (0, "")
    assert ended.num_calls > 1000
    return folder, ended.num_calls, results(folder)


@pytest.fixture(scope="module")
def reported(ham, place, whole):
    """The same of a report on it."""
    folder = place / "reported"
    shutil.copytree(whole[0], folder)
    ended = ham.run("report", folder, below=folder)
    assert (ended.code, ended.errors) == (0, "")
    return folder, ended.num_calls, results(folder)


def is_one_line(errors, reason, folder):
    """Whether a command has said one line, which names the file."""
    return re.fullmatch(rf"robust-ham: {folder}\S*: {re.escape(reason)}\n", errors) is not None


def check_fault(ham, command, folder, fault, expected):
    """One command with a fault, and once more without: nothing is lost, made twice or differs."""
    ended = ham.run(*command, below=folder, fault=fault)
    kept = finished_files(folder)
    if fault.kind == KILLED:
        assert ended.code == -9
    elif ended.code == 0:  # what failed was not needed, or was tried again
        assert ended.errors == ""
        assert results(folder) == expected
    else:
        assert ended.code == 1
        assert fault.kind != SHORT_WRITE
        assert is_one_line(ended.errors, os.strerror(fault.kind), folder)
    again = ham.run(*command, below=folder)
    assert (again.code, again.errors) == (0, "")
    assert results(folder) == expected
    assert finished_files(folder).items() >= kept.items()
    assert not list(folder.rglob(".*tmp*"))
    assert not (folder / "locks").exists()


def check_faults(ham, count, kind, command, folder, num_calls, expected, before=None):
    """Faults of one call, or of one and all that follow: a disk that is full stays so."""
    seed = time.time_ns()
    draws = random.Random(seed)
    for _ in range(count):
        first = draws.randrange(num_calls)
        fault = Fault(kind, first, draws.choice((first, ALL)))
        print(f"seed {seed}: {fault}")
        if before is not None:
            shutil.copytree(before, folder)
        check_fault(ham, command, folder, fault, expected)
        shutil.rmtree(folder)


def each(kinds, count, *marks):
    """Parameters of a test: that many faults of each kind."""
    return [pytest.param(k, count, id=f"{count} {name}", marks=marks) for name, k in kinds.items()]


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        *each(KINDS, 1),
        *each(KINDS, 47, pytest.mark.slow),
        *each(OTHER_KINDS, 10, pytest.mark.slow),
    ],
)
def test_any_call_of_a_run_may_fail(kind, count, ham, words, whole, tmp_path):
    folder = tmp_path / "run"
    check_faults(ham, count, kind, [*words, folder], folder, *whole[1:])


@pytest.mark.parametrize(("kind", "count"), each(KINDS, 3, pytest.mark.slow))
def test_any_call_of_a_report_may_fail(kind, count, ham, whole, reported, tmp_path):
    folder = tmp_path / "run"
    check_faults(ham, count, kind, ["report", folder], folder, *reported[1:], before=whole[0])


# --- real limits ---------------------------------------------------------------------------------


@pytest.fixture
def small_disk(ham, tmp_path):
    """A file system of its own: its folder, the same as seen from here, and what resizes it."""
    if not can_mount():
        pytest.skip("this user may not mount a file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    assert ham.shell("mount", "-t", "tmpfs", "-o", "size=16k", "none", disk) == 0

    def remount(options):
        assert ham.shell("mount", "-o", f"remount,{options}", disk) == 0

    yield disk, ham.seen(disk), remount
    assert ham.shell("umount", disk) == 0


@pytest.mark.parametrize("growth", [3, pytest.param(1.1, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_at_any_stage_ends_a_run_at_once(growth, ham, words, whole, small_disk):
    (disk, seen, remount), size, failures = small_disk, 16 * KILOBYTE, 0
    while (ended := ham.run(*words, disk / "run")).code == 1:
        assert is_one_line(ended.errors, "No space left on device", disk / "run")
        assert not (seen / "run" / "failures.jsonl").exists()
        failures += 1
        size = int(size * growth)
        remount(f"size={size}")
    assert (ended.code, ended.errors) == (0, "")
    assert failures >= 3
    assert results(seen / "run") == whole[2]


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_stage_ends_a_report_at_once(ham, reported, small_disk):
    disk, seen, remount = small_disk
    remount("size=100m")
    assert ham.shell("cp", "-r", reported[0], disk / "run") == 0
    for path in (seen / "run" / "figures", seen / "run" / "report.html"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    used = shutil.disk_usage(seen).used
    for size in range(used, 1 << 30, 512 * KILOBYTE):
        remount(f"size={size}")
        ended = ham.run("report", disk / "run", "--export", "pdf")
        if ended.code == 0:
            break
        assert ended.code == 1
        assert is_one_line(ended.errors, "No space left on device", disk)
    assert size > used
    assert results(seen / "run").items() >= reported[2].items()


def test_a_disk_that_becomes_read_only(ham, words, whole, small_disk):
    disk, seen, remount = small_disk
    remount("size=100m")
    for path in (disk / "run", None):
        remount("ro")
        ended = ham.run(*words, disk / "run")
        assert ended.code == 1
        assert is_one_line(ended.errors, "Read-only file system", disk)
        remount("rw")
        assert ham.run(*words, disk / "run").code == 0
        assert path is None or results(seen / "run") == whole[2]


@pytest.mark.parametrize("size", [5000, pytest.param(9000, marks=pytest.mark.slow)])
def test_files_that_may_not_grow(size, ham, words, whole, tmp_path):
    ended = ham.run(*words, tmp_path / "run", limits={"RLIMIT_FSIZE": size})
    assert ended.code == 1
    assert is_one_line(ended.errors, "File too large", tmp_path)
    assert ham.run(*words, tmp_path / "run").code == 0
    assert results(tmp_path / "run") == whole[2]


def test_too_few_open_files(ham, words, whole, tmp_path):
    failures = 0
    for number in range(8, 40, 2):
        ended = ham.run(*words, tmp_path / "run", limits={"RLIMIT_NOFILE": number})
        if ended.code == 0:
            break
        failures += 1
        assert ended.code == 1
        assert ended.errors.endswith(": Too many open files\n")
        assert ended.errors.count("\n") == 1
    assert failures >= 3
    assert results(tmp_path / "run") == whole[2]


def test_standard_output_on_a_full_disk(ham, words, tmp_path):
    ended = ham.run(*words, tmp_path / "run", stdout="/dev/full")
    expected = "robust-ham: standard output: No space left on device\n"
    assert (ended.code, ended.errors) == (1, expected)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_no_space_for_temporary_files(ham, place, reported, small_disk):
    """Only ``verify`` has some, of attacks that it makes once more."""
    disk, _, remount = small_disk
    data = ["--data-root", place / "data"]
    environment = {"TMPDIR": str(disk)}
    ended = ham.run("verify", reported[0], *data, environment=environment)
    assert ended.code == 1
    assert is_one_line(ended.errors, "No space left on device", disk)
    remount("size=100m")
    assert ham.run("verify", reported[0], *data, environment=environment).code == 0
