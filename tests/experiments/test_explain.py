"""The experiments of `explain`: tables, figures, closed forms and refused requests."""

import functools
import importlib
import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY_RUN

from attacks import margins_of
from robust_ham.config.files import load_config
from robust_ham.errors import RequestError
from robust_ham.evaluation.evaluate import AttackedImages
from robust_ham.evaluation.options import attack_options
from robust_ham.experiments.explain import (
    EXPERIMENTS,
    convergence,
    cost,
    explain,
    fft_prediction,
    first_layer,
    leakage,
    networks,
    tapering,
    truncated_gabor,
)
from robust_ham.models.kernel_spectra import MEASURES
from robust_ham.models.windows import window_2d
from robust_ham.report.figures.style import save_figure
from robust_ham.runs.jobs.kernels import COLUMNS

PEAK = ["peak_y", "peak_x"]
TABLES = {
    "tapering": ["filter", *MEASURES, *PEAK, "energy"],
    "truncated-gabor": [
        *("size", "window", *PEAK, "half_power_width", "energy_outside_pass_band"),
        *("energy_outside_main_lobe", "peak_side_lobe_db"),
    ],
    "kernels": [
        *("model_id", "window", "kernel_size", "seed", "layer", "kernel", "channel"),
        *(*MEASURES, *PEAK, "norm"),
    ],
    "leakage": COLUMNS,
}


zoo_table = functools.cache(leakage.zoo_table)


@pytest.mark.parametrize("name", TABLES)
def test_table_and_figure_of_an_experiment(run_cli, tmp_path, monkeypatch, name):
    monkeypatch.setattr(leakage, "zoo_table", zoo_table)
    out = tmp_path / "out"
    code, printed, errors = run_cli("explain", name, "--out", out)
    assert (code, errors) == (0, "")
    assert f"table and figure: {out / name}.csv" in printed
    names = {f"{name}.{s}" for s in ("csv", "svg", "png")}
    assert {path.name for path in out.iterdir()} == names | {"manifest.json"}
    table = pd.read_csv(out / f"{name}.csv")
    assert list(table.columns) == TABLES[name]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    explain(name, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_every_experiment_is_listed(run_cli):
    _, listed, _ = run_cli("list", "explain")
    code, shown, _ = run_cli("explain", "--help")
    assert code == 0
    for name, experiment in EXPERIMENTS.items():
        module = importlib.import_module(f"robust_ham.experiments.explain.{experiment.module}")
        assert callable(module.explain)
        for text in (listed, shown):
            assert name in text
            assert experiment.about in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["walk"], "explain: expected one of tapering, truncated-gabor,"),
        (["cost", "--run", "{here}"], "explain cost: takes no --run; only kernels and leakage do"),
        (["kernels", "--run", "{here}/no"], "no: not a run folder"),
        (["leakage", "--run", "{here}"], "not a run folder (no config.yaml)"),
        (["tapering", "--threads", "0"], "--threads"),
        ([], "Missing argument"),
    ],
)
def test_invalid_requests_are_refused(run_cli, tmp_path, words, message):
    out = tmp_path / "out"
    filled = [word.replace("{here}", str(tmp_path)) for word in words]
    code, _, errors = run_cli("explain", *filled, "--out", out)
    assert code == 2
    assert message in errors
    assert errors.startswith("robust-ham: ")
    assert errors.count("\n") == 1
    assert not out.exists()


