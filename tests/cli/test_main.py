"""The command line: a whole run, resuming, faults, exit codes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY_RUN
from torch import nn

from robust_ham import __version__
from robust_ham.__main__ import limit_spinning
from robust_ham.cli import exit_codes, main
from robust_ham.runs import attempt
from robust_ham.storage import signals
from robust_ham.training.resume import Unfinished


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY_RUN)
    return path


VARIES = ("timings.csv", "manifest.json", "run.log", "SHA256SUMS")


def tables(folder):
    """Every file of a run that must not depend on when or how often it was run."""
    kept = {}
    for path in sorted(Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and name not in VARIES:
            kept[name] = path.read_bytes()
    return kept


def test_a_whole_run_and_the_same_command_again(run_cli, config, tmp_path):
    out = tmp_path / "out"
    code, printed, errors = run_cli("run", config, "--out", out)
    assert (code, errors) == (0, "")
    assert "[6/6] cnn2-w4-k3-hamming-s0/spatial_shift: done" in printed
    assert f"report: {out / 'report.html'}" in printed
    for name in (
        "config.yaml manifest.json timings.csv inputs.parquet summary.csv curves.csv run.log "
        "report.html figures/robustness.svg figures/robustness.png"
    ).split():
        assert (out / name).stat().st_size > 0, name
    assert not (out / "failures.jsonl").exists()
    summary = pd.read_csv(out / "summary.csv")
    assert len(summary) == 4
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["schema"] == 1
    assert str(tmp_path) not in (out / "manifest.json").read_text()
    before = tables(out)
    code, printed, _ = run_cli("run", config, "--out", out)
    assert code == 0
    assert printed.count("already there") == 6
    assert tables(out) == before
    again = tmp_path / "again"
    run_cli("run", config, "--out", again)
    assert tables(again) == before


def test_a_changed_configuration_reruns_only_what_it_changes(run_cli, config, tmp_path):
    out = tmp_path / "out"
    run_cli("run", config, "--out", out)
    _, printed, _ = run_cli("run", config, "--out", out, "-o", "attacks.deepfool_l2.steps=11")
    assert printed.count(": done") == 2
    assert printed.count("already there") == 4
    _, printed, _ = run_cli("run", config, "--out", out, "-o", "attacks.deepfool_l2.budget=0.1")
    assert printed.count("/deepfool_l2: done") == 2  # 10 steps again; the budget alone is no key
    _, printed, _ = run_cli("run", config, "--out", out, "-o", "training.lr=0.2")
    assert printed.count(": done") == 6
    kept = {str(path.relative_to(out / "superseded")) for path in out.glob("superseded/*/*")}
    assert "models/cnn2-w4-k3-none-s0.1" in kept  # nothing trained is lost


def test_a_damaged_model_is_trained_again_and_kept(run_cli, config, tmp_path):
    out = tmp_path / "out"
    run_cli("run", config, "--out", out)
    before = tables(out)
    weights = out / "models/cnn2-w4-k3-none-s0/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    _, printed, _ = run_cli("run", config, "--out", out)
    assert "cnn2-w4-k3-none-s0: done" in printed
    after = {k: v for k, v in tables(out).items() if not k.startswith("superseded")}
    assert after == before
    damaged = "models/cnn2-w4-k3-none-s0/model.safetensors has changed since it was written"
    assert f"{damaged} (SHA-256 differs): recomputing it" in printed
    assert "models/cnn2-w4-k3-none-s0: moved to" in (out / "run.log").read_text()


def test_a_training_goes_on_from_its_last_whole_epoch(run_cli, config, tmp_path, monkeypatch):
    words = ["run", config, "-o", "training.epochs=3", "--stop-after", "train", "--out"]
    assert run_cli(*words, tmp_path / "whole")[0] == 0
    save = Unfinished.save

    def save_and_stop(self, rows, model, optimizer):
        save(self, rows, model, optimizer)
        if len(rows) == 2:
            raise signals.Stopped(143)

    monkeypatch.setattr(Unfinished, "save", save_and_stop)
    assert run_cli(*words, tmp_path / "stopped")[0] == 143
    monkeypatch.undo()
    (state,) = (tmp_path / "stopped" / "unfinished").iterdir()
    assert not (tmp_path / "stopped" / "models").exists()
    assert run_cli(*words, tmp_path / "stopped")[0] == 0
    assert not state.exists()
    for path in (tmp_path / "whole" / "models").glob("*/*"):
        other = tmp_path / "stopped" / path.relative_to(tmp_path / "whole")
        assert other.read_bytes() == path.read_bytes()


def test_a_report_never_mixes_two_configurations(run_cli, config, tmp_path):
    out = tmp_path / "out"
    run_cli("run", config, "--out", out)
    change = ["-o", "attacks.deepfool_l2.norm=linf", "-o", "evaluation.gallery=false"]
    run_cli("run", config, "--out", out, *change, "--stop-after", "train")
    assert not list(out.glob("samples/*/*"))
    assert not list(out.glob("gallery/*/*"))
    code, _, errors = run_cli("report", out)
    assert code == 2
    assert "no attack has been evaluated yet" in errors


def test_report_rebuilds_every_byte(run_cli, config, tmp_path):
    out = tmp_path / "out"
    run_cli("run", config, "--out", out)
    before = tables(out)
    for name in ("summary.csv", "curves.csv", "report.html"):
        (out / name).unlink()
    assert run_cli("report", out)[0] == 0
    assert tables(out) == before


def test_a_report_of_many_folders(run_cli, config, tmp_path):
    results = tmp_path / "results"
    run_cli("run", config, "--out", results / "one")
    run_cli("run", config, "--out", results / "nested" / "two")
    run_cli("run", config, "--out", results / "trained", "--stop-after", "train")
    (results / "figures").mkdir()
    pages = [results / place / "report.html" for place in ("nested/two", "one")]
    for page in pages:
        page.unlink()
    code, printed, errors = run_cli("report", *sorted(results.iterdir()))
    assert code == 0
    assert [line for line in printed.splitlines() if "report: " in line] == [
        f"report: {page}" for page in pages
    ]
    assert errors.splitlines() == [
        f"robust-ham: {results / name}: skipped, contains no run with attack results"
        for name in ("figures", "trained")
    ]
    code, printed, errors = run_cli("report", results)
    assert (code, printed.count("report: "), errors) == (0, 2, "")
    code, printed, errors = run_cli("report", results, tmp_path / "typo")
    assert (code, printed) == (2, "")
    assert errors == f"robust-ham: {tmp_path / 'typo'}: not a run folder (no such folder)\n"
    (results / "nested" / "two" / "config.yaml").write_text("models: 3\n")
    code, printed, errors = run_cli("report", results)
    assert (code, printed.count("report: "), errors.count("\n")) == (2, 1, 1)
    assert "nested/two" in errors


def test_stop_after_and_dry_run(run_cli, config, tmp_path):
    out = tmp_path / "out"
    code, printed, _ = run_cli("run", config, "--out", out, "--dry-run")
    assert code == 0
    assert "6 jobs: 2 models, 2 attacks on 20 images each" in printed
    assert not out.exists()
    run_cli("run", config, "--out", out, "--stop-after", "train")
    assert (out / "models/cnn2-w4-k3-none-s0/model.json").exists()
    assert not (out / "samples").exists()
    run_cli("run", config, "--out", out, "--stop-after", "attack")
    assert (out / "samples").exists()
    assert not (out / "report.html").exists()


def test_a_failing_job_does_not_stop_the_others(run_cli, config, tmp_path, monkeypatch):
    real = attempt.run_job

    def fails_once(context, job, progress):
        if job.name == "cnn2-w4-k3-none-s0":
            raise RuntimeError("the loss\nis nan")
        return real(context, job, progress)

    monkeypatch.setattr("robust_ham.runs.attempt.run_job", fails_once)
    out = tmp_path / "out"
    code, printed, errors = run_cli("run", config, "--out", out)
    assert code == 3
    assert "3 of 6 jobs failed" in errors
    assert "cnn2-w4-k3-none-s0: failed: the loss is nan" in printed
    lines = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert [line["cell"] for line in lines] == [
        "cnn2-w4-k3-none-s0",
        "cnn2-w4-k3-none-s0/deepfool_l2",
        "cnn2-w4-k3-none-s0/spatial_shift",
    ]
    assert "Failed: cnn2-w4-k3-none-s0: the loss is nan" in (out / "report.html").read_text()
    monkeypatch.setattr("robust_ham.runs.attempt.run_job", real)
    assert run_cli("run", config, "--out", out)[0] == 0
    assert not (out / "failures.jsonl").exists()


def test_training_that_diverges_is_a_failed_job(run_cli, config, tmp_path):
    out = tmp_path / "out"
    code, _, errors = run_cli("run", config, "--out", out, "-o", "training.lr=1e30")
    assert code == 3
    assert "6 of 6 jobs failed" in errors
    assert "lower training.lr" in (out / "failures.jsonl").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "{config}", "-o", "training.epoch=3"], "training.epoch: unknown key"),
        (["run", "{config}", "-o", "attacks.deepfool_l2.step=3"], "unknown option of deepfool"),
        (
            ["run", "{config}", "-o", "attacks.deepfool_l2.norm=l3"],
            "attacks.deepfool_l2.norm: expected",
        ),
        (["run", "{config}", "-o", "evaluation.num_images=20000"], "expected at most 10000"),
        (["run", "{config}", "-o", "dataset.name=nothing"], "nothing (test): not found"),
        (["run", "{config}", "--data-root", "/no/such"], "--data-root: expected a folder"),
        (
            ["run", "{config}", "-o", "models=[{factory: net.build, pretrained: true}]"],
            "factory: expected module:function, such as my_package.networks:build, got 'net.build'",
        ),
        (
            ["run", "{config}", "-o", 'models=[{factory: "net:build\\n", pretrained: true}]'],
            "factory: expected module:function, such as",
        ),
        (
            ["run", "{config}", "-o", "training.epochs=x"],
            "epochs: expected a whole number, got 'x'",
        ),
        (
            ["run", "{config}", "-o", "training.lr=x"],
            "lr: expected a number such as 0.5 or 8/255, got 'x'",
        ),
        (
            ["run", "{config}", "--executor", "ray", "--gpus-per-cell", "1.5"],
            "--gpus-per-cell: expected at most 1 or a whole number, got 1.5",
        ),
        (
            ["run", "{config}", "--device", "tpu"],
            "--device: expected auto, cpu, cuda or cuda:N, got tpu",
        ),
        (["run", "{config}", "--stop-after", "lunch"], "lunch"),
        (["run", "{config}", "--thread", "2"], "--thread"),
        (["run", "no_such"], "no_such: no such file and no shipped config"),
        (["run"], "Missing argument"),
        (["report", "/no/such"], "/no/such: not a run folder (no such folder)"),
        (["status", "{config}"], "tiny.yaml: not a run folder (not a folder)"),
        (["verify", "{config}"], "tiny.yaml: not a run folder (not a folder)"),
        (["walk"], "walk"),
        (["run", "{config}", "-o", "models.0.source=zoo"], "is not in the zoo of fashion_mnist"),
        (["run", "{config}", "-o", "models=[{factory: 'no_module:f'}]"], "No module named"),
        (["run", "{config}", "-o", "models.0.depth=0"], "models.0.depth"),
        (["run", "{config}", "-o", "models.0.widths=[4, 4, 4]"], "widths: expected at most depth"),
        (["run", "{config}", "-o", "models.0.architecture=[cnn]"], "architecture: expected one"),
        (["run", "{config}", "-o", "name=2020-13-45"], "got timestamp"),
        (["run", "{config}", "-o", "attacks.deepfool_l2.budgets=[-1]"], "budgets.0"),
        (["run", "quickstart", "-o", "dataset.image_size=14"], "made for other images"),
    ],
)
def test_requests_that_are_wrong(run_cli, config, tmp_path, words, message):
    out = tmp_path / "out"
    filled = [word.replace("{config}", str(config)) for word in words]
    code, _, errors = run_cli(
        *filled, *(["--out", out] if words[0] == "run" and len(words) > 1 else [])
    )
    assert code == 2
    assert message in errors
    assert errors.startswith("robust-ham: ")
    assert errors.count("\n") == 1
    assert not out.exists()


def test_a_folder_that_cannot_be_written(run_cli, config, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    code, _, errors = run_cli("run", config, "--out", blocker / "out")
    assert (code, errors) == (2, f"robust-ham: {blocker}: expected a folder, got a file\n")


def test_a_card_that_tells_another_accuracy_is_refused(run_cli, config, tmp_path):
    out = tmp_path / "out"
    run_cli("run", config, "--out", out)
    card = out / "models/cnn2-w4-k3-none-s0/model.json"
    content = json.loads(card.read_text())
    content["test_accuracy"] = 0.99
    card.write_text(json.dumps(content))
    shutil.rmtree(out / "receipts")
    code, _, errors = run_cli("run", config, "--out", out)
    assert code == 2
    assert "its card says 0.9900: not the model that the card describes" in errors


def test_own_models_by_factory(run_cli, tmp_path, monkeypatch):
    (tmp_path / "our_model.py").write_text(
        "from torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).state_dict(), "net.pth")
    config = tmp_path / "own.yaml"
    config.write_text(
        "name: own\n"
        "models: [{factory: 'our_model:net', weights: net.pth, kernel_size: 5}]\n"
        "attacks: {d: {attack: deepfool}}\n"
        "evaluation: {num_images: 20, gate: false}\n"
    )
    code, printed, errors = run_cli("run", config)
    assert (code, errors) == (0, "")
    assert (tmp_path / "results/own/samples/our_model-net-k5-none-s0/d.parquet").is_file()
    assert "report: results/own/report.html" in printed


def test_a_foreign_attacks_package_is_named(run_cli, config, tmp_path, monkeypatch):
    (tmp_path / "attacks").mkdir()
    (tmp_path / "attacks/__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "attacks")
    code, _, errors = run_cli("run", config, "--out", tmp_path / "out")
    assert code == 2
    assert f"the package `attacks` is not robust-ham's: {tmp_path}" in errors


def test_list_and_doctor(run_cli):
    code, printed, _ = run_cli("list")
    assert code == 0
    for name in ("deepfool", "spatial_grid", "resnet18_cifar", "hamming_sqrt", "cifar100", "smoke"):
        assert f"  {name} " in printed
    _, printed, _ = run_cli("list", "keys")
    assert "training.epochs = 10" in printed
    code, printed, _ = run_cli("doctor")
    assert code == 0
    assert "torch" in printed
    assert "fashion_mnist" in printed


def test_the_version(run_cli):
    assert run_cli("--version") == (0, f"robust-ham {__version__}\n", "")


def test_doctor_names_data_that_a_folder_lacks(run_cli, tmp_path, monkeypatch):
    (tmp_path / "mnist").mkdir()
    for arguments in (["doctor", "--data-root", tmp_path], ["list", "datasets"]):
        code, printed, errors = run_cli(*arguments)
        assert (code, errors) == (0, "")
        assert re.search(r"mnist +not found", printed)
        monkeypatch.setenv("ROBUST_HAM_DATA", str(tmp_path))


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(exit_codes, "_debug", False)
    monkeypatch.setattr(sys, "argv", ["robust-ham", "run", "no_such", "--debug"])
    monkeypatch.setattr(main.signals, "listen", lambda: None)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    with pytest.raises(Exception, match="no such file"):
        main.main()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_and_the_same_command_goes_on(config, tmp_path, number, code):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "robust_ham", "run", str(config), "--out", str(out)]
    command += ["-o", "training.epochs=60"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("[1/6]"):
            break
    time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors == f"robust-ham: {main.signals.STOPPED}\n"
    assert not [p for p in out.rglob("*") if ".tmp" in p.name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "[1/6] cnn2-w4-k3-none-s0: already there" in done.stdout
    assert (out / "report.html").exists()


def test_help_and_report_need_no_torch(config, tmp_path, run_cli):
    out = tmp_path / "out"
    run_cli("run", config, "--out", out)
    blocker = tmp_path / "blocked"
    blocker.mkdir()
    for name in ("torch", "torchvision", "kornia", "foolbox"):
        (blocker / f"{name}.py").write_text("raise ImportError('blocked')\n")
    environment = os.environ | {"PYTHONPATH": str(blocker)}
    for words in (["--help"], ["run", "--help"], ["report", str(out)], ["list", "keys"]):
        command = [sys.executable, "-m", "robust_ham", *words]
        found = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        assert (found.returncode, found.stderr) == (0, "")


def test_margins_and_grids_where_all_candidates_are_asked_for(run_cli, config, tmp_path):
    folder = tmp_path / "run"
    override = "attacks.spatial_shift.stop=null"
    assert run_cli("run", config, "-o", override, "--out", folder)[0] == 0
    (model_id,) = [p.name for p in (folder / "models").iterdir() if "-none-" in p.name]
    samples = pd.read_parquet(folder / "samples" / model_id / "spatial_shift.parquet")
    with np.load(folder / "margins" / model_id / "spatial_shift.npz") as arrays:
        margins, ids = arrays["margins"], arrays["sample_id"]
        assert margins.dtype == np.float16
        assert arrays["transforms"].shape == (49, 3)
    assert ids.tolist() == samples["sample_id"].tolist()
    fooled = (margins < 0).any(1)
    assert fooled.tolist() == (samples["status"] == "fooled").tolist()
    grid = pd.read_csv(folder / "grids" / model_id / "spatial_shift.csv")
    assert grid["num_fooled"].tolist() == (margins < 0).sum(0).tolist()
    assert run_cli("run", config, "--out", folder)[0] == 0  # no longer asked for
    assert not (folder / "margins" / model_id / "spatial_shift.npz").exists()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"GOMP_SPINCOUNT": "2000"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
    ],
)
def test_idle_threads_sleep_soon_unless_the_user_has_chosen(before, after):
    limit_spinning(before)
    assert before == after
