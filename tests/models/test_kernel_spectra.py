"""Measures of kernels against closed forms, and the table that a run keeps of them."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY_RUN, zoo_model
from torch import nn

from robust_ham.config.models import CnnGroup, ResNet18CifarGroup
from robust_ham.models import kernel_spectra
from robust_ham.models.build import build
from robust_ham.models.kernel_spectra import (
    MEASURES,
    TABLE_COLUMNS,
    effective_kernels,
    frequency_response,
    kernel_table,
    measure_kernels,
    num_points,
    response_at,
)
from robust_ham.models.surgery import folded
from robust_ham.models.windows import hamming_main_lobe, window_2d
from robust_ham.runs.jobs import kernels


def random_kernels(count, height, width):
    return torch.randn(count, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(3, 3), (7, 7), (7, 1), (5, 9)])
def test_one_tap_passes_every_frequency(shape):
    kernel = torch.zeros(1, *shape)
    kernel[0, shape[0] // 2, shape[1] // 2] = -0.3
    row = measure_kernels(kernel).iloc[0]
    assert row["effective_taps"] == pytest.approx(1)
    assert row["bandwidth"] == pytest.approx(1, rel=1e-5)
    assert row["edge_energy"] == pytest.approx(0)


@pytest.mark.parametrize("k", [3, 5, 7, 11])
def test_a_constant_kernel(k):
    row = measure_kernels(torch.full((1, k, k), 2.0)).iloc[0]
    assert row["effective_taps"] == pytest.approx(k * k)
    # lag l of a row of ones is met k − |l| times, and Σ(k − |l|)² = k(2k² + 1)/3 per axis
    assert row["bandwidth"] == pytest.approx((3 * k / (2 * k**2 + 1)) ** 2, rel=1e-5)
    assert row["edge_energy"] == pytest.approx((4 * k - 4) / k**2)
    assert (row["peak_y"], row["peak_x"]) == (0, 0)


@pytest.mark.parametrize("shape", [(7, 7), (11, 11), (7, 1), (1, 9), (9, 3), (20, 20)])
def test_measures_against_a_fine_fourier_transform(shape):
    found = random_kernels(8, *shape)
    table = measure_kernels(found)
    points = 256
    for kernel, row in zip(found.double(), table.to_dict(orient="records"), strict=True):
        power = torch.fft.fft2(kernel, s=(points, points)).abs() ** 2
        expected = power.sum() ** 2 / (points**2 * (power**2).sum())
        assert row["bandwidth"] == pytest.approx(float(expected), rel=1e-4)
        y, x = (torch.fft.fftfreq(points, dtype=torch.float64) for _ in range(2))
        inside = torch.zeros(points, points, dtype=torch.bool)
        for sign in (1, -1):
            down = ((y - sign * row["peak_y"] + 0.5) % 1 - 0.5).abs() <= hamming_main_lobe(shape[0])
            right = ((x - sign * row["peak_x"] + 0.5) % 1 - 0.5).abs() <= hamming_main_lobe(
                shape[1]
            )
            inside |= down[:, None] & right
        expected = power[~inside].sum() / power.sum()
        assert row["side_lobe_energy"] == pytest.approx(float(expected), abs=0.03)
        at_peak = response_at(kernel, torch.tensor([[row["peak_y"], row["peak_x"]]])) ** 2
        assert 0.8 <= float(at_peak / power.max()) <= 1.0001


@pytest.mark.parametrize("k", [7, 9, 11, 15])
def test_a_taper_lowers_the_side_lobes_of_a_wave(k):
    steps = torch.arange(k) - k // 2
    wave = torch.cos(2 * math.pi * 0.25 * (steps[:, None] + steps))
    cut, tapered = measure_kernels(torch.stack([wave, wave * window_2d("hamming", k, k).float()]))[
        "side_lobe_energy"
    ]
    assert tapered < cut / 10


def test_no_side_lobe_where_the_main_lobe_is_the_whole_plane():
    for shape, defined in (((5, 5), False), ((3, 3), False), ((5, 1), False), ((7, 3), True)):
        measured = measure_kernels(random_kernels(4, *shape))["side_lobe_energy"]
        assert measured.notna().all() == defined, shape
    assert hamming_main_lobe(5) == 0.5
    assert hamming_main_lobe(9) == 0.25
    assert hamming_main_lobe(1) == math.inf


def test_kernels_of_zeros_and_tiny_kernels():
    kernel = random_kernels(1, 7, 7)
    table = measure_kernels(torch.cat([kernel, torch.zeros(1, 7, 7), 1e-15 * kernel]))
    assert table.loc[1].isna().all()
    pd.testing.assert_series_equal(table.loc[0], table.loc[2], check_names=False, rtol=1e-4)


def test_chunks_do_not_matter(monkeypatch):
    many = random_kernels(50, 7, 7)
    whole = measure_kernels(many)
    monkeypatch.setattr(kernel_spectra, "_CHUNK_BYTES", 1)
    pd.testing.assert_frame_equal(measure_kernels(many), whole, rtol=1e-5)
    assert measure_kernels(many[:0]).empty


def test_turned_kernels_measure_the_same():
    found = random_kernels(30, 9, 9)
    for turned in (found.mT, -found, found.flip(1, 2)):
        expected = measure_kernels(found)[list(MEASURES)]
        pd.testing.assert_frame_equal(measure_kernels(turned)[list(MEASURES)], expected, atol=1e-4)


def test_points_are_enough_for_exact_sums():
    assert [num_points(k, k) for k in (3, 16, 17, 32, 33, 99)] == [32, 32, 64, 64, 128, 256]


def test_response_is_that_of_the_fourier_transform():
    kernel = random_kernels(1, 7, 5)[0]
    response = frequency_response(kernel, 16)
    frequencies = torch.tensor([[-0.5, 0.25], [0.125, -0.0625]])
    expected = [response[0, 12], response[10, 7]]
    torch.testing.assert_close(response_at(kernel, frequencies).float(), torch.stack(expected))


def test_a_windowed_network_measures_as_its_folded_copy():
    model = zoo_model(7, "hamming")
    found, plain = kernel_table(model), kernel_table(folded(model))
    assert list(found.columns) == TABLE_COLUMNS
    assert list(found["layer"]) == ["conv1", "conv2", "conv3"]
    assert list(found["num_kernels"]) == [16, 16 * 32, 32 * 32]
    assert set(found["layer_window"]) == {"hamming"}
    assert set(plain["layer_window"]) == {"none"}
    pd.testing.assert_frame_equal(
        found.drop(columns="layer_window"), plain.drop(columns="layer_window")
    )


def test_medians_and_quartiles_are_those_of_the_kernels():
    model = zoo_model(7, "none")
    row = kernel_table(model).iloc[1]
    measures = measure_kernels(effective_kernels(model.conv2).flatten(0, 1))
    for name in MEASURES:
        expected = np.quantile(measures[name], [0.25, 0.5, 0.75])
        found = [row[f"{name}_q25"], row[name], row[f"{name}_q75"]]
        np.testing.assert_allclose(found, expected)


def test_which_layers_are_measured():
    factorised = ResNet18CifarGroup(
        architecture="resnet18_cifar", width=1 / 64, factorised=True, window="hamming_sqrt"
    )
    table = kernel_table(build(factorised, 3, 10))
    assert len(table) == 2 * 17  # without the 1×1 shortcuts
    assert set(zip(table["kernel_height"], table["kernel_width"], strict=True)) == {(7, 1), (1, 7)}
    assert table["side_lobe_energy"].notna().all()
    grouped = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 8, 1), nn.Linear(1, 1))
    table = kernel_table(grouped)
    assert (len(table), table["num_kernels"][0]) == (1, 16)
    assert kernel_table(nn.Linear(1, 1)).empty


def test_a_run_keeps_the_table_of_its_kernels(run_cli, tmp_path, monkeypatch):
    config, out = tmp_path / "tiny.yaml", tmp_path / "out"
    config.write_text(TINY_RUN)
    words = ("run", config, "--out", out, "--stop-after", "train")
    assert run_cli(*words)[0] == 0
    path = out / "kernels.csv"
    table = pd.read_csv(path)
    assert list(table.columns) == kernels.COLUMNS
    assert list(zip(table["model_id"], table["layer"], strict=True)) == [
        (model_id, layer)
        for model_id in ("cnn2-w4-k3-none-s0", "cnn2-w4-k3-hamming-s0")
        for layer in ("conv1", "conv2")
    ]
    before = path.read_bytes()
    measured = []
    real = kernels.kernel_table
    monkeypatch.setattr(kernels, "kernel_table", lambda model: measured.append(1) or real(model))
    assert run_cli(*words)[0] == 0
    assert (measured, path.read_bytes()) == ([], before)
    path.write_bytes(before.replace(str(table["weights"][0]).encode(), b"other"))
    assert run_cli(*words)[0] == 0
    assert (len(measured), path.read_bytes()) == (2, before)  # not as written: none is believed
    path.write_bytes(b"\xff\xfe half a tab")
    assert run_cli(*words)[0] == 0
    assert (len(measured), path.read_bytes()) == (4, before)


def test_a_failed_model_has_no_kernels(run_cli, tmp_path):
    config, out = tmp_path / "tiny.yaml", tmp_path / "out"
    config.write_text(TINY_RUN)
    assert run_cli("run", config, "--out", out, "-o", "training.lr=1e30")[0] == 3
    table = pd.read_csv(out / "kernels.csv")
    assert table.empty
    assert list(table.columns) == kernels.COLUMNS


def test_rows_say_whose_they_are():
    spec = CnnGroup(depth=2, widths=(4,), kernel_size=5, first_kernel=7, window="hann", seed=3)
    table = kernels.kernel_rows(spec, build(spec, 1, 10), "abc")
    assert set(table["model_id"]) == {spec.model_id}
    assert list(table["kernel_height"]) == [7, 5]
    about = table[["window", "kernel_size", "seed", "weights"]].drop_duplicates()
    assert about.to_numpy().tolist() == [["hann", 5, 3, "abc"]]
