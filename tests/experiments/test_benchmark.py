"""The benchmark: counts, comparisons and refused requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import fashion_images, zoo_model
from torch import nn

from attacks import deepfool, spatial_grid
from robust_ham.config.experiment import OURS, AttackConfig
from robust_ham.evaluation.options import attack_options
from robust_ham.experiments.benchmark import measure, peer_libraries, scaling
from robust_ham.experiments.benchmark.profiling import (
    CountedPoints,
    ProfiledCall,
    profile,
    profile_memory,
)
from robust_ham.experiments.benchmark.report import scaling_of, summary_of, table_of
from robust_ham.report.formats import markdown, markdown_rows

CONFIG = """
schema: 1
name: tiny_bench
dataset: {name: fashion_mnist}
models:
  - {architecture: cnn, source: zoo, depth: 3, widths: [16, 32], first_kernel: same, kernel_size: 3}
attacks:
  deepfool_l2: {attack: deepfool, steps: 5}
  spatial: {attack: spatial_grid, stop: first, num_rotations: 3, num_translations: 3}
evaluation: {num_images: 12}
"""
DEEPFOOL = attack_options(AttackConfig(attack="deepfool"), "deepfool")


def correctly_classified(count: int):
    model = zoo_model(3, "none")
    images, labels = fashion_images(count)
    right = model(images).argmax(1) == labels
    return model, images[right], labels[right]


def test_counts_equal_those_of_the_attack():
    model, images, labels = correctly_classified(24)
    counted = CountedPoints(model).eval()
    outcome = deepfool(counted, images, labels)
    assert counted.forwards == int(outcome.forwards.sum()) + 1  # the first image alone
    assert counted.backwards == int(outcome.backwards.sum())


def test_our_passes_are_counted_on_the_fast_copy():
    model, images, labels = correctly_classified(40)
    outcome = deepfool(model, images, labels)
    passes_spent = profile(ProfiledCall(OURS, "deepfool", DEEPFOOL, model, images, labels))
    passes = int(outcome.forwards.sum()), int(outcome.backwards.sum())
    assert (passes_spent.forwards, passes_spent.backwards) == passes
    assert len(images) < passes_spent.points < passes_spent.forwards


def test_points_are_counted_once():
    model, images, _ = correctly_classified(10)
    counted = CountedPoints(model).eval()
    for _ in range(3):
        counted(images)
    assert len(counted.points) == len(images)
    assert (counted.forwards, counted.backwards) == (3 * len(images), 0)


def test_foolbox_in_a_fresh_process():
    """Ten classes: nine forward and nine backward passes per step."""
    model, images, labels = correctly_classified(12)
    options = DEEPFOOL | {"steps": 4}
    passes_spent = profile(ProfiledCall("foolbox", "deepfool", options, model, images, labels))
    assert passes_spent.backwards == 9 * 4 * len(images)
    assert passes_spent.forwards >= passes_spent.backwards
    assert passes_spent.peak_memory_mb is None or passes_spent.peak_memory_mb >= 0


TOLERANCES = {  # of the mean distance, L2 and L∞
    "foolbox": (0.002, 0.01),
    "adversarial-library": (0.005, 0.02),  # overshoots every step, not their sum
    "torchattacks": (0.02, 0.02),  # likewise, and stalls: compared where it fools
    "ART": (0.02, 0.02),  # overshoots once, after an unclipped search
}


@pytest.mark.parametrize("library", [name for name in peer_libraries.installed() if name != OURS])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_other_libraries_agree_with_ours(library, norm):
    options = DEEPFOOL | {"norm": norm}
    if not peer_libraries.can_run(library, "deepfool", options):
        pytest.skip(f"{library} has no DeepFool in {norm}")
    model, images, labels = correctly_classified(40)
    ours = deepfool(model, images, labels, **options).images
    theirs = peer_libraries.run(library, "deepfool", options, model.eval(), images, labels)
    fooled = model(theirs).argmax(1) != labels
    assert fooled.all() or library == "torchattacks"
    order = 2 if norm == "l2" else torch.inf
    far, near = (
        torch.linalg.vector_norm((x - images).flatten(1), ord=order, dim=1)[fooled].mean().item()
        for x in (theirs, ours)
    )
    assert far == pytest.approx(near, rel=TOLERANCES[library][norm == "linf"])


def test_memory_does_not_grow_with_the_number_of_images():
    """Activations are kept for one chunk; only a few copies of the images grow."""
    model = zoo_model(3, "none")
    images, labels = fashion_images(1536)
    peaks = [
        profile_memory(ProfiledCall(OURS, "deepfool", DEEPFOOL, model, images[:n], labels[:n]))
        for n in (512, 1536)
    ]
    if None in peaks:
        pytest.skip("this system does not tell a process's peak memory")
    few, many = peaks
    copies = (1536 - 512) * images[0].numel() * 4 * 12 / 1e6
    assert many < few + copies + 30


def test_a_thousand_classes_cost_ten_candidates():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 1000))
    images, _ = fashion_images(1)
    labels = model(images).argmax(1)
    counted = CountedPoints(model).eval()
    outcome = deepfool(counted, images, labels, prune=None)
    steps = len(counted.points) - 1
    assert outcome.fooled.all()
    assert steps > 1
    assert outcome.backwards.item() == counted.backwards == 9 * steps


def test_supported_attacks_of_other_libraries():
    spatial = attack_options(AttackConfig(attack="spatial_grid", stop="first"), "s")
    assert peer_libraries.can_run("foolbox", "spatial_grid", spatial)
    assert not peer_libraries.can_run("foolbox", "spatial_grid", spatial | {"stop": None})
    assert not peer_libraries.can_run("foolbox", "spatial_grid", spatial | {"padding": "border"})
    assert not peer_libraries.can_run("torchattacks", "deepfool", DEEPFOOL | {"norm": "linf"})
    assert not peer_libraries.can_run("foolbox", "deepfool", DEEPFOOL | {"refine": True})
    assert not peer_libraries.can_run("foolbox", "stadv", {})
    assert peer_libraries.can_run(OURS, "stadv", {})


def test_running_the_command_twice_measures_once(run_cli, tmp_path):
    config, folder = tmp_path / "bench.yaml", tmp_path / "bench"
    config.write_text(CONFIG)
    words = ("bench", config, "--out", folder, "--rounds", 2, "--libraries", "foolbox")
    code, out, err = run_cli(*words)
    assert code == 0, err
    table = pd.read_csv(folder / "bench.csv")
    assert table["library"].tolist() == ["robust-ham", "foolbox"] * 2
    assert (table["seconds_low"] <= table["seconds"]).all()
    assert (table["ratio_low"] <= table["ratio"]).all()
    ours, theirs = table.iloc[0], table.iloc[1]
    assert ours["ratio"] == 1
    assert theirs["fooled"] == ours["fooled"]
    assert theirs["forwards"] > ours["forwards"] >= ours["least_forwards"]
    assert theirs["mean_l2"] == pytest.approx(ours["mean_l2"], rel=5e-3)
    assert np.isnan(table.iloc[2]["mean_l2"])
    assert (folder / "figures" / "bench.svg").is_file()
    assert r"| cnn3-w16x32-k3-none-s0 | deepfool\_l2 | foolbox" in (folder / "bench.md").read_text()
    before = (folder / "bench.csv").read_bytes()
    code, out, _ = run_cli(*words)
    assert code == 0
    assert "round" not in out
    assert (folder / "bench.csv").read_bytes() == before
    damaged = folder / "bench" / "cnn3-w16x32-k3-none-s0" / "spatial.json"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    code, out, _ = run_cli(*words)
    assert code == 0
    assert out.count("round 1 of 2") == 2  # only the damaged one is measured again
    assert len(pd.read_csv(folder / "bench.csv")) == 4


def test_scaling_has_a_row_per_number_of_images_and_of_classes(run_cli, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "NUM_IMAGES", (8, 16))
    monkeypatch.setattr(scaling, "NUM_CLASSES", (10, 30))
    monkeypatch.setattr(measure, "LARGEST_NUM_IMAGES", 40)
    config, folder = tmp_path / "bench.yaml", tmp_path / "bench"
    config.write_text(CONFIG)
    words = ("bench", config, "--out", folder, "--rounds", 2, "--libraries", "foolbox", "--scaling")
    code, out, err = run_cli(*words)
    assert code == 0, err
    table = pd.read_csv(folder / "scaling.csv")
    assert table["of"].tolist() == ["images"] * 3 + ["classes"] * 2
    assert table["count"].tolist()[:2] + table["count"].tolist()[3:] == [8, 16, 10, 30]
    assert 16 < table["count"][2] <= 40
    assert table["ratio"][[0, 3]].tolist() == [1, 1]
    assert (table[["ms_per_image", "ms_per_step"]] > 0).all(axis=None)
    assert "| images | 16 |" in (folder / "bench.md").read_text()
    bench = pd.read_csv(folder / "bench.csv")
    ours, theirs = bench.iloc[0], bench.iloc[1]
    passes = theirs["forwards"] + theirs["backwards"]  # foolbox computes weights' gradients too
    assert theirs["whole_passes"] == pytest.approx(passes + theirs["backwards"], rel=0.03)
    assert ours["whole_passes"] < 0.5 * theirs["whole_passes"]
    least = ours["least_forwards"] + ours["least_backwards"]
    assert ours["times_least"] == pytest.approx(ours["whole_passes"] / least)
    assert 0 < ours["outside_convolutions"] < 1
    assert np.isnan(theirs["outside_convolutions"])
    code, out, _ = run_cli(*words)
    assert code == 0
    assert "ms per image" not in out


def test_scaling_needs_deepfool_before_anything_is_measured(run_cli, tmp_path):
    config = tmp_path / "bench.yaml"
    config.write_text(CONFIG)
    words = ("-o", "attacks={grid: {attack: spatial_shift}}", "--scaling")
    code, out, err = run_cli("bench", config, "--out", tmp_path / "bench", *words)
    assert code == 2
    assert "--scaling: expected a configuration with DeepFool" in err
    assert "round" not in out


def test_a_library_that_fails_is_left_out(run_cli, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("not today")

    monkeypatch.setitem(peer_libraries._RUNS, ("foolbox", "deepfool"), broken)
    config, folder = tmp_path / "bench.yaml", tmp_path / "bench"
    config.write_text(CONFIG)
    code, out, err = run_cli(
        "bench", config, "--out", folder, "--rounds", 1, "--libraries", "foolbox"
    )
    assert code == 0, err
    assert "foolbox failed and is left out: RuntimeError: not today" in out
    assert pd.read_csv(folder / "bench.csv")["library"].tolist() == ["robust-ham"] * 2 + ["foolbox"]


def test_invalid_requests_are_refused(run_cli, tmp_path):
    config = tmp_path / "bench.yaml"
    config.write_text(CONFIG)
    words = ("bench", config, "--out", tmp_path / "bench")
    code, _, err = run_cli(*words, "--libraries", "fulbox")
    assert (code, "fulbox" in err) == (2, True)
    code, _, err = run_cli(*words, "-o", "attacks.deepfool_l2.stepps=3")
    assert (code, "stepps" in err) == (2, True)


def test_spatial_passes_stay_in_their_bounds():
    """775 passes for each image that is never fooled, about 25 for the others."""
    model, images, labels = correctly_classified(150)
    outcome = spatial_grid(model, images, labels, stop="first")
    assert (outcome.forwards[~outcome.fooled] <= 775 + 2).all()
    assert outcome.forwards[outcome.fooled].float().mean() <= 25


def test_the_readme_shows_the_committed_benchmarks():
    root = Path(__file__).parents[2]
    docs = (root / "docs/benchmark.md").read_text(encoding="utf-8")
    for name in ("cifar10", "fashion_mnist"):
        table = pd.read_csv(root / "results" / "bench" / name / "bench.csv")
        page = root / "results" / "bench" / name / "bench.md"
        summary, whole = summary_of(table), table_of(table)
        growing = scaling_of(pd.read_csv(page.with_name("scaling.csv")))
        text = "\n".join(markdown(part) for part in (summary, whole, growing))
        assert page.read_text(encoding="utf-8") == text
        assert markdown_rows(summary) in docs, f"the table of {page} is another"
        assert name != "cifar10" or markdown_rows(growing) in docs


def test_the_summary_of_a_benchmark():
    columns = ["model_id", "attack", "library", "version", "ratio", "ratio_low", "ratio_high"]
    columns += ["fooled", "mean_l2", "mean_linf"]
    rows = [
        ["a", "deepfool_l2", "robust-ham", "1", 1, 1, 1, 1.0, 0.5, 0.1],
        ["a", "deepfool_l2", "foolbox", "3", 4, 3, 9, 0.9, 1.0, 0.1],
        ["b", "deepfool_l2", "robust-ham", "1", 1, 1, 1, 1.0, 0.2, 0.1],
        ["b", "deepfool_l2", "foolbox", "3", 6, 2, 7, 0.8, 0.2, 0.1],
    ]
    (line,) = summary_of(pd.DataFrame(rows, columns=columns)).rows
    assert line[:3] == ["deepfool_l2", "foolbox 3", "5.0 (2.0 … 9.0)"]
    assert line[3:] == ["80.0% … 90.0%", "100.0%", "1.000 … 2.000", "1.000"]
