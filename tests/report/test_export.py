"""Exported figures and tables: one file each, of the requested width."""

import re
import shutil
import subprocess

import pytest
from PIL import Image
from test_page import folder  # noqa: F401

from robust_ham.analysis.tables import write_tables
from robust_ham.report.export import export
from robust_ham.report.formats import Table, latex, markdown

TABLE = Table(
    "effects",
    "Effects of 50 % & more.",
    ["model_id", "effect"],
    [["a|b", "×1.08 [−0.1, ∞]"], ["{c}\\d", "–"]],
)


def sizes(path):
    """Return the width and height of a figure file in inches."""
    if path.suffix == ".png":
        with Image.open(path) as image:
            return tuple(pixels / 160 for pixels in image.size)
    pattern = {
        ".pdf": rb"/MediaBox \[ 0 0 ([0-9.]+) ([0-9.]+) \]",
        ".svg": rb'<svg [^>]*width="([0-9.]+)pt" height="([0-9.]+)pt"',
    }
    match = re.search(pattern[path.suffix], path.read_bytes())
    return tuple(float(points) / 72 for points in match.groups())


@pytest.mark.parametrize("form", ["pdf", "svg", "png"])
def test_every_figure_of_the_page_is_a_file(folder, form):  # noqa: F811
    files = export(write_tables(folder.root), form, 5.5)
    names = {path.name for path in files}
    assert names >= {f"{n}.{form}" for n in ("robustness", "axes", "metrics-d", "gallery-d")}
    panels = {
        f"panel-{n}.{form}" for n in ("d-robust_area-kernel_size", "s-robust_accuracy-params")
    }
    assert names >= panels
    assert {path.parent for path in files} == {folder.root / f"export{p}" for p in ("", "/panels")}
    assert {path.suffix for path in files} == {f".{form}"}
    assert [sizes(path)[0] for path in files] == pytest.approx([5.5] * len(files), abs=0.01)


def test_exporting_twice_changes_no_byte(folder):  # noqa: F811
    results = write_tables(folder.root)
    first = {path: path.read_bytes() for path in export(results, "pdf", 3.3)}
    assert {path: path.read_bytes() for path in export(results, "pdf", 3.3)} == first


def test_a_narrow_figure_stacks_its_panels(folder):  # noqa: F811
    results = write_tables(folder.root)

    def shape(width):
        files = export(results, "svg", width)
        return sizes(next(path for path in files if path.name == "robustness.svg"))

    (natural, low), (narrow, high) = shape(None), shape(3.3)
    assert natural > 6
    assert narrow == pytest.approx(3.3)
    assert high > 1.5 * low


def test_every_table_of_the_page_is_a_file(folder):  # noqa: F811
    results = write_tables(folder.root)
    texts = {path.name: path.read_text() for path in export(results, "latex")}
    assert set(texts) == {
        "headline.tex",
        "answers.tex",
        "verdicts.tex",
        "models.tex",
    }  # no claims, no gate here
    assert r"cnn2-w4-f7-k3-none-s0 & 3 & baseline & 0 & d & 6" in texts["models.tex"]
    assert texts["models.tex"].count(" \\\\\n") == 1 + 8
    texts = {path.name: path.read_text() for path in export(results, "markdown")}
    assert texts["headline.md"].count("\n| cnn2-w4-f7 | 3 |") == 2
    assert "\n| Hamming | 3 | equivalent: ×1.000 [1.000, 1.000] |" in texts["answers.md"]


def test_latex_is_escaped():
    text = latex(TABLE)
    assert r"\caption{Effects of 50 \% \& more.}" in text
    assert r"\begin{tabular}{lr}" in text
    assert r"model\_id & effect \\" in text
    numbers = r"\ensuremath{\times}1.08 [\ensuremath{-}0.1, \ensuremath{\infty}]"
    assert rf"a\textbar{{}}b & {numbers} \\" in text
    assert r"\{c\}\textbackslash{}d & -- \\" in text


def test_long_headings_and_prose_are_broken():
    text = latex(
        Table("t", "", ["accuracy under attack of all", "why"], [["1", "so " * 20], ["2", ""]])
    )
    assert r"\shortstack{accuracy\\under attack\\of all} & why \\" in text
    assert r"\begin{tabular}{r>{\raggedright\arraybackslash}p{6cm}}" in text
    assert r"\begin{tabular}{rr}" in latex(Table("t", "", ["a", "b"], []))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(tmp_path):
    rows = [["‖x‖₂ ≤ 3°", "~^&%$#_{}\\ so " * 9], ["[1cm] é“中”", "*|"]]
    prose = Table("prose", "ρ² of – “all”", ["√x", "why"], rows)
    (tmp_path / "paper.tex").write_text(
        r"\documentclass{article}\usepackage{array,booktabs,graphicx}\begin{document}"
        + latex(TABLE)
        + latex(prose)
        + r"\end{document}"
    )
    subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )


def test_markdown_is_escaped():
    assert markdown(TABLE) == (
        "Effects of 50 % & more.\n\n"
        "| model\\_id | effect |\n| --- | ---: |\n"
        "| a\\|b | ×1.08 [−0.1, ∞] |\n| {c}\\\\d | – |\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--export", "gif"],
            "--export: expected one of pdf, svg, png, latex, markdown, got 'gif'",
        ),
        (["--width", "3"], "--width: applies to exported figures: add --export pdf|svg|png"),
        (
            ["--export", "latex", "--width", "3"],
            "--width: applies to figures (pdf, svg, png), not to latex",
        ),
        (["--export", "pdf", "--width", "0"], "--width: expected 2 to 30 inches, got 0"),
        (["--export", "pdf", "--width", "nan"], "--width: expected 2 to 30 inches, got nan"),
    ],
)
def test_invalid_export_options_are_refused(run_cli, folder, words, message):  # noqa: F811
    code, _, errors = run_cli("report", folder.root, *words)
    assert code == 2
    assert message in errors
    assert errors.count("\n") == 1
    assert not folder.report.exists()


def test_the_command_prints_the_export_folder(run_cli, folder):  # noqa: F811
    code, printed, _ = run_cli("report", folder.root, "--export", "markdown")
    assert code == 0
    assert f"export: 4 files in {folder.root / 'export'}" in printed
