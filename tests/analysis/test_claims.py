"""Claims answered from tables with known answers."""

import math

import numpy as np
import pandas as pd
import pytest
from test_contrasts import make, pick

from robust_ham.analysis.claims import evidence, selection
from robust_ham.analysis.claims.answers import COLUMNS, _applies, answer_claims, answer_experiment
from robust_ham.analysis.claims.schema import claims
from robust_ham.analysis.run import Run
from robust_ham.analysis.statistics import Interval
from robust_ham.config.files import load_config
from robust_ham.storage.files import read_json, write_csv, write_json, write_text
from robust_ham.storage.parquet_tables import write_table
from robust_ham.storage.run_folder import RunFolder

ANSWERS = {"supported", "contradicted", "undecided", "not run"}


def answers(table):
    return table.drop_duplicates("claim").set_index("claim")["answer"]


def test_every_statement_is_read_and_answered_once(tmp_path):
    table = answer_claims(make(tmp_path))
    assert list(table) == COLUMNS
    assert list(answers(table).index) == [claim.id for claim in claims()]
    assert set(table["answer"]) <= ANSWERS


def test_no_answer_without_interval_and_scope(tmp_path):
    table = answer_claims(make(tmp_path, effect={9: 1.4}))
    decided = table[table["part_answer"].isin(["supported", "contradicted"])]
    assert len(decided) >= 3
    assert decided[["effect", "low", "high"]].notna().all().all()
    assert (decided["low"] <= decided["effect"]).all()
    assert (decided["scope"].str.contains("cifar10; cnn6-w128x256")).all()
    not_run = table[table["answer"] == "not run"]
    assert not_run["effect"].isna().all()


@pytest.mark.parametrize(
    ("effect", "answer"),
    [({5: 0.6, 9: 1.4}, "supported"), ({5: 1.4, 9: 1.4}, "contradicted"), ({5: 0.6}, "undecided")],
)
def test_deepfool_worse_at_5_and_better_at_large_k(tmp_path, effect, answer):
    run = make(tmp_path, effect=effect)
    found = pick(answer_claims(run), claim="deepfool")
    assert answers(found)["deepfool"] == answer
    small, large = found.to_dict("records")
    assert "k = 5" in small["part"]
    assert "k = 9" in large["part"]
    assert small["effect"] == pytest.approx(effect[5], abs=0.1)
    if 9 not in effect:  # no effect at all: equivalent contradicts, too wide an interval does not
        assert large["part_answer"] in ("contradicted", "undecided")


def test_one_contradicted_part_is_enough(tmp_path):
    found = pick(answer_claims(make(tmp_path, effect={5: 0.6, 9: 0.6})), claim="deepfool")
    assert found["part_answer"].tolist() == ["supported", "contradicted"]
    assert set(found["answer"]) == {"contradicted"}


def test_one_seed_decides_nothing(tmp_path):
    table = answer_claims(make(tmp_path, seeds=(0,), effect={5: 0.5, 9: 2.0}))
    assert set(table["answer"]) <= {"undecided", "not run"}
    notes = table.loc[table["answer"] == "undecided", "note"]
    assert notes.str.contains("one seed|too few").all()


def test_a_model_that_the_gate_fails_decides_nothing(tmp_path):
    run = make(tmp_path, effect={5: 0.6, 9: 1.4})
    gate = pd.DataFrame(
        [["cnn6-w128x256-f7-k9-none-s0", "d", "survivors", "fail", "…"]],
        columns=["model_id", "attack", "check", "severity", "reason"],
    )
    write_csv(run.folder.gate, gate)
    found = pick(answer_claims(Run(run.folder)), claim="deepfool")
    assert found["part_answer"].tolist() == ["supported", "undecided"]
    assert "gate" in found["note"].iloc[1]


def test_losses_look_the_right_way(tmp_path):
    found = pick(answer_claims(make(tmp_path, effect={9: 1.4})), claim="losses")
    by_part = found.set_index("part")["part_answer"]
    validation = by_part[by_part.index.str.startswith("validation loss")]
    assert validation.tolist() == ["supported"]  # the made-up loss is 0.1 lower where it helps


@pytest.mark.parametrize(
    ("expected", "higher", "none", "lower"),
    [
        ("higher", "supported", "contradicted", "contradicted"),
        ("lower", "contradicted", "contradicted", "supported"),
        ("equal", "contradicted", "supported", "contradicted"),
        ("not higher", "contradicted", "supported", "supported"),
        ("not lower", "supported", "supported", "contradicted"),
    ],
)
def test_answers_of_intervals_to_expectations(expected, higher, none, lower):
    margins = (-0.01, 0.01)
    for interval, answer in [
        (Interval(0.05, 0.02, 0.08), higher),
        (Interval(0.001, -0.005, 0.007), none),
        (Interval(-0.05, -0.08, -0.02), lower),
        (Interval(0.01, -0.02, 0.04), "undecided"),
        (Interval(0.01, math.nan, math.nan), "undecided"),
    ]:
        assert evidence.answer_of(interval, expected, 0.0, margins) == answer


