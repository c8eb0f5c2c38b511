"""Contradictory rows are refused in one line that names table, model, attack and image."""

import math
from pathlib import Path

import pandas as pd
import pytest

from robust_ham.analysis.read_tables import memory_of
from robust_ham.analysis.validate_samples import AttackRows, check_agreement
from robust_ham.config.files import parse_config
from robust_ham.errors import RequestError
from robust_ham.storage.parquet_tables import read_table

CONFIG = parse_config(
    "name: rows\ndataset: {name: fashion_mnist}\nmodels: [{architecture: cnn, depth: 2}]\n"
    "attacks: {d: {attack: deepfool}, s: {attack: spatial_grid}}\nevaluation: {num_images: 4}\n"
)
INPUTS = pd.DataFrame({"sample_id": [7, 3, 9, 4], "label": [1, 2, 3, 4]})


def rows_of(attack_id="d", **changes):
    """One row of each status; ``changes``: of columns."""
    distance = [0.0, 0.5, math.inf, math.inf] if attack_id == "d" else [math.nan] * 4
    table = pd.DataFrame(
        {
            "model_id": "m",
            "dataset": "fashion_mnist",
            "split": "test",
            "sample_id": [7, 3, 9, 4],
            "label": [1, 2, 3, 4],
            "clean_prediction": [0, 2, 3, 4],
            "clean_margin": [-1.0, 1.0, 1.0, 1.0],
            "adversarial_prediction": [0, 5, 3, 0],
            "status": ["already_wrong", "fooled", "survived", "invalid"],
            "l2": distance,
            "linf": distance,
            "l2_relative": distance,
            "forwards": 3,
            "backwards": 2,
        }
    )
    return table.assign(**changes)


def check(table, attack_id="d", inputs=INPUTS):
    rows = AttackRows(Path("x.parquet"), "m", attack_id, table)
    rows.check(CONFIG, CONFIG.attacks[attack_id], inputs)
    return rows


def test_sound_rows_pass():
    check_agreement([check(rows_of()), check(rows_of("s"), "s")])
    check(rows_of().iloc[:3], inputs=None)  # how many there should be is not known


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (rows_of(model_id="n"), "image 7: model_id: expected m, got n"),
        (rows_of(dataset="mnist"), "image 7: dataset: expected fashion_mnist, got mnist"),
        (rows_of(split="train"), "image 7: split: expected test, got train"),
        (rows_of().iloc[[0, 1, 2, 3, 1]], "image 3: sample_id: expected one row per image, got 3"),
        (rows_of().iloc[:2], "image 9 of inputs.parquet has no row"),
        (rows_of(sample_id=[7, 3, 9, 5]), "image 4 of inputs.parquet has no row"),
        (rows_of(sample_id=[7, 3, 9, -4]), "image -4: sample_id: expected a whole number, got -4"),
        (rows_of(sample_id=[7, 3, 9, 4.5]), "image 4.5: sample_id: expected a whole number"),
        (rows_of(sample_id=[7, 3, 9, math.nan]), "image nan: sample_id: expected a whole number"),
        (
            pd.concat([rows_of(), rows_of(sample_id=[1, 2, 5, 6])]),
            "image 1: sample_id: expected an attacked image, got 1",
        ),
        (rows_of(label=[1, 2, 3, 5]), "image 4: label: expected the one in inputs.parquet, got 5"),
        (rows_of(label=[1, 2, math.nan, 4]), "image 9: label: expected the one in inputs.parquet"),
        (rows_of(status="lost"), "image 7: status: expected one of already_wrong, fooled, surv"),
        (rows_of(clean_prediction=[0, 1, 3, 4]), "image 3: status: expected already_wrong if an"),
        (rows_of(clean_prediction=[1, 2, 3, 4]), "image 7: status: expected already_wrong if an"),
        (rows_of(adversarial_prediction=2), "image 3: status: expected fooled only if the adv"),
        (rows_of(l2=[0.0, -0.5, math.inf, math.inf]), "image 3: l2: expected a distance of at le"),
        (rows_of(l2=[0.0, math.nan, math.inf, math.inf]), "image 3: l2: expected a distance, got"),
        (rows_of(l2=math.nan), "image 7: l2: expected a distance, got nan"),
        (rows_of(l2=[0.1, 0.5, math.inf, math.inf]), "image 7: l2: expected 0 where already_wrong"),
        (rows_of(l2=math.inf), "image 7: l2: expected 0 where already_wrong, got inf"),
        (
            rows_of(l2_relative=[0, math.inf, math.inf, math.inf]),
            "image 3: l2_relative: expected a finite distance where fooled, got inf",
        ),
        (rows_of(linf=[0, 0.5, 0.5, math.inf]), "image 9: linf: expected inf where not fooled"),
        (rows_of(linf=[0, 0.6, math.inf, math.inf]), "image 3: linf: expected at most the L2 dis"),
        (rows_of(forwards=-1), "image 7: forwards: expected a number of passes, got -1"),
    ],
)
def test_contradictory_rows(table, message):
    with pytest.raises(RequestError) as refused:
        check(table)
    assert str(refused.value).startswith(f"x.parquet: m/d: {message}")


