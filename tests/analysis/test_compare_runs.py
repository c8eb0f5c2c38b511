"""Comparisons of runs: configurations and results."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY_RUN

from robust_ham.analysis.metrics import robust_area
from robust_ham.config.files import parse_config
from robust_ham.models.build import build
from robust_ham.models.size import num_flops
from robust_ham.runs.plan.plan import make_plan
from robust_ham.runs.runner import run_plan
from robust_ham.storage.parquet_tables import read_table

MODEL = "cnn2-w4-k3-none-s0"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    changed = {"epochs: 1": "epochs: 4", "steps: 10": "steps: 9"}
    for name, change in (("short", {}), ("long", changed)):
        text = TINY_RUN.replace("lr: 0.1", "lr: 0.3")
        for old, new in change.items():
            assert old in text
            text = text.replace(old, new)
        run_plan(make_plan(parse_config(text)), folder / name, torch.device("cpu"))
    return folder


def test_what_changed(run_cli, runs, tmp_path):
    code, printed, errors = run_cli("compare", runs / "short", runs / "long", "--out", tmp_path)
    assert (code, errors) == (0, "")
    keys = pd.read_csv(tmp_path / "configurations.csv", dtype=str)
    assert keys.values.tolist() == [
        ["training.epochs", "1", "4"],
        ["attacks.deepfool_l2.steps", "10", "9"],
    ]
    found = pd.read_csv(tmp_path / "comparison.csv")
    assert len(found) == 2 * (1 + 2 + 1)  # networks × (accuracy, DeepFool's two, shifts)
    row = found[(found["model_id"] == MODEL) & (found["metric"] == "robust_area")].iloc[0]
    for name, column in (("short", "first"), ("long", "other")):
        samples = read_table(runs / name / "samples" / MODEL / "deepfool_l2.parquet")
        assert row[column] == pytest.approx(robust_area(samples["l2"].to_numpy(), 0.5))
    assert row["effect"] == pytest.approx(row["other"] / row["first"])
    assert row["low"] <= row["effect"] <= row["high"]
    assert row["num_images"] == 20
    page = (tmp_path / "comparison.html").read_text()
    assert "<td>9</td>" in page
    assert f"{MODEL}" in page
    assert f"comparison: {tmp_path}/comparison.html" in printed


def test_equal_runs_do_not_differ(run_cli, runs, tmp_path):
    again = shutil.copytree(runs / "short", tmp_path / "short")
    assert run_cli("compare", runs / "short", again, "--out", tmp_path / "out")[0] == 0
    assert pd.read_csv(tmp_path / "out/configurations.csv").empty
    found = pd.read_csv(tmp_path / "out/comparison.csv")
    assert set(found["run"]) == {"short (2)"}
    neutral = np.where(found["scale"] == "ratio", 1.0, 0.0)
    np.testing.assert_allclose(found["effect"], neutral)
    assert "The configurations are identical." in (tmp_path / "out/comparison.html").read_text()


def test_other_images_have_no_effect(run_cli, runs, tmp_path):
    other = shutil.copytree(runs / "short", tmp_path / "other")
    shutil.rmtree(other / "receipts")
    (other / "SHA256SUMS").unlink()
    for path in (other / "samples").rglob("*.parquet"):
        table = pd.read_parquet(path)
        table.assign(dataset="mnist").to_parquet(path)
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("name: fashion_mnist", "name: mnist"))
    with_inputs(other, lambda t: t.drop(columns="sha256"))  # where hashes are known, they decide
    assert run_cli("compare", runs / "short", other, "--out", tmp_path / "out")[0] == 0
    found = pd.read_csv(tmp_path / "out/comparison.csv")
    assert found["effect"].isna().all()
    assert set(found["note"]) == {"another dataset"}


def with_inputs(run, change):
    """Change a run's ``inputs.parquet`` and remove receipts that would detect it."""
    shutil.rmtree(run / "receipts", ignore_errors=True)
    (run / "SHA256SUMS").unlink(missing_ok=True)
    path = run / "inputs.parquet"
    change(pd.read_parquet(path)).to_parquet(path)
    return run


