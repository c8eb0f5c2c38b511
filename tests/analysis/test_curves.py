"""Summary and curves of a hand-made table of six rows."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import trapezoid

from robust_ham.analysis.curves import budget_curves, kernel_size_curves
from robust_ham.analysis.metrics import METRICS, beyond_budget, robust_area
from robust_ham.analysis.optimality import optimality
from robust_ham.analysis.run import Run
from robust_ham.analysis.statistics import wilson
from robust_ham.analysis.summary import summarise, summary_columns, summary_row
from robust_ham.config.experiment import AttackConfig
from robust_ham.errors import RequestError
from robust_ham.storage.files import write_json, write_text
from robust_ham.storage.parquet_tables import write_table
from robust_ham.storage.run_folder import RunFolder

DEEPFOOL = AttackConfig(attack="deepfool", budget=0.25, budgets=[0.1, 0.25, 0.5])
SPATIAL = AttackConfig(attack="spatial_grid")


def six_rows(spatial=False):
    """One misclassified, three fooled at 0.1, 0.3 and 0.9, one survivor, one invalid."""
    inf, nan = math.inf, math.nan
    distances = [0.0, 0.1, 0.3, 0.9, inf, inf]
    return pd.DataFrame(
        {
            "sample_id": range(6),
            "label": [0, 1, 2, 3, 4, 5],
            "clean_prediction": [9, 1, 2, 3, 4, 5],
            "clean_margin": [-1.0, 1, 1, 1, 1, 1],
            "adversarial_prediction": [9, 0, 0, 0, 4, 0],
            "status": ["already_wrong", "fooled", "fooled", "fooled", "survived", "invalid"],
            "l2": [nan] * 6 if spatial else distances,
            "linf": [nan] * 6 if spatial else [d / 10 for d in distances],
            "l2_relative": [nan] * 6 if spatial else [d / 5 for d in distances],
            "forwards": [1, 3, 4, 5, 51, 1],
            "backwards": [0, 9, 18, 27, 450, 0],
            "angle": [0.0] * 6 if spatial else [nan] * 6,
            "dx": [0.0] * 6 if spatial else [nan] * 6,
            "dy": [0.0] * 6 if spatial else [nan] * 6,
            "margin": [-1.0, -1, -1, -1, 1, nan],
        }
    )


def test_a_minimum_norm_attack():
    row = summary_row(six_rows(), DEEPFOOL)
    assert row["n"] == 6
    assert row["clean_accuracy"] == pytest.approx(5 / 6)
    assert (row["clean_accuracy_low"], row["clean_accuracy_high"]) == wilson(5, 6)[1:]
    assert row["budget"] == 0.25
    assert row["robust_accuracy"] == pytest.approx(4 / 6)  # 0.3, 0.9, ∞, ∞ exceed 0.25
    assert (row["robust_accuracy_low"], row["robust_accuracy_high"]) == wilson(4, 6)[1:]
    assert row["robust_area"] == pytest.approx((0 + 0.1 + 0.3 + 0.5 + 0.5 + 0.5) / 6)
    assert row["fooled_rate"] == pytest.approx(3 / 5)
    assert row["median_l2"] == 0.9  # of 0.1, 0.3, 0.9, ∞, ∞
    assert (row["median_l2_low"], row["median_l2_high"]) == (-math.inf, math.inf)
    assert row["mean_l2"] == pytest.approx(1.3 / 3)
    assert row["rho_adv"] == pytest.approx(1.3 / 15)
    assert row["median_linf"] == pytest.approx(0.09)
    assert row["forwards"] == pytest.approx(65 / 6)
    assert row["backwards"] == pytest.approx(504 / 6)


def test_linf_counts_its_own_distances():
    attack = AttackConfig(attack="deepfool", norm="linf", budget=0.02, budgets=[0.02, 0.05])
    row = summary_row(six_rows(), attack)
    assert row["robust_accuracy"] == pytest.approx(4 / 6)
    assert row["robust_area"] == pytest.approx((0 + 0.01 + 0.03 + 0.05 * 3) / 6)


def test_a_spatial_attack_has_no_distance():
    row = summary_row(six_rows(spatial=True), SPATIAL)
    assert row["robust_accuracy"] == pytest.approx(2 / 6)
    assert row["fooled_rate"] == pytest.approx(3 / 5)
    assert "median_l2" not in row
    assert "robust_area" not in row


def test_a_flow_attack_fools_or_does_not(run):
    row = summary_row(six_rows(), AttackConfig(attack="stadv"))
    assert row["robust_accuracy"] == pytest.approx(2 / 6)
    assert "robust_area" not in row


def test_all_wrong_and_all_survivors():
    rows = six_rows()
    rows["status"], rows["clean_prediction"] = "already_wrong", 9
    rows[["l2", "linf", "l2_relative"]] = 0.0
    row = summary_row(rows, DEEPFOOL)
    assert row["robust_area"] == row["robust_accuracy"] == 0
    assert math.isnan(row["fooled_rate"])
    assert math.isnan(row["median_l2"])
    rows = six_rows()
    rows["status"] = "survived"
    rows[["l2", "linf", "l2_relative"]] = math.inf
    row = summary_row(rows, DEEPFOOL)
    assert row["median_l2"] == math.inf
    assert math.isnan(row["mean_l2"])
    assert row["robust_area"] == 0.5


def test_robust_accuracy_at_budget_zero_is_the_clean_accuracy():
    robust = METRICS["robust_accuracy"].image_values(six_rows(), DEEPFOOL, 0.0)
    assert robust.mean() == pytest.approx(5 / 6)


def test_area_is_the_area_under_the_curve():
    stream = np.random.default_rng(0)
    distances = np.concatenate([np.zeros(10), stream.exponential(0.3, 80), np.full(10, np.inf)])
    budgets = np.linspace(0, 0.5, 20_001)
    curve = [beyond_budget(distances, b).mean() for b in budgets]
    assert robust_area(distances, 0.5) == pytest.approx(trapezoid(curve, budgets), abs=1e-4)


CONFIG = """
schema: 1
name: made_by_hand
models:
  - architecture: cnn
    depth: 2
    widths: [4]
    kernel_size: 3
    sweep: {window: [none, hamming], seed: [0, 1]}
