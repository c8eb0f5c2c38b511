"""The page: complete, offline, escaped, byte-stable."""

import json
import re
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.layout_engine import ConstrainedLayoutEngine
from test_curves import CARD, CONFIG, six_rows

from robust_ham.analysis.mechanism import by_angle_and_shift, by_direction, spatial_grids
from robust_ham.analysis.run import Run
from robust_ham.analysis.tables import write_tables
from robust_ham.errors import RequestError, plural
from robust_ham.report.figures.heat_maps import turns
from robust_ham.report.figures.labels import attack_titles
from robust_ham.report.figures.panels import Panel, panel_figure
from robust_ham.report.figures.rows import against, compares_networks, network_places
from robust_ham.report.figures.style import figure_style, panel_grid, render
from robust_ham.report.figures.ticks import log_ticks, readable
from robust_ham.report.page import build_report
from robust_ham.report.tables import headline_table
from robust_ham.report.verdict_table import verdict_matrix, verdicts_in_words
from robust_ham.storage.files import write_csv, write_json, write_text
from robust_ham.storage.parquet_tables import read_table, write_table
from robust_ham.storage.run_folder import RunFolder


def make_run(path, config=CONFIG, size=6, **card):
    """Write a run folder of synthetic tables, the same for every model; images are noise."""
    run = RunFolder(path)
    write_text(run.config, config)
    stream = np.random.default_rng(0)
    for spec in Run(run).config.model_specs():
        card_values = CARD | {"params": 1000 * spec.kernel_size**2} | card
        write_json(run.model(spec.model_id) / "model.json", card_values)
        write_table(run.samples(spec.model_id, "d"), six_rows(), {})
        write_table(run.samples(spec.model_id, "s"), six_rows(spatial=True), {})
        gallery = {
            "sample_id": np.arange(8),
            "label": np.zeros(8, np.int64),
            "clean_prediction": np.zeros(8, np.int64),
            "adversarial_prediction": np.ones(8, np.int64),
            "clean": stream.integers(0, 256, (8, 3, size, size), np.uint8),
            "adversarial": stream.random((8, 3, size, size)).astype(np.float16),
            "perturbation": stream.normal(size=(8, 3, size, size)).astype(np.float16),
            "fooled": np.ones(8, bool),
            "l2": np.ones(8),
            "transform": np.full((8, 3), np.nan),
        }
        path = run.gallery(spec.model_id, "d")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **gallery)
    return run


@pytest.fixture
def folder(tmp_path):
    return make_run(tmp_path)


def test_everything_is_written_and_nothing_points_outside(folder):
    report = build_report(folder.root)
    page = report.page.read_text()
    names = {path.name for path in folder.figures.iterdir()}
    assert names >= {
        "robustness.svg",
        "robustness.png",
        "axes.svg",
        "curves-d.svg",
        "metrics-d.svg",
    }
    assert "gallery-d.png" in names
    outside = re.findall(r"(?:src|href)=\"(?!data:|#)([^\"]+)", page)
    assert outside == []
    shown = re.findall(r'<div class="sheet" role="img" aria-label="([^"]*)">', page)
    cards = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,', page)
    assert len(cards) == 3 * page.count('<figure class="card">') == 3 * 2 * 4
    assert len(shown) + 2 * 4 == page.count("<figure")
    assert all("baseline: 0.317 at k = 3" in text for text in shown if "robust area" in text)
    assert len(report.rows) == 2
    assert folder.summary.is_file()
    assert folder.curves.is_file()
    assert folder.contrasts.is_file()


def test_verdicts_stand_in_sentences_and_badges(folder):
    page = build_report(folder.root).page.read_text()
    assert "Windowed networks compared with baseline networks" in page
    assert "×1.000 [1.000, 1.000]" in page  # the same distances in both arms
    assert "Hamming: equivalent at k = 3." in page
    assert page.count('<span class="verdict equivalent">equivalent</span>') == 2
    assert "Exploratory: no primary endpoint was set." in page
    text = folder.config.read_text() + "endpoints: [{metric: robust_area, attack: best}]\n"
    folder.config.write_text(text)
    page = build_report(folder.root).page.read_text()
    assert "These are the primary endpoints" in page
    assert page.count('<span class="verdict ') == 1  # d alone is its own best


def test_building_twice_changes_no_byte(folder):
    build_report(folder.root)
    before = {p: p.read_bytes() for p in folder.root.rglob("*") if p.is_file()}
    build_report(folder.root)
    assert {p: p.read_bytes() for p in folder.root.rglob("*") if p.is_file()} == before


def test_the_users_matplotlib_settings_change_no_byte(folder):
    build_report(folder.root)
    before = {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}
    with mpl.rc_context():
        sns.set_theme("talk", "darkgrid", palette="pastel", rc={"svg.fonttype": "path"})
        build_report(folder.root)
        assert mpl.rcParams["svg.fonttype"] == "path"
    assert {path: path.read_bytes() for path in before} == before


