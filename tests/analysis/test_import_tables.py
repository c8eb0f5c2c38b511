"""Third-party tables: the same statistics as a run's rows, or one line that names the error."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from robust_ham.analysis.importing import convert, readers
from robust_ham.analysis.importing.convert import COLUMNS, folders_to_report, write_run_folder
from robust_ham.analysis.run import Run
from robust_ham.errors import RequestError
from robust_ham.report.page import build_report
from robust_ham.storage.parquet_tables import read_table
from robust_ham.storage.run_folder import RunFolder, runs_below

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "results/reference/fashion_mnist_cnn_laptop"
PAGE = (ROOT / "docs/results.md").read_text()
SECTION = PAGE.split("## Third-party results")[1].split("\n## ")[0]
SNIPPET = re.search(r"```csv\n(.*?)```", SECTION, re.DOTALL)[1]

TABLE = """model,attack,sample_id,l2,fooled,correct,kernel_size
a,d,1,0.5,,,7
a,d,2,0,,,7
a,d,3,inf,,,7
a,turn,1,,true,true,7
a,turn,2,,false,false,7
a,turn,3,,false,true,7
"""


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def written(folder, text=TABLE, name="t.csv"):
    (folder / name).write_text(text)
    return folder / name


def converted(tmp_path, text=TABLE):
    write_run_folder([written(tmp_path, text)], tmp_path / "out")
    return Run(RunFolder(tmp_path / "out"))


# --- what is made --------------------------------------------------------------------------------


def test_the_example_of_the_readme(run_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, SNIPPET, "distances.csv")
    command = re.search(r"robust-ham (report distances\.csv .*)", SECTION)[1].split()
    code, printed, errors = run_cli(*command)
    assert (code, errors) == (0, "")
    assert "report: results/theirs/report.html" in printed
    summary = pd.read_csv("results/theirs/summary.csv").set_index("model_id")
    assert list(summary.index) == ["mine-k7-none-s0", "mine-k7-hamming-s0"]
    budgets = Run(RunFolder(Path("results/theirs"))).config.attacks["ddn"].curve_budgets
    finite = np.quantile([0.31, 0.84, 0.22, 0.57], [0.1, 0.25, 0.5, 0.75, 0.9])
    assert budgets == tuple(float(f"{b:.2g}") for b in finite)
    assert summary["clean_accuracy"].tolist() == [2 / 3, 1]
    most = budgets[-1]
    areas = [(0.31 + 0 + most) / 3, (0.22 + 0.57 + most) / 3]
    assert summary["robust_area"].tolist() == pytest.approx(areas)
    effects = pd.read_csv("results/theirs/contrasts.csv")
    area = effects[effects["metric"] == "robust_area"].iloc[0]
    assert area["effect"] == pytest.approx(areas[1] / areas[0])
    assert (area["num_seeds"], area["num_images"], area["verdict"]) == (1, 3, "undecided")
    names = read_table(Path("results/theirs/inputs.parquet"))
    assert names["sample"].tolist() == ["image-1", "image-2", "image-3"]
    assert names["sample_id"].tolist() == [0, 1, 2]


def test_the_readme_names_every_column():
    assert set(COLUMNS) <= set(re.findall(r"`(\w+)`", SECTION))


def test_default_folders(run_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folders_to_report([Path("run")], None) == [Path("run")]
    assert folders_to_report([written(tmp_path)], None) == [Path("results/t")]
    results = bench_results(tmp_path)
    assert folders_to_report(results, None) == [Path("results/attackbench")]


def exported():
    """The rows of one of our runs as a third-party table."""
    tables = []
    for path in sorted(NATIVE.glob("samples/*/*.parquet")):
        rows = read_table(path)
        family, size, window, seed = path.parent.name.rsplit("-", 3)
        table = rows[["sample_id", *"label clean_prediction adversarial_prediction".split()]]
        table = table.assign(
            model=family, kernel_size=int(size[1:]), window=window, seed=int(seed[1:])
        )
        table = table.assign(attack=path.stem, dataset="fashion_mnist", correct=rows["l2"] != 0)
        table = table.assign(l2=rows["l2"], linf=rows["linf"], forwards=rows["forwards"])
        if path.stem == "spatial_grid":
            right = rows["status"] != "already_wrong"
            table = table.assign(fooled=rows["status"] == "fooled", correct=right)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_of_ours_give_the_statistics_of_our_run(tmp_path, kind):
    path, out = tmp_path / f"theirs.{kind}", tmp_path / "out"
    table = exported()
    table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    write_run_folder([path], out)
    values = yaml.safe_load((out / "config.yaml").read_text())
    budgets = Run(RunFolder(NATIVE)).config.attacks["deepfool_l2"]
    values["attacks"]["deepfool_l2"] |= {
        "budget": budgets.budget,
        "budgets": list(budgets.budgets),
    }
    (out / "config.yaml").write_text(yaml.safe_dump(values))
    build_report(out)

    ours, theirs = (pd.read_csv(folder / "summary.csv") for folder in (NATIVE, out))
    both = ours.merge(theirs, on=["kernel_size", "window", "seed", "attack"])
    assert len(both) == len(ours) == 24
    for name in (
        "clean_accuracy robust_accuracy robust_area fooled_rate median_l2 median_l2_low mean_l2 "
        "median_linf forwards"
    ).split():
        same = np.isclose(both[f"{name}_x"], both[f"{name}_y"], 1e-9, 0, equal_nan=True)
        assert same.all(), name
    assert both["clean_accuracy_x"].nunique() > 5

    ours, theirs = (pd.read_csv(folder / "contrasts.csv") for folder in (NATIVE, out))
    keys = "family window kernel_size versus metric attack budget".split()
    both = ours.merge(theirs, on=keys)
    assert len(both) == len(theirs) >= 20
    trusted = ~both["note_x"].str.contains("gate", na=False)
    assert (both["verdict_x"] == both["verdict_y"])[trusted].all()
    assert set(both.loc[trusted, "verdict_x"]) >= {"worse", "undecided"}
    for name in "baseline windowed effect low high simultaneous_low p p_holm".split():
        same = np.isclose(both[f"{name}_x"], both[f"{name}_y"], 1e-9, 1e-300, equal_nan=True)
        assert same.all(), name


def test_what_is_not_known_stays_empty(tmp_path):
    run = converted(tmp_path)
    rows, turned = (run.samples["a-k7-none-s0", attack] for attack in ("d", "turn"))
    assert rows["status"].tolist() == ["fooled", "already_wrong", "survived"]
    assert rows["l2"].tolist() == [0.5, 0, np.inf]
    assert turned["status"].tolist() == ["fooled", "already_wrong", "survived"]
    unknown = ["label", "clean_prediction", "adversarial_prediction", "linf", "forwards"]
    assert rows[unknown].isna().all(axis=None)
    assert turned[["l2", *unknown]].isna().all(axis=None)
    assert not RunFolder(tmp_path / "out").inputs.exists()
    summary = pd.read_csv(build_report(tmp_path / "out").page.parent / "summary.csv")
    assert summary["clean_accuracy"].tolist() == [2 / 3, 2 / 3]
    assert summary["fooled_rate"].tolist() == [0.5, 0.5]
    assert summary["robust_accuracy"].tolist() == [1 / 3, 1 / 3]


def test_an_invalid_image_counts_as_survived(tmp_path):
    text = "model,attack,sample_id,linf,invalid\na,d,x,0.5,true\na,d,y,0.1,\na,d,z,0,true\n"
    rows = converted(tmp_path, text).samples["a-none-s0", "d"]
    assert rows["status"].tolist() == ["invalid", "fooled", "already_wrong"]
    assert rows["linf"].tolist() == [np.inf, 0.1, 0]
    assert converted(tmp_path, text).attacks["d"].norm == "linf"
    build_report(tmp_path / "out")


def test_images_are_paired_whatever_the_order_of_rows(tmp_path):
    head = "model,window,attack,sample_id,l2\n"
    one = [f"a,none,d,{i},{0.1 + i / 10}\n" for i in range(6)]
    other = [f"a,hamming,d,{i},{0.2 + i / 10}\n" for i in range(6)]
    run = converted(tmp_path, head + "".join(one + other[::-1]))
    first, second = run.samples.values()
    assert first["sample_id"].tolist() == second["sample_id"].tolist()
    assert np.allclose(second["l2"] - first["l2"], 0.1)


def test_other_images_are_not_compared(tmp_path):
    rows = [
        f"a,{w},d,{i + (w == 'hamming')},0.{i + 1}\n" for w in ("none", "hamming") for i in (0, 1)
    ]
    converted(tmp_path, "model,window,attack,sample_id,l2\n" + "".join(rows))
    build_report(tmp_path / "out")
    effects = pd.read_csv(tmp_path / "out/contrasts.csv")
    assert (effects["note"] == "not the same images").all()
    assert effects["effect"].isna().all()


def test_without_kernel_sizes_networks_stand_by_their_names(tmp_path):
    rows = [f"{m},d,{i},0.{i + 1}\n" for m in ("alpha", "beta") for i in range(5)]
    converted(tmp_path, "model,attack,sample_id,l2\n" + "".join(rows))
    made = build_report(tmp_path / "out")
    assert [row[:3] for row in made.rows] == [["alpha", "–", "baseline"], ["beta", "–", "baseline"]]
    figures = [path.read_text() for path in (tmp_path / "out/figures").glob("*.svg")]
    assert len(figures) == 3  # none against other axes than k
    for text in (*figures, made.page.read_text()):
        assert "alpha" in text
        assert "k = 0" not in text
        assert "kernel size k" not in text


def test_one_row_is_enough(tmp_path):
    converted(tmp_path, "model,attack,sample_id,l2\na,d,1,0.5\n")
    assert "0.5" in build_report(tmp_path / "out").page.read_text()


def test_the_page_does_not_speak_of_our_own_runs(tmp_path):
    converted(tmp_path)
    page = build_report(tmp_path / "out").page.read_text()
    assert "no attack was run here" in page
    for ours in ("the same command", "harder to fool than baselines", "robust-ham run"):
        assert ours not in page
    text = TABLE + "b,d,1,0.2,,,7\n"
    write_run_folder([written(tmp_path, text)], tmp_path / "more")
    page = build_report(tmp_path / "more").page.read_text()
    assert "The tables cover 3 of 4 pairs of network and attack." in page


# --- the folder ----------------------------------------------------------------------------------


def test_the_same_command_again(run_cli, tmp_path):
    path, out = written(tmp_path), tmp_path / "out"
    assert run_cli("report", path, "--out", out)[0] == 0
    before = content(out)
    assert run_cli("report", path, "--out", out)[0] == 0
    assert content(out) == before
    run_cli("report", path, "--out", tmp_path / "again")
    assert content(tmp_path / "again") == before
    text = (out / "config.yaml").read_text().replace("budget: null", "budget: 0.125", 1)
    (out / "config.yaml").write_text(text)
    run_cli("report", path, "--out", out)
    assert (out / "config.yaml").read_text() == text  # what was edited stays
    assert pd.read_csv(out / "summary.csv")["budget"].iloc[0] == 0.125


def test_other_content_is_not_overwritten(tmp_path):
    path, out = written(tmp_path), tmp_path / "out"
    write_run_folder([path], out)
    before = content(out)
    for other in (TABLE.replace("0.5", "0.25"), TABLE + "b,d,1,0.2,,,7\n"):
        with pytest.raises(RequestError, match="out: holds something other than these tables"):
            write_run_folder([written(tmp_path, other)], out)
    assert content(out) == before
    (out / "samples/a-k7-none-s0/d.parquet").write_bytes(b"damaged")
    with pytest.raises(RequestError, match=r"d.parquet has changed since .*remove the folder"):
        write_run_folder([written(tmp_path)], out)
    for occupied in (tmp_path, path):
        with pytest.raises(RequestError, match="holds something other"):
            write_run_folder([path], occupied)


def test_whole_or_not_at_all(tmp_path, monkeypatch):
    path = written(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        write_run_folder([path], tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


def test_two_at_once_make_the_same_folder(tmp_path, monkeypatch):
    path, out, real = written(tmp_path), tmp_path / "out", convert._write

    def write_after_another(*asked):
        monkeypatch.setattr(convert, "_write", real)
        write_run_folder([path], out)
        real(*asked)

    monkeypatch.setattr(convert, "_write", write_after_another)
    write_run_folder([path], out)
    assert convert._write is real
    assert sorted(tmp_path.iterdir()) == sorted([path, out])


def test_unfinished_folders_are_not_reported(tmp_path):
    whole, half = converted(tmp_path).folder.root, tmp_path / ".out.01234567.tmp"
    assert runs_below(tmp_path) == [whole]
    whole.rename(half)
    assert runs_below(tmp_path) == []
    assert runs_below(half) == [half]


def test_it_cannot_be_run(run_cli, tmp_path):
    config = converted(tmp_path).folder.config
    for words in (["run", config], ["bench", config]):
        code, _, errors = run_cli(*words, "--out", tmp_path / "x")
        assert code == 2
        assert errors.count("\n") == 1
        assert "t: its models are imported tables" in errors
    model = "{architecture: table, name: a}"
    code, _, errors = run_cli("import", path := written(tmp_path), "--as", model, "--dataset", "x")
    assert (code, errors) == (2, "robust-ham: --as: architecture: a table has no network\n")
    code, _, errors = run_cli("explain", "kernels", "--run", path.parent / "out")
    assert code == 2
    assert errors.count("\n") == 1
    code, printed, _ = run_cli("status", path.parent / "out")
    assert "3 of 3 jobs done" in printed


def test_no_torch_is_needed(tmp_path):
    blocker = tmp_path / "blocked"
    blocker.mkdir()
    for name in ("torch", "torchvision", "kornia", "foolbox"):
        (blocker / f"{name}.py").write_text("raise ImportError('blocked')\n")
    paths = os.pathsep.join([str(blocker), str(ROOT)])
    words = ["report", str(written(tmp_path)), "--out", str(tmp_path / "out")]
    found = subprocess.run(
        [sys.executable, "-m", "robust_ham", *words],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stderr) == (0, "")


# --- names and values of strangers ---------------------------------------------------------------


def test_names_become_safe_and_stay_apart(tmp_path):
    names = ["../../etc", "<script>alert(1)</script>", "a b", "a/b", "A_b", "…", "x" * 300, ".."]
    rows = "".join(f'"{n}","{n}",{i},0.{i + 1}\n' for n in names for i in range(2))
    run = converted(tmp_path, "model,attack,sample_id,l2\n" + rows)
    assert len(run.samples) == len(names)  # each attack is of one model
    assert len({spec.model_id.lower() for spec in run.specs}) == len(names)
    assert [run.cards[spec.model_id]["model"]["name"] for spec in run.specs] == names
    page = build_report(tmp_path / "out").page.read_text()
    assert "<script>alert" not in page
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "t.csv"]


HEAD = "model,attack,sample_id,l2,linf,fooled,correct,invalid,norm,window,kernel_size,seed,label"
HEAD += ",clean_prediction,adversarial_prediction,forwards,dataset\n"


def row(**values):
    known = {"model": "a", "attack": "d", "sample_id": "1", "l2": "0.5"} | values
    return ",".join(known.get(name, "") for name in HEAD.strip().split(",")) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown column|no column model"),
        ("model,attack,sample_id,l2\n", "t.csv: no rows"),
        ("model,attack,sample_id\na,d,1\n", "t.csv: no column l2, linf or fooled; known columns"),
        ("model,attack,l2\na,d,1\n", "t.csv: no column sample_id; known columns"),
        (
            "model,attack,sample_id,l2,kernel\na,d,1,1,3\n",
            r"unknown column 'kernel'; did you mean kernel_size\?; known columns: .{187,207}$",
        ),
        (
            "model_id,attack,sample_id,l2\na,d,1,1\n",
            "t.csv: unknown column 'model_id'; did you mean model\\?; known columns",
        ),
        (",model,attack,sample_id,l2\n0,a,d,1,1\n", "the first column, '', .* with index=False$"),
        ("Unnamed: 0,model,attack,sample_id,l2\n0,a,d,1,1\n", "'Unnamed: 0', .* index=False$"),
        ("model;attack;sample_id;l2\na;d;1;0,5\n", "separated by commas, got semicolons$"),
        ("model\tattack\tsample_id\tl2\na\td\t1\t1\n", "separated by commas, got tabs$"),
        ("model,attack,sample_id,l2,l2\na,d,1,1,3\n", "t.csv: two columns l2"),
        ("model,attack,sample_id,l2\na,d,1,1\na,d,2\n", "line 3: expected 4 values, got 3"),
        ("model,attack,sample_id,l2\na,d,1,1,1\n", "line 2: expected 4 values, got 5"),
        ('model,attack,sample_id,l2\n"a,d,1,1\n', "t.csv: not a CSV file"),
        (HEAD + row() + row(), "row 2: sample_id: expected each image once .* got '1'"),
        (HEAD + row(model=""), "row 1: model: expected a name, got ''"),
        (HEAD + row(l2="-0.5"), "row 1: l2: expected a distance from 0 to 1e.09, .* got '-0.5'"),
        (HEAD + row(l2="-inf"), "row 1: l2: expected a distance"),
        (HEAD + row(l2="1e10"), "row 1: l2: expected a distance"),
        (HEAD + row(l2="far"), "row 1: l2: expected a distance .* got 'far'"),
        (HEAD + row(correct="false"), "correct: expected false if and only if the distance is"),
        (
            HEAD + row(correct="false", l2="inf"),
            "correct: expected false if and only if the distance is 0",
        ),
        (
            HEAD + row(correct="true", l2="0"),
            "correct: expected false if and only if the distance is 0",
        ),
        (HEAD + row(correct="maybe"), "correct: expected true or false, got 'maybe'"),
        (HEAD + row(fooled="false"), "fooled: expected true if and only if there is a distance"),
        (
            HEAD + row(fooled="true", l2="inf"),
            "fooled: expected true if and only if there is a distance",
        ),
        (HEAD + row(fooled="true", l2=""), "correct: expected true or false beside fooled, got ''"),
        (
            HEAD + row(fooled="true", correct="true", l2="") + row(sample_id="2", l2=""),
            "row 2: fooled: expected true or false, got ''",
        ),
        (HEAD + row(linf="0"), "linf: expected 0, a distance or inf as in the other norm, got '0'"),
        (HEAD + row(linf="0.1") + row(sample_id="2"), "row 2: linf: expected 0, a distance or inf"),
        (HEAD + row() + row(sample_id="2", l2="", linf="1"), "row 1: linf: expected 0, a distance"),
        (HEAD + row(norm="l1"), "norm: expected l2 or linf, got 'l1'"),
        (HEAD + row(norm="linf"), "norm: expected a norm in which the attack has distances"),
        (
            HEAD + row(linf="0.1") + row(sample_id="2", linf="0.1", norm="linf"),
            "row 2: norm: expected one norm for all rows of the attack, got 'linf'",
        ),
        (HEAD + row(window="humming"), "window: expected one of none, hamming, .*got 'humming'"),
        (HEAD + row(kernel_size="4"), "kernel_size: expected an odd number, got '4'"),
        (HEAD + row(kernel_size="0"), "kernel_size: expected a whole number from 1 to 99, got '0'"),
        (HEAD + row(seed="0.5"), "seed: expected a whole number from 0 to 2147483647, got '0.5'"),
        (HEAD + row(label="cat"), "label: expected a whole number .* got 'cat'"),
        (HEAD + row(label="1", clean_prediction="2"), "clean_prediction: expected another class"),
        (
            HEAD + row(label="1", clean_prediction="1", l2="0"),
            "clean_prediction: expected another class than the label if and only if the image",
        ),
        (
            HEAD + row(label="1", clean_prediction="1", adversarial_prediction="1"),
            "adversarial_prediction: expected another class than the label, got '1'",
        ),
        (HEAD + row(forwards="-1"), "forwards: expected a number of passes, got '-1'"),
        (HEAD + row(l2="nan"), "l2: expected a distance from 0 to 1e.09, inf or empty, got 'nan'"),
        (HEAD + row(label="-1"), "label: expected a whole number from 0 to .* got '-1'"),
        (HEAD + row(linf="0.6"), "linf: expected at most the l2 of the row, got '0.6'"),
        (HEAD + row(l2="20", linf="8"), "linf: expected at most 1, for pixels in .0, 1., got '8'"),
        (HEAD + row(l2="", linf="8"), "linf: expected at most 1, for pixels in .0, 1., got '8'"),
        (
            HEAD + row() + row(attack="e", l2="127.5"),
            "row 2: l2: expected all distances for pixels in .0, 1.; these are 255 times",
        ),
        (
            HEAD + row(model="b", l2="102") + row(l2="0.4"),
            "row 1: l2: expected all distances .* got '102' .model 'b', attack 'd', image '1'.",
        ),
        (
            HEAD + row(label="3") + row(model="b", label="4"),
            "row 2: label: expected the label of this image in other rows, 3, got '4' "
            ".model 'b', attack 'd', image '1'.",
        ),
        (
            HEAD + row(clean_prediction="3") + row(attack="e", clean_prediction="4"),
            "row 2: clean_prediction: expected the clean prediction .* 3, got '4'",
        ),
        (
            HEAD + row() + row(attack="e", l2="0"),
            "row 2: l2: expected the clean image correctly classified, or misclassified, "
            "as under this model's other attacks .* got '0' .model 'a', attack 'e', image '1'.",
        ),
        (
            HEAD + row() + row(attack="turn", l2="", fooled="false", correct="false"),
            "row 2: correct: expected the clean image correctly .* got 'false'",
        ),
        (
            HEAD + row(l2="0", fooled="false", label="3", adversarial_prediction="3"),
            "row 1: l2: expected inf for a failed attack; a distance of 0 means that the clean "
            "image is misclassified, got '0' .model 'a', attack 'd', image '1'.",
        ),
        (HEAD + row(l2="0", fooled="false"), "l2: expected inf for a failed attack"),
        (
            HEAD + row(l2="0", label="3", adversarial_prediction="3"),
            "l2: expected inf for a failed attack",
        ),
        (
            HEAD + row(l2="", linf="0", fooled="false"),
            "linf: expected inf for a failed attack",
        ),
        (
            HEAD + row(l2="inf", label="3", adversarial_prediction="4"),
            "adversarial_prediction: expected the label, as the image survived, got '4'",
        ),
        (
            HEAD + row(clean_prediction="3", adversarial_prediction="3"),
            "adversarial_prediction: expected another class than the label, got '3'",
        ),
        (
            HEAD + row(dataset="x") + row(sample_id="2", dataset="y"),
            "row 2: dataset: expected one data set, 'x', got 'y'",
        ),
        (HEAD + row(attack="best"), "attacks: best is reserved for the best of all attacks"),
        (HEAD + row(model="a-k3") + row(model="a", kernel_size="3"), "two models are called a-k3"),
        (
            HEAD + "".join(row(model=f"m{i}") for i in range(1500)),
            "its configuration line .* more than 20,000 values",
        ),
    ],
)
def test_what_is_refused(run_cli, tmp_path, text, message):
    path, out = written(tmp_path, text), tmp_path / "out"
    code, _, errors = run_cli("report", path, "--out", out)
    assert code == 2
    assert errors.count("\n") == 1
    assert "t.csv: " in errors
    assert re.search(message, errors), errors
    assert not out.exists()


def test_unusual_valid_tables(tmp_path):
    """Misclassified clean images in every notation; float labels; weak and strong attacks."""
    rows = [
        row(l2="0", linf="0", correct="false", fooled="false", label="3.0"),
        row(l2="0", attack="e", fooled="true", clean_prediction="2"),
        row(sample_id="2", l2="0.1", linf="0.1"),
        row(sample_id="2", attack="e", l2="9", label="5.0", adversarial_prediction="4"),
        row(sample_id="2", model="b", l2="0.1000000001", linf="0.1"),
    ]
    text = HEAD + "".join(rows)
    run = converted(tmp_path, text)
    assert run.samples["a-none-s0", "e"]["status"].tolist() == ["already_wrong", "fooled"]


HASH_HEAD = "model,attack,sample_id,l2,sha256\n"


def test_hashes_of_images(tmp_path):
    one, other = (hashlib.sha256(bytes([i])).hexdigest() for i in range(2))
    lines = [f"a,d,1,0.5,{one}", f"b,d,1,0.4,{one}", f"a,d,2,0.5,{other}", "b,d,2,0.4,"]
    run = converted(tmp_path, HASH_HEAD + "\n".join(lines) + "\n")
    table = read_table(run.folder.inputs)
    assert table.to_dict("list") == {"sample_id": [1, 2], "sha256": [one, other]}
    for changed, message in [
        (
            f"b,d,1,0.4,{other}",
            f"row 2: sha256: expected the hash of this image .* got '{other[:50]}",
        ),
        ("b,d,1,0.4,0x12", "row 2: sha256: expected 64 hexadecimal digits, got '0x12'"),
    ]:
        text = HASH_HEAD + "\n".join([lines[0], changed, *lines[2:]]) + "\n"
        with pytest.raises(RequestError, match=message):
            write_run_folder([written(tmp_path, text)], tmp_path / "refused")


def test_numbers_of_images_from_parquet_are_those_of_csv(tmp_path):
    """pandas turns whole numbers into floats if one is missing."""
    table = pd.DataFrame({"model": "b", "attack": "d", "sample_id": [1.0, 2.0], "l2": [0.1, 0.2]})
    table.to_parquet(tmp_path / "t.parquet")
    csv = written(tmp_path, "model,attack,sample_id,l2\na,d,1,0.3\na,d,2,0.4\n")
    write_run_folder([csv, tmp_path / "t.parquet"], tmp_path / "out")
    run = Run(RunFolder(tmp_path / "out"))
    assert [t["sample_id"].tolist() for t in run.samples.values()] == [[1, 2], [1, 2]]


def test_numbers_of_images_written_as_floats(tmp_path):
    """7.0 and 7 are one image in every format; v1.0 and v1 are two."""
    one = written(tmp_path, "model,attack,sample_id,l2\na,d,0,0.3\na,d,10,0.4\n", "1.csv")
    two = written(tmp_path, "model,attack,sample_id,l2\nb,d,0.0,0.3\nb,d,10.0,0.4\n", "2.csv")
    write_run_folder([one, two], tmp_path / "out")
    run = Run(RunFolder(tmp_path / "out"))
    assert [t["sample_id"].tolist() for t in run.samples.values()] == [[0, 10], [0, 10]]
    names = ["v1", "v1.0", "1.0.0", "1.00"]
    table = pd.DataFrame({"model": "a", "attack": "d", "sample_id": names, "l2": 0.1})
    table.to_parquet(tmp_path / "t.parquet")
    table.assign(model="b").to_csv(tmp_path / "t.csv", index=False)
    rows = readers.read_rows([tmp_path / "t.parquet", tmp_path / "t.csv"])
    assert rows["sample_id"].tolist() == names * 2


def attacks_apart(tmp_path, ratios, norm="l2", least=0.003):
    """Two attacks on one model: the distances of the second are ``ratios`` times the first's."""
    near = least * np.linspace(1, 2, len(ratios))
    tables = [
        pd.DataFrame({"model": "a", "attack": k, "sample_id": range(len(ratios)), norm: distances})
        for k, distances in (("ddn", near), ("other", near * ratios))
    ]
    pd.concat(tables).to_csv(tmp_path / "t.csv", index=False)
    write_run_folder([tmp_path / "t.csv"], tmp_path / "out")


