"""Windowed against baseline on synthetic tables with known answers."""

import math

import numpy as np
import pandas as pd
import pytest

from robust_ham.analysis.compare_models import COLUMNS as PAIR_COLUMNS
from robust_ham.analysis.compare_models import compare_checkpoints
from robust_ham.analysis.contrasts import CONTRAST_COLUMNS, contrasts
from robust_ham.analysis.run import Run
from robust_ham.analysis.statistics import crossed_interval
from robust_ham.storage.files import write_json, write_text
from robust_ham.storage.parquet_tables import write_table
from robust_ham.storage.run_folder import RunFolder

SIZES = (3, 5, 9)
CONFIG = """
schema: 1
name: made_up
dataset: {{name: cifar10}}
models:
  - architecture: cnn
    sweep: {{kernel_size: [3, 5, 9], window: [none, hamming], seed: {seeds}}}
attacks:
  d: {{attack: deepfool, budget: 0.25, budgets: [0.1, 0.25, 0.5]}}
  t: {{attack: superdeepfool}}
  s: {{attack: spatial_grid}}
endpoints:
  - {{metric: clean_accuracy}}
  - {{metric: robust_area, attack: best}}
  - {{metric: robust_accuracy, attack: s}}
interaction: [5, 9]
"""


def samples(distances, right, spatial=False):
    count = len(distances)
    status = np.where(~right, "already_wrong", np.where(np.isinf(distances), "survived", "fooled"))
    l2 = np.where(right, distances, 0.0)
    return pd.DataFrame(
        {
            "sample_id": range(count),
            "label": 1,
            "clean_prediction": np.where(right, 1, 0),
            "adversarial_prediction": 0,
            "status": status,
            "l2": math.nan if spatial else l2,
            "linf": math.nan if spatial else l2 / 10,
            "l2_relative": math.nan if spatial else l2 / 5,
            "forwards": 3,
            "backwards": 2,
        }
    )


def make(folder, seeds=(0, 1, 2, 3, 4), images=200, effect=None, missing=(), change=None):
    """Write distances with image and seed effects, times ``effect[k]`` if windowed."""
    run = RunFolder(folder)
    write_text(run.config, CONFIG.format(seeds=list(seeds)))
    stream = np.random.default_rng(0)
    image = stream.gamma(4, 0.06, images)
    for spec in Run(run).config.model_specs():
        factor = (effect or {}).get(spec.kernel_size, 1.0) if spec.window == "hamming" else 1.0
        card = {
            "model": {"architecture": "cnn"},
            "train_loss": 0.3 + 0.01 * stream.normal(),
            "validation_loss": 0.5 + 0.01 * stream.normal() - (0.1 if factor > 1 else 0.0),
        }
        distances = image * factor * stream.normal(1, 0.01) * stream.lognormal(0, 0.1, images)
        right = stream.random(images) < 0.9
        tables = {
            "d": samples(distances, right),
            "t": samples(distances * np.where(stream.random(images) < 0.5, 0.9, 1.1), right),
            "s": samples(np.where(stream.random(images) < 0.3, math.inf, 1), right, spatial=True),
        }
        if change is not None:
            change(spec, tables)
        if spec.model_id in missing:
            continue
        write_json(run.model(spec.model_id) / "model.json", card)
        for attack_id, table in tables.items():
            write_table(run.samples(spec.model_id, attack_id), table, {})
        predictions = pd.DataFrame({"label": 1, "prediction": (stream.random(500) < 0.9) * 1})
        write_table(run.predictions(spec.model_id), predictions, {})
    return Run(run)


def pick(table, **where):
    for column, value in where.items():
        table = table[table[column].isna() if value is None else table[column] == value]
    return table