def with_widths(run, slope):
    """Learned widths grow with kernel size; robustness grows with them or not."""
    for spec in run.specs:
        path = run.folder.model(spec.model_id) / "model.json"
        card = {k: v for k, v in read_json(path).items() if k != "schema"}
        width = spec.kernel_size * (0.5 if spec.window == "hamming" else 0.95)
        write_json(path, card | {"effective_width_learned": width + 0.01 * spec.seed})
    return Run(run.folder)


def test_robustness_that_follows_learned_width(tmp_path):
    def wide(spec, tables):
        width = spec.kernel_size * (0.5 if spec.window == "hamming" else 0.95)
        for attack in ("d", "t"):
            tables[attack]["l2"] = np.where(tables[attack]["l2"] > 0, 0.05 * width, 0.0)
            tables[attack]["linf"] = tables[attack]["l2"] / 10

    run = with_widths(make(tmp_path, change=wide), 1)
    (found,) = pick(answer_claims(run), claim="learned_width").to_dict("records")
    assert found["answer"] == "supported"
    assert found["effect"] == pytest.approx(1.0)
    assert found["low"] > 0.9  # z = atanh(0.9999) − 1.96 √(1.5 / 3)
    assert "no proof" in found["note"]
    width = pick(answer_claims(run), claim="concentration")
    assert set(width["answer"]) == {"supported"}
    assert width["effect"].tolist() == pytest.approx([-2.25, -4.05])


def test_subsampled_images_have_more_high_frequency(tmp_path):
    run = make(tmp_path, images=3)
    write_text(run.folder.config, run.folder.config.read_text() + "evaluation: {num_images: 3}\n")
    run = Run(run.folder)
    table = pd.DataFrame(
        {
            "sample_id": range(3),
            "label": 1,
            "high_frequency": [0.3, 0.4, 0.35],
            "high_frequency_original": [0.1, 0.1, 0.1],
        }
    )
    write_table(run.folder.inputs, table, {})
    (found,) = pick(answer_claims(run), claim="subsampling").to_dict("records")
    assert (found["answer"], found["num_images"]) == ("supported", 3)
    assert found["effect"] == pytest.approx(0.25)
    write_table(run.folder.inputs, table.drop(columns="high_frequency_original"), {})
    assert answers(answer_claims(Run(run.folder)))["subsampling"] == "not run"


def test_better_at_every_epoch(tmp_path):
    run = make(tmp_path)
    part = next(c for c in claims() if c.id == "imagenet").parts[0]
    part = part.model_copy(update={"only": {"kernel_size": 9}})

    def curves(gain):
        for spec in run.specs:
            accuracy = np.array([0.3, 0.5, 0.6]) + 0.001 * spec.seed * np.array([1, -1, 1])
            accuracy += gain if spec.window == "hamming" else 0.0
            table = pd.DataFrame({"epoch": [1, 2, 3], "validation_accuracy": accuracy})
            for name in ("train_loss", "train_accuracy", "validation_loss"):
                table[name] = 0.5
            write_csv(run.folder.model(spec.model_id) / "training.csv", table)
        return evidence.evidence_of(run, part)

    (found,) = curves(np.array([0.1, 0.05, 0.1]))
    assert (found.part_answer, found.num_seeds) == ("supported", 5)
    assert found.effect == pytest.approx(0.05)
    assert "epoch 2 of 3" in found.part
    (found,) = curves(np.array([0.1, -0.05, 0.1]))
    assert found.part_answer == "contradicted"


def test_an_experiment_answers_its_own_claims():
    cost = pd.DataFrame(
        {
            "what": "convolution",
            "contestant": ["2-D"] * 4 + ["factorised"] * 4,
            "kernel_size": [3, 5, 7, 9] * 2,
            "seconds": [k**2.05 for k in (3, 5, 7, 9)] + [k**0.4 for k in (3, 5, 7, 9)],
        }
    )
    table = answer_experiment("cost", cost)
    assert answers(table).to_dict() == {"cost": "contradicted"}
    assert table["part_answer"].tolist() == ["supported", "contradicted"]
    assert table["effect"].tolist() == pytest.approx([2.05, 0.4])
    leak = pd.DataFrame(
        [
            (k, window, steps, seed, 0.5 + gain + 0.001 * seed, 0.1 - gain + 0.001 * seed)
            for k in (7, 11)
            for window, gain in (("none", 0.0), ("hamming", 0.05))
            for steps in (100, 400)
            for seed in (0, 1, 2)
        ],
        columns="kernel_size window steps seed leakage far_leakage".split(),
    )
    table = answer_experiment("fft-prediction", leak)
    assert answers(table).to_dict() == {"fft_prediction": "contradicted"}
    assert table["part_answer"].tolist() == ["contradicted"] * 2 + ["supported"] * 2
    assert answer_experiment("tapering", leak).empty


