"""The table of facts about data sets is complete and used everywhere; a new one needs a row."""

import ast
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY_RUN
from PIL import Image

from robust_ham.config.datasets import (
    ACCURACY_MARGIN,
    DATASETS,
    DatasetFacts,
    accuracy_margin,
    short_class_names,
)
from robust_ham.config.files import load_config, shipped_configs
from robust_ham.data.formats.class_names import labels_of_folders

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("facts", DATASETS.values(), ids=lambda facts: facts.name)
def test_rows_agree_with_themselves(facts):
    assert len(facts.classes) == (0 if facts.classes_file else facts.num_classes)
    assert len(facts.short_names) in (0, facts.num_classes)
    if facts.classes_file:
        lines = (ROOT / "robust_ham/data/formats" / facts.classes_file).read_text().split()
        assert len(set(lines)) == facts.num_classes


def test_a_folder_of_the_users_has_the_common_margin_and_numbered_classes():
    assert accuracy_margin("fashion_mnist") == 0.005
    assert accuracy_margin("my/folder") == ACCURACY_MARGIN
    assert short_class_names("my/folder") == short_class_names("mnist") == []
    assert short_class_names("cifar10")[9] == "truck"


@pytest.mark.parametrize("path", shipped_configs().values(), ids=lambda path: path.stem)
def test_shipped_configs_show_only_images_that_may_be_shown(path):
    config = load_config(path)
    assert DATASETS[config.dataset.name].images_may_be_shown or not config.evaluation.gallery


@pytest.mark.parametrize("path", sorted(ROOT.glob("robust_ham/**/*.py")), ids=lambda p: p.name)
def test_no_code_decides_by_the_name_of_a_data_set(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            texts = {inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)}
            assert not texts & DATASETS.keys(), f"{path}: read config/datasets.py instead"


def write_images(folder, count):
    stream = np.random.default_rng(0)
    for name in ("dark", "light"):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = stream.integers(0, 128, (12, 12), np.uint8) + 127 * (name == "light")
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")


def test_a_new_data_set_needs_its_row_alone(tmp_path, monkeypatch, run_cli):
    facts = DatasetFacts(
        name="shades",
        num_classes=2,
        classes=("light|bright", "dark"),
        short_names=("snow white", "pitch dark"),
        how_to_get="draw it",
        accuracy_margin=0.2,
        images_may_be_shown=True,
    )
    monkeypatch.setitem(DATASETS, "shades", facts)
    assert labels_of_folders("shades", ["dark", "Bright"], tmp_path) == {"dark": 1, "Bright": 0}
    assert "not found; --data-root FOLDER, or draw it" in run_cli("list", "datasets")[1]
    for split in ("train", "test"):
        write_images(tmp_path / "data/shades" / split, 32)
    text = TINY_RUN.replace("name: fashion_mnist, num_train: 256", "name: shades")
    config = tmp_path / "tiny.yaml"
    config.write_text(text.replace("epochs: 1", "epochs: 3"))
    out = tmp_path / "out"
    code, _, errors = run_cli("run", config, "--out", out, "--data-root", tmp_path / "data")
    assert code == 0, errors
    page = (out / "report.html").read_text()
    assert any(name in page for name in facts.short_names)
    contrasts = pd.read_csv(out / "contrasts.csv")
    accuracy = contrasts[contrasts["metric"] == "clean_accuracy"]
    assert set(accuracy["margin_low"]) == {-0.2}
    assert set(accuracy["margin_high"]) == {0.2}
