"""`status` and `verify`: what is done, and whether it can be relied upon."""

import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from faulty_runs import CONFIG, run_here
from test_faults import write_data

from robust_ham.analysis.tables import write_tables
from robust_ham.report.export import export
from robust_ham.report.page import write_page
from robust_ham.runs.status import read_status
from robust_ham.runs.verify import differ
from robust_ham.runs.verify_files import check_files
from robust_ham.storage import files, parquet_tables
from robust_ham.storage.array_files import read_arrays
from robust_ham.storage.locks import try_lock
from robust_ham.storage.run_folder import RunFolder

MODEL = "cnn2-w8-k3-none-s0"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run_here(folder, data)
    tables = write_tables(folder)
    write_page(tables)
    export(tables, "latex")
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def test_status_of_a_finished_run(run_cli, folder):
    code, printed, _ = run_cli("status", folder)
    assert code == 0
    assert printed == f"{folder}: 10 of 10 jobs done, 0 running, 0 failed, 0 left\n"
    content = json.loads(run_cli("status", folder, "--json")[1])
    assert content["num_cells"] == len(content["done"]) == 10
    assert content["seconds_left"] == 0
    assert "0 running" in run_cli("status", folder, "--watch")[1]


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
        assert f"  {MODEL}/deepfool_l2/1of2: running on " in printed
    finally:
        lock.release()


def test_status_of_what_is_no_run(run_cli, tmp_path):
    code, _, errors = run_cli("status", tmp_path)
    assert (code, errors) == (2, f"robust-ham: {tmp_path}: not a run folder (no config.yaml)\n")


def test_a_run_is_verified(run_cli, folder, data):
    code, printed, errors = run_cli("verify", folder, "--data-root", data)
    assert (code, errors) == (0, "")
    assert "stored adversarial images score as before: ok (48 checked)" in printed
    assert "rerun attacks give the same rows: ok (3 checked)" in printed
    assert printed.count(": ok (") == 8
    files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    covered = sorted(set(files) - {"timings.csv", "SHA256SUMS"})
    assert f"files match their checksums: ok ({len(covered)} checked)\n" in printed
    assert "  no checksum: timings.csv\n" in printed
    lines = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    assert [name for _, name in lines] == covered
    assert all(hashlib.sha256((folder / n).read_bytes()).hexdigest() == d for d, n in lines)