def test_rows_of_another_attack_are_detected_by_their_distances():
    with pytest.raises(RequestError, match="m/d: image 7: l2: expected a distance, got nan"):
        check(rows_of("s"))


def test_attacks_on_one_model_start_from_one_prediction():
    one, two = check(rows_of()), check(rows_of("s", clean_prediction=[2, 2, 3, 4]), "s")
    line = "m/s: image 7: clean_prediction: expected 0 as under another attack or model, got 2"
    with pytest.raises(RequestError, match=line):
        check_agreement([one, two])
    check_agreement([one, AttackRows(Path("y"), "other", "s", two.table)])
    near = rows_of("s", clean_prediction=[2, 2, 3, 4], clean_margin=[-1e-4, 1, 1, 1])
    check_agreement([one, AttackRows(Path("y"), "m", "s", near)])  # a tie, rounded otherwise


def test_models_have_the_same_labels():
    other = rows_of("s", label=[6, 2, 3, 4])
    tables = [check(rows_of()), AttackRows(Path("y"), "n", "s", other.iloc[::-1])]
    with pytest.raises(RequestError, match="y: n/s: image 7: label: expected 1 as under another"):
        check_agreement(tables)


@pytest.mark.parametrize("column", ["sample_id", "label"])
@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("kind", ["Int64", "Float32", "int64[pyarrow]", "float64[pyarrow]"])
def test_a_missing_number_of_a_nullable_column_is_named(column, in_order, kind, tmp_path):
    table = rows_of().astype({column: kind})
    table.loc[0, column] = pd.NA
    table.to_parquet(tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    table = table if in_order else table.iloc[::-1].reset_index(drop=True)
    with pytest.raises(RequestError, match=f"{column}: expected"):
        check(table)


def test_nullable_columns_without_missing_numbers_are_plain_ones(tmp_path):
    values = [0, 1, 2**53 + 1]
    kinds = ["Int64", "int64[pyarrow]", "UInt64", "uint64[pyarrow]"]
    table = pd.DataFrame({kind: pd.Series(values, dtype=kind) for kind in kinds})
    table["text"] = ["a", None, "c"]
    table.to_parquet(tmp_path / "t.parquet")
    read = read_table(tmp_path / "t.parquet")
    assert [read[kind].tolist() for kind in kinds] == [values] * 4
    assert [str(read[kind].dtype) for kind in kinds] == ["int64", "int64", "uint64", "uint64"]
    assert read["text"].isna().tolist() == [False, True, False]


def test_the_memory_of_a_table():
    """Against pandas: numbers by their size, texts as they are stored, also long ones."""
    table = pd.DataFrame(
        {"l2": [0.5] * 1000, "seed": range(1000), "status": ["fooled", "x" * 3000] * 500}
    )
    expected = table.memory_usage(index=False).sum()
    assert expected <= memory_of(table) <= 1.01 * expected + 8 * 1000
