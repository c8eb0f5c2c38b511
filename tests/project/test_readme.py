"""The README keeps what it promises: its commands parse or run, its files, tests and keys exist."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer.main
import yaml

from robust_ham.cli.main import app
from robust_ham.config.files import parse_config, shipped_configs
from robust_ham.experiments.explain import EXPERIMENTS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    shlex.split(line, comments=True)
    for line in re.findall(r"^ {4,}(?:\.venv/bin/)?(robust-ham .*)$", README, re.MULTILINE)
] + [shlex.split(line) for line in re.findall(r"`(robust-ham (?:run|explain) [\w-]+)`", README)]
PLACES = {"CONFIG", "NAME", "my_experiment.yaml"}
VERBS = [shlex.split(line) for line in re.findall(r"^\| `(robust-ham [^`]+)`", README, re.M)]
"""Of the table of commands."""
ELSEWHERE = {"run", "bench", "explain", "import"}
"""Verbs that tests of their own run: test_cli, test_bench, test_explain, test_import."""


def group_commands():
    return typer.main.get_command(app).commands


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_exist(words):
    group = typer.main.get_command(app)
    context = group.make_context("robust-ham", list(words[1:]))
    name, command, rest = group.resolve_command(context, list(words[1:]))
    with command.make_context(name, rest, parent=context) as made:
        asked = made.params.get("config") or made.params.get("name")
    if name == "run":
        assert asked in shipped_configs() or asked in PLACES
    if name == "explain":
        assert asked in EXPERIMENTS or asked in PLACES


def test_there_are_commands_to_test():
    assert len(COMMANDS) > 25
    assert {"run", "report", "import", "explain"} <= {words[1] for words in COMMANDS}


def yaml_blocks():
    return re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)


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
    verbs = [words for words in VERBS if words[1] not in ELSEWHERE]
    assert {words[1] for words in verbs} == {*group_commands()} - ELSEWHERE
    for words in verbs:
        places = ["results/my_experiment" if "DIR" in word else word for word in words[1:]]
        if words[1] == "compare":
            shutil.copytree("results/my_experiment", "results/other")
            places[-1] = "results/other"
        code, _, errors = run_cli(*places)
        assert code == 0, (words, errors)


def test_the_tests_it_names_exist():
    code = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    names = set(re.findall(r"`(test_\w+)`", README))
    assert len(names) > 15
    assert [name for name in names if f"def {name}(" not in code] == []


def test_the_files_it_links_exist():
    links = re.findall(r"\]\(((?!http)[^)]+)\)", README)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_contributing_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    found = re.findall(r"`((?:robust_ham|attacks|tests|configs)/[\w/.]+)`", text)
    files = [name for name in found if "my_attack" not in name and "NAME" not in name]
    assert len(files) > 20
    assert [name for name in files if not (ROOT / name).exists()] == []