@pytest.mark.parametrize(
    ("ratios", "norm", "least"),
    [
        (0.9 / (0.001 * np.linspace(1, 2, 30) ** 2), "linf", 0.001),  # salt and pepper
        (250 * np.geomspace(0.25, 4, 30), "l2", 0.1),  # blur
        (np.full(30, 190.0), "l2", 0.1),
        (np.full(30, 330.0), "l2", 0.1),
        (np.full(4, 250.0), "l2", 0.1),  # too few images to say
    ],
)
def test_attacks_of_very_different_distance_are_reported(tmp_path, ratios, norm, least):
    attacks_apart(tmp_path, ratios, norm, least)
    samples = Run(RunFolder(tmp_path / "out")).samples
    near, far = (samples["a-none-s0", attack][norm].to_numpy() for attack in ("ddn", "other"))
    np.testing.assert_allclose(far / near, ratios)


@pytest.mark.parametrize("ratios", [255 * np.geomspace(0.7, 1.4, 30), np.full(5, 1 / 255)])
def test_an_attack_in_0_to_255_is_refused(tmp_path, ratios):
    with pytest.raises(RequestError, match=r"these are 2\d\d times those of the same images"):
        attacks_apart(tmp_path, ratios, least=1.0)


def test_images_that_an_attack_lost_are_named(run_cli, tmp_path, caplog):
    text = "model,attack,sample_id,l2,crashed\na,d,1,0.5,\na,d,2,,true\na,d,3,0,\na,e,1,0.5,\n"
    code, *_ = run_cli("report", written(tmp_path, text), "--out", tmp_path / "out")
    assert code == 0
    reason = "the attack crashed on 1 of 2 images; they count as survived"
    assert f"a-none-s0 under d: {reason}" in caplog.text
    run = Run(RunFolder(tmp_path / "out"))
    assert run.samples["a-none-s0", "d"]["status"].tolist() == [
        "fooled",
        "invalid",
        "already_wrong",
    ]
    assert run.badge("a-none-s0", "d") == "fail"
    assert run.badge("a-none-s0", "e") is None
    assert reason in (tmp_path / "out/report.html").read_text()
    none = "model,attack,sample_id,l2,crashed\na,d,1,,true\na,d,2,0,\na,d,3,,1\n"
    with pytest.raises(
        RequestError,
        match=r"t.csv: model a, attack d: .* crashed on 2 of 2 images: no result",
    ):
        write_run_folder([written(tmp_path, none)], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_other_requests_that_are_refused(tmp_path, monkeypatch):
    path = written(tmp_path)
    for paths, out, message in [
        ([tmp_path / "gone.csv"], None, r"gone.csv: no such file"),
        ([path, tmp_path], None, r"t.csv: report tables and run folders in separate commands"),
        ([tmp_path], tmp_path, "--out: only for tables"),
    ]:
        with pytest.raises(RequestError, match=message):
            folders_to_report(paths, out)
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(RequestError, match=r"t.parquet: damaged"):
        write_run_folder([tmp_path / "t.parquet"], tmp_path / "out")
    path.write_bytes(b"model,attack\xff\n")
    with pytest.raises(RequestError, match=r"t.csv: not a CSV file"):
        write_run_folder([path], tmp_path / "out")
    written(tmp_path)
    monkeypatch.setattr(readers, "MAX_ROWS", 5)
    with pytest.raises(RequestError, match=r"t.csv: expected at most 5 rows"):
        write_run_folder([path], tmp_path / "out")
    monkeypatch.setattr(readers, "MAX_CSV_BYTES", 10)
    with pytest.raises(RequestError, match=r"t.csv: expected at most 10 bytes"):
        write_run_folder([path], tmp_path / "out")


# --- AttackBench ---------------------------------------------------------------------------------

HASHES = [hashlib.sha512(bytes([i])).hexdigest() for i in range(4)]
INFO = {
    "hashes": HASHES,
    "targeted": False,
    "ori_success": [False, True, False, False],
    "adv_success": [True, True, False, True],
    "distances": {"linf": [0.1, 0.3, 0.2, 0.4], "l0": [9] * 4, "l2": [1.0, 3.0, 2.0, 4.0]},
    "best_optim_distances": {"l2": [0.5, float("inf"), 0.5, 0.5]},
    "num_forwards": [10],  # of the whole batch
    "num_backwards": [1, 2, 3, 4],
    "box_failures": [False, False, False, True],
    "times": [0.1],
}
BENCH = {
    "model": {"name": "Standard", "dataset": "cifar10"},
    "attack": {"name": "ddn", "source": "adv_lib", "threat_model": "l2"},
    "dataset": {"batch_size": 64},
}


def bench_result(folder, config=BENCH, info=INFO):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "info.json").write_text(json.dumps(info))
    return folder / "info.json"


