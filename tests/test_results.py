"""Every committed results folder holds what it says: files, hashes, figures, tables from rows."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from results_tables import PAGE, PLACE, filled

from robust_ham.analysis.run import Run
from robust_ham.analysis.tables import make_tables
from robust_ham.cell import list_cells
from robust_ham.receipts import file_fault, receipt_of
from robust_ham.run_folder import RunFolder
from robust_ham.store import read_json

ROOT = Path(__file__).parent.parent
COMMITTED = subprocess.run(
    ["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True, check=False
).stdout.splitlines()
RUNS = sorted(
    Path(name).parent for name in COMMITTED if name.endswith("/config.yaml") and "bench" not in name
)
REPORTED = [run for run in RUNS if f"{run}/report.html" in COMMITTED]
EXPLAINED = sorted(
    Path(name).parent for name in COMMITTED if "reference" in name and name.endswith(".png")
)
if not RUNS:
    pytest.skip("not a git checkout with results", allow_module_level=True)
runs = pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
reported = pytest.mark.parametrize("run", REPORTED, ids=lambda run: run.name)


def test_there_are_results():
    assert len(REPORTED) >= 9
    assert len(RUNS) > len(REPORTED)


@runs
def test_the_configuration_is_read_and_the_manifest_is_of_it(run):
    folder = RunFolder(ROOT / run)
    manifest = read_json(folder.manifest)
    assert manifest["versions"]["robust-ham"]
    assert Run(folder).config.name == read_name(folder.config)


def read_name(path):
    (line,) = [line for line in path.read_text().splitlines() if line.startswith("name: ")]
    return line.removeprefix("name: ")


@runs
def test_committed_files_are_those_of_their_receipts(run):
    folder, files = RunFolder(ROOT / run), set(COMMITTED)
    num_checked = 0
    for path in folder.receipts.rglob("*.json"):
        receipt = receipt_of(
            folder, folder.root / path.relative_to(folder.receipts).with_suffix("")
        )
        assert receipt is not None, path
        for name, expected in receipt.files.items():
            if f"{run}/{name}" in files:
                num_checked += 1
                assert file_fault(folder, name, expected) is None
    assert num_checked or not folder.receipts.exists()


@runs
def test_nothing_is_committed_that_should_not_be(run):
    parts = [
        Path(name).relative_to(run).parts for name in COMMITTED if Path(name).is_relative_to(run)
    ]
    assert not {part[0] for part in parts} & {"margins", "adversarials", "superseded", "locks"}
    if Run(RunFolder(ROOT / run)).config.dataset.name.startswith(("cifar", "imagenet")):
        assert "gallery" not in {part[0] for part in parts}
        assert not [part for part in parts if "gallery" in part[-1]]
    sizes = [(ROOT / name).stat().st_size for name in COMMITTED if Path(name).is_relative_to(run)]
    assert max(sizes) < 20_000_000
    weights = [n for n in COMMITTED if Path(n).is_relative_to(run) and n.endswith(".safetensors")]
    assert sum((ROOT / name).stat().st_size for name in weights) < 40_000_000


@reported
def test_every_cell_is_there(run):
    folder = RunFolder(ROOT / run)
    for cell in list_cells(Run(folder).config):
        made = cell.result(folder).relative_to(ROOT)
        assert any(Path(name) == made or made in Path(name).parents for name in COMMITTED), made


@reported
def test_tables_follow_from_the_rows(run):
    for path, table in make_tables(Run(RunFolder(ROOT / run))).files().items():
        committed = pd.read_csv(path)
        assert list(committed) == list(table), path
        assert len(committed) == len(table), path
        for name in committed:
            one, two = committed[name], table[name].reset_index(drop=True)
            if pd.api.types.is_numeric_dtype(one):
                np.testing.assert_allclose(one, two.astype(float), rtol=1e-9, atol=1e-12)
            else:
                assert one.fillna("").astype(str).tolist() == two.fillna("").astype(str).tolist()


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
    folders = [f for f in EXPLAINED if f.name != "figures"]
    assert len(folders) >= 7
    for folder in folders:
        assert list((ROOT / folder).glob("*.csv")), folder
