"""The page: whole, offline, escaped, byte-stable."""

import json
import re

import numpy as np
import pytest
from test_curves import CARD, CONFIG, six_rows

from robust_ham.analysis.run import Run
from robust_ham.config import RequestError
from robust_ham.report.page import build_report
from robust_ham.run_folder import RunFolder
from robust_ham.store import write_json, write_table, write_text


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path)
    write_text(run.config, CONFIG)
    stream = np.random.default_rng(0)
    for spec in Run(run).config.model_specs():
        write_json(run.model(spec.model_id) / "model.json", CARD)
        write_table(run.samples(spec.model_id, "d"), six_rows(), {})
        write_table(run.samples(spec.model_id, "s"), six_rows(spatial=True), {})
        path = run.gallery(spec.model_id, "d")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            path,
            sample_id=np.arange(8),
            label=np.zeros(8, np.int64),
            clean_prediction=np.zeros(8, np.int64),
            adversarial_prediction=np.ones(8, np.int64),
            clean=stream.integers(0, 256, (8, 3, 6, 6), np.uint8),
            adversarial=stream.random((8, 3, 6, 6)).astype(np.float16),
            perturbation=stream.normal(size=(8, 3, 6, 6)).astype(np.float16),
            fooled=np.ones(8, bool),
            l2=np.ones(8),
            transform=np.full((8, 3), np.nan),
        )
    return run


def test_everything_is_written_and_nothing_points_outside(folder):
    made = build_report(folder.root)
    page = made.page.read_text()
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
    assert page.count("<figure") == page.count("aria-label=") == 5
    assert len(made.rows) == 2
    assert folder.summary.is_file()
    assert folder.curves.is_file()
    assert folder.contrasts.is_file()


def test_the_page_says_the_verdicts_in_words(folder):
    page = build_report(folder.root).page.read_text()
    assert "Windowed against baseline" in page
    assert "×1.000" in page  # the same distances in both arms
    assert '<td class="text verdict-equivalent">equivalent</td>' in page
    assert "names no primary endpoint" in page
    text = folder.config.read_text() + "endpoints: [{metric: robust_area, attack: best}]\n"
    folder.config.write_text(text)
    page = build_report(folder.root).page.read_text()
    assert "These are the primary endpoints" in page
    assert page.count('class="text verdict-') == 1  # d alone is its own best


def test_built_twice_every_byte_is_the_same(folder):
    build_report(folder.root)
    before = {p: p.read_bytes() for p in folder.root.rglob("*") if p.is_file()}
    build_report(folder.root)
    assert {p: p.read_bytes() for p in folder.root.rglob("*") if p.is_file()} == before


def test_strings_are_escaped(folder):
    line = {"cell": "<script>alert(1)</script>", "error": "E", "reason": "<b>bold</b>"}
    folder.failures.write_text(json.dumps(line) + "\n")
    page = build_report(folder.root).page.read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;: &lt;b&gt;bold&lt;/b&gt;" in page


def test_an_unfinished_run_says_so(folder):
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


def test_a_gallery_that_must_not_be_shown_is_left_out(folder):
    folder.config.write_text(CONFIG + "evaluation: {gallery: false}\n")
    assert "gallery-d" not in build_report(folder.root).page.read_text()