def bench_results(folder):
    """Two attacks on a model, with images in different orders."""
    order = [3, 1, 0, 2]
    parts = ("hashes", "ori_success", "adv_success", "num_backwards", "box_failures")
    other = INFO | {name: [INFO[name][i] for i in order] for name in parts}
    other["distances"] = {n: [d[i] / 2 for i in order] for n, d in INFO["distances"].items()}
    fmn = BENCH | {"attack": {"name": "fmn", "source": "original", "threat_model": "l2"}}
    place = folder / "bench/cifar10/l2/standard/batch_size_64"
    return [
        bench_result(place / "adv_lib_ddn/1"),
        bench_result(place / "original_fmn/1", fmn, other),
    ]


def test_results_of_attackbench(run_cli, tmp_path):
    out = tmp_path / "out"
    code, _, errors = run_cli("report", *bench_results(tmp_path), "--out", out)
    assert (code, errors) == (0, "")
    run = Run(RunFolder(out))
    assert run.config.dataset.name == "cifar10"
    ddn, fmn = (
        run.samples["Standard-none-s0", attack] for attack in ("adv_lib_ddn_l2", "original_fmn_l2")
    )
    assert ddn["status"].tolist() == ["fooled", "already_wrong", "survived", "fooled"]
    assert ddn["l2"].tolist() == [1, 0, np.inf, 4]  # the last was clipped before it was judged
    assert ddn["linf"].tolist() == [0.1, 0, np.inf, 0.4]
    assert ddn["forwards"].isna().all()
    assert ddn["backwards"].tolist() == [1, 2, 3, 4]
    assert fmn["status"].tolist() == ddn["status"].tolist()  # the same images, by their hashes
    assert fmn["l2"].tolist() == [0.5, 0, np.inf, 2]
    assert fmn["sample_id"].tolist() == [0, 1, 2, 3]
    assert read_table(RunFolder(out).inputs)["sample"].tolist() == HASHES
    summary = pd.read_csv(out / "summary.csv").set_index("attack")
    assert list(summary.index) == ["adv_lib_ddn_l2", "original_fmn_l2", "best"]
    assert summary.loc["original_fmn_l2", "optimality"] == 1
    assert summary.loc["adv_lib_ddn_l2", "optimality"] < 1


