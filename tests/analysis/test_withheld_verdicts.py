"""Verdicts that depend on models that the black-box check doubts are withheld."""

import pandas as pd
import pytest
from test_contrasts import make, pick

from robust_ham.analysis import contrasts
from robust_ham.runs.jobs.gate import COLUMNS

EFFECT = {3: 0.7, 9: 1.4}
every_measure = contrasts.measures


@pytest.fixture(autouse=True)
def fewer_measures(monkeypatch):
    """Compute only the measures that these tests need, to save time."""
    asked = {("clean_accuracy", ""), ("robust_area", "d"), ("robust_area", "t")}
    asked |= {("robust_accuracy", "s")}
    monkeypatch.setattr(
        contrasts,
        "measures",
        lambda run: [m for m in every_measure(run) if (m.metric.id, m.attack_id) in asked],
    )


def with_warnings(folder, doubtful, check="finite differences", attack="d", severity="warn"):
    """Write a run whose window harms at k = 3 and helps at k = 9; some models are doubtful."""
    run = make(folder, effect=EFFECT)
    rows = [
        row
        for spec in run.specs
        for row in [
            (spec.model_id, "", check, "pass", 0, 0.1, "", "key"),
            (spec.model_id, attack, "black box", _severity(spec, doubtful, severity), 0, 0, "", ""),
        ]
    ]
    pd.DataFrame(rows, columns=COLUMNS).to_csv(run.folder.gate, index=False)
    return run


def _severity(spec, doubtful, severity):
    return severity if doubtful(spec) else "pass"


def verdicts(run, attack="d", metric="robust_area", versus="same k"):
    table = pick(contrasts.contrasts(run), metric=metric, attack=attack, versus=versus)
    return table.set_index("kernel_size")[["verdict", "note", "effect"]]


def test_without_warnings_verdicts_stand(tmp_path):
    found = verdicts(with_warnings(tmp_path, lambda spec: False))["verdict"]
    assert (found[3], found[9]) == ("worse", "better")


@pytest.mark.parametrize("window", ["hamming", "none"])
def test_only_the_arm_that_seems_better_can_lose_its_verdict(tmp_path, window):
    run = with_warnings(tmp_path, lambda spec: spec.window == window)
    found = verdicts(run)
    if window == "hamming":
        assert found["verdict"].tolist()[0] == "worse"  # it would be worse still
        assert found.loc[9, "verdict"] == "undecided"
        assert found.loc[9, "note"] == (
            "withheld: images made for other models lie nearer than the attack's on 5 of 5 pairs, "
            "and the others alone do not say better"
        )
    else:
        assert found.loc[3, "verdict"] == "undecided"
        assert found.loc[9, "verdict"] == "better"
    assert found.loc[9, "effect"] == pytest.approx(1.4, abs=0.15)  # numbers stay
    other = verdicts(run, attack="t")  # of the same norm: the check is of the best of both
    assert other["verdict"].tolist() == found["verdict"].tolist()


def test_a_verdict_that_the_other_seeds_bear_out_stands(tmp_path):
    def one_seed(spec):
        return spec.window == "hamming" and spec.seed == 2

    assert verdicts(with_warnings(tmp_path, one_seed)).loc[9, "verdict"] == "better"


def test_an_interaction_that_depends_on_doubtful_models_is_withheld(tmp_path):
    def seems_to_grow(spec):
        return spec.kernel_size == 9 and spec.window == "hamming"

    grown = verdicts(with_warnings(tmp_path / "a", seems_to_grow), versus="interaction")
    assert grown["verdict"].tolist() == ["undecided"]

    def would_grow_more(spec):
        return spec.kernel_size == 9 and spec.window == "none"

    grown = verdicts(with_warnings(tmp_path / "b", would_grow_more), versus="interaction")
    assert grown["verdict"].tolist() == ["better"]


def test_accuracy_and_spatial_attacks_are_not_doubted(tmp_path):
    everything = with_warnings(tmp_path / "a", lambda spec: True)
    plain = with_warnings(tmp_path / "b", lambda spec: False)
    for attack, metric in (("", "clean_accuracy"), ("s", "robust_accuracy")):
        one, other = (verdicts(run, attack, metric)["verdict"] for run in (everything, plain))
        assert one.tolist() == other.tolist()


def test_runs_with_an_older_gate_keep_their_verdicts(tmp_path):
    run = with_warnings(tmp_path, lambda spec: True, check="gradient")
    assert verdicts(run).loc[9, "verdict"] == "better"
