"""`status` and `verify`: what is done, and whether it can be relied upon."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from faulty_runs import CONFIG, run_here
from test_faults import write_data

from robust_ham import store
from robust_ham.locks import try_lock
from robust_ham.run_folder import RunFolder
from robust_ham.status import read_status
from robust_ham.verify import differ

MODEL = "cnn2-w8-k3-none-s0"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run_here(folder, data)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def test_status_of_a_finished_run(run_cli, folder):
    code, printed, _ = run_cli("status", folder)
    assert code == 0
    assert printed == f"{folder}: 10 of 10 cells done, 0 at work, 0 failed, 0 left\n"
    content = json.loads(run_cli("status", folder, "--json")[1])
    assert content["num_cells"] == len(content["done"]) == 10
    assert content["seconds_left"] == 0
    assert "0 at work" in run_cli("status", folder, "--watch")[1]


def test_status_of_a_run_that_goes_on(run_cli, folder):
    run = RunFolder(folder)
    for name in ("samples", "predictions"):
        shutil.rmtree(folder / "receipts" / name)
    (folder / "failures.jsonl").write_text(
        json.dumps({"cell": f"{MODEL}/shift/1of2", "reason": "the loss is nan\x1b[2J"})
        + "\nnot json\n"
    )
    lock = try_lock(run.lock(f"{MODEL}/deepfool_l2/1of2"))
    try:
        found = read_status(folder)
        assert list(found.running) == [f"{MODEL}/deepfool_l2/1of2"]
        assert list(found.failed) == [f"{MODEL}/shift/1of2"]
        assert (len(found.done), len(found.left)) == (0, 8)
        table = pd.read_csv(run.timings).set_index("cell")["seconds"]
        assert len(found.running) + len(found.left) == 9  # each takes as long as its like took
        deepfool, shift = (table[table.index.str.contains(f"/{a}")].mean() for a in ("deep", "sh"))
        models = table[~table.index.str.contains("/") & (table.index != "transfer")]
        assert len(models) == 2
        assert found.seconds_left == pytest.approx(models.sum() + 4 * deepfool + 3 * shift)
        printed = run_cli("status", folder)[1]
        assert f"  {MODEL}/shift/1of2: failed: the loss is nan\\x1b[2J\n" in printed
        assert f"  {MODEL}/deepfool_l2/1of2: at work on " in printed
    finally:
        lock.release()


def test_status_of_what_is_no_run(run_cli, tmp_path):
    code, _, errors = run_cli("status", tmp_path)
    assert (code, errors) == (2, f"robust-ham: {tmp_path}: not a run folder (no config.yaml)\n")


def test_a_run_is_verified(run_cli, folder, data):
    code, printed, errors = run_cli("verify", folder, "--data-root", data)
    assert (code, errors) == (0, "")
    assert "stored adversarial images are judged as before: ok (48 checked)" in printed
    assert "attacks give the same rows once more: ok (3 checked)" in printed
    assert printed.count(": ok (") == 6


def test_what_was_not_passed_on_is_said(run_cli, folder, data):
    for name in ("adversarials", "margins", "gallery"):
        shutil.rmtree(folder / name)
    for path in folder.rglob("model.safetensors"):
        path.unlink()
    code, printed, _ = run_cli("verify", folder, "--data-root", data)
    assert code == 0
    assert ", 12 not here)" in printed
    assert "attacks give the same rows once more: ok (0 checked)" in printed


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def forge_adversarials(folder):
    """Clean images in place of adversarial ones, with a receipt to match."""
    run = RunFolder(folder)
    path, table = (place(MODEL, "deepfool_l2") for place in (run.adversarials, run.samples))
    arrays = store.read_arrays(path)
    np.savez(path, **arrays | {"adversarial": np.zeros_like(arrays["adversarial"])})
    receipt = json.loads(run.receipt(table).read_text())
    name = path.relative_to(folder).as_posix()
    receipt["files"][name] = store.file_hash(path)
    run.receipt(table).write_text(json.dumps(receipt))


def forge_rows(folder):
    """Distances of half the size, in the rows and in all that follows from them."""
    run = RunFolder(folder)
    for model_id in (MODEL, MODEL.replace("none", "hamming")):
        path = run.samples(model_id, "deepfool_l2")
        rows, about = store.read_table(path), store.read_metadata(path)
        rows["l2"] = np.where(rows["status"] == "fooled", rows["l2"] / 2, rows["l2"])
        store.write_table(path, rows, about)
        receipt = json.loads(run.receipt(path).read_text())
        receipt["files"][path.relative_to(folder).as_posix()] = store.file_hash(path)
        run.receipt(path).write_text(json.dumps(receipt))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: flip(f / "gallery" / MODEL / "shift.npz"), "shift.npz is not as it was written"),
        (lambda f: (f / "models" / MODEL / "training.csv").unlink(), "training.csv is missing"),
        (lambda f: (f / f"receipts/models/{MODEL}.json").write_text("{"), "models/.* is damaged"),
        (lambda f: (f / f"receipts/models/{MODEL}.json").unlink(), f"{MODEL} is not finished"),
        (lambda f: (f / "summary.csv").write_text("n\n1\n"), "summary.csv is not what the per-im"),
        (lambda f: (f / "curves.csv").unlink(), "curves.csv is missing"),
        (forge_adversarials, "have another status or distance"),
        (forge_rows, "have another status or distance"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_verify_finds(run_cli, folder, data, harm, message):
    harm(folder)
    code, _, errors = run_cli("verify", folder, "--data-root", data, "--cells", "4")
    assert code == 3
    assert pd.Series(errors.splitlines()).str.contains(message).any(), errors


def test_other_data_are_told(run_cli, folder, tmp_path):
    other = write_data(tmp_path / "other", first=40)
    code, _, errors = run_cli("verify", folder, "--data-root", other, "--cells", "0")
    assert code == 3
    assert f"{MODEL} was made from something else than it would be now" in errors


def test_rows_may_differ_as_the_contract_allows():
    rows = pd.DataFrame({"sample_id": range(1000), "status": "fooled", "l2": 1.0, "linf": 0.5})
    assert differ(rows, rows.assign(l2=1.000005)) is None
    assert "1000 of 1000" in differ(rows, rows.assign(l2=1.00005))
    one, two = rows.copy(), rows.copy()
    one.loc[3, "status"] = two.loc[[3, 4], "status"] = "survived"
    assert differ(rows, one) is None
    assert "2 of 1000" in differ(rows, two)
    assert differ(rows, rows.assign(sample_id=1)) == "other images"


def test_the_config_of_a_run_is_complete(folder):
    """What `verify` and `status` read is all that was asked for."""
    assert yaml.safe_load((folder / "config.yaml").read_text())["evaluation"]["shard_size"] == 6
    assert "shard_size: 6" in CONFIG