def test_optimality_as_attackbench_defines_it(run_cli, tmp_path):
    """ε₀ = 4, ρ = 3/4; least distances ddn 1, ∞, 4 and fmn 2, 3, ∞; the best 1, 3, 4."""
    inf = float("inf")
    place = tmp_path / "bench/cifar10/l2/standard/batch_size_64"
    results = []
    for name, best in (("ddn", [1, inf, inf, 4]), ("fmn", [2, inf, 3, inf])):
        info = INFO | {"best_optim_distances": {"l2": best}, "adv_success": [True] * 4}
        config = BENCH | {"attack": {"name": name, "threat_model": "l2"}}
        results.append(bench_result(place / name / "1", config, info))
    other = BENCH | {"model": {"name": "Robust"}, "attack": {"name": "ddn", "threat_model": "l2"}}
    results.append(bench_result(tmp_path / "other/ddn/1", other))
    assert run_cli("report", *results, "--out", tmp_path / "out")[0] == 0
    summary = pd.read_csv(tmp_path / "out/summary.csv").set_index(["model_id", "attack"])
    added = ["optimality", "local_optimality", "global_optimality", "gate"]
    assert list(summary)[-4:] == added
    whole, best = 4 * 0.75, (0 + 1 + 3 + 4) / 4
    ddn, fmn = (whole - (1 + 4 + 4) / 4), (whole - (2 + 3 + 4) / 4)
    local = summary["local_optimality"]
    assert local["Standard-none-s0", "ddn_l2"] == pytest.approx(ddn / (whole - best))
    assert local["Standard-none-s0", "fmn_l2"] == pytest.approx(fmn / (whole - best))
    assert np.isnan(local["Robust-none-s0", "ddn_l2"])  # its only attack has one distance
    means = summary["global_optimality"]
    assert means["Robust-none-s0", "ddn_l2"] == pytest.approx(local["Standard-none-s0", "ddn_l2"])
    assert "local optimality" in (tmp_path / "out/report.html").read_text()


