"""Text reaches a terminal, log, spreadsheet, LaTeX, figure or page through one safe function."""

import ast
import io
import logging
import os
import random
import re
import shutil
import sys
import warnings
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
import seaborn as sns
import torch
from matplotlib.figure import Figure
from test_page import folder, make_run  # noqa: F401

from robust_ham.api import evaluate
from robust_ham.cli import streams
from robust_ham.cli.output import print_table
from robust_ham.cli.progress import Bars
from robust_ham.errors import RequestError, printable, visible
from robust_ham.report.comparison import write_comparison
from robust_ham.report.figures.style import figure_style, render
from robust_ham.report.formats import Table, latex, markdown
from robust_ham.report.html import render_page
from robust_ham.storage.files import csv_text, read_csv, write_csv
from robust_ham.storage.run_logs import log_file
from robust_ham.storage.spreadsheets import guard, restore

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("robust_ham/**/*.py"), *ROOT.glob("attacks/**/*.py")])
HOSTILE = "a\nall is fine\x1b[2J\x1b]0;t\x07\x9b31m\u202e\u200b\ufeff\u2028\x7f" + os.fsdecode(
    b"\xff"
)
SHOWN = r"a\nall is fine\x1b[2J\x1b]0;t\x07\x9b31m\u202e\u200b\ufeff\u2028\x7f\udcff"  # one line
FORMULA = r"m$\frac{$"


def is_shown(text):
    """Whether the text consists of visible characters and line feeds."""
    return text == visible(text)


# --- one way out of each kind ---------------------------------------------------------------------

ALLOWED = {  # package and function
    "print": {"cli.say", "cli.say_json", "cli.complain"},
    "console.print": {"cli.print_table", "cli.note"},
    "add_row": {"cli.print_table"},
    "add_task": {"cli.__init__", "cli.job_started", "api.evaluate"},
    "write of a stream": {"cli._show_traceback"},
    "handler": {"storage.log_file"},
    "formatter": set(),  # LineFormatter
    "to_csv": {"storage.csv_text", "analysis.write_run_folder"},  # the latter for a hash
    "read_csv": {"storage.read_csv"},
    "csv.writer": set(),
    "savefig": {"report.render"},
    "Environment": {"report.render_page"},
    "from_markup": set(),
}


def way_of(call):
    """Name the way out that a call is, if any."""
    dotted = ast.unparse(call.func)
    patterns = {
        "write of a stream": r".*\bstd(out|err)\.write(lines)?",
        "read_csv": r"(pd|pandas)\.read_csv",
        "print": "print",
        "console.print": r".*\.print",
        "handler": r"logging\.(\w*Handler|basicConfig)",
        "formatter": r"logging\.Formatter",
        "csv.writer": r"csv\.(Dict)?[wW]riter",
    }
    patterns |= {
        name: rf"(.*\.)?{name}"
        for name in ("add_row", "add_task", "to_csv", "savefig", "Environment", "from_markup")
    }
    return next((way for way, form in patterns.items() if re.fullmatch(form, dotted)), None)


def ways_out(source, package):
    """List every way out in a source, with its package and function."""

    def walk(node, function):
        if isinstance(node, ast.FunctionDef):
            function = node.name
        if isinstance(node, ast.Call) and (way := way_of(node)):
            yield way, f"{package}.{function}"
        for child in ast.iter_child_nodes(node):
            yield from walk(child, function)

    return list(walk(ast.parse(source), ""))


def test_every_way_out_is_one_function():
    for path in FILES:
        package = path.relative_to(ROOT).with_suffix("").parts[1]
        for way, function in ways_out(path.read_text(), package):
            assert function in ALLOWED[way], f"{path}: {way} in {function}"


@pytest.mark.parametrize(
    "line",
    [
        "print(x)",
        "console.print(x)",
        "self.progress.console.print(x)",
        "sys.stderr.write(x)",
        "sys.stdout.writelines(x)",
        "logging.StreamHandler()",
        "logging.basicConfig()",
        "logging.Formatter()",
        "table.to_csv(p)",
        "pd.read_csv(p)",
        "csv.writer(f)",
        "figure.savefig(p)",
        "jinja2.Environment()",
        "Text.from_markup(x)",
        "table.add_row(x)",
    ],
)
def test_the_rule_can_fail(line):
    [(way, function)] = ways_out(f"def f():\n    {line}", "package")
    assert function == "package.f"
    assert function not in ALLOWED[way]


