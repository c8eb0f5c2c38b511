"""Files appear whole or not at all; keys see content and nothing else."""

import os

import pandas as pd
import pytest

from robust_ham.store import (
    content_key,
    read_json,
    read_metadata,
    read_table,
    write_json,
    write_table,
    write_text,
    writing,
)


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