def test_repeats_of_attackbench(tmp_path):
    place = tmp_path / "bench/cifar10/l2/standard/batch_size_64/adv_lib_ddn"
    results = [bench_result(place / str(i)) for i in (1, 2, 3)]
    write_run_folder(results, tmp_path / "out")
    attacks = list(Run(RunFolder(tmp_path / "out")).config.attacks)
    assert attacks == ["adv_lib_ddn_l2", "adv_lib_ddn_l2_run2", "adv_lib_ddn_l2_run3"]
    with pytest.raises(RequestError, match=r"1/info.json: expected each table once"):
        write_run_folder([results[0], results[0]], tmp_path / "twice")
    longer = BENCH | {"attack": BENCH["attack"] | {"steps": 9}}
    other = bench_result(place / "4", longer)
    with pytest.raises(RequestError, match=r"4/info.json: attack.steps: expected None .* got 9"):
        write_run_folder([results[0], other], tmp_path / "other")


def test_batches_that_crashed(tmp_path):
    """AttackBench keeps the clean images of a batch that raised: no robustness is measured."""
    config = BENCH | {"dataset": {"batch_size": 2}}
    info = INFO | {
        "adv_success": [True, True, False, False],
        "distances": {"l2": [1.0, 3.0, 0.0, 0.0]},
    }
    every = bench_result(tmp_path / "bench/ddn/1", config, info | {"batch_failures": [True, True]})
    with pytest.raises(RequestError, match=r"adv_lib_ddn crashed in every batch of Standard: no"):
        write_run_folder([every], tmp_path / "out")
    some = bench_result(tmp_path / "bench/ddn/2", config, info | {"batch_failures": [False, True]})
    write_run_folder([some], tmp_path / "out")
    run = Run(RunFolder(tmp_path / "out"))
    rows = run.samples["Standard-none-s0", "adv_lib_ddn_l2"]
    assert rows["status"].tolist() == ["fooled", "already_wrong", "invalid", "invalid"]
    assert run.gate["reason"].tolist() == [
        "the attack crashed on 2 of 3 images; they count as survived"
    ]
    odd = bench_result(
        tmp_path / "bench/ddn/3", config, info | {"batch_failures": [True] + 4 * [0]}
    )
    with pytest.raises(RequestError, match="batch_failures: expected true or false for each batch"):
        write_run_folder([odd], tmp_path / "odd")
    few = info | {"batch_failures": [True, False, False]}
    with pytest.raises(RequestError, match="expected 2 batches of 2 for 4 images, got 3"):
        write_run_folder([bench_result(tmp_path / "bench/ddn/4", config, few)], tmp_path / "odd")


