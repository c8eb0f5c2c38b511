"""A run folder that is renamed, removed, replaced or emptied while it is used: one line, exit 1."""

import errno
import shutil

import pytest
from conftest import TINY_RUN
from faulty_runs import NUM_JOBS, Listening, results, run_here
from test_faults import data, whole  # noqa: F401 - fixtures

from robust_ham.cli import run as run_verb
from robust_ham.runs import runner
from robust_ham.storage import files
from robust_ham.storage.locks import try_lock
from robust_ham.storage.run_folder import RunFolder
from robust_ham.storage.working_folder import check_unmoved, make_folder, working_in

MOVED = "renamed, removed or replaced during the run"


def rename(folder):
    folder.rename(folder.with_name("renamed"))


def replace(folder):
    rename(folder)
    folder.mkdir()
    (folder / "theirs.txt").write_text("theirs")


def replace_by_file(folder):
    rename(folder)
    folder.write_text("theirs")


HARMS = {"renamed": rename, "replaced": replace, "replaced by a file": replace_by_file}
HARMS |= {"removed": shutil.rmtree}


def left(folder):
    """What is at the path of a folder that somebody has harmed."""
    if folder.is_dir():
        return {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return folder.read_text() if folder.exists() else None


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_nothing_is_written_at_the_old_path(tmp_path, harm):
    root = tmp_path / "run"
    (root / "models").mkdir(parents=True)
    run = RunFolder(root)
    files.write_text(run.config, "config")
    with working_in(root):
        lock = try_lock(run.lock("cell"))
        harm(root)
        before = left(root)
        for write in (
            lambda: files.write_text(run.config, "again"),
            lambda: files.write_text(run.samples("m", "a"), "rows"),
            lambda: files.writing_folder(run.model("m")).__enter__(),
            lambda: try_lock(run.lock("other")),
            lambda: make_folder(root),
            lambda: make_folder(root / "a" / "b"),
            lambda: check_unmoved(run.config),
        ):
            with pytest.raises(OSError, match=MOVED) as caught:
                write()
            assert (caught.value.errno, caught.value.filename) == (errno.ESTALE, str(root))
            assert left(root) == before
        lock.release()
        assert left(root) == before
    files.write_text(tmp_path / "elsewhere" / "file", "text")  # others are not concerned


@pytest.mark.parametrize("harm", [rename, replace], ids=["renamed", "replaced"])
def test_a_file_that_is_being_written_does_not_appear_elsewhere(tmp_path, harm):
    root = tmp_path / "run"
    root.mkdir()

    def write():
        with files.writing(root / "file.csv") as temporary:
            temporary.write_text("before")
            harm(root)
            if root.is_dir():
                temporary.write_text("into the wrong folder")

    with working_in(root), pytest.raises(OSError, match=r"No such file|renamed, removed"):
        write()
    assert left(root) in (None, {"theirs.txt"})
    assert left(tmp_path / "renamed") <= {"file.csv"} | {
        path.name for path in (tmp_path / "renamed").glob(".file.csv.*.tmp*")
    }


class Harming(Listening):
    """Does harm to the folder when as many steps have ended."""

    def __init__(self, moment, harm):
        super().__init__()
        self.moment, self.harm = moment, harm

    def job_ended(self, name, outcome, seconds):
        super().job_ended(name, outcome, seconds)
        if len(self.outcomes) == self.moment:
            self.harm()


@pytest.mark.parametrize("moment", [1, NUM_JOBS, NUM_JOBS + 1])
@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_a_run_whose_folder_goes_away_ends(whole, data, tmp_path, harm, moment):  # noqa: F811
    folder, harmed = tmp_path / "run", []

    def do_harm():
        harm(folder)
        harmed.append(left(folder))

    with pytest.raises(OSError, match=MOVED):
        run_here(folder, data, monitor=Harming(moment, do_harm))
    assert [left(folder)] == harmed
    if (tmp_path / "renamed").is_dir() and moment > 1:  # nothing finished is lost
        done = run_here(tmp_path / "renamed", data).outcomes
        assert results(tmp_path / "renamed") == whole[1]
        assert list(done.values()).count("already there") >= NUM_JOBS - 1


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        ("config.yaml", 1),
        ("config.yaml", NUM_JOBS + 1),
        ("inputs.parquet", 2),
        ("models", 1),
        ("models", NUM_JOBS),
        ("samples", NUM_JOBS),
        ("shards", 2),
        ("predictions", NUM_JOBS),
        ("receipts", NUM_JOBS),
        ("adversarials", NUM_JOBS + 1),
    ],
)
def test_a_run_that_loses_a_part_is_no_success(whole, data, tmp_path, name, moment):  # noqa: F811
    folder = tmp_path / "run"

    def remove():
        part = folder / name
        shutil.rmtree(part) if part.is_dir() else part.unlink()

    with pytest.raises(OSError, match=r"removed during the run|No such file"):
        run_here(folder, data, monitor=Harming(moment, remove))
    run_here(folder, data)
    assert results(folder) == whole[1]


@pytest.mark.parametrize("name", ["manifest.json", "timings.csv", "locks/asked.key"])
def test_what_the_end_of_a_run_makes_again_may_go(whole, data, tmp_path, name):  # noqa: F811
    folder = tmp_path / "run"
    run_here(folder, data, monitor=Harming(2, (folder / name).unlink))
    assert results(folder) == whole[1]
    assert (folder / "manifest.json").is_file()


@pytest.mark.parametrize("harm", [rename, lambda f: (f / "config.yaml").unlink()])
@pytest.mark.parametrize("when", ["before the tables", "before the report", "after the report"])
def test_the_command_ends_with_one_line(run_cli, tmp_path, monkeypatch, harm, when):
    (tmp_path / "tiny.yaml").write_text(TINY_RUN)
    folder = tmp_path / "run"
    place, name = (
        (runner, "write_kernels") if when == "before the tables" else (run_verb, "write_report")
    )
    real = getattr(place, name)

    def harmed(*words):
        if when == "after the report":
            real(*words)
        harm(folder)
        if when != "after the report":
            real(*words)

    monkeypatch.setattr(place, name, harmed)
    code, _, errors = run_cli("run", tmp_path / "tiny.yaml", "--out", folder)
    assert (code, errors.count("\n")) == (1, 1)
    assert str(folder) in errors
    assert folder.exists() == (harm is not rename)


def test_a_report_whose_folder_goes_away_ends(run_cli, whole, tmp_path, monkeypatch):  # noqa: F811
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    from robust_ham.report import page

    real = page.draw_figures

    def draw(tables):
        folder.rename(tmp_path / "renamed")
        return real(tables)

    monkeypatch.setattr(page, "draw_figures", draw)
    code, _, errors = run_cli("report", folder)
    assert (code, errors.count("\n")) == (1, 1)
    assert MOVED in errors
    assert not folder.exists()