def test_rounding_differences_of_the_layout_change_no_byte(monkeypatch):
    def drawn():
        with figure_style():
            figure, panels = panel_grid(2, 2, 3.2, 2.7)
            for axes in panels:
                axes.plot([1, 3])
        return render(figure, "two", "svg"), [axes.get_position().x0 for axes in panels]

    def elsewhere(engine, figure):
        lay_out(engine, figure)
        for axes in figure.axes:
            axes._set_position(axes.get_position(original=True).translated(1e-13, -1e-13))

    before, places = drawn()
    lay_out = ConstrainedLayoutEngine.execute
    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", elsewhere)
    assert drawn() == (before, places)
    assert 0 < places[0] < 0.2 < places[1] < 0.7


def test_strings_are_escaped(folder):
    line = {"cell": "<script>alert(1)</script>", "error": "E", "reason": "<b>bold</b>"}
    folder.failures.write_text(json.dumps(line) + "\n")
    page = build_report(folder.root).page.read_text()
    assert page.count("<script") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;: &lt;b&gt;bold&lt;/b&gt;" in page


def test_an_unfinished_run_is_marked_incomplete(folder):
    folder.samples(Run(folder).specs[0].model_id, "d").unlink()
    assert "Incomplete: 7 of 8 evaluations" in build_report(folder.root).page.read_text()


def test_nothing_to_report_yet(tmp_path):
    write_text(RunFolder(tmp_path).config, CONFIG)
    with pytest.raises(RequestError, match="no attack has been evaluated yet"):
        build_report(tmp_path)


def test_damaged_files_are_named(folder):
    model = folder.model(Run(folder).specs[0].model_id)
    files = {
        folder.manifest: b"{",
        folder.failures: b"half a li",
        model / "training.csv": b"epoch\n1\n",
        model / "model.json": b'{"schema": 1}',
        folder.gallery(model.name, "d"): b"PK broken",
        folder.config: b"\xff\xfe",
    }
    for path, content in files.items():
        before = path.read_bytes() if path.is_file() else None
        path.write_bytes(content)
        with pytest.raises(RequestError, match=path.name) as error:
            build_report(folder.root)
        assert "\n" not in str(error.value)
        path.unlink()
        if before is not None:
            path.write_bytes(before)
    build_report(folder.root)


def test_a_disabled_gallery_is_left_out(folder):
    folder.config.write_text(CONFIG + "evaluation: {gallery: false}\n")
    assert "gallery-d" not in build_report(folder.root).page.read_text()


GRID = pd.DataFrame(
    {
        "angle": np.repeat([-30.0, 0.0, 30.0], 3),
        "dx": [0.0, 3.0, 0.0] * 3,
        "dy": [0.0, 0.0, -3.0] * 3,
        "num_images": 10,
        "num_fooled": [4, 6, 8, 0, 1, 3, 5, 7, 10],
    }
)


def test_a_heat_map_of_a_full_grid(folder):
    ids = [spec.model_id for spec in Run(folder).specs]
    assert spatial_grids(Run(folder)).empty
    for model_id in ids:
        write_csv(folder.grid(model_id, "s"), GRID)
    write_csv(folder.grid(ids[1], "s"), GRID.assign(num_fooled=0))
    grids = spatial_grids(Run(folder))
    baseline = grids[grids["window"] == "none"]
    matrix = by_angle_and_shift(baseline)  # mean over the directions of a shift, and over two seeds
    assert matrix.index.tolist() == [3, 0]
    assert matrix.columns.tolist() == [-30, 0, 30]
    assert matrix.to_numpy() == pytest.approx(np.array([[0.35, 0.1, 0.425], [0.2, 0, 0.25]]))
    page = build_report(folder.root).page.read_text()
    assert (folder.figures / "grid-s.svg").is_file()
    assert "Hamming, k = 3 (cnn2-w4-f7): at most 100.0 %, at 30°, 0 px right and -3 px down" in page
    folder.grid(ids[0], "s").unlink()  # an arm with a missing seed is left out
    assert set(spatial_grids(Run(folder))["window"]) == {"hamming"}


def test_shifts_alone_are_drawn_by_direction():
    still = GRID[GRID["angle"] == 0].assign(fooled_rate=lambda t: t["num_fooled"] / 10)
    matrix = by_direction(still)
    assert matrix.loc[-3, 0] == 0.3
    assert matrix.loc[0, 3] == 0.1
    assert not turns(still)
    assert turns(GRID)


def test_a_damaged_grid_is_named(folder):
    path = folder.grid(Run(folder).specs[0].model_id, "s")
    write_text(path, "angle,dx\n1,2\n")
    with pytest.raises(RequestError, match=r"s\.csv: damaged"):
        build_report(folder.root)


@pytest.mark.parametrize(
    ("low", "high", "most", "ticks"),
    [
        (13_000, 210_000, 5, [20e3, 50e3, 100e3, 200e3]),
        (5e6, 8e7, 3, [1e7, 3e7]),
        (1e3, 1e9, 5, [1e3, 1e5, 1e7, 1e9]),
        (110e3, 190e3, 5, [120e3, 140e3, 160e3, 180e3]),
    ],
)
def test_ticks_of_counts_are_round_numbers(low, high, most, ticks):
    assert log_ticks(low, high, most) == pytest.approx(ticks)