def test_what_was_not_passed_on_is_said(run_cli, folder, data):
    for name in ("adversarials", "margins", "gallery"):
        shutil.rmtree(folder / name)
    for path in folder.rglob("model.safetensors"):
        path.unlink()
    code, printed, _ = run_cli("verify", folder, "--data-root", data)
    assert code == 0
    assert ", 12 not in this copy)" in printed
    assert (
        "not in this copy: 4 in adversarials/, 4 in gallery/, 2 in margins/, 2 in models/\n"
        in printed
    )
    assert "rerun attacks give the same rows: ok (0 checked)" in printed


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def plant(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("")


def set_key(folder, old, new):
    text = (folder / "config.yaml").read_text()
    assert old in text
    (folder / "config.yaml").write_text(text.replace(old, new))


def edit_timings(folder, old, new):
    text = (folder / "timings.csv").read_text()
    (folder / "timings.csv").write_text(text.replace(old, new, 1))


def forge_adversarials(folder):
    """Clean images in place of adversarial ones, with a receipt to match."""
    run = RunFolder(folder)
    path, table = (place(MODEL, "deepfool_l2") for place in (run.adversarials, run.samples))
    arrays = read_arrays(path)
    np.savez(path, **arrays | {"adversarial": np.zeros_like(arrays["adversarial"])})
    receipt = json.loads(run.receipt(table).read_text())
    name = path.relative_to(folder).as_posix()
    receipt["files"][name] = files.file_hash(path)
    run.receipt(table).write_text(json.dumps(receipt))


def forge_rows(folder):
    """Distances of half the size, in the rows and in all that follows from them."""
    run = RunFolder(folder)
    for model_id in (MODEL, MODEL.replace("none", "hamming")):
        path = run.samples(model_id, "deepfool_l2")
        rows, about = parquet_tables.read_table(path), parquet_tables.read_metadata(path)
        rows["l2"] = np.where(rows["status"] == "fooled", rows["l2"] / 2, rows["l2"])
        parquet_tables.write_table(path, rows, about)
        receipt = json.loads(run.receipt(path).read_text())
        receipt["files"][path.relative_to(folder).as_posix()] = files.file_hash(path)
        run.receipt(path).write_text(json.dumps(receipt))


@pytest.mark.parametrize(
    "name",
    "inputs.parquet manifest.json config.yaml report.html kernels.csv transfer.csv summary.csv "
    "figures/axes.svg figures/robustness.png export/models.tex".split(),
)
def test_a_changed_file_is_found(folder, name):
    path = folder / name
    assert path.is_file(), sorted(p.name for p in path.parent.iterdir())
    flip(path)
    fault = f"{name} has changed since it was written (SHA-256 differs)"
    assert check_files(RunFolder(folder)).faults == [fault]
    path.unlink()
    missing = check_files(RunFolder(folder))
    if name.startswith("export/"):  # an export may be moved elsewhere
        assert (missing.faults, missing.not_here) == ([], [name])
    else:
        assert missing.faults == [f"{name} is missing"]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "failures.jsonl",
            "notes.txt",
            "figures/x.svg",
            "export/x.tex",
            "receipts/samples/x.json",
        ),
        *(f"samples/{MODEL}/x.parquet", f"gallery/{MODEL}/x.npz", "predictions/x.parquet"),
    ],
)
def test_an_added_file_is_found(folder, name):
    plant(folder, name)
    fault = f"{name} has no checksum: it was added later"
    assert fault in check_files(RunFolder(folder)).faults


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini", "Desktop.ini"])
def test_what_file_managers_leave_is_not_an_added_file(folder, name):
    before = check_files(RunFolder(folder))
    for place in ("", "figures/", f"samples/{MODEL}/", "receipts/samples/"):
        plant(folder, place + name)
    assert check_files(RunFolder(folder)) == before
    plant(folder, f"figures/{name}.svg" if name[0] != "." else "figures/DS_Store")
    assert len(check_files(RunFolder(folder)).faults) == len(before.faults) + 1


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda f: flip(f / "gallery" / MODEL / "shift.npz"),
            "shift.npz has changed since it was written",
        ),
        (lambda f: (f / "gallery" / MODEL / "shift.npz").unlink(), "shift.npz is missing"),
        (lambda f: (f / "models" / MODEL / "training.csv").unlink(), "training.csv is missing"),
        (lambda f: (f / f"receipts/models/{MODEL}.json").write_text("{"), "models/.* is damaged"),
        (lambda f: (f / "models" / "x").symlink_to("/"), "models/x is a symbolic link"),
        (lambda f: (f / "SHA256SUMS").unlink(), "SHA256SUMS is missing"),
        (lambda f: (f / "SHA256SUMS").write_text("x\n"), "SHA256SUMS: line 1: expected a SHA-256"),
        (lambda f: (f / "SHA256SUMS").write_text(f"{'0' * 64}  ../x\n"), "line 1: expected a SHA"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_faults_of_files(folder, harm, message):
    harm(folder)
    faults = check_files(RunFolder(folder)).faults
    assert pd.Series(faults).str.contains(message).any(), faults


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / f"receipts/models/{MODEL}.json").unlink(), f"{MODEL} is not finished"),
        (lambda f: flip(f / f"samples/{MODEL}/shift.parquet"), "shift.parquet has changed since"),
        (lambda f: (f / "summary.csv").write_text("n\n1\n"), "summary.csv does not follow from"),
        (lambda f: (f / "curves.csv").unlink(), "curves.csv is missing"),
        (lambda f: set_key(f, "budget: 0.25", "budget: 0.2"), "summary.csv does not follow from"),
        (lambda f: set_key(f, "budget: 0.5", "budget: 0.4"), "no rows of deepfool_l2 at a budget"),
        (lambda f: set_key(f, "schema: 1", "schema: x"), "config.yaml: schema: "),
        (lambda f: set_key(f, "lr: 0.2", "lr: 0.3"), f"{MODEL} was computed from other"),
        (lambda f: set_key(f, "name: faults", "name: other"), "manifest.json: name does not match"),
        (lambda f: edit_timings(f, f"{MODEL},", f"{MODEL},-"), f"timings.csv: {MODEL}: expected s"),
        (lambda f: edit_timings(f, "cell,", "job,"), "timings.csv: expected the columns"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_verify_finds(run_cli, folder, data, harm, message):
    harm(folder)
    code, _, errors = run_cli("verify", folder, "--data-root", data, "--cells", "0")
    assert code == 3
    assert pd.Series(errors.splitlines()).str.contains(message).any(), errors


@pytest.mark.parametrize("forge", [forge_adversarials, forge_rows])
def test_forged_results_are_found(run_cli, folder, data, forge):
    forge(folder)
    code, _, errors = run_cli("verify", folder, "--data-root", data, "--cells", "4")
    assert code == 3
    assert "have a different status or distance" in errors


def age(folder):
    """The folder as it was before runs recorded all of their files."""
    (folder / "SHA256SUMS").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["checksums"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(folder / "export")


def test_older_folders_say_what_has_no_checksum(run_cli, folder, data):
    age(folder)
    code, printed, errors = run_cli("verify", folder, "--data-root", data, "--cells", "0")
    assert (code, errors) == (0, "")
    figures = len(list((folder / "figures").iterdir()))
    assert (
        "  no checksum: checkpoints.csv, claims.csv, config.yaml, contrasts.csv, "
        f"curves.csv, {figures} in figures/, inputs.parquet, manifest.json, mechanisms.csv, "
        "report.html, summary.csv, timings.csv\n"
    ) in printed
    write_page(write_tables(folder))  # they record what they write
    code, printed, errors = run_cli("verify", folder, "--data-root", data, "--cells", "0")
    assert (code, errors) == (0, "")
    assert "no checksum: inputs.parquet, manifest.json, timings.csv\n" in printed
    flip(folder / "figures" / "robustness.png")
    assert len(check_files(RunFolder(folder)).faults) == 1


def test_faults_of_older_folders(run_cli, folder, data):
    age(folder)
    rows = parquet_tables.read_table(folder / "inputs.parquet")
    rows.loc[3, "label"] += 1
    parquet_tables.write_table(folder / "inputs.parquet", rows, {})
    plant(folder, f"samples/{MODEL}/x.parquet")
    line = {"cell": f"{MODEL}/shift/1of2", "error": "RuntimeError", "reason": "planted"}
    (folder / "failures.jsonl").write_text(json.dumps(line) + "\n")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["dataset"]["num_attacked"] = 13
    (folder / "manifest.json").write_text(json.dumps(manifest))
    code, _, errors = run_cli("verify", folder, "--data-root", data, "--cells", "0")
    assert code == 3
    assert errors.splitlines() == [
        f"robust-ham: {line}"
        for line in (
            f"samples/{MODEL}/x.parquet has no checksum: it was added later",
            f"failures.jsonl lists {MODEL}/shift/1of2 as failed, but it is finished",
            f"{folder}/samples/{MODEL}/deepfool_l2.parquet: {MODEL}/deepfool_l2: image "
            f"{rows['sample_id'][3]}: label: expected the one in inputs.parquet, got "
            f"{rows['label'][3] - 1}",
            f"inputs.parquet: label of image {rows['sample_id'][3]} does not match the data",
            "manifest.json: dataset does not match the configuration and data",
        )
    ]


def test_a_fault_counts_where_the_data_are_not_here(run_cli, folder, tmp_path):
    set_key(folder, "name: fashion_mnist", "name: nothing")
    code, _, errors = run_cli("verify", folder, "--data-root", tmp_path)
    assert code == 3
    assert "config.yaml has changed since it was written" in errors
    assert "nothing (test): not found" in errors


def test_a_second_run_keeps_what_is_on_record(run_cli, folder, data):
    run_here(folder, data)
    code, printed, _ = run_cli("verify", folder, "--data-root", data, "--cells", "0")
    assert code == 0
    assert "  no checksum: timings.csv\n" in printed


def test_a_report_keeps_the_checksums_of_what_it_does_not_write(run_cli, folder):
    flip(folder / "adversarials" / MODEL / "shift.npz")
    plant(folder, "figures/planted.svg")
    (folder / "summary.csv").write_text("")
    write_tables(folder)
    assert check_files(RunFolder(folder)).faults == [
        f"adversarials/{MODEL}/shift.npz has changed since it was written (SHA-256 differs)",
        "figures/planted.svg has no checksum: it was added later",
    ]
    for name in ("inputs.parquet", "manifest.json"):
        whole = (folder / name).read_bytes()
        flip(folder / name)
        code, _, errors = run_cli("report", folder)
        assert code == 2
        assert f"{folder}: {name} has changed since it was written (SHA-256 differs)" in errors
        (folder / name).write_bytes(whole)


def test_other_data_are_told(run_cli, folder, tmp_path):
    other = write_data(tmp_path / "other", first=40)
    code, _, errors = run_cli("verify", folder, "--data-root", other, "--cells", "0")
    assert code == 3
    assert f"{MODEL} was computed from other data, options or code" in errors


def test_rows_may_differ_as_the_contract_allows():
    rows = pd.DataFrame({"sample_id": range(1000), "status": "fooled", "l2": 1.0, "linf": 0.5})
    assert differ(rows, rows.assign(l2=1.000005)) is None
    assert "1000 of 1000" in differ(rows, rows.assign(l2=1.00005))
    one, two = rows.copy(), rows.copy()
    one.loc[3, "status"] = two.loc[[3, 4], "status"] = "survived"
    assert differ(rows, one) is None
    assert "2 of 1000" in differ(rows, two)
    assert differ(rows, rows.assign(sample_id=1)) == "different images"


def test_the_config_of_a_run_is_complete(folder):
    """What `verify` and `status` read is all that was asked for."""
    assert yaml.safe_load((folder / "config.yaml").read_text())["evaluation"]["shard_size"] == 6
    assert "shard_size: 6" in CONFIG
