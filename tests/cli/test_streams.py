"""Closed, full and ASCII standard streams and paths that are not UTF-8 cause no traceback."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import TINY_RUN

NAME = os.fsdecode(b"caf\xe9")


def shell(command, **environment):
    """Run a shell command, with robust-ham as ``$HAM``; return exit code, output and errors."""
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        env=os.environ | {"HAM": f"{sys.executable} -m robust_ham"} | environment,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("$HAM list attacks >&-", 0, ""),
        ("$HAM list attacks > /dev/full", 1, "robust-ham: standard output: No space left on devi"),
        ("$HAM list keys | true; exit ${PIPESTATUS[0]}", 1, ""),
        ("$HAM status /no/such 2>/dev/full", 2, ""),
        ("$HAM status /no/such <&- >&- 2>&-", 2, ""),
        (f"$HAM status {NAME}", 2, "robust-ham: caf\\udce9: not a run folder (no such folder)"),
        (f"$HAM run {NAME}.yaml", 2, "robust-ham: caf\\udce9.yaml: no such file"),
    ],
)
def test_streams_and_names(command, code, message):
    found, printed, errors = shell(command)
    assert found == code
    assert errors.startswith(message)
    assert errors.count("\n") == bool(message)
    assert printed == b""


def test_ascii_output():
    code, printed, _ = shell("$HAM list keys", PYTHONIOENCODING="ascii")
    assert code == 0
    assert b"\\u2026" in printed or printed.isascii()


def test_a_run_in_folders_whose_names_are_not_utf8(run_cli, tmp_path):
    place = tmp_path / NAME
    place.mkdir()
    (place / f"{NAME}.yaml").write_text(TINY_RUN.replace("num_images: 20", "num_images: 8"))
    words = ["run", place / f"{NAME}.yaml", "--data-root", place, "--out", place / NAME]
    code, printed, errors = run_cli(*words, "-o", "evaluation.shard_size=4")
    assert (code, errors) == (0, "")
    assert "caf\\udce9/report.html" in printed
    assert run_cli("verify", place / NAME, "--cells", "1")[0] == 0
    assert run_cli("status", place / NAME)[0] == 0
    assert run_cli("report", place / NAME, "--export", "latex")[0] == 0
    shutil.copytree(place / NAME, place / f"{NAME}2")
    code, printed, _ = run_cli("compare", place / NAME, place / f"{NAME}2", "--out", place / "c")
    assert code == 0
    assert "caf\\udce92" in (place / "c" / "comparison.csv").read_text()
    table = place / f"{NAME}.csv"
    table.write_text("model,attack,sample_id,l2\nm,deepfool,0,0.1\nm,deepfool,1,0.2\n")
    assert run_cli("report", table, "--out", place / "theirs")[0] == 0
    code, printed, errors = run_cli("verify", place / "theirs")
    assert (code, errors) == (0, "")
    assert "imported tables: there is no model to attack again" in printed