def test_attacks_with_the_same_name_get_their_id(folder):
    twice = CONFIG.replace("attacks:\n", "attacks:\n  again: {attack: deepfool, steps: 7}\n", 1)
    assert twice != CONFIG
    write_text(folder.config, twice)
    run = Run(folder)
    titles = attack_titles(run)
    assert titles["d"] == "DeepFool L2 (d)"
    assert titles["again"] == "DeepFool L2 (again)"
    assert "(" not in titles["s"]


@pytest.mark.parametrize(
    ("groups", "by_network"),
    [
        ([("cnn", ["none", "hamming"], [7])], False),
        ([("cnn", ["none", "hamming", "hann", "blackman"], [3, 7])], False),
        ([("cnn", ["none", "hamming", "hann", "blackman", "kaiser"], [3, 7])], True),
        ([("cnn", ["none", "hamming", "hann", "blackman", "kaiser"], [3, 5, 7])], False),
        ([("deep", ["none"], [7]), ("shallow", ["none"], [7])], True),
        ([("deep", ["none"], [3, 5, 7]), ("shallow", ["none"], [7])], False),
        ([("imported", ["none"], [0])], True),
    ],
)
def test_networks_are_rows_where_kernel_size_is_not_an_axis(groups, by_network):
    specs = [
        SimpleNamespace(family=family, window=window, kernel_size=size)
        for family, windows, sizes in groups
        for window in windows
        for size in sizes
    ]
    run = SimpleNamespace(specs=specs)
    assert compares_networks(run) == by_network
    assert against(run, "kernel_size").startswith("per network" if by_network else "against")
    assert against(run, "params") == "against parameters"


def test_rows_group_windows_by_network():
    arms = [("cnn", 7, "none"), ("cnn", 3, "none"), ("cnn", 7, "hamming")]
    curves = pd.DataFrame(arms * 2, columns=["family", "kernel_size", "window"])
    assert network_places(curves) == dict(zip(arms, (0, -3, -1), strict=True))


def test_an_endpoint_without_a_comparison(tmp_path):
    alone = CONFIG.replace("window: [none, hamming]", "window: [none]")
    assert alone != CONFIG
    folder = make_run(tmp_path, alone + "endpoints: [{metric: robust_area, attack: d}]\n")
    assert build_report(folder.root).page.is_file()


def test_numbers_of_seeds_and_images_are_shown(folder):
    tables = write_tables(folder.root)
    table = headline_table(
        tables.run, tables.curves.assign(num_seeds=[5, *[1] * 99][: len(tables.curves)])
    )
    assert any(cell.endswith("(1 seed)") for row in table.rows for cell in row)
    assert "the same for every model and attack" in build_report(folder.root).page.read_text()
    path = folder.samples(tables.run.specs[0].model_id, "s")
    write_table(path, read_table(path).iloc[:3], {})
    assert "<small>at most; " in build_report(folder.root).page.read_text()


def test_the_label_of_a_panel_is_not_cut(folder):
    tables = write_tables(folder.root)
    panel = Panel("s", "robust_accuracy", "kernel_size", "", "")
    near = tables.curves.assign(estimate=0.8, low=0.792, high=0.808)  # ticks: 80.50 %
    near["per_seed"] = [[0.8]] * len(near)
    figure = panel_figure(tables.run, near, panel, legend=False)
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    assert max(len(label.get_text()) for label in axes.get_yticklabels()) == len("80.50 %")
    assert axes.get_tightbbox().x0 >= 0


def test_large_counts_are_readable():
    counts = [950, 50e3, 100e3, 2e6, 2.5e9, 3e12]
    assert [readable(n) for n in counts] == ["950", "50 k", "100 k", "2 M", "2.5 G", "3 T"]


def test_verdicts_in_sentences():
    def row(window, size, verdict, versus="same k"):
        values = {"figure": "area", "window": window, "size": size}
        return values | {"verdict": verdict, "versus": versus}

    one = [
        row("Hamming", "3", "worse"),
        row("Hamming", "7", "better"),
        row("Hamming", "9", "worse"),
        row("Hamming", "9 against 3", "better", "interaction"),
    ]
    assert verdicts_in_words(one) == [("area", "Hamming: better at k = 7; worse at k = 3, 9.")]
    two = [*one, row("Hann", "7", "undecided")]
    sentence = "4 windowed networks: 1 better, 2 worse, 1 with no clear difference."
    assert verdicts_in_words(two) == [("area", sentence)]
    assert verdict_matrix(two).lines[-1] == ("Hann", "7", [two[-1]])
    unclear = [row("Hamming", size, "undecided") for size in ("3", "7")]
    assert verdicts_in_words(unclear) == [("area", "Hamming: no clear difference at k = 3, 7.")]


def test_nouns_follow_their_number():
    numbers = [plural(n, "model") for n in (0, 1, 2, 1905)]
    assert numbers == ["0 models", "1 model", "2 models", "1\u202f905 models"]