def test_the_networks_of_a_run(run_cli, tmp_path):
    config, run, out = tmp_path / "tiny.yaml", tmp_path / "run", tmp_path / "out"
    config.write_text(TINY_RUN)
    run_cli("run", config, "--out", run, "--stop-after", "train")
    assert run_cli("explain", "kernels", "--run", run, "--out", out)[0] == 0
    table = pd.read_csv(out / "kernels.csv")
    assert list(table["model_id"].unique()) == ["cnn2-w4-k3-none-s0", "cnn2-w4-k3-hamming-s0"]
    assert table["kernel"].tolist() == [0, 1, 2, 3] * 2
    assert run_cli("explain", "leakage", "--run", run, "--out", out)[0] == 0
    pd.testing.assert_frame_equal(
        pd.read_csv(out / "leakage.csv"), pd.read_csv(run / "kernels.csv")
    )
    faults = {
        "leakage": (run / "kernels.csv", b"model_id\nx\n"),
        "kernels": (run / "models/cnn2-w4-k3-none-s0/model.safetensors", b"half"),
    }
    for name, (path, content) in faults.items():
        for fault in (content, None):
            if fault is None:
                path.unlink()
            else:
                path.write_bytes(fault)
            code, _, errors = run_cli("explain", name, "--run", run, "--out", out)
            assert (code, errors.count("\n")) == (2, 1)
            assert str(path) in errors


def test_pairs_are_twins_of_the_lowest_seed():
    zoo = networks.zoo_networks()
    pairs = first_layer.pairs(zoo[::-1])
    assert [(a.spec.kernel_size, b.spec.kernel_size) for a, b in pairs] == [
        (k, k) for k in (3, 5, 7, 9, 11)
    ]
    assert {(a.spec.window, a.spec.seed, b.spec.window, b.spec.seed) for a, b in pairs} == {
        ("none", 0, "hamming", 0)
    }
    assert first_layer.pairs([n for n in zoo if n.spec.window == "none"]) == []


def test_a_mosaic_has_its_tiles_in_reading_order():
    tiles = np.arange(3.0)[:, None, None] * np.ones((3, 2, 2))
    expected = np.full((5, 5), np.nan)
    expected[:2, :2], expected[:2, 3:], expected[3:, :2] = 0, 1, 2
    np.testing.assert_array_equal(first_layer.mosaic(tiles, gap=1), expected)


def test_tapering_multiplies_slice_and_window():
    kernel = tapering.learned_slice()
    taps = tapering.tapered(kernel)
    torch.testing.assert_close(taps[2], kernel * window_2d("hamming", 7, 7).float())
    table = tapering.measure(taps)
    assert table["energy"][0] == pytest.approx(1)
    assert table["energy"][2] == pytest.approx(float((taps[2] ** 2).sum() / (kernel**2).sum()))


def test_a_gabor_filter_is_its_own_pass_band_unless_it_is_cut_short():
    large, small, tapered = (truncated_gabor.gabor(*v) for v in truncated_gabor.VERSIONS)
    torch.testing.assert_close(small, large[21:28, 21:28])
    measures = [truncated_gabor.measure(taps) for taps in (large, small, tapered)]
    outside = [one["energy_outside_pass_band"] for one in measures]
    assert outside[0] == pytest.approx(math.exp(-9), rel=0.05)  # of a Gaussian, 3 σ and beyond
    assert min(outside[1:]) > 0.3
    # half the power of a Gaussian response: σ√ln 2 on either side
    expected = 2 * math.sqrt(math.log(2)) / (2 * math.pi * truncated_gabor.SIGMA)
    assert measures[0]["half_power_width"] == pytest.approx(expected, rel=0.01)
    lobes = [one["energy_outside_main_lobe"] for one in measures]
    assert lobes[2] < lobes[1] / 10
    peak = math.hypot(measures[0]["peak_y"], measures[0]["peak_x"])
    assert peak == pytest.approx(truncated_gabor.FREQUENCY, abs=1 / 512)


def test_three_waves_are_six_points():
    images, magnitude = fft_prediction.waves(20, torch.Generator().manual_seed(0))
    assert images.shape == (20, 1, 20, 20)
    points = magnitude > 0.25
    assert (points.sum((1, 2)) == 6).all()
    assert magnitude[~points].max() < 1e-5
    assert ((magnitude[points] > 0.499) & (magnitude[points] < 1.501)).all()
    mirrored = magnitude[:, 1:, 1:].flip(1, 2)  # frequency −f of f; −0.5 has no mirror image here
    torch.testing.assert_close(magnitude[:, 1:, 1:], mirrored, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [7, 11, 15])