def test_planted_effects_are_found_and_a_null_is_not(tmp_path):
    table = contrasts(make(tmp_path, effect={3: 0.7, 5: 1.0, 9: 1.4}))
    assert list(table) == CONTRAST_COLUMNS
    area = pick(table, metric="robust_area", attack="d", versus="same k").set_index("kernel_size")
    assert area["verdict"].tolist()[0::2] == ["worse", "better"]
    assert area.loc[5, "verdict"] in ("equivalent", "undecided")
    assert area.loc[3, "effect"] == pytest.approx(0.7, abs=0.06)
    ratios = pick(table, metric="distance", attack="d", versus="same k").set_index("kernel_size")
    assert ratios.loc[9, "effect"] == pytest.approx(1.4, abs=0.03)
    assert ratios.loc[9, "verdict"] == "better"
    loss = pick(table, metric="validation_loss", versus="same k").set_index("kernel_size")
    assert loss.loc[9, "verdict"] == "better"  # a lower loss
    assert loss.loc[9, "effect"] == pytest.approx(-0.1, abs=0.02)
    (grown,) = pick(table, metric="robust_area", attack="d", versus="interaction").to_dict(
        "records"
    )
    assert grown["effect"] == pytest.approx(area.loc[9, "effect"] - area.loc[5, "effect"])
    assert grown["verdict"] == "better"
    assert (grown["kernel_size"], grown["versus_kernel_size"]) == (9, 5)
    assert grown["p_holm"] == grown["p"]
    assert not table["verdict"].isna().any()


def test_a_row_by_hand(tmp_path):
    run = make(tmp_path, effect={9: 1.2})
    table = contrasts(run)
    row = pick(
        table, metric="robust_accuracy", attack="d", budget=0.25, kernel_size=9, versus="same k"
    ).iloc[0]
    arms = {
        window: np.stack(
            [
                run.samples[s.model_id, "d"]["l2"] > 0.25
                for s in run.specs
                if (s.kernel_size, s.window) == (9, window)
            ]
        )
        for window in ("none", "hamming")
    }
    difference = arms["hamming"] * 1.0 - arms["none"]
    assert row["baseline"] == pytest.approx(arms["none"].mean())
    assert row["windowed"] == pytest.approx(arms["hamming"].mean())
    assert tuple(row[["effect", "low", "high"]]) == pytest.approx(crossed_interval(difference))
    wide = crossed_interval(difference, 1 - 0.05 / len(SIZES))
    assert tuple(row[["simultaneous_low", "simultaneous_high"]]) == pytest.approx(wide[1:])
    assert row["p_holm"] >= row["p"]
    assert (row["margin_low"], row["margin_high"]) == (-0.01, 0.01)
    assert (row["num_seeds"], row["num_images"]) == (5, 200)


def test_references_are_the_same_k_and_the_3x3_baseline(tmp_path):
    table = contrasts(make(tmp_path))
    found = table.groupby("versus")["kernel_size"].unique().map(sorted).to_dict()
    assert found == {"same k": [3, 5, 9], "3x3 baseline": [5, 9], "interaction": [9]}
    assert set(pick(table, versus="3x3 baseline")["versus_kernel_size"]) == {3}


def test_endpoints_are_primary_and_all_else_is_exploratory(tmp_path):
    table = contrasts(make(tmp_path))
    primary = table[table["primary"]]
    assert set(zip(primary["metric"], primary["attack"], strict=True)) == {
        ("clean_accuracy", ""),
        ("robust_area", "best"),
        ("robust_accuracy", "s"),
    }
    assert set(primary["versus"]) == {"same k", "interaction"}


def test_an_endpoint_without_a_budget_uses_the_main_budget(tmp_path):
    run = make(tmp_path)
    lines = "endpoints: [{metric: robust_accuracy, attack: d}, "
    lines += "{metric: robust_accuracy, attack: d, budget: 0.33}]\n"
    text = run.folder.config.read_text()
    run.folder.config.write_text(text[: text.index("endpoints:")] + lines)
    primary = contrasts(Run(run.folder)).query("primary")
    assert set(zip(primary["attack"], primary["budget"], strict=True)) == {("d", 0.25), ("d", 0.33)}


def test_one_seed_decides_nothing(tmp_path):
    table = contrasts(make(tmp_path, seeds=(0,), effect={3: 0.5, 5: 0.5, 9: 2.0}))
    assert set(table["verdict"]) == {"undecided"}
    assert table["note"].str.contains("one seed").all()