# --- terminal and logs ----------------------------------------------------------------------------


def test_what_is_printable():
    assert printable(HOSTILE) == SHOWN
    assert visible("a\nb\r\tc") == "a\nb\\r\\tc"
    for usual in ("", "results/my run-1.csv", "ρ² ≤ 3\u202f000 ×\xa0√", "数据/été", "C:\\x"):
        assert printable(usual) == usual
    for character in "\x00\x85\xad\u061c\u200e\u2060\u2066\ufff9\U000e0041\ue000\U0010ffff":
        assert printable(f"a{character}b") == f"a{ascii(character)[1:-1]}b"


def test_a_long_line_keeps_both_ends():
    line = str(RequestError(f"{'x' * 3000}: not a run folder"))
    assert len(line) == 2000
    assert line.startswith("xxx")
    assert line.endswith("xxx: not a run folder")
    assert line.count("…") == 1


@pytest.fixture
def hostile(tmp_path):
    """A run folder whose name, and that of a file in it, are a stranger's."""
    run = make_run(tmp_path / HOSTILE)
    (run.root / f"{HOSTILE}.txt").write_text("")
    (run.root / "failures.jsonl").write_text(
        f'{{"cell": "attack {run.root.parent.name}/d", "reason": "x\\n\\u001b[2Jdone"}}\n'
    )
    return run.root


def test_every_verb_shows_names_as_they_are(run_cli, hostile):
    for verb in (["status"], ["report"], ["status", "--json"], ["verify", "--cells", "0"]):
        _, printed, errors = run_cli(verb[0], hostile, *verb[1:])
        assert is_shown(printed)
        assert is_shown(errors)
        assert not re.search("^all is fine", printed + errors, re.MULTILINE)
        if "--json" in verb:
            assert printed.isascii()
            assert printed.count("\n") == 1
        else:
            assert SHOWN in printed + errors


def test_a_table_shows_no_markup(capsys):
    print_table(["[b]h", "run"], [["[/]", "[red]:smile:[/red]"], ["\x1b[2J", "a\nb"]])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["[b]h", "run"], ["[/]", "[red]:smile:[/red]"], [r"\x1b[2J", r"a\nb"]]


def test_bars_show_no_markup():
    bars = Bars()
    bars.progress.console.file = io.StringIO()
    with bars:
        bars.started(1)
        bars.job_started("[red]:smile:\x1b[2J\n")
        bars.note("[/] :smile: \x1b[2J")
    shown = bars.progress.console.file.getvalue()
    assert r"[/] :smile: \x1b[2J" in shown
    assert r"[red]:smile:\x1b[2J\n" in shown


def test_bars_of_python_show_no_markup(capsys):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    images = torch.rand(2, 1, 8, 8)
    labels = network(images).argmax(1)
    evaluate({"[/] :smile:\x1b[2J": network}, images, labels, "deepfool")
    assert r"[/] :smile:\x1b[2J" in capsys.readouterr().err


def test_a_record_is_a_line_of_the_log(tmp_path):
    log = logging.getLogger("robust_ham.test")
    with log_file(tmp_path / "run.log"):
        log.warning("%s: removed", HOSTILE)
        try:
            raise ValueError("x\n2026-01-01 00:00:00,000 INFO all is fine\x1b[2J")
        except ValueError:
            log.debug("failed", exc_info=True)
    text = (tmp_path / "run.log").read_text()
    assert is_shown(text)
    lines = text.splitlines()
    assert lines[0].endswith(f" WARNING {SHOWN}: removed")
    assert lines[1].endswith(" DEBUG failed")
    assert [line for line in lines[2:] if not line.startswith("    ")] == []
    assert "    2026-01-01 00:00:00,000 INFO all is fine\\x1b[2J" in lines


