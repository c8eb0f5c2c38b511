"""Every verb removes temporary files of killed processes from its folder, and only those."""

import pytest
from test_page import make_run

from robust_ham.storage.locks import try_lock
from robust_ham.storage.output_folder import claim


def leave(folder, name):
    """Leave a temporary file of ``name`` as a killed process does, and one of a live process."""
    folder.mkdir(parents=True, exist_ok=True)
    ending = name[name.rindex(".") :]
    dead = [f".{name}.01234567.tmp{ending}", f".{name}.01234567.tmp.lock"]
    for path in dead:
        (folder / path).write_text('{"host": "elsewhere", "pid": 1, "since": 0}')
    alive = try_lock(folder / f".{name}.89abcdef.tmp.lock")
    (folder / f".{name}.89abcdef.tmp{ending}").touch()
    (folder / f".{name}.backup").touch()
    return [folder / path for path in dead], alive


def check(folder, name, dead, alive):
    ending = name[name.rindex(".") :]
    assert not any(path.exists() for path in dead)
    assert (folder / f".{name}.89abcdef.tmp{ending}").exists()
    assert (folder / f".{name}.backup").exists()
    alive.release()


@pytest.mark.parametrize(
    ("place", "name"),
    [(".", "curves.csv"), (".", "report.html"), ("figures", "metrics.svg"), ("export", "a.pdf")],
)
def test_report(run_cli, tmp_path, place, name):
    run = make_run(tmp_path / "run")
    leftovers = leave(run.root / place, name)
    assert run_cli("report", run.root)[0] == 0
    check(run.root / place, name, *leftovers)


def test_a_folder_that_is_no_run_stays_as_it_is(run_cli, tmp_path):
    dead, alive = leave(tmp_path / "figures", "robustness.svg")
    assert run_cli("report", tmp_path)[0] == 2
    assert all(path.exists() for path in dead)
    alive.release()


@pytest.mark.parametrize("name", ["comparison.csv", "comparison.html"])
def test_compare(run_cli, tmp_path, name):
    runs = [make_run(tmp_path / letter).root for letter in "ab"]
    out = tmp_path / "out"
    assert run_cli("compare", *runs, "--out", out)[0] == 0
    leftovers = leave(out, name)
    assert run_cli("compare", *runs, "--out", out)[0] == 0
    check(out, name, *leftovers)


def test_explain(run_cli, tmp_path):
    claim(tmp_path / "out", "tapering", "explain")
    leftovers = leave(tmp_path / "out", "tapering.svg")
    assert run_cli("explain", "tapering", "--out", tmp_path / "out")[0] == 0
    check(tmp_path / "out", "tapering.svg", *leftovers)