METADATA = {"dataset": "cifar10", "model_name": "Standard", "attack_name": "ddn"} | {
    "attack_lib": "adv_lib",
    "threat_model": "l2",
    "n_samples": 4,
    "source": "executed",
}


def newer_result(folder, **changed):
    """A result that ``attackbench.run_attack`` saves with ``include_metadata``."""
    folder.mkdir(parents=True)
    more = {
        "original_predictions": [3, 8, 8, 0],
        "adversarial_predictions": [5, 8, 8, 6],
        "num_forwards": [10, 10, 10, 10],
        "batch_failures": [False],
    }
    (folder / "results.json").write_text(json.dumps(INFO | {"metadata": METADATA} | more | changed))
    return folder / "results.json"


def test_the_newer_layout_of_attackbench(run_cli, tmp_path):
    older = bench_result(tmp_path / "bench/1")
    newer = newer_result(tmp_path / "new")
    for path, out in ((older, "a"), (newer, "b")):
        assert run_cli("report", path, "--out", tmp_path / out)[0] == 0
    key = "Standard-none-s0", "adv_lib_ddn_l2"
    one, two = (Run(RunFolder(tmp_path / out)).samples[key] for out in "ab")
    columns = ["sample_id", "status", "l2", "linf", "backwards", "best_distance", "dataset"]
    pd.testing.assert_frame_equal(one[columns], two[columns])
    assert two["clean_prediction"].tolist() == [3, 8, 8, 0]
    assert two["forwards"].tolist() == [10] * 4
    for changed, message in [
        ({"metadata": METADATA | {"model_name": None}}, "metadata.model_name: expected a name"),
        ({"metadata": METADATA | {"threat_model": "l0"}}, "metadata.threat_model: expected l2 or"),
        ({"metadata": []}, "metadata: expected a JSON object"),
        ({"adversarial_predictions": [3, 8, 8, 6]}, "expected another class than the label"),
        ({"batch_failures": [True]}, "crashed in every batch of Standard"),
    ]:
        path = newer_result(tmp_path / message.replace(":", ""), **changed)
        with pytest.raises(RequestError, match=message):
            write_run_folder([path], tmp_path / "refused")