def test_warnings_and_tracebacks_are_printable(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    streams.make_python_output_printable()
    assert warnings.formatwarning(HOSTILE, UserWarning, "", 1) == f"robust-ham: {SHOWN}\n"
    record = logging.makeLogRecord({"msg": "%s", "args": (HOSTILE,)})
    assert logging.lastResort.format(record) == SHOWN
    error = ValueError("x\x1b[2J")
    sys.excepthook(ValueError, error, None)
    assert "ValueError: x\\x1b[2J\n" in capsys.readouterr().err


# --- spreadsheets ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ('=HYPERLINK("http://x")', '\'=HYPERLINK("http://x")'),
        ("+1", "'+1"),
        ("-2+3", "'-2+3"),
        ("@SUM(1)", "'@SUM(1)"),
        (" =1", "' =1"),
        ("\n=1", "'\n=1"),
        ("＝1", "'＝1"),
        ("'=1", "''=1"),
        ("''@x", "'''@x"),
        ("-", "'-"),
        ("-5 [-6, -4]", "'-5 [-6, -4]"),
        ("-5", "-5"),
        ("-2.5e-07", "-2.5e-07"),
        ("-inf", "-inf"),
        ("'quoted'", "'quoted'"),
        ("a=1", "a=1"),
        ("−0.5", "−0.5"),
        ("", ""),
    ],
)
def test_no_cell_is_a_formula(text, cell):
    assert guard(text) == cell
    assert restore(cell) == text


def test_control_characters_are_escaped_in_cells():
    assert guard("\t=1\r\x1b") == r"\t=1\r\x1b"


def test_every_name_is_read_back():
    stream = random.Random(0)
    for _ in range(20_000):
        text = "".join(stream.choices("'=+-@ 5.ex", k=stream.randrange(7)))
        cell = guard(text)
        assert restore(cell) == text
        assert not re.match(r"\s*[=+@]", cell)


def test_tables_are_read_back(tmp_path):
    table = pd.DataFrame({"run": ["=1", "'-x", "b"], "=x": [-1.5, 2.0, -3.0], "n": [-1, 2, 3]})
    write_csv(tmp_path / "a.csv", table)
    assert (tmp_path / "a.csv").read_text() == "run,'=x,n\n'=1,-1.5,-1\n''-x,2.0,2\nb,-3.0,3\n"
    pd.testing.assert_frame_equal(read_csv(tmp_path / "a.csv"), table)
    assert csv_text(pd.DataFrame({"a": pd.Series([1, None, "-3", "+3"], dtype=object)})) == (
        'a\n1\n""\n-3\n\'+3\n'
    )


NAMES = ['=HYPERLINK("x")', "+1", FORMULA, "[red]x", "<b>&", "*a", "key"]


def test_a_comparison_of_strangers_folders(tmp_path, capsys):
    first = make_run(tmp_path / "first").root
    others = [shutil.copytree(first, tmp_path / name) for name in [*NAMES, HOSTILE]]
    made = write_comparison([first, *others], tmp_path / "out")
    print_table(made.header, made.rows)
    shown = [*NAMES[:-1], f"key ({len(NAMES) + 1})", SHOWN]
    printed = capsys.readouterr().out
    assert is_shown(printed)
    assert all(name in printed for name in shown)
    assert list(dict.fromkeys(read_csv(tmp_path / "out/comparison.csv")["run"])) == shown
    text = (tmp_path / "out/comparison.csv").read_text()
    assert "\n'+1," in text
    assert "\n\"'=HYPERLINK(" in text
    header = (tmp_path / "out/configurations.csv").read_text().splitlines()[0]
    assert header.startswith('key,first,"\'=HYPERLINK(""x"")",\'+1,m$')
    page = made.page.read_text()
    assert is_shown(page)
    assert "<b>&<" not in page
    assert page.count(FORMULA) > 4  # in figures, too


# --- figures --------------------------------------------------------------------------------------


