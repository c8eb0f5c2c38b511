"""Tables and figures of possible explanations of robustness."""

import shutil

import numpy as np
import pandas as pd
import pytest
from test_contrasts import make

from robust_ham.analysis.curves import kernel_size_curves
from robust_ham.analysis.mechanism import (
    MECHANISM_COLUMNS,
    mechanisms,
    spectra,
    transfer_between_arms,
)
from robust_ham.analysis.read_tables import KERNEL_MEASURES
from robust_ham.analysis.run import Run
from robust_ham.report.figures import mechanism
from robust_ham.storage.files import read_json, write_csv, write_json, write_text
from robust_ham.storage.run_folder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = make(tmp_path_factory.mktemp("mechanism"), seeds=(0, 1), images=60)
    rows = []
    for i, spec in enumerate(run.specs):
        path = run.folder.model(spec.model_id) / "model.json"
        sizes = {"effective_width_learned": 1.0 + i, "params": 100 * spec.kernel_size**2}
        write_json(path, {k: v for k, v in read_json(path).items() if k != "schema"} | sizes)
        for layer, value in (("a", 1.0), ("b", 3.0)):
            rows.append({"model_id": spec.model_id, "layer": layer})
            rows[-1] |= dict.fromkeys(KERNEL_MEASURES, value + i)
        spectrum = pd.DataFrame(
            {"frequency": [0.0, 0.25, 0.5], "num_bins": [1, 2, 1], "share": [0.5, 0.25, 0.25]}
        )
        write_csv(run.folder.spectrum(spec.model_id, "d"), spectrum)
    write_csv(run.folder.kernels, pd.DataFrame(rows))
    names = [spec.model_id for spec in run.specs]
    pairs = pd.DataFrame([(a, b) for a in names for b in names], columns=["source_id", "target_id"])
    same = [a[:-1] == b[:-1] for a, b in zip(pairs["source_id"], pairs["target_id"], strict=True)]
    pairs = pairs.assign(attack="d", budget=0.5, num_images=10, num_fooled=np.where(same, 8, 4))
    same_model = pairs["source_id"] == pairs["target_id"]
    pairs.loc[same_model, "num_fooled"] = 10
    write_csv(run.folder.transfer, pairs)
    keys = "transfer: {attack: d, budget: 0.5}\nevaluation: {keep_adversarials: true}\n"
    write_text(run.folder.config, run.folder.config.read_text() + keys)
    return Run(run.folder)


def test_robustness_beside_the_means_over_layers(run):
    table = mechanisms(run)
    assert list(table) == MECHANISM_COLUMNS
    assert len(table) == 12 * 4  # with the best of two
    first = table[table["model_id"] == run.specs[0].model_id].set_index("attack")
    assert first["effective_taps"].tolist() == [2.0] * 4
    assert first.loc["best", "robustness"] <= first.loc[["d", "t"], "robustness"].min()
    survived = run.samples[run.specs[0].model_id, "s"]["status"] == "survived"
    assert first.loc["s", "robustness"] == pytest.approx(survived.mean())


def test_spectra_are_in_units_of_white_noise(run):
    table = spectra(run)
    arm = table[(table["window"] == "hamming") & (table["kernel_size"] == 9)]
    assert arm["density"].tolist() == pytest.approx([2.0, 0.5, 1.0])


def test_transfer_excludes_pairs_of_the_same_seed(run):
    table = transfer_between_arms(run)
    assert len(table) == 36
    assert set(table["num_pairs"]) == {2}
    same_arm = (table["source_window"] == table["target_window"]) & (
        table["source_kernel_size"] == table["target_kernel_size"]
    )
    assert table.loc[same_arm, "fooled_rate"].tolist() == pytest.approx([0.8] * 6)
    assert table.loc[~same_arm, "fooled_rate"].tolist() == pytest.approx([0.4] * 30)


def test_the_figures_show_every_arm_and_axis(run):
    curves = kernel_size_curves(run)
    axes = mechanism.axes_figure(run, curves)
    labels = {panel.get_xlabel() for panel in axes.axes}
    assert {"kernel size k", "effective width, learned", "parameters"} <= labels
    assert "FLOPs of one image" not in labels  # no card has them
    assert len(axes.axes) == 3 * 5  # clean, two attacks, their best, spatial
    kernels = mechanism.kernels_figure(run, mechanisms(run))
    assert len(kernels.axes) == 5 * 2  # best and spatial
    assert all(panel.get_title().startswith("ρ") for panel in kernels.axes)
    assert len(mechanism.spectra_figure(spectra(run)).axes) == 2
    heat = mechanism.transfer_figure(transfer_between_arms(run))
    names = [text.get_text() for text in heat.axes[0].get_yticklabels()]
    assert names == [f"{w} {k}" for w in ("baseline", "Hamming") for k in (3, 5, 9)]
    assert mechanism.bands_figure(run, curves) is None


def test_transfer_that_is_not_configured_is_not_shown(run, tmp_path):
    shutil.copytree(run.folder.root, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    text = folder.config.read_text()
    write_text(folder.config, text.replace("budget: 0.5}\n", "budget: 0.7}\n"))
    assert Run(folder).transfer.empty
    write_text(folder.config, text[: text.index("transfer:")])
    assert transfer_between_arms(Run(folder)).empty
    assert len(Run(run.folder).transfer) == 144


def test_a_target_that_is_no_source_keeps_its_column():
    row = {"attack": "d", "budget": 0.5, "num_pairs": 1, "fooled_rate": 0.5, "low": 0, "high": 1}
    source = {"source_family": "a", "source_window": "none", "source_kernel_size": 3}
    target = {"target_family": "b", "target_window": "hamming", "target_kernel_size": 5}
    table = pd.DataFrame([row | source | target])
    heat = mechanism.transfer_figure(table)
    names = [text.get_text() for text in heat.axes[0].get_xticklabels()]
    assert names == ["baseline 3 (a)", "Hamming 5 (b)"]