def test_few_seeds_share_their_variance_and_say_so(tmp_path):
    few = contrasts(make(tmp_path / "few", seeds=(0, 1, 2)))
    many = contrasts(make(tmp_path / "many"))
    area = dict(metric="robust_area", versus="same k")
    assert pick(few, **area)["note"].eq("seed variance pooled over the comparisons").all()
    assert pick(many, **area)["note"].eq("").all()


def test_kernel_sizes_that_vary_differently_are_not_pooled(tmp_path):
    def shake(spec, tables):
        if (spec.kernel_size, spec.window) == (3, "hamming"):
            tables["d"]["l2"] *= 1 + 0.4 * spec.seed

    table = contrasts(make(tmp_path, seeds=(0, 1, 2), change=shake))
    area = pick(table, metric="robust_area", attack="d", versus="same k").set_index("kernel_size")
    assert area["note"].str.contains("nothing to pool").all()
    width = area["high"] - area["low"]
    assert width[3] > 5 * width[9]


def test_models_that_are_missing_are_left_out(tmp_path):
    gone = [f"cnn6-w128x256-f7-k5-none-s{seed}" for seed in range(5)]
    table = contrasts(make(tmp_path, missing=[*gone, "cnn6-w128x256-f7-k9-none-s2"]))
    same = pick(table, versus="same k", metric="clean_accuracy").set_index("kernel_size")
    assert same["num_seeds"].to_dict() == {3: 5, 9: 4}  # paired by seed
    assert pick(table, versus="interaction").empty


def test_arms_with_other_numbers_of_images_are_not_compared(tmp_path):
    def shorten(spec, tables):
        if (spec.kernel_size, spec.window) == (5, "hamming"):
            tables["d"] = tables["d"].iloc[:-1]

    table = contrasts(make(tmp_path, change=shorten))
    assert set(pick(table, versus="same k", attack="d")["kernel_size"]) == {3, 9}
    assert set(pick(table, versus="same k", attack="s")["kernel_size"]) == {3, 5, 9}


@pytest.mark.parametrize(
    ("distance", "verdict", "note"),
    [(math.inf, "equivalent", ""), (0.0, "undecided", "the baseline's figure is 0")],
)
def test_all_survivors_and_all_wrong(tmp_path, distance, verdict, note):
    def same(spec, tables):
        for table in tables.values():
            table["status"] = "survived" if distance else "already_wrong"
            table["clean_prediction"] = table["label"] if distance else 0
        tables["d"][["l2", "linf", "l2_relative"]] = distance
        tables["t"][["l2", "linf", "l2_relative"]] = distance

    table = contrasts(make(tmp_path, change=same))
    area = pick(table, metric="robust_area", attack="d", versus="same k")
    assert set(area["verdict"]) == {verdict}
    assert set(area["note"]) == {note}
    ratios = pick(table, metric="distance", attack="d", versus="same k")
    assert set(ratios["verdict"]) == {"undecided"}
    finite = table.select_dtypes("number").to_numpy()
    assert not np.isinf(finite[~np.isnan(finite)]).any()


def test_the_best_attack_is_the_nearest_image_by_image(tmp_path):
    run = make(tmp_path, seeds=(0, 1))
    model = run.specs[0].model_id
    best, first, second = (run.samples[model, attack] for attack in ("best", "d", "t"))
    assert best["l2"].tolist() == np.minimum(first["l2"], second["l2"]).tolist()
    nearer = (second["l2"] < first["l2"]).to_numpy()
    expected = np.where(nearer, second["l2_relative"], first["l2_relative"])
    assert best["l2_relative"].tolist() == expected.tolist()
    assert set(best["forwards"]) == {6}
    assert set(best["backwards"]) == {4}
    assert run.attacks["best"].curve_budgets == (0.1, 0.25, 0.5)


