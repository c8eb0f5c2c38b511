"""Logs that grow by a line: nothing is rewritten, and what a kill cut short is passed over."""

import json
import multiprocessing
import os

import pytest
from faulty_runs import CONFIG

from robust_ham.errors import RequestError
from robust_ham.runs.status import Times
from robust_ham.runs.verify_files import check_logs
from robust_ham.storage import run_logs
from robust_ham.storage.run_folder import RunFolder
from robust_ham.storage.run_logs import note_failure, note_timing, read_timings

FORKS = multiprocessing.get_context("fork")


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path)


def test_a_line_is_appended_and_the_last_one_of_a_job_counts(run):
    note_timing(run, "a", 1.23456)
    before = run.timings.read_bytes()
    place = run.timings.stat().st_ino
    note_timing(run, "b", 2.0)
    note_timing(run, "a", 0.5)
    assert run.timings.read_bytes() == before + b"b,2.0\na,0.5\n"
    assert before == b"cell,seconds\na,1.235\n"
    assert run.timings.stat().st_ino == place
    assert read_timings(run) == {"a": "0.5", "b": "2.0"}
    assert Times(run).seconds == {"a": 0.5, "b": 2.0}


def cut_places():
    return range(len("cell,seconds\na,1.25\nb,12.75\n") + 1)


@pytest.mark.parametrize("place", cut_places())
def test_a_line_that_was_cut_short_is_passed_over(run, place):
    """Wherever a kill or a full disk ends the file: no wrong number, and the next line is whole."""
    whole = b"cell,seconds\na,1.25\nb,12.75\n"
    run.timings.write_bytes(whole[:place])
    known = {"a": "1.25"} if place >= len("cell,seconds\na,1.25\n") else {}
    known |= {"b": "12.75"} if place == len(whole) else {}
    if place >= len("cell,seconds\n"):
        assert read_timings(run) == known
        note_timing(run, "c", 3.0)
        assert read_timings(run) == known | {"c": "3.0"}
        run.config.write_text(CONFIG)
        assert check_logs(run).faults == []
    else:
        with pytest.raises(ValueError, match="expected the columns"):
            read_timings(run)
        assert Times(run).seconds == {}
        note_timing(run, "c", 3.0)
        assert read_timings(run) == {"c": "3.0"}


def test_a_failure_after_a_line_that_was_cut_short_is_on_a_line_of_its_own(run):
    run.failures.write_text('{"cell": "a", "err')
    note_failure(run, "b", "ValueError", "no")
    cut, line = run.failures.read_text().splitlines()
    assert (cut, json.loads(line)["cell"]) == ('{"cell": "a", "err?', "b")


def append_many(folder, number):
    for i in range(50):
        note_timing(RunFolder(folder), f"{number}-{i}", i)


def test_four_processes_append_at_the_same_time(run):
    children = [FORKS.Process(target=append_many, args=(run.root, n)) for n in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    expected = {f"{n}-{i}": str(i) for n in range(4) for i in range(50)}
    assert read_timings(run) == expected
    assert run.timings.read_text().count("\n") == 201


@pytest.mark.parametrize("made", ["pipe", "link", "folder"])
def test_what_is_no_file_is_not_written_to(run, made):
    """A pipe would hang, a link end up elsewhere."""
    if made == "pipe":
        os.mkfifo(run.timings)
    elif made == "link":
        run.timings.symlink_to(run.root / "elsewhere")
    else:
        run.timings.mkdir()
    with pytest.raises((RequestError, OSError)):
        note_timing(run, "a", 1.0)
    with pytest.raises(RequestError, match=r"timings\.csv: expected a file"):
        read_timings(run)
    assert not (run.root / "elsewhere").exists()


def test_a_short_write_is_finished(run, monkeypatch):
    write = os.write
    monkeypatch.setattr(run_logs.os, "write", lambda place, content: write(place, content[:3]))
    note_timing(run, "a", 1.0)
    monkeypatch.undo()
    assert read_timings(run) == {"a": "1.0"}
