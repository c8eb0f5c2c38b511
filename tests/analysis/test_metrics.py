"""The table of metrics, and distances in float32 that lie exactly at a budget."""

from contextlib import nullcontext
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import yaml
from test_curves import CONFIG, SPATIAL, make_run

from robust_ham.analysis.compare_tables import compare
from robust_ham.analysis.importing.convert import write_run_folder
from robust_ham.analysis.metrics import METRICS, Metric, beyond_budget, distances, tolerance
from robust_ham.analysis.run import Run
from robust_ham.analysis.summary import summary_row
from robust_ham.analysis.tables import write_tables
from robust_ham.config.experiment import AttackConfig, Config, EndpointConfig
from robust_ham.report.page import build_report
from robust_ham.storage.run_folder import RunFolder

EPSILON = 8 / 255
ULP = 2.0**-24  # of the largest pixel values


def clipped_images(num_images, num_pixels, seed=0):
    """Images of 8 bits in float32, and signs of a step."""
    stream = np.random.default_rng(seed)
    images = stream.integers(0, 256, (num_images, num_pixels)).astype(np.float32) / np.float32(255)
    return images, stream.choice(np.float32([-1, 1]), images.shape)


@pytest.mark.parametrize("epsilon", [1 / 255, 2 / 255, EPSILON, 16 / 255, 0.1, 0.3])
def test_steps_clipped_to_linf_in_float32_are_within(epsilon):
    images, signs = clipped_images(50, 3072)
    moved = np.clip(images + np.float32(epsilon) * signs, 0, 1)
    for kind in (np.float64, np.float32):
        distances = np.abs(moved.astype(kind) - images.astype(kind)).max(axis=1).astype(np.float64)
        assert (distances > epsilon).any()
        assert not beyond_budget(distances, epsilon).any()


@pytest.mark.parametrize(
    ("num_pixels", "epsilon"), [(784, 1.5), (3072, 0.05), (3072, 0.5), (150_528, 0.5)]
)
def test_steps_scaled_to_l2_in_float32_are_within(num_pixels, epsilon):
    images, signs = clipped_images(8, num_pixels)
    norms = np.sqrt((signs * signs).sum(axis=1, keepdims=True, dtype=np.float32))
    moved = images + signs * (np.float32(epsilon) / norms)
    for kind in (np.float64, np.float32):
        distances = np.linalg.norm(moved.astype(kind) - images.astype(kind), axis=1)
        assert not beyond_budget(distances.astype(np.float64), epsilon).any()


def test_distances_clearly_beyond_a_budget_stay_beyond():
    for budget in (1e-4, 1 / 255, EPSILON, 0.1, 0.5, 1.0, 3.0):
        assert beyond_budget(np.array([budget + 1e-5]), budget).all()
        assert not beyond_budget(np.array([budget + 2 * ULP]), budget).any()
        assert tolerance(budget) < 1e-5
    assert beyond_budget(np.array([EPSILON + 1e-6]), EPSILON).all()
    assert beyond_budget(np.array([np.inf, 1e-9, 0.0]), 0.0).tolist() == [True, True, False]


def rows(distances):
    count, status = len(distances), np.where(np.isinf(distances), "survived", "fooled")
    return pd.DataFrame(
        {
            "sample_id": range(count),
            "label": 0,
            "clean_prediction": 0,
            "adversarial_prediction": np.where(status == "fooled", 1, 0),
            "status": status,
            **dict.fromkeys(["l2", "linf", "l2_relative"], distances),
            "forwards": 1,
            "backwards": 1,
        }
    )


def test_all_metrics_count_the_same_images():
    """Five of six images are fooled at 8/255 in float32; the sixth is not."""
    table = rows(np.array([EPSILON + 3e-8] * 5 + [np.inf]))
    attack = AttackConfig.model_validate(
        {"attack": "a:b", "norm": "linf", "budget": "8/255", "budgets": ["8/255"]}
    )
    assert summary_row(table, attack)["robust_accuracy"] == pytest.approx(1 / 6)
    robust = METRICS["robust_accuracy"]
    assert robust.image_values(table, attack).tolist() == [0, 0, 0, 0, 0, 1]
    found = compare(table, table, "robust_accuracy", budget=EPSILON, norm="linf")
    assert found.baseline == pytest.approx(1 / 6)