def test_other_images_decide_nothing(tmp_path):
    def other(spec, tables):
        if spec.window == "hamming" and spec.kernel_size == 9:
            tables["d"]["sample_id"] += 1000

    table = contrasts(make(tmp_path, effect={5: 1.5, 9: 1.5}, change=other))
    area = pick(table, metric="robust_area", attack="d", versus="same k").set_index("kernel_size")
    assert area.loc[5, "verdict"] == "better"
    assert area.loc[9, "verdict"] == "undecided"
    assert area.loc[9, "note"] == "not the same images"
    (grown,) = pick(table, metric="robust_area", attack="d", versus="interaction").to_dict(
        "records"
    )
    assert (grown["verdict"], grown["note"]) == ("undecided", "not the same images")
    assert math.isnan(grown["effect"])
    assert area.loc[9, ["effect", "low", "high", "p", "p_holm"]].isna().all()


def test_networks_that_nothing_fools_are_equivalent(tmp_path):
    def robust(spec, tables):
        for table in tables.values():
            table["status"] = "survived"
            table["clean_prediction"] = table["label"]
            if table["l2"].notna().all():
                table[["l2", "linf", "l2_relative"]] = math.inf

    table = contrasts(make(tmp_path, change=robust))
    for metric in ("robust_area", "robust_accuracy"):
        rows = pick(table, metric=metric, versus="same k")
        assert set(rows["verdict"]) == {"equivalent"}
        assert rows[["effect", "low", "high"]].notna().all().all()


def test_two_checkpoints_are_compared_as_two_checkpoints(tmp_path):
    run = make(tmp_path, seeds=(0, 1), effect={9: 1.5})
    table = compare_checkpoints(run)
    assert list(table) == PAIR_COLUMNS
    assert len(table) == 3 * 2 * (1 + 3 * 2 + 1)  # clean; two attacks and their best; spatial
    assert set(table["note"]) == {"these two networks, not windows as such"}
    row = table[(table["metric"] == "distance") & (table["attack"] == "d")].iloc[-1]
    assert "k9-hamming-s1" in row["windowed_id"]
    assert "k9-none-s1" in row["baseline_id"]
    assert row["windowed_only"] > 5 * row["baseline_only"]
    assert row["p"] < 1e-6
    clean = table[table["metric"] == "clean_accuracy"].iloc[0]
    one, other = (run.correct(clean[f"{arm}_id"]) > 0 for arm in ("windowed", "baseline"))
    assert (clean["windowed_only"], clean["baseline_only"]) == (
        (one & ~other).sum(),
        (other & ~one).sum(),
    )
    assert clean["num_images"] == 500


def test_a_metric_of_one_image_is_not_a_number_per_model(tmp_path):
    def first(spec, tables):
        for name in tables:
            tables[name] = tables[name].iloc[:1]

    table = contrasts(make(tmp_path, effect={5: 2.0, 9: 2.0}, change=first))
    area = pick(table, metric="robust_area", attack="d")
    assert set(area["verdict"]) == {"undecided"}
    assert set(area["note"]) <= {"one image says nothing of others", "the baseline's figure is 0"}


def test_an_interaction_needs_the_same_images_at_both_sizes(tmp_path):
    def fewer(spec, tables):
        if spec.kernel_size == 9:
            for name in tables:
                tables[name] = tables[name].iloc[:-1]

    def other(spec, tables):
        if spec.kernel_size == 9:
            for name in tables:
                tables[name]["sample_id"] += 1000

    assert pick(
        contrasts(make(tmp_path / "a", change=fewer)), metric="robust_area", versus="interaction"
    ).empty
    grown = pick(
        contrasts(make(tmp_path / "b", change=other)), metric="robust_area", versus="interaction"
    )
    assert set(grown["note"]) == {"not the same images"}


def test_a_ratio_is_never_below_zero(tmp_path):
    def rough(spec, tables):
        if spec.window == "hamming":
            tables["d"][["l2", "linf"]] *= (0.01, 0.5, 2.0)[spec.seed]

    area = pick(
        contrasts(make(tmp_path, seeds=(0, 1, 2), change=rough)),
        metric="robust_area",
        attack="d",
        versus="same k",
    )
    assert (area["simultaneous_low"] == 0).any()
    assert (area["low"] >= 0).all()
    assert (area["verdict"] == "undecided").all()