attacks:
  d: {attack: deepfool, budget: 0.25, budgets: [0.1, 0.25, 0.5]}
  s: {attack: spatial_grid}
"""


CARD = {
    "model": {"architecture": "cnn", "depth": 2, "widths": [4]},
    "params": 7,
    "weights_sha256": "these",
}


def make_run(path):
    """Write four models of the six rows, distances times 1, 2 (seeds) and 1, 3 (windows)."""
    folder = RunFolder(path)
    write_text(folder.config, CONFIG)
    for spec in Run(folder).config.model_specs():
        write_json(folder.model(spec.model_id) / "model.json", CARD)
        rows = six_rows()
        factor = (1 + spec.seed) * (3 if spec.window == "hamming" else 1)
        rows[["l2", "linf", "l2_relative"]] *= factor
        write_table(folder.samples(spec.model_id, "d"), rows, {})
        write_table(folder.samples(spec.model_id, "s"), six_rows(spatial=True), {})
        predictions = pd.DataFrame({"label": [0, 1, 2, 3], "prediction": [0, 1, 2, spec.seed]})
        write_table(folder.predictions(spec.model_id), predictions, {})
    return Run(folder)


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


def test_summary_has_the_contracts_columns(run):
    summary = summarise(run)
    assert list(summary) == summary_columns()
    assert len(summary) == 8
    assert summary["width"].unique().tolist() == ["4"]
    assert summary["median_l2"].tolist()[::2] == pytest.approx([0.9, 1.8, 2.7, 5.4])


def test_budget_curves_start_at_the_clean_accuracy_and_fall(run):
    curves = budget_curves(run)
    assert list(curves) == ["model_id", "attack", "budget", "robust_accuracy", "low", "high"]
    assert set(curves["attack"]) == {"d"}
    for _, curve in curves.groupby("model_id"):
        assert curve["budget"].iloc[0] == 0
        assert curve["robust_accuracy"].iloc[0] == pytest.approx(5 / 6)
        assert {0.1, 0.25, 0.5} <= set(curve["budget"])
        assert curve["robust_accuracy"].is_monotonic_decreasing
        assert (curve["low"] <= curve["robust_accuracy"]).all()
        assert (curve["robust_accuracy"] <= curve["high"]).all()


def test_curves_against_kernel_size_average_over_seeds(run):
    curves = kernel_size_curves(run).set_index(["attack", "metric", "window"])
    area = curves.loc[("d", "robust_area", "none")]
    seeds = [(0.1 + 0.3 + 3 * 0.5) / 6, (0.2 + 0.5 * 4) / 6]
    assert area["per_seed"] == pytest.approx(seeds)
    assert area["estimate"] == pytest.approx(np.mean(seeds))
    assert area["low"] < area["estimate"] < area["high"]
    assert area["num_seeds"] == 2
    assert curves.loc[("d", "median_l2", "hamming")]["per_seed"] == pytest.approx((2.7, 5.4))
    assert curves.loc[("d", "rho_adv", "none")]["estimate"] == pytest.approx(1.5 * 1.3 / 15)
    assert curves.loc[("s", "robust_accuracy", "none")]["estimate"] == pytest.approx(2 / 6)
    spatial = curves.loc[("s", "robust_accuracy", "none")]
    assert 0 <= spatial["low"] <= spatial["high"] <= 1
    clean = curves.loc[("", "clean_accuracy", "none")]
    assert clean["per_seed"] == pytest.approx((0.75, 0.75))


def test_an_arm_whose_jobs_are_not_all_done_waits(run):
    spec = run.specs[1]
    run.folder.samples(spec.model_id, "d").unlink()
    curves = kernel_size_curves(Run(run.folder))
    assert set(curves.loc[curves["attack"] == "d", "window"]) == {"hamming"}


def test_tables_of_other_weights_do_not_count(run):
    spec = run.specs[0]
    for path in (run.folder.samples(spec.model_id, "d"), run.folder.predictions(spec.model_id)):
        write_table(path, six_rows(), {"weights": "others"})
    changed = Run(run.folder)
    assert (spec.model_id, "d") not in changed.samples
    assert changed.correct(spec.model_id) is None


def test_damaged_tables_and_other_folders_are_named(run, tmp_path):
    run.folder.samples(run.specs[0].model_id, "d").write_bytes(b"PAR1 broken")
    with pytest.raises(RequestError, match=r"d.parquet: damaged"):
        summarise(Run(run.folder))
    with pytest.raises(RequestError, match="not a run folder"):
        summarise(Run(RunFolder(tmp_path / "nowhere")))


def test_optimality_is_the_share_of_what_the_best_takes_off():
    samples = six_rows()
    best = samples.copy()
    best.loc[best["status"] == "fooled", "l2"] = [0.05, 0.1, 0.2]
    least = (0.05 + 0.1 + 0.2 + 0.5 * 2) / 6
    whole = 0.5 * 5 / 6  # five right at first, none fooled within 0.5
    expected = (whole - (0.1 + 0.3 + 0.5 * 3) / 6) / (whole - least)
    assert optimality(samples, best, DEEPFOOL) == pytest.approx(expected)
    assert optimality(best, best, DEEPFOOL) == 1
    safe = samples.assign(l2=np.where(samples["l2"] > 0, math.inf, 0))
    assert math.isnan(optimality(safe, safe, DEEPFOOL))


def test_intervals_of_arms_stay_in_their_range(run):
    """Two seeds: the t interval of the area leaves [0, 0.5] on both sides."""
    curves = kernel_size_curves(run).set_index(["attack", "metric", "window"])
    area = curves.loc[("d", "robust_area", "hamming")]
    assert 0 <= area["low"] < area["estimate"] < area["high"] <= 0.5
    spatial = curves.loc[("s", "robust_accuracy", "none")]
    assert 0 <= spatial["low"] < spatial["high"] <= 1


def test_none_of_a_few_images_is_no_certainty(tmp_path):
    """0 of 6 right, and one image alone: neither [0, 0] nor [0, inf]."""
    folder = RunFolder(tmp_path)
    write_text(folder.config, CONFIG.replace("seed: [0, 1]", "seed: [0]"))
    for spec in Run(folder).config.model_specs():
        write_json(folder.model(spec.model_id) / "model.json", CARD)
        wrong = six_rows().assign(
            status="already_wrong", clean_prediction=9, l2=0.0, linf=0.0, l2_relative=0.0
        )
        rows = wrong if spec.window == "none" else six_rows()[1:2]
        write_table(folder.samples(spec.model_id, "d"), rows, {})
    curves = kernel_size_curves(Run(folder)).set_index(["metric", "window"])
    share = curves.loc[("robust_accuracy", "none")]
    assert (share["low"], share["high"]) == pytest.approx(wilson(0, 6)[1:])
    area = curves.loc[("robust_area", "none")]
    assert (area["low"], area["high"]) == pytest.approx((0, 0.5 * wilson(0, 6).high))
    for metric, highest in (("robust_area", 0.5), ("robust_accuracy", 1.0)):
        assert tuple(curves.loc[(metric, "hamming"), ["low", "high"]]) == (0, highest)
