"""Files appear whole or not at all; keys see content and nothing else."""

import os
import subprocess
import sys

import pandas as pd
import pytest

from robust_ham.storage.files import (
    content_key,
    read_json,
    write_json,
    write_text,
    writing,
    writing_folder,
)
from robust_ham.storage.parquet_tables import read_metadata, read_table, write_table
from robust_ham.storage.temporary_files import remove_leftovers


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "first")

    def fail():
        with writing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert path.read_text() == "first"
    assert os.listdir(path.parent) == ["file.txt"]
    write_text(path, "second")
    assert path.read_text() == "second"


def test_a_failing_rename_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_text(path, "first")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "second")
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_leftovers_go_and_what_is_being_written_stays(tmp_path):
    def sweep():
        remove_leftovers(tmp_path, ["deep"], [])
        return sorted(p.name.rpartition(".tmp")[2] for p in tmp_path.rglob(".*.tmp*"))

    deep = tmp_path / "deep" / "er"
    for name in (".a.csv.01234567.tmp.csv", ".b.23456789.tmp/c", ".b.23456789.tmp.lock"):
        (deep / name).parent.mkdir(parents=True, exist_ok=True)
        (deep / name).touch()
    with writing(deep / "file.csv") as temporary:
        temporary.write_text("whole")
        assert sweep() == [".csv", ".lock"]
    with writing_folder(deep / "folder") as temporary:
        with writing(temporary / "file") as inner:
            inner.touch()
            assert sweep() == ["", "", ".lock", ".lock"]
        assert sweep() == ["", ".lock"]
    assert sweep() == []
    there = sorted(str(path.relative_to(deep)) for path in deep.rglob("*"))
    assert there == ["file.csv", "folder", "folder/file"]


NOT_OURS = """
.a.csv.0123456.tmp.csv .a.csv.0123456789.tmp.csv .a.csv.0123456g.tmp.csv a.csv.01234567.tmp.csv
.a.csv.01234567.tmp.txt .a.csv.01234567.tmp.csv.bak .a.csv.tmp.csv .tmp-objects .tmp.lock
.01234567.tmp .a.01234567.tmpx .a.csv.01234567.temp .git/.a.csv.01234567.tmp.csv
.tmp/.a.csv.01234567.tmp.csv
""".split()


def test_leftovers_of_others_stay(tmp_path):
    """Names that differ in one place, our names elsewhere, and what a link leads to."""
    ours = [".a.csv.01234567.tmp.csv", ".m.k7-lr0.1.01234567.tmp", ".c.parquet.89abcdef.tmp.lock"]
    theirs = [f"{place}{name}" for name in NOT_OURS for place in ("", "ours/", "ours/er/")]
    theirs += [f"{place}/{name}" for name in ours for place in ("theirs", "elsewhere")]
    theirs += [".thesis.tex.01234567.tmp.tex"]
    removed = [f"{place}/{name}" for name in ours for place in ("ours", "ours/er")]
    removed += [".a.csv.fedcba98.tmp.csv"]
    for name in (*theirs, *removed):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    for link in ("ours/link", "linked", "ours/.l.01234567.tmp"):
        (tmp_path / link).symlink_to(tmp_path / "elsewhere")
    remove_leftovers(tmp_path, ["ours", "linked", "missing"], ["a.csv", "b.csv"])
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert {name for name in left if not name.startswith(("linked/", "ours/link/"))} == set(theirs)
    assert len(list((tmp_path / "elsewhere").iterdir())) == len(ours)


def test_a_killed_writer_leaves_nothing_for_long(tmp_path):
    write = f"""
import os, pathlib
from robust_ham.storage.files import writing
with writing(pathlib.Path({str(tmp_path / "file.csv")!r})) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", write], check=False).returncode == -9
    assert len(os.listdir(tmp_path)) == 2
    remove_leftovers(tmp_path, [], ["file.csv"])
    assert os.listdir(tmp_path) == []


def test_keys_depend_on_content_alone():
    key = content_key({"a": 1, "b": [1.5, None]})
    assert key == content_key({"b": [1.5, None], "a": 1})
    assert key != content_key({"a": 2, "b": [1.5, None]})
    assert len(key) == 64
    with pytest.raises(ValueError, match="not JSON compliant"):
        content_key({"a": float("nan")})


def test_json_carries_its_schema_first(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": 1})
    assert path.read_text().splitlines()[1] == '  "schema": 1,'
    assert read_json(path) == {"schema": 1, "b": 1}
    for content in ("{", "[1]", '{"b": 1}', '{"schema": 2}'):
        path.write_text(content)
        with pytest.raises(ValueError, match="a.json"):
            read_json(path)


def test_tables_carry_schema_and_metadata(tmp_path):
    path = tmp_path / "a.parquet"
    table = pd.DataFrame({"x": [1.5, float("inf")], "y": ["a", "b"]})
    write_table(path, table, {"key": "k"})
    pd.testing.assert_frame_equal(read_table(path), table, check_dtype=False)
    assert read_metadata(path) == {"schema": 1, "key": "k"}
    first = path.read_bytes()
    write_table(path, table, {"key": "k"})
    assert path.read_bytes() == first


@pytest.mark.parametrize("damage", ["truncate", "garbage", "foreign"])
def test_damaged_tables_have_no_metadata(tmp_path, damage):
    path = tmp_path / "a.parquet"
    table = pd.DataFrame({"x": [1.0]})
    write_table(path, table, {"key": "k"})
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "garbage":
        path.write_bytes(b"garbage")
    else:
        table.to_parquet(path)
    assert read_metadata(path) is None
    if damage != "foreign":
        with pytest.raises(ValueError, match="damaged table"):
            read_table(path)
    assert read_metadata(tmp_path / "absent.parquet") is None
