"""README and docs: every command parses or runs, every file, test, link and key exists."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
import yaml

from robust_ham.cli.main import app
from robust_ham.config.files import parse_config, shipped_configs
from robust_ham.experiments.explain import EXPERIMENTS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {path: path.read_text() for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]}
TEXT = "\n".join(PAGES.values())
SHELL = [
    line.removeprefix("    ")
    for text in PAGES.values()
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]
COMMANDS = [shlex.split(line, comments=True) for line in SHELL if line.startswith("robust-ham ")]
COMMANDS += [
    shlex.split(line) for line in re.findall(r"`(robust-ham (?:run|explain) [\w-]+)`", TEXT)
]
OTHER_COMMANDS = {"make", "git", "pip", "torchrun"}
PLACEHOLDERS = {"CONFIG", "NAME", "my_experiment.yaml"}
VERBS = [shlex.split(line) for line in re.findall(r"^\| `(robust-ham [^`]+)`", README, re.M)]
"""From the table of commands."""
TESTED_ELSEWHERE = {"run", "bench", "explain", "import"}
TABLES = {
    ROOT / "docs/faults.md": 15,
}
"""Page to the smallest number of tests that it must name."""


def verbs_of_app():
    return typer.main.get_command(app).commands


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_exist(words):
    group = typer.main.get_command(app)
    context = group.make_context("robust-ham", list(words[1:]))
    name, command, rest = group.resolve_command(context, list(words[1:]))
    with command.make_context(name, rest, parent=context) as parsed:
        target = parsed.params.get("config") or parsed.params.get("name")
    if name in ("run", "bench"):
        assert target in shipped_configs() or target in PLACEHOLDERS
    if name == "explain":
        assert target in EXPERIMENTS or target in PLACEHOLDERS


def test_there_are_commands_to_test():
    assert len(COMMANDS) > 35
    assert {"run", "report", "import", "explain", "bench"} <= {words[1] for words in COMMANDS}


def test_other_commands_are_known():
    others = [words for line in SHELL if (words := shlex.split(line, comments=True))]
    assert {words[0] for words in others} - {"robust-ham"} == OTHER_COMMANDS
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {words[1] for words in others if words[0] == "make"} <= targets
    assert set(re.findall(r"`make ([\w-]+)", TEXT)) <= targets
    for words in others:
        if words[0] == "torchrun":
            inner = words[words.index("robust_ham") :]
            test_commands_exist(["robust-ham", *inner[1:]])


def yaml_blocks():
    return re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("block", yaml_blocks())
def test_configurations_are_valid(block):
    whole = {
        "name": "readme",
        "models": [{"architecture": "cnn"}],
        "attacks": {"deepfool_l2": {"attack": "deepfool"}},
    }
    values = yaml.safe_load(block)
    if "interaction" in values:
        whole["models"] = [{"sweep": {"kernel_size": [5, 9], "window": ["none", "hamming"]}}]
        whole["attacks"]["superdeepfool"] = {"attack": "superdeepfool"}
    assert parse_config(yaml.safe_dump(whole | values)).name


def test_the_own_experiment_runs_as_written(run_cli, tmp_path, monkeypatch):
    (block,) = [b for b in yaml_blocks() if "name: my_experiment" in b]
    small = {"num_train: 10000": "num_train: 256", "num_images: 200": "num_images: 10"}
    small |= {"[0, 1, 2]": "[0]", "widths: [16, 32]": "widths: [4]", "epochs: 5": "epochs: 1"}
    small |= {"[3, 7]": "[3]"}
    for old, new in small.items():
        assert old in block
        block = block.replace(old, new)
    monkeypatch.chdir(tmp_path)
    Path("my_experiment.yaml").write_text(block)
    commands = [words for words in COMMANDS if "my_experiment" in " ".join(words)]
    assert len(commands) == 6
    for words in commands:
        code, _, errors = run_cli(*words[1:])
        assert code in (0, 4), (words, errors)  # 4: a network of one epoch may not be trusted
    assert Path("results/my_experiment/report.html").is_file()
    assert {p.suffix for p in Path("results/my_experiment/export").iterdir()} >= {".pdf", ".tex"}
    verbs = [words for words in VERBS if words[1] not in TESTED_ELSEWHERE]
    assert {words[1] for words in verbs} == {*verbs_of_app()} - TESTED_ELSEWHERE
    for words in verbs:
        places = ["results/my_experiment" if "DIR" in word else word for word in words[1:]]
        if words[1] == "compare":
            shutil.copytree("results/my_experiment", "results/other")
            places[-1] = "results/other"
        code, _, errors = run_cli(*places)
        assert code == 0, (words, errors)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150
    assert "git clone --depth 1" in README


def test_the_tests_it_names_exist():
    code = "".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
    names = set(re.findall(r"`(test_\w+)`", TEXT))
    assert len(names) > 25
    assert [name for name in names if f"def {name}(" not in code] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_files_it_links_exist(page):
    links = re.findall(r"\]\(((?!http)[^)]+)\)", PAGES[page])
    for link in links:
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve()
        assert target.exists(), link
        if heading:
            text = target.read_text()
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            assert heading in {re.sub(r"[^\w]+", "-", h.lower()).strip("-") for h in headings}


def test_pages_name_files_that_exist():
    named = set(re.findall(r"`((?:robust_ham|attacks|tests|configs)/[\w/.]+)`", TEXT))
    assert len(named) > 3
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_page_is_on_the_site():
    index = (ROOT / "docs/index.md").read_text()
    entries = re.findall(r"^[\w]+$", index, re.MULTILINE)
    assert {*entries} == {p.stem for p in ROOT.glob("docs/*.md")} - {"index"} | {"compare_windows"}
    links = set(re.findall(r"\(docs/(\w+)\.md\)", README))
    assert links == {*entries} - {"api", "compare_windows", "zoo"}


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("sphinx", "myst_nb", "furo"))),
    reason="needs the extra `docs`; `make docs` runs the same build",
)
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs"]
    built = subprocess.run(
        [*command, str(tmp_path / "html")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (built.returncode, built.stderr) == (0, "")
    api = (tmp_path / "html/api.html").read_text()
    for name in ("robust_ham.evaluate", "robust_ham.compare", "attacks.deepfool"):
        assert f'id="{name}"' in api
    notebook = (tmp_path / "html/compare_windows.html").read_text()
    assert "load_images" in notebook
    assert "cell_output" in notebook


def test_contributing_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:robust_ham|attacks|tests|configs|tools|docs)/[\w/.]+)`", text)
    files = [name for name in named if "my_attack" not in name and "NAME" not in name]
    assert len(files) > 20
    assert [name for name in files if not (ROOT / name).exists()] == []