def test_imported_tables_in_float32(tmp_path):
    """All fooled images lie at 8/255 in float32, which becomes the budget: none is robust there."""
    at = repr(EPSILON + 3e-8)
    lines = [f"{m},pgd,{i},{d}" for m in "ab" for i, d in enumerate([at] * 8 + ["inf", "0"])]
    (tmp_path / "t.csv").write_text("model,attack,sample_id,linf\n" + "\n".join(lines) + "\n")
    write_run_folder([tmp_path / "t.csv"], tmp_path / "out")
    attack = Run(RunFolder(tmp_path / "out")).config.attacks["pgd"]
    assert attack.curve_budgets == pytest.approx((EPSILON,), abs=1e-7)
    tables = write_tables(tmp_path / "out")
    assert tables.summary["robust_accuracy"].tolist() == [0.1, 0.1]
    last = tables.budgets.groupby("model_id")["robust_accuracy"].last()
    assert last.tolist() == [0.1, 0.1]
    text = (tmp_path / "out/config.yaml").read_text()
    (tmp_path / "out/config.yaml").write_text(text.replace("budget: null", "budget: 8/255"))
    assert write_tables(tmp_path / "out").summary["robust_accuracy"].tolist() == [0.1, 0.1]


def test_a_metric_is_added_by_its_row_alone(monkeypatch, tmp_path):
    """Cubed distances appear in every table and on the page."""

    def cubed(samples, attack, _=None):
        return np.minimum(distances(samples, attack), 1) ** 3

    toy = Metric(
        id="cubed_distance",
        label="distance, cubed",
        heading="cubed",
        attacks="with budget",
        values=cubed,
        values_at=cubed,
        range=lambda _: (0.0, 1.0),
        margins=lambda _: (-0.1, 0.1),
    )
    monkeypatch.setitem(METRICS, toy.id, toy)
    folder = make_run(tmp_path).folder
    page = build_report(tmp_path).page.read_text()
    mean = (0.1**3 + 0.3**3 + 0.9**3 + 2) / 6  # the first model's six images
    assert pd.read_csv(folder.summary)[toy.id][0] == pytest.approx(mean)
    assert pd.read_csv(folder.curves)[toy.id][0] == pytest.approx(mean)
    effects = pd.read_csv(folder.contrasts)
    effect = effects[effects["metric"] == toy.id].iloc[0]
    assert effect["effect"] > 0
    assert (effect["margin_low"], effect["margin_high"]) == (-0.1, 0.1)
    assert "distance, cubed" in page  # panels against k
    assert ">cubed<" in page  # table of models
    tables = [Run(folder).samples[spec.model_id, "d"] for spec in Run(folder).specs[::2]]
    assert compare(tables[1], tables[0], toy.id).effect > 0


def test_endpoints_of_configurations_are_those_of_the_table():
    names = get_args(EndpointConfig.model_fields["metric"].annotation)
    assert list(names) == [metric.id for metric in METRICS.values() if metric.endpoint]
    config = yaml.safe_load(CONFIG)
    for metric in (METRICS[name] for name in names if METRICS[name].model_values is None):
        for attack_id, budget, is_allowed in (
            ("s", None, metric.applies_to(SPATIAL)),
            ("d", 0.1, metric.values_at is not None),
        ):
            endpoint = {"metric": metric.id, "attack": attack_id, "budget": budget}
            with nullcontext() if is_allowed else pytest.raises(ValueError, match="endpoints.0"):
                Config.model_validate(config | {"endpoints": [endpoint]})


def test_unknown_metrics_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="expected one of clean_accuracy, robust_area, robust_acc"):
        compare(rows(np.ones(3)), rows(np.ones(3)), "median_l2")