def test_images_with_different_hashes_are_refused(run_cli, runs, tmp_path):
    """Another --data-root, or MNIST at 28 and 14: same sample_ids, no image in common."""
    place = f"compare: other: {MODEL} under deepfool_l2: image"
    for name, change, message in [
        ("none", lambda t: t.assign(sha256=t["sha256"].str[::-1]), "all others are missing from"),
        (
            "one",
            lambda t: t.assign(sha256=["0" * 64, *t["sha256"][1:]]),
            "differs between the runs (SHA-256)",
        ),
    ]:
        other = shutil.copytree(runs / "short", tmp_path / name / "other")
        with_inputs(other, change)
        words = ["compare", runs / "short", other, "--out", tmp_path / "out"]
        code, _, errors = run_cli(*words)
        assert code == 2
        assert errors.count("\n") == 1
        assert place in errors
        assert message in errors
        assert not (tmp_path / "out").exists()


def test_hashes_pair_images_whatever_they_are_called(run_cli, runs, tmp_path):
    """The same images with different numbers, in another order and from a folder."""
    other = shutil.copytree(runs / "short", tmp_path / "other")
    with_inputs(other, lambda t: t.assign(sample_id=t["sample_id"] + 7))
    for path in (other / "samples").rglob("*.parquet"):
        table = pd.read_parquet(path)
        table["sample_id"] += 7
        table.assign(dataset="mine")[::-1].reset_index(drop=True).to_parquet(path)
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("name: fashion_mnist", "name: /data/mine"))
    assert run_cli("compare", runs / "short", other, "--out", tmp_path / "out")[0] == 0
    found = pd.read_csv(tmp_path / "out/comparison.csv")
    np.testing.assert_allclose(found["effect"], np.where(found["scale"] == "ratio", 1.0, 0.0))
    same = found[found["metric"] == "robust_area"]
    np.testing.assert_allclose(same[["low", "high"]], 1)  # image by image


def test_fewer_of_the_same_images_have_no_effect(run_cli, runs, tmp_path):
    other = shutil.copytree(runs / "short", tmp_path / "other")
    with_inputs(other, lambda t: t[:10])
    for path in (other / "samples").rglob("*.parquet"):
        pd.read_parquet(path)[:10].to_parquet(path)
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("num_images: 20", "num_images: 10"))
    assert run_cli("compare", runs / "short", other, "--out", tmp_path / "out")[0] == 0
    found = pd.read_csv(tmp_path / "out/comparison.csv")
    assert set(found["note"]) == {"not the same images"}
    assert found["effect"].isna().all()


def test_labels_that_differ_are_refused(run_cli, runs, tmp_path):
    """Labels start at 1 in one of the runs."""
    other = shutil.copytree(runs / "short", tmp_path / "other")
    classes = ["label", "clean_prediction", "adversarial_prediction"]
    for path in (other / "samples").rglob("*.parquet"):
        table = pd.read_parquet(path)
        table.assign(**{name: table[name] + 1 for name in classes}).to_parquet(path)
    with_inputs(other, lambda t: t.assign(label=t["label"] + 1))
    table = pd.read_parquet(runs / "short" / "samples" / MODEL / "deepfool_l2.parquet")
    code, _, errors = run_cli("compare", runs / "short", other, "--out", tmp_path / "out")
    assert code == 2
    label, image = table["label"].iloc[0], table["sample_id"].iloc[0]
    assert f"{MODEL} under deepfool_l2: image {image}: expected one label, got {label}" in errors


def test_images_of_tables_are_paired_by_their_names(run_cli, tmp_path):
    """Both tables number their images from 0; the names say which are the same."""
    lines = {"a": ["x,0.1", "y,0.2", "z,0.3"], "b": ["z,0.3", "y,0.2", "x,0.1"], "c": ["u,0.1"]}
    for name, rows in lines.items():
        table = tmp_path / f"{name}.csv"
        table.write_text("\n".join(["model,attack,sample_id,l2", *(f"m,d,{r}" for r in rows)]))
        assert run_cli("report", table, "--out", tmp_path / name)[0] == 0
    words = ["--out", tmp_path / "out"]
    assert run_cli("compare", tmp_path / "a", tmp_path / "b", *words)[0] == 0
    found = pd.read_csv(tmp_path / "out/comparison.csv").set_index("metric")
    assert tuple(found.loc["robust_area", ["effect", "low", "high"]]) == pytest.approx((1, 1, 1))
    code, _, errors = run_cli("compare", tmp_path / "a", tmp_path / "c", *words)
    assert (code, "m-none-s0 under d: image x and all others are missing" in errors) == (2, True)


