"""Scoring is independent of what an attack claims."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import fashion_images, zoo_model

from attacks import ATTACKS, AttackOutcome
from robust_ham.config.experiment import AttackConfig, DatasetConfig
from robust_ham.data.datasets import load_split
from robust_ham.data.splits import Split
from robust_ham.errors import RequestError
from robust_ham.evaluation.evaluate import attacked_images, evaluate, same_answer
from robust_ham.evaluation.options import attack_options, check_attack_options
from robust_ham.evaluation.scoring import judge
from robust_ham.models.predict import accuracy, predictions
from robust_ham.runs.jobs.attack import halved

CPU = torch.device("cpu")


def fashion_split():
    return load_split(DatasetConfig(name="fashion_mnist"), "test")


class Threshold(torch.nn.Module):
    """Class 1 where the first pixel is above one half; NaN logits where it is exactly 0.25."""

    def forward(self, x):
        pixel = x.flatten(1)[:, 0]
        logit = torch.where(pixel == 0.25, torch.nan, 10 * (pixel - 0.5))
        return torch.stack([-logit, logit], 1)


def outcome_of(adversarial, transform=None):
    count = len(adversarial)
    ones = torch.ones(count, dtype=torch.int64)
    return AttackOutcome(adversarial, torch.ones(count).bool(), ones, 2 * ones, transform)


def test_every_status_from_a_hand_made_batch():
    clean = torch.tensor([0.1, 0.9, 0.2, 0.2, 0.2, 0.2]).view(6, 1, 1, 1).expand(6, 1, 1, 4)
    labels = torch.zeros(6, dtype=torch.int64)
    adversarial = clean.clone()
    adversarial[0, 0, 0, 0] = 0.7  # fooled at distance 0.6
    adversarial[2, 0, 0, 0] = 0.4  # claims to fool and does not
    adversarial[3, 0, 0, 0] = 1.001  # outside of the box
    adversarial[4, 0, 0, 1] = torch.nan
    adversarial[5, 0, 0, 0] = 0.25  # NaN logits
    rows = judge(Threshold(), clean, labels, outcome_of(adversarial), CPU)
    assert rows["status"].tolist() == [
        "fooled",
        "already_wrong",
        "survived",
        "invalid",
        "invalid",
        "invalid",
    ]
    assert rows["l2"].tolist() == pytest.approx([0.6, 0, *[math.inf] * 4])
    assert rows["linf"].tolist() == pytest.approx([0.6, 0, *[math.inf] * 4])
    assert rows["l2_relative"][0] == pytest.approx(0.6 / 0.2)
    assert rows["clean_prediction"].tolist() == [0, 1, 0, 0, 0, 0]
    nan = torch.full((1, 1, 1, 4), 0.25)  # NaN logits before any attack: no correct prediction
    row = judge(Threshold(), nan, labels[:1], outcome_of(nan), CPU).iloc[0]
    assert (row["status"], row["clean_prediction"], row["l2"]) == ("invalid", -1, 0)
    assert rows["adversarial_prediction"][0] == 1
    assert rows["clean_margin"][0] == pytest.approx(8)
    assert rows["margin"][0] == pytest.approx(-4)
    assert rows["forwards"].tolist() == [1] * 6
    assert rows["backwards"].tolist() == [2] * 6
    assert rows[["angle", "dx", "dy"]].isna().all().all()


def test_spatial_rows_have_a_transform_and_no_distance():
    clean = torch.full((1, 1, 1, 4), 0.1)
    rows = judge(
        Threshold(),
        clean,
        torch.zeros(1, dtype=torch.int64),
        outcome_of(clean + 0.6, torch.tensor([[5.0, -1.5, 3.0]])),
        CPU,
    )
    assert rows["status"].tolist() == ["fooled"]
    assert rows[["angle", "dx", "dy"]].to_numpy().tolist() == [[5.0, -1.5, 3.0]]
    assert rows[["l2", "linf", "l2_relative"]].isna().all().all()


def test_an_attack_that_claims_too_much_is_not_believed(monkeypatch):
    def boaster(model, images, labels):
        return outcome_of(images.clone())

    monkeypatch.setitem(ATTACKS, "boaster", boaster)
    x, y = fashion_images(10)
    attacked = attacked_images(Split((x * 255).byte(), y, 10, "here"), 10, 0)
    evaluation = evaluate(
        zoo_model(3, "none"),
        attacked,
        AttackConfig(attack="boaster"),
        "b",
        batch_size=4,
        device=CPU,
    )
    assert set(evaluation.samples["status"]) <= {"survived", "already_wrong"}


def test_batches_do_not_change_the_rows():
    x, y = fashion_images(10)
    attacked = attacked_images(Split((x * 255).round().byte(), y, 10, "here"), 10, 0)
    config = AttackConfig(attack="deepfool")
    tables = [
        evaluate(zoo_model(3, "none"), attacked, config, "d", batch_size=b, device=CPU).samples
        for b in (3, 10)
    ]
    assert tables[0]["status"].tolist() == tables[1]["status"].tolist()
    np.testing.assert_allclose(tables[0]["l2"], tables[1]["l2"], rtol=1e-4)
    assert tables[0]["sample_id"].tolist() == attacked.sample_ids


def test_pruning_that_changes_the_answer_is_given_up(monkeypatch):
    used = []

    def attack(model, images, labels, *, prune=2.5):
        used.append((len(images), prune))
        return outcome_of(images + (0.4 if prune is None else 0.5))

    monkeypatch.setitem(ATTACKS, "pruning", attack)
    split = Split(torch.full((100, 1, 1, 4), 50).byte(), torch.zeros(100).long(), 2, "here")
    attacked = attacked_images(split, 100, 0)
    config = AttackConfig(attack="pruning")
    evaluation = evaluate(Threshold(), attacked, config, "p", batch_size=100, device=CPU)
    assert used == [(100, 2.5), (16, None), (100, None)]
    assert evaluation.samples["linf"].tolist() == pytest.approx([0.4] * 100, abs=1e-6)


def test_same_answer_compares_statuses_and_mean_distances():
    table = pd.DataFrame({"status": ["fooled", "fooled", "survived"], "l2": [1.0, 1.0, math.inf]})
    assert same_answer(table, table, "l2")
    assert same_answer(table.replace({"l2": {1.0: 1.0009}}), table, "l2")
    assert not same_answer(table.replace({"l2": {1.0: 1.0011}}), table, "l2")
    assert not same_answer(table.replace({"status": {"survived": "fooled"}}), table, "l2")


def test_inputs_table_names_each_image():
    x, y = fashion_images(4)
    x[1] = x[0]
    table = attacked_images(Split((x * 255).byte(), y, 10, "here"), 4, 0).table()
    by_id = table.set_index("sample_id")["sha256"]
    assert by_id[0] == by_id[1]
    assert by_id.nunique() == 3


def test_predictions_and_accuracy():
    images = torch.tensor([0, 255, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    split = Split(images, torch.tensor([0, 1, 0]), 2, "here")
    table = predictions(Threshold(), split, CPU)
    assert table["prediction"].tolist() == [0, 1, 1]
    assert table["margin"].tolist() == [10, 10, -10]
    assert accuracy(table) == pytest.approx(2 / 3)


def test_gallery_prefers_fooled_images():
    x, y = fashion_images(12)
    attacked = attacked_images(Split((x * 255).round().byte(), y, 10, "here"), 12, 0)
    config = AttackConfig(attack="deepfool")
    evaluation = evaluate(zoo_model(3, "none"), attacked, config, "d", batch_size=12, device=CPU)
    gallery = evaluation.gallery()
    assert gallery["clean"].shape == (8, 1, 28, 28)
    assert gallery["fooled"].sum() == min(8, (evaluation.samples["status"] == "fooled").sum())
    ids = evaluation.samples.set_index("sample_id")
    for i, sample_id in enumerate(gallery["sample_id"]):
        assert ids.loc[sample_id, "label"] == gallery["label"][i]


def test_too_many_images_are_refused():
    split = Split(torch.zeros(3, 1, 2, 2).byte(), torch.zeros(3).long(), 2, "somewhere")
    with pytest.raises(RequestError, match=r"num_images: expected at most 3 \(somewhere\), got 4"):
        attacked_images(split, 4, 0)


def test_options_are_checked_against_the_signature():
    assert attack_options(AttackConfig(attack="deepfool", steps=7), "d")["steps"] == 7
    assert attack_options(AttackConfig(attack="deepfool"), "d")["overshoot"] == 0.02
    assert (
        attack_options(AttackConfig(attack="deepfool", overshoot="2e-2"), "d")["overshoot"] == 0.02
    )
    assert (
        attack_options(AttackConfig(attack="deepfool", candidates="all"), "d")["candidates"]
        == "all"
    )
    with pytest.raises(RequestError, match=r"attacks.d.step: unknown option of deepfool \(norm"):
        attack_options(AttackConfig(attack="deepfool", step=7), "d")
    with pytest.raises(RequestError, match="attacks.d.attack: expected one of deepfool"):
        attack_options(AttackConfig(attack="deepfol"), "d")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack": "deepfool", "norm": "l3"}, "attacks.a.norm: expected .*l2.*linf.*got 'l3'"),
        ({"attack": "deepfool", "steps": "many"}, "attacks.a.steps: expected int, got 'many'"),
        ({"attack": "deepfool", "steps": 2.5}, "attacks.a.steps: expected int, got 2.5"),
        ({"attack": "deepfool", "refine": "no"}, "attacks.a.refine: expected bool, got 'no'"),
        ({"attack": "deepfool", "prune": math.inf}, "attacks.a.prune: expected .*got inf"),
        ({"attack": "spatial_shift", "padding": "mirror"}, "attacks.a.padding: expected"),
        (
            {"attack": "spatial_shift", "padding": "reflection", "max_translation": 28},
            "max_translation: expected less than the image's side, got 28",
        ),
        ({"attack": "spatial_grid", "budget": 0.5}, "attacks.a.budget: spatial_grid has no"),
    ],
)
def test_values_are_refused_before_any_compute(options, message):
    with pytest.raises(RequestError, match=message):
        check_attack_options(AttackConfig(**options), "a", (1, 28, 28))


def test_a_model_for_another_number_of_classes_is_refused():
    split = Split(torch.zeros(3, 1, 1, 4).byte(), torch.tensor([0, 1, 2]), 3, "here")
    with pytest.raises(RequestError, match=r"model: expected logits \(N, 3\), got \(3, 2\)"):
        predictions(Threshold(), split, CPU)


def test_margins_of_every_candidate_make_the_grid():
    attacked = attacked_images(fashion_split(), 30, 0)
    config = AttackConfig(attack="spatial_shift", max_translation=1)
    evaluation = evaluate(
        zoo_model(3, "none"), attacked, config, "shift", batch_size=16, device=CPU
    )
    assert evaluation.margins.shape == (30, 9)
    assert evaluation.transforms.tolist()[:2] == [[0, -1, -1], [0, -1, 0]]
    right = np.array(evaluation.samples["status"] != "already_wrong")
    grid = evaluation.grid()
    assert list(grid.columns) == ["angle", "dx", "dy", "num_images", "num_fooled"]
    assert (grid["num_images"] == right.sum()).all()
    assert grid.query("dx == 0 and dy == 0")["num_fooled"].item() == 0
    model = zoo_model(3, "none")
    moved = torch.nn.functional.pad(attacked.images, (0, 1, 1, 0))[:, :, :28, 1:]  # left and down
    fooled = (model(moved).argmax(1) != attacked.labels)[torch.from_numpy(right)]
    assert grid.query("dx == -1 and dy == 1")["num_fooled"].item() == fooled.sum()


def test_half_precision_margins_keep_their_sign():
    margins = np.array([-1e-9, -0.0, 1e-9, -2.5, 1e9, -np.inf, np.nan])
    half = halved(margins)
    assert half.dtype == np.float16
    assert (half[[0, 3, 5]] < 0).all()
    assert not (half[[1, 2, 4]] < 0).any()
    assert np.isnan(half[6])


class Hungry(torch.nn.Module):
    """Memory for eight images."""

    def __init__(self):
        super().__init__()
        self.inner = zoo_model(3, "none")

    def forward(self, x):
        if len(x) > 8:
            raise torch.OutOfMemoryError("out of memory")
        return self.inner(x)


def test_exhausted_memory_halves_the_batch_and_is_said_once_per_halving(caplog):
    attacked = attacked_images(fashion_split(), 30, 0)
    config = AttackConfig(attack="deepfool", steps=3, prune=None)
    options = {"batch_size": 20, "device": CPU}
    with caplog.at_level("WARNING", logger="robust_ham"):
        evaluation = evaluate(Hungry(), attacked, config, "deepfool", **options)
    messages = [record.message for record in caplog.records]
    assert messages == [
        f"deepfool: out of memory; continuing with batches of {n} images" for n in (10, 5)
    ]
    expected = evaluate(zoo_model(3, "none"), attacked, config, "deepfool", **options)
    pd.testing.assert_series_equal(evaluation.samples["status"], expected.samples["status"])
    pruning = AttackConfig(attack="deepfool", steps=3)  # so is the check of pruning
    checked = evaluate(Hungry(), attacked, pruning, "deepfool", **options)
    pd.testing.assert_series_equal(checked.samples["status"], expected.samples["status"])
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(Starved(), attacked, config, "deepfool", **options)


class Starved(torch.nn.Module):
    """No memory at all."""

    def forward(self, x):
        raise torch.OutOfMemoryError("out of memory")


def test_angles_and_spectrum_are_of_the_images_that_fool():
    x, y = fashion_images(20)
    attacked = attacked_images(Split((x * 255).round().byte(), y, 10, "here"), 20, 0)
    evaluation = evaluate(
        zoo_model(5, "none"),
        attacked,
        AttackConfig(attack="deepfool"),
        "d",
        batch_size=20,
        device=CPU,
    )
    fooled = evaluation.samples["status"] == "fooled"
    assert evaluation.samples.loc[fooled, "normal_cosine"].between(0.1, 1).all()
    assert evaluation.samples.loc[~fooled, "normal_cosine"].isna().all()
    assert evaluation.spectrum()["share"].sum() == pytest.approx(1)
    shifts = AttackConfig(attack="spatial_shift", stop="first")
    spatial = evaluate(zoo_model(5, "none"), attacked, shifts, "s", batch_size=20, device=CPU)
    assert spatial.samples["normal_cosine"].isna().all()
    assert spatial.samples["normal_cosine"].isna().all()


def test_an_attack_none_of_whose_images_is_valid_fails_and_some_are_told_of(monkeypatch, caplog):
    attacked = attacked_images(fashion_split(), 8, 0)
    config = AttackConfig.model_validate({"attack": "deepfool"})

    def returning(num_valid):
        def attack(model, images, labels, **options):
            moved = images + 0.1
            moved[:num_valid] = images[:num_valid]
            return outcome_of(moved)

        monkeypatch.setattr(
            "robust_ham.evaluation.evaluate.attack_function", lambda *_: (attack, {})
        )
        monkeypatch.setattr("robust_ham.evaluation.evaluate.attack_options", lambda *_: {})
        return evaluate(
            zoo_model(7, "none"), attacked, config, "mine", batch_size=8, device=CPU
        ).samples

    with pytest.raises(ValueError, match=r"attacks\.mine: .* pixels outside \[0, 1\] \(the attack"):
        returning(0)
    rows = returning(4)
    right = rows["clean_prediction"] == rows["label"]
    invalid = int((right & (rows["status"] == "invalid")).sum())  # others count as misclassified
    assert invalid > 0
    assert f"mine: {invalid} of 8 returned images are invalid" in caplog.text
    assert caplog.text.endswith("they count as survived\n")