def test_missing_models_and_attacks_are_not_run(tmp_path):
    models = [f"cnn6-w128x256-f7-k{k}-none-s{s}" for k in (3, 5, 9) for s in range(5)]
    table = answer_claims(make(tmp_path, missing=models))
    assert set(answers(table)) == {"not run"}
    folder = RunFolder(tmp_path)
    assert answers(answer_claims(Run(folder)))["stadv"] == "not run"


PAIRS = {  # (shipped config, claim): arms that its first part compares, of the first kernel size
    ("cifar10_controls", "depth"): [
        (f"cnn{m}-w128x256-f7", f"cnn{m}-w128x256-f7") for m in (6, 3, 4, 5, 8)
    ],
    ("cifar10_controls", "first_layer"): [
        ("cnn6-w128x256-f7-windowfirst", "cnn6-w128x256-f7"),
    ],
    ("cifar10_controls", "width"): [(f"cnn6-w128x256{x}-f7",) * 2 for x in ("", "-x0.5", "-x2")],
    ("cifar10_controls", "weight_decay"): [
        ("cnn6-w128x256-f7",) * 2,
        ("nodecay-cnn6-w128x256-f7",) * 2,
    ],
    ("cifar10_controls", "downsampling"): [
        (f"cnn6-w128x256-f7{d}",) * 2 for d in ("", "-maxpool", "-nodown")
    ],
    ("cifar10_controls", "other_windows"): [("cnn6-w128x256-f7",) * 2] * 2,
    ("cifar10_controls", "placebo"): [("cnn6-w128x256-f7",) * 2],
    ("cifar10_resnet18", "replication_unmatched"): [("resnet18-x1",) * 2],
    ("cifar10_resnet18", "replication_matched"): [("resnet18-x1-params3",) * 2],
    ("cifar10_resnet18", "factorised"): [("resnet18-x1-factorised-params3",) * 2],
    ("cifar10_study", "capacity"): [("cnn4-w16x32-f7-params3",) * 2],
    ("cifar10_study", "accuracy_over_3x3"): [("cnn4-w16x32-f7",) * 2] * 2,
    ("cifar10_study", "compensated"): [("cnn4-w16x32-f7-compensated", "cnn4-w16x32-f7")],
    ("cifar10_study", "depth"): [],
    ("mnist_cnn", "accuracy_same_k"): None,  # of other data
    ("mnist_cnn", "mnist_28"): [("cnn6-w128x256-f7",) * 2] * 2,
    ("mnist14_cnn", "mnist_14"): [("cnn6-w128x256-f7",) * 2] * 2,
    ("imagenet_resnet18", "imagenet"): [("imagenet-resnet18",) * 2],
}


@pytest.mark.parametrize(("config", "claim"), PAIRS)
def test_which_arms_a_claim_compares(tmp_path, config, claim):
    folder = RunFolder(tmp_path)
    write_text(folder.config, load_config(config).to_yaml())
    run = Run(folder)
    for spec in run.config.model_specs():
        card = {"model": {"architecture": "cnn"}}
        write_json(folder.model(spec.model_id) / "model.json", card)
    stated = next(c for c in claims() if c.id == claim)
    expected = PAIRS[config, claim]
    assert _applies(run, stated) == (expected is not None)
    if expected is not None:
        found = selection.pairs_of(run, stated.parts[0])
        assert [(c.spec.family, c.baseline[0].family) for c in found] == expected
        against = stated.parts[0].against
        key = "init" if "init" in against else "window"
        assert {getattr(c.baseline[0], key) for c in found} <= {against[key]}


def test_a_baseline_that_is_always_wrong_decides_nothing(tmp_path):
    def wrong(spec, tables):
        if spec.window == "none":
            for table in tables.values():
                table["clean_prediction"], table["status"] = 0, "already_wrong"
                if table["l2"].notna().all():
                    table[["l2", "linf", "l2_relative"]] = 0.0

    found = pick(answer_claims(make(tmp_path, change=wrong)), claim="deepfool")
    assert set(found["part_answer"]) == {"undecided"}
    assert found["effect"].isna().all()
    assert set(found["note"]) == {"the baseline's figure is 0"}


def test_arms_of_other_learning_rates_say_so(tmp_path):
    run = make(tmp_path, effect={9: 1.4})
    text = run.folder.config.read_text()
    sweep = "sweep: {kernel_size: [3, 5, 9], window: [none, hamming], seed: [0, 1, 2, 3, 4]}"
    assert sweep in text
    group = "  - architecture: cnn\n    training: {{lr: {lr}}}\n    " + sweep.replace(
        "[none, hamming]", "[{window}]"
    ).replace("{k", "{{k").replace("]}", "]}}")
    plain, windowed = (
        group.format(lr=lr, window=window) for lr, window in ((0.4, "none"), (0.2, "hamming"))
    )
    old = text[text.index("  - architecture") : text.index("attacks:")]
    write_text(run.folder.config, text.replace(old, f"{plain}\n{windowed}\n"))
    found = pick(answer_claims(Run(run.folder)), claim="deepfool")
    assert found["note"].str.contains("learning rates 0.2 and 0.4").all()
