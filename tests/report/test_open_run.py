"""Reading a run in Python gives the tables that the run has written."""

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from robust_ham import open_run
from robust_ham.errors import RequestError
from robust_ham.storage.files import csv_text

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "results" / "fashion_mnist_zoo"


@pytest.fixture(scope="module")
def run():
    return open_run(STUDY)


def test_tables_are_those_of_the_run(run):
    for name in ("summary", "curves", "contrasts"):
        stored = (STUDY / f"{name}.csv").read_text()
        assert csv_text(getattr(run, name)) == stored, name
    assert len(run.gate) == len(pd.read_csv(STUDY / "gate.csv"))
    assert run.config.name == "fashion_mnist_zoo"


def test_samples_have_a_row_per_model_attack_and_image(run):
    samples = run.samples
    counts = samples.groupby(["model_id", "attack"]).size()
    assert set(samples["attack"]) == set(run.config.attacks)
    assert set(samples["model_id"]) == set(run.models["model_id"])
    assert not samples.duplicated(["model_id", "attack", "sample_id"]).any()
    attack = run.config.attacks["deepfool_l2"]
    rows = samples[samples["attack"] == "deepfool_l2"]
    area = rows["l2"].clip(upper=attack.curve_budgets[-1]).groupby(rows["model_id"]).mean()
    summary = run.summary[run.summary["attack"] == "deepfool_l2"].set_index("model_id")
    np.testing.assert_allclose(area[summary.index], summary["robust_area"])
    assert (summary["n"] == counts.xs("deepfool_l2", level="attack")[summary.index]).all()


def test_models_have_their_size_and_accuracy(run):
    row = run.models.set_index("model_id").loc["cnn3-w16x32-k7-hamming-s1"]
    assert (row["window"], row["kernel_size"], row["seed"]) == ("hamming", 7, 1)
    summary = run.summary.set_index("model_id").loc["cnn3-w16x32-k7-hamming-s1"].iloc[0]
    assert row["test_accuracy"] == summary["test_accuracy"]
    assert row["params"] == summary["params"]


def test_compare_is_the_contrast_of_the_run(run):
    rows = run.compare("hamming", "none", "robust_area", "deepfool_l2")
    stored = run.contrasts[
        (run.contrasts["metric"] == "robust_area")
        & (run.contrasts["attack"] == "deepfool_l2")
        & (run.contrasts["versus"] == "same k")
    ]
    again, written = (pd.read_csv(io.StringIO(csv_text(table))) for table in (rows, stored))
    pd.testing.assert_frame_equal(again, written, check_dtype=False)
    assert rows["budget"].dtype == rows["effect"].dtype == float
    assert rows["kernel_size"].tolist() == [3, 5, 7, 9, 11]
    back = run.compare("none", "hamming", "clean_accuracy")
    forth = run.compare("hamming", "none", "clean_accuracy")
    np.testing.assert_allclose(back["effect"], -forth["effect"])
    by_default = run.compare("hamming", "none", "robust_accuracy", "deepfool_l2")
    budget = run.config.attacks["deepfool_l2"].main_budget
    assert (by_default["budget"] == budget).all()
    elsewhere = run.compare("hamming", "none", "robust_accuracy", "deepfool_l2", budget=0.123)
    assert (elsewhere["budget"] == 0.123).all()
    assert (elsewhere["baseline"] >= by_default["baseline"]).all() == (budget > 0.123)


def test_plot_draws_every_window(run):
    figure = run.plot("robust_area", "deepfool_l2")
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"baseline", "Hamming"}
    assert axes.get_title() == "DeepFool L2"
    assert run.plot("clean_accuracy").axes[0].get_title().startswith("clean images")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (lambda run: run.plot("robust_aera", "deepfool_l2"), "did you mean robust_area"),
        (lambda run: run.plot("robust_area", "deepfol_l2"), "did you mean deepfool_l2"),
        (lambda run: run.plot("robust_area"), "robust_area: expected an attack too: "),
        (
            lambda run: run.plot("clean_accuracy", "deepfool_l2"),
            "clean_accuracy: expected no attack, got",
        ),
        (lambda run: run.compare("haming", "none", "clean_accuracy"), "did you mean hamming"),
        (lambda run: run.compare("none", "none", "clean_accuracy"), "two different windows"),
        (
            lambda run: run.compare(
                "hamming", "none", "robust_accuracy", "deepfool_l2", budget="0.1"
            ),
            "budget: expected a distance of at least 0, got '0.1'",
        ),
        (
            lambda run: run.compare("hann", "x", "clean_accuracy"),
            "window: not available here: 'hann'; expected",
        ),
        (
            lambda run: run.compare("hamming", "none", "robust_area", "deepfool_l2", budget=0.1),
            "budget: not for robust_area under deepfool_l2",
        ),
        (
            lambda run: run.compare(
                "hamming", "none", "robust_accuracy", "deepfool_l2", budget=float("nan")
            ),
            "budget: expected a distance of at least 0, got nan",
        ),
    ],
)
def test_unknown_names_are_refused_in_one_line(run, request_, message):
    with pytest.raises(RequestError, match=re.escape(message)) as caught:
        request_(run)
    assert "\n" not in str(caught.value)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(RequestError, match="not a run folder"):
        open_run(tmp_path)
    with pytest.raises(RequestError, match="no such folder"):
        open_run(str(tmp_path / "missing"))


def test_a_run_without_rows_has_empty_tables(tmp_path):
    (tmp_path / "config.yaml").write_text((STUDY / "config.yaml").read_text())
    run = open_run(tmp_path)
    assert len(run.samples) == len(run.models) == len(run.summary) == len(run.contrasts) == 0
    with pytest.raises(
        RequestError, match="metric: got 'clean_accuracy', but this run has no results yet"
    ):
        run.plot("clean_accuracy")