def texts(svg):
    """What the text elements of an SVG show."""
    root = ElementTree.fromstring(svg)
    return ["".join(e.itertext()) for e in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("styled", [True, False])
def test_dollar_signs_in_figures_are_text(styled):
    names = [FORMULA, "$x$", r"\$", "100 $"]

    def draw():
        figure = Figure(figsize=(9, 9), layout="constrained")
        panels = figure.subplots(2, 2, sharey="row")
        panels[0, 0].plot(range(4), label="$legend$")
        panels[0, 0].legend()
        panels[0, 0].set_yticks(range(4), names)  # the other panel of the row has the same
        panels[0, 0].set_title(f"t{FORMULA}")
        panels[0, 0].set_xlabel("$across$")
        panels[0, 0].annotate("$beside$", (0, 0))
        panels[0, 0].text(0, 0, "$in$")
        panels[0, 1].set_xticks([0, 1], ["$a$", FORMULA])
        panels[0, 1].tick_params(labelleft=True)
        if styled:  # seaborn measures labels at once
            table = pd.DataFrame([[1.0, 2.0]], columns=["$c$", FORMULA], index=["$i$"])
            sns.heatmap(table, ax=panels[1, 0], cbar_kws={"label": "$bar$"})
        figure.suptitle("$all$")
        return figure

    if styled:
        with figure_style():
            figure = draw()
    else:
        figure = draw()
    render(figure, "x", "png")
    shown = texts(render(figure, "x", "svg"))
    wanted = {*names, "$legend$", f"t{FORMULA}", "$across$", "$beside$", "$in$", "$a$", "$all$"}
    assert wanted <= set(shown)
    assert shown.count("100 $") == 2
    if styled:
        assert {"$c$", "$i$", "$bar$"} <= set(shown)


def test_powers_stay_powers():
    with figure_style():
        figure = Figure(layout="constrained")
        across, along = figure.subplots(1, 2)
        across.loglog([1e-9, 1e9], [2, 5])
        along.semilogy([1, 2], [1, 1e5])
        along.set_title("$10^{5}$")
    for _ in range(2):
        shown = texts(render(figure, "x", "svg"))
        assert "$10^{5}$" in shown
        assert [text for text in shown if "mathdefault" in text] == []
        assert "".join("".join(shown).split()).count("10") > 6


def test_a_figure_is_valid_xml_whatever_its_text():
    with figure_style():
        figure = Figure()
        axes = figure.subplots()
        axes.set_title("a\x1b[2J\u202e\x00b\nsecond <line>")
    shown = texts(render(figure, "x", "svg"))
    assert r"a\x1b[2J\u202e\x00b" in shown
    assert "second <line>" in shown


# --- pages and papers -----------------------------------------------------------------------------


def test_a_page_shows_invisible_characters():
    page = render_page(
        "comparison.html.j2",
        names=["<b>", "o"],
        changes=[{"key": HOSTILE, "<b>": "\x00", "o": '"x'}],
        figure=None,
        description="",
        header=["run"],
        text=[],
        rows=[["</script><script>"]],
    )
    assert is_shown(page)
    assert SHOWN.replace("a\\n", "a\n", 1) in page
    assert page.count("<script") == 1


def options(text):
    """Commands that would take what begins the next cell for an option."""
    return re.findall(r"(?:\\\\|\\(?:top|mid|bottom)rule|\\shortstack)\s*[\[*]", text)


@pytest.mark.parametrize("start", ["[1cm] x", "*", "  [", "[", "*[2pt]"])
def test_no_row_of_latex_begins_with_an_option(start):
    rows = [[start, "1"], ["", start], [start, "2"]]
    text = latex(Table("t", start, [start, f"twelve letters {start} in all of it"], rows))
    assert options(text) == []
    assert f"{{}}{start} & 1 \\\\" in text
    assert options("a \\\\\n[1cm] x & b")
    assert options("a \\\\\n  *x & b")


def test_latex_shows_all_signs():
    row = ["a|b\nc", "\x1b\u202e", "é“x”中"]
    assert (
        r"a\textbar{}b c & \textbackslash{}x1b\textbackslash{}u202e & é“x”\textbackslash{}u4e2d"
        in (latex(Table("t", "", ["a", "b", "c"], [row])))
    )
    assert "[0.1, 0.2]" in latex(Table("t", "", ["a"], [["×1 [0.1, 0.2]"]]))


def test_markdown_has_no_links_formulas_or_breaks():
    row = ["[x](javascript:y)", "![x][y]", "$x$ &lt; a&b A & B", "a\nb|c", "[0.1, 0.2] (3)"]
    assert markdown(Table("t", "", list("abcde"), [row])).splitlines()[-1] == (
        r"| [x\](javascript:y) | ![x\][y] | \$x\$ \&lt; a\&b A & B | a b\|c | [0.1, 0.2] (3) |"
    )