def test_leakage_of_known_predictions(size):
    _, magnitude = fft_prediction.waves(20, torch.Generator().manual_seed(0))
    right = fft_prediction.measure(magnitude, magnitude, size)
    assert right["error"] == 0
    assert right["leakage"] < 1e-9
    flat = fft_prediction.measure(torch.ones_like(magnitude), magnitude, size)
    assert flat["leakage"] == pytest.approx(1 - 6 / 400)
    assert flat["far_leakage"] == pytest.approx(flat["far_share"])
    neighbours = fft_prediction.measure(magnitude.roll(1, 2), magnitude, size)
    assert neighbours["leakage"] > 0.5
    assert neighbours["far_leakage"] < 1e-9


def test_fft_prediction(tmp_path):
    results = [
        fft_prediction.explain(sizes=(7, 11), seeds=(0,), trainings=(1, 2)) for _ in range(2)
    ]
    table = results[0].table
    keys = ["kernel_size", "window", "steps", "seed"]
    assert list(table.columns) == [*keys, "error", "leakage", "far_leakage", "far_share"]
    assert len(table) == len(table[keys].drop_duplicates()) == 8
    assert len(results[0].rows) == 8
    for i, one in enumerate(results):
        save_figure(one.figure, tmp_path / str(i), "same")
    for name in ("same.png", "same.svg"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()
    pd.testing.assert_frame_equal(table, results[1].table)


def test_fft_twins_start_from_the_same_raw_weights():
    before = torch.get_rng_state()
    plain, windowed = (fft_prediction.FftNetwork(7, window, 0) for window in ("none", "hamming"))
    assert torch.equal(plain.conv.weight, windowed.conv.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_rounds_alternate_their_order():
    calls = []
    work = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = cost.time_rounds(work, rounds=2, repeats=2)
    assert "".join(calls) == "ccbbaa" + "aabbcc" + "ccbbaa"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2, "c": 2}


def test_cost(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "_BATCH", 8)
    result = cost.explain(sizes=(3, 5), rounds=2)
    table = result.table
    spread = ["", "_q25", "_q75", "_low", "_high"]
    columns = [f"{name}{part}" for name in ("seconds", "ratio") for part in spread]
    about = ["what", "contestant", "kernel_size", "flops"]
    assert list(table.columns) == [*about, *columns, "threads", "rounds"]
    arms = table.groupby("what")["contestant"].unique().map(list).to_dict()
    assert arms == {
        "convolution": ["2-D", "factorised"],
        "training step": ["baseline", "baseline again", "windowed"],
        "inference": ["baseline", "baseline again", "windowed", "folded"],
    }
    assert (table["seconds_low"] <= table["seconds"]).all()
    assert (table["seconds"] <= table["seconds_high"]).all()
    flops = table.set_index(["what", "contestant", "kernel_size"])["flops"]
    assert flops["convolution", "2-D", 5] * 9 == flops["convolution", "2-D", 3] * 25
    assert flops["convolution", "factorised", 5] * 3 == flops["convolution", "factorised", 3] * 5
    for what in ("training step", "inference"):  # the window's products are not counted by torch
        assert flops[what, "windowed", 5] == flops[what, "baseline", 5]
    assert (table[table["contestant"] == "baseline"]["ratio"] == 1).all()
    save_figure(result.figure, tmp_path, "cost")
    assert len(result.rows) == len(table)


FEW_VALUES = {
    "steps": (2, 5, 8, 20, 200),
    "overshoot": (1e-6, 0.02),
    "candidates": (2, 10),
    "prune": (2.5, None),
    "precision": ("float32", "float64"),
}


def test_convergence(tmp_path):
    result = convergence.explain(kernel_sizes=(7,), num_images=16, values=FEW_VALUES)
    table = result.table
    assert list(table.columns) == convergence.TABLE_COLUMNS
    tried = [(name, str(v).lower()) for name, values in FEW_VALUES.items() for v in values]
    for window, part in table.groupby("window", sort=False):
        assert list(zip(part["setting"], part["value"], strict=True)) == tried
        at_default = part["value"] == part["setting"].map(lambda n: str(convergence.DEFAULT[n]))
        assert at_default.sum() == len(FEW_VALUES)
        assert len(part[at_default].drop(columns=["setting", "value"]).drop_duplicates()) == 1
        ratio = convergence.relative(table)[part.index]
        assert (ratio[at_default] == 1).all()
        steps = part[part["setting"] == "steps"]
        assert steps["fooled_rate"].is_monotonic_increasing, window
        assert steps["median_l2"].is_monotonic_decreasing
        assert (np.isinf(steps["median_l2"]) == (steps["fooled_rate"] <= 0.5)).all()
        assert steps["fooled_rate"].iloc[0] < 0.5
        backwards = part.set_index(["setting", "value"])["backwards"]
        assert backwards["prune", "none"] > 2 * backwards["prune", "2.5"]
    assert list(table["window"].unique()) == ["none", "hamming"]
    assert result.header == ["setting", "value", "baseline, k = 7", "Hamming, k = 7"]
    assert [row[:2] for row in result.rows[:2]] == [["steps", "2"], ["steps", "5"]]
    assert result.rows[0][2].startswith("inf (")
    written = []
    for i in range(2):
        save_figure(convergence.draw(table), tmp_path / str(i), "same")
        written.append([(tmp_path / str(i) / f"same.{s}").read_bytes() for s in ("png", "svg")])
    assert written[0] == written[1]


def test_convergence_measures_the_overshoot_of_a_linear_network():
    """One step reaches a plane: (1 + overshoot) · gap / ‖w‖, on correctly classified images."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
    model[1].bias.data.copy_(-0.5 * model[1].weight.data.sum(1))  # mid grey is on the plane
    images = 0.5 + 0.1 * torch.randn(31, 3, 2, 2)
    labels = torch.randint(2, (31,))
    attacked = AttackedImages(images, labels, list(range(31)))
    gaps = margins_of(model(images), labels).detach()
    lengths = gaps[gaps > 0] / (model[1].weight[0] - model[1].weight[1]).norm().detach()
    assert 0 < len(lengths) < 31
    for overshoot in (0.02, 0.1):
        for precision in ("float32", "float64"):
            options = {"overshoot": overshoot, "precision": precision}
            measured = convergence.measure(model, attacked, convergence.DEFAULT | options)
            assert (measured["num_images"], measured["fooled_rate"]) == (len(lengths), 1)
            middle = np.median(lengths.numpy())
            assert measured["median_l2"] == pytest.approx((1 + overshoot) * middle, rel=1e-4)
            mean = float(lengths.mean())
            assert measured["mean_l2"] == pytest.approx((1 + overshoot) * mean, rel=1e-4)


def test_convergence_varies_around_the_quickstart():
    config = load_config("quickstart").attacks["deepfool_l2"]
    shipped = attack_options(config, "deepfool_l2") | {"precision": "float32"}
    assert {name: shipped[name] for name in convergence.VALUES} == convergence.DEFAULT
    for name, values in convergence.VALUES.items():
        assert convergence.DEFAULT[name] in values


def test_leakage_averages_seeds_and_shortens_deep_networks():
    table, families = zoo_table()
    arms = leakage.summarise(table, families)
    assert len(arms) == 5 * 2 * 3
    first = table[(table["kernel_size"] == 9) & (table["window"] == "hamming")]
    expected = first[first["layer"] == "conv2"]["bandwidth"].mean()
    (bandwidth,) = arms.query("kernel_size == 9 and window == 'hamming' and place == 2")[
        "bandwidth"
    ]
    assert bandwidth == pytest.approx(expected)
    deep = pd.concat([arms.assign(place=arms["place"] + 3 * i) for i in range(4)])
    header, rows = leakage.short(deep)
    assert header[:4] == ["network", "k", "layer", "side-lobe energy, baseline"]
    assert [row[1:4] for row in rows[:2]] == [["3", "mean", "–"], ["5", "mean", "–"]]


def test_an_unknown_name_is_refused_before_anything_is_computed(tmp_path):
    with pytest.raises(RequestError, match="expected one of"):
        explain("fourier", tmp_path)