def test_names_come_from_folders_where_nothing_else_has_them(tmp_path):
    config = {"attack": {"threat_model": "linf"}, "model": {}}
    path = bench_result(tmp_path / "Wang2023/batch_size_8/foolbox_bb/3", config)
    write_run_folder([path], tmp_path / "out")
    run = Run(RunFolder(tmp_path / "out"))
    assert list(run.samples) == [("Wang2023-none-s0", "foolbox_bb_linf")]
    assert run.config.dataset.name == "table"


@pytest.mark.parametrize(
    ("config", "info", "message"),
    [
        ({}, {"targeted": True}, "info.json: targeted: only untargeted"),
        (
            {"attack": {"threat_model": "l0"}},
            {},
            "config.json: attack.threat_model: expected l2 or",
        ),
        ({"attack": None}, {}, "config.json: attack: expected a JSON object"),
        ({}, {"hashes": ["../x"]}, "info.json: hashes: expected the SHA-512"),
        ({}, {"hashes": []}, "info.json: hashes: expected the SHA-512"),
        ({}, {"ori_success": [True]}, "ori_success: expected true or false for each of 4"),
        ({}, {"adv_success": [0, 1, 0, 1]}, "adv_success: expected true or false for each of 4"),
        ({}, {"distances": {"linf": [1.0] * 4}}, "info.json: distances: expected l2 distances"),
        ({}, {"distances": {"l2": [1, 2, 3]}}, "info.json: l2: expected a number for each of 4"),
        ({}, {"distances": {"l2": [1, 2, 3, "4"]}}, "info.json: l2: expected a number for each"),
        ({}, {"distances": {"l2": [10**400, 2, 3, 4]}}, "info.json: l2: a number is too large"),
        ({}, {"distances": {"l2": [-1, 2, 3, 4]}}, "row 1: l2: expected a distance from 0 to"),
        ({}, {"hashes": [HASHES[0]] * 4}, "row 2: sample_id: expected each image once"),
    ],
)
def test_results_of_attackbench_that_are_refused(tmp_path, config, info, message):
    path = bench_result(tmp_path / "bench/1", BENCH | config, INFO | info)
    with pytest.raises(RequestError, match=message) as error:
        write_run_folder([path], tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "\xff"])
def test_json_that_is_not_of_attackbench(tmp_path, text):
    path = bench_result(tmp_path / "bench/1")
    path.write_text(text, encoding="latin-1")
    with pytest.raises(RequestError, match=r"info.json: (not a JSON file|expected a JSON object)"):
        write_run_folder([path], tmp_path / "out")
    path.unlink()
    path.with_name("config.json").unlink()
    with pytest.raises(RequestError, match=r"no such file"):
        write_run_folder([path], tmp_path / "out")


def test_a_table_none_of_whose_arms_is_complete(run_cli, tmp_path):
    """Two seeds with different images, each under a different attack."""
    rows = [f"m,0,d,{i},0.{i}" for i in range(1, 6)] + [f"m,1,e,{i},0.{i}" for i in range(1, 5)]
    table = written(tmp_path, "\n".join(["model,seed,attack,sample_id,l2", *rows]) + "\n")
    code, printed, _ = run_cli("report", table, "--out", tmp_path / "out")
    assert code == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "m-none-s1" in page
    assert f"report: {tmp_path / 'out' / 'report.html'}" in printed