def test_distances_in_other_norms_are_not_compared(run_cli, tmp_path):
    for norm, wrong in (("l2", 0.3), ("linf", 0.02)):
        rows = [f"m,deepfool,{i},{wrong * i}" for i in range(5)]
        table = tmp_path / f"{norm}.csv"
        table.write_text("\n".join([f"model,attack,sample_id,{norm}", *rows]) + "\n")
        assert run_cli("report", table, "--out", tmp_path / norm)[0] == 0
    places = tmp_path / "l2", tmp_path / "linf"
    assert run_cli("compare", *places, "--out", tmp_path / "out")[0] == 0
    found = pd.read_csv(tmp_path / "out" / "comparison.csv").set_index("metric")
    assert found.loc[["robust_area", "robust_accuracy"], "effect"].isna().all()
    assert set(found["note"]) == {"another norm"}


def test_a_network_that_is_always_wrong_is_compared(run_cli, tmp_path):
    table = tmp_path / "wrong.csv"
    table.write_text("model,attack,sample_id,l2\nm,ddn,0,0\nm,ddn,1,0\nn,ddn,0,0\nn,ddn,1,0.5\n")
    assert run_cli("report", table, "--out", tmp_path / "a")[0] == 0
    code, printed, _ = run_cli("compare", tmp_path / "a", tmp_path / "a", "--out", tmp_path / "o")
    assert code == 0
    assert "the baseline's figure is 0" in printed


def test_what_cannot_be_compared(run_cli, runs, tmp_path):
    code, _, errors = run_cli("compare", runs / "short")
    assert (code, errors) == (2, "robust-ham: compare: expected two or more run folders\n")
    code, _, errors = run_cli("compare", runs / "short", tmp_path)
    assert (code, errors) == (2, f"robust-ham: {tmp_path}: not a run folder (no config.yaml)\n")
    other = shutil.copytree(runs / "short", tmp_path / "other")
    shutil.rmtree(other / "samples")
    code, _, errors = run_cli("compare", runs / "short", other, "--out", tmp_path / "out")
    assert code == 2
    assert errors == "robust-ham: the runs have no network and attack in common\n"
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_how_long_it_takes(run_cli, runs, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY_RUN)
    words = ["run", config, "--dry-run", "--out", tmp_path / "out"]
    _, printed, _ = run_cli(*words)
    assert "estimated time left: " in printed
    assert not (tmp_path / "out").exists()
    plan = json.loads(run_cli(*words, "--json")[1])
    assert len(plan["cells"]) == 6
    assert plan["seconds"]["training"] > 0
    assert plan["seconds"]["attacks"] > 0
    made = make_plan(parse_config(config.read_text()))
    baseline = build(made.config.model_specs()[0], 1, 10)  # a window adds nothing
    images = 2 * len(made.dataset.train)  # of two networks, for one epoch
    assert plan["training_flops"] == 3 * images * num_flops(baseline, (1, 28, 28))
    config.write_text(TINY_RUN.replace("lr: 0.1", "lr: 0.3"))
    done = [*words[:-1], runs / "short", "--json"]
    plan = json.loads(run_cli(*done)[1])
    assert (plan["seconds"], plan["training_flops"]) == ({"training": 0, "attacks": 0}, 0)
    code, _, errors = run_cli("run", config, "--json")
    assert (code, errors.startswith("robust-ham: --json: needs --dry-run")) == (2, True)


def test_a_dry_run_counts_the_training_beside_networks_that_are_there(run_cli, runs, tmp_path):
    config = tmp_path / "beside.yaml"
    there = "    sweep: {kernel_size: [3], window: [none, hamming]}"
    assert there in TINY_RUN
    trained = "  - {architecture: cnn, depth: 2, widths: [4], first_kernel: same, kernel_size: 3}"
    source = f"    kernel_size: 3\n    window: hamming\n    source: {runs / 'short' / 'models'}"
    config.write_text(TINY_RUN.replace(there, f"{source}\n{trained}"))
    code, printed, _ = run_cli("run", config, "--dry-run", "--json", "--out", tmp_path / "out")
    assert code == 0
    assert json.loads(printed)["seconds"]["training"] > 0
