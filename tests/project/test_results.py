"""Every committed results folder holds what it says: files, hashes, figures, tables from rows."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy
from results_tables import PAGE, PLACE, filled

from robust_ham.analysis.run import Run
from robust_ham.analysis.tables import make_tables
from robust_ham.experiments.explain import EXPERIMENTS
from robust_ham.runs.verify import check_files, check_jobs
from robust_ham.storage.files import read_json
from robust_ham.storage.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
COMMITTED = subprocess.run(
    ["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True, check=False
).stdout.splitlines()
RUNS = sorted(
    Path(name).parent for name in COMMITTED if name.endswith("/config.yaml") and "bench" not in name
)
REPORTED = [run for run in RUNS if f"{run}/report.html" in COMMITTED]
if not RUNS:
    pytest.skip("not a git checkout with results", allow_module_level=True)
runs = pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
reported = pytest.mark.parametrize("run", REPORTED, ids=lambda run: run.name)

OLD_SCIPY = tuple(map(int, scipy.__version__.split(".")[:2])) < (1, 17)
"""Older than the one behind the committed tables: last digits of p values differ."""


def test_there_are_results():
    assert len(REPORTED) >= 9
    assert len(RUNS) > len(REPORTED)


@runs
def test_the_manifest_is_of_the_configuration(run):
    folder = RunFolder(ROOT / run)
    manifest = read_json(folder.manifest)
    assert manifest["versions"]["robust-ham"]
    assert manifest["name"] == Run(folder).config.name


@runs
def test_files_are_those_of_their_receipts(run):
    folder = RunFolder(ROOT / run)
    found = check_files(folder)
    assert found.faults == []
    assert found.num_checked or not folder.receipts.exists()


@runs
def test_nothing_is_committed_that_should_not_be(run):
    files = [Path(name) for name in COMMITTED if Path(name).is_relative_to(run)]
    parts = {path.relative_to(run).parts[0] for path in files}
    assert not parts & {"margins", "adversarials", "superseded", "locks", "unfinished"}
    if Run(RunFolder(ROOT / run)).config.dataset.name.startswith(("cifar", "imagenet")):
        assert not [path for path in files if "gallery" in str(path)]
    sizes = {path: (ROOT / path).stat().st_size for path in files}
    assert max(sizes.values()) < 20_000_000
    assert sum(sizes[path] for path in files if path.suffix == ".safetensors") < 40_000_000


@reported
def test_every_job_is_there(run):
    assert check_jobs(RunFolder(ROOT / run)).faults == []


@reported
def test_tables_follow_from_the_rows(run):
    for path, table in make_tables(Run(RunFolder(ROOT / run))).files().items():
        committed = pd.read_csv(path)
        assert list(committed) == list(table), path
        assert len(committed) == len(table), path
        for name in committed:
            one, two = committed[name], table[name].reset_index(drop=True)
            if pd.api.types.is_numeric_dtype(one) and one.notna().any():
                np.testing.assert_allclose(one, two.astype(float), rtol=1e-9, atol=1e-12)
            else:  # text, or empty
                texts = [c.astype(object).fillna("").astype(str).tolist() for c in (one, two)]
                assert texts[0] == texts[1]


@reported
def test_figures_are_there(run):
    page = (ROOT / run / "report.html").read_text()
    figures = list((ROOT / run / "figures").glob("*.png"))
    assert len(figures) >= 5
    assert page.count("<svg") >= len(figures) - 1


def test_a_report_rebuilds_every_table_and_prints_the_answers(run_cli, tmp_path):
    run = ROOT / "results" / "reference" / "mnist14_cnn_laptop"
    folder = tmp_path / run.name
    committed = [ROOT / name for name in COMMITTED if (ROOT / name).is_relative_to(run)]
    tables = [p for p in committed if p.suffix == ".csv" and p.parent == run]
    for path in committed:
        place = folder / path.relative_to(run)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    for path in folder.glob("*.html"):
        path.unlink()
    shutil.rmtree(folder / "figures")
    code, printed, _ = run_cli("report", folder)
    assert code == 0
    assert re.search(r"\n(supported|contradicted|undecided) +On MNIST subsampled to 14×14", printed)
    assert len(tables) >= 8
    for path in tables:
        if OLD_SCIPY:
            one, other = pd.read_csv(folder / path.name), pd.read_csv(path)
            pd.testing.assert_frame_equal(one, other, rtol=1e-9, obj=path.name)
        else:
            assert (folder / path.name).read_bytes() == path.read_bytes(), path.name
    figures = {path.name for path in (run / "figures").iterdir()}
    assert {path.name for path in (folder / "figures").iterdir()} == figures


def test_the_page_of_results_shows_their_answers():
    text = PAGE.read_text(encoding="utf-8")
    assert len(PLACE.findall(text)) >= 2
    assert filled(text) == text
    links = re.findall(r"\]\(((?!http)[^)]+)\)", text)
    assert len(links) >= 4
    assert [link for link in links if not (PAGE.parent / link).exists()] == []


def test_explanations_have_figure_and_table():
    for name in EXPERIMENTS:
        folder = f"results/reference/{name}"
        assert {f"{folder}/{name}.png", f"{folder}/{name}.csv"} <= set(COMMITTED)
