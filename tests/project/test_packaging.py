"""The wheel holds everything, and works outside of the checkout as the editable install does."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from oldest_versions import lower_bounds

import robust_ham
from robust_ham.config.files import config_folder

ROOT = Path(__file__).parents[2]
USE = """
import sys
sys.argv = ["robust-ham", "run", "smoke", "--dry-run"]
import attacks, robust_ham, robust_ham.runs.plan.plan
from robust_ham.config_files import config_folder
from robust_ham.data import PACKAGED
assert attacks.__file__.startswith({target!r}), attacks.__file__
assert robust_ham.__file__.startswith({target!r})
assert str(config_folder()) == {target!r} + "/robust_ham/configs"
assert len(list((robust_ham.models.checkpoints.ZOO / "fashion_mnist").iterdir())) == 30
assert (PACKAGED / "fashion_mnist" / "LICENSE").is_file()
from robust_ham.cli import main
main()
"""


def test_the_editable_install_finds_the_configs_of_the_checkout():
    assert Path(robust_ham.__file__).parent == ROOT / "robust_ham"
    assert config_folder() == ROOT / "configs"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_works_outside_of_the_checkout(wheel, tmp_path):
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    code = USE.format(target=str(target))
    command = [sys.executable, "-c", code]
    found = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert "6 jobs: 2 models, 2 attacks" in found.stdout


def test_the_wheel_holds_nothing_foreign(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert {name.split("/")[0] for name in names} == {
            "attacks",
            "robust_ham",
            "robust_ham-0.1.0.dist-info",
        }
        template = {f"robust_ham/report/template/page.{end}" for end in ("html.j2", "css", "js")}
        assert template <= set(names)
        assert "robust_ham/py.typed" in names
        assert not any("__pycache__" in name for name in names)


# --- in a stranger's folder ----------------------------------------------------------------------

BARE = "import sys; print(*sys.modules)"
HOSTILE = "import sys; sys.stderr.write(f'imported {__name__}'); sys.exit(99)"
PACKAGES = (
    "attacks torch yaml numpy pandas typer pydantic rich foolbox ray scipy sitecustomize mine"
)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A folder of modules called as ours, but for those that ``python -m`` has imported before."""
    bare, folder = tmp_path_factory.mktemp("bare"), tmp_path_factory.mktemp("stranger")
    (bare / "bare.py").write_text(BARE)
    command = [sys.executable, "-m", "bare"]
    found = subprocess.run(command, cwd=bare, check=True, capture_output=True, text=True).stdout
    for name in {*sys.stdlib_module_names, *PACKAGES.split()} - {*found.split()}:
        (folder / f"{name}.py").write_text(HOSTILE)
    return folder


@pytest.mark.parametrize(
    ("words", "shown"),
    [  # the first measures in a new process
        (("-m", "robust_ham", "run", "smoke", "--dry-run"), "6 jobs: 2 models, 2 attacks"),
        (("-X", "utf8", "-mrobust_ham", "list", "windows"), "hamming"),
        ((str(Path(sys.executable).parent / "robust-ham"), "list", "attacks"), "deepfool"),
    ],
    ids=["module", "options", "script"],
)
def test_nothing_is_imported_from_the_current_folder(words, shown, stranger):
    found = subprocess.run(
        [sys.executable, *words], cwd=stranger, capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert shown in found.stdout


def test_an_attack_of_ones_own_is_found_in_the_current_folder(tmp_path):
    (tmp_path / "own_code_here.py").write_text("def attack(model, images, labels): return images")
    (tmp_path / "torch.py").write_text(HOSTILE)
    command = [sys.executable, "-m", "robust_ham", "run", "smoke", "--dry-run"]
    command += ["-o", "attacks.own={attack: 'own_code_here:attack'}"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert "cnn2-w8-k5-hamming-s0/own" in found.stdout


def test_the_package_of_the_current_folder_is_used_where_it_is_none_other(wheel, tmp_path):
    """In a checkout without installing it."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    command = [sys.executable, "-m", "robust_ham", "list", "windows"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert "hamming" in found.stdout


# --- lower bounds --------------------------------------------------------------------------------


def test_each_dependency_has_one_lower_bound(tmp_path):
    bounds = lower_bounds()
    assert (bounds["Pillow"], bounds["pydantic"]) == ("10.3", "2.12")
    assert len(bounds) > 25
    for second in ("foo", "foo<2", "foo>=1,<2", "foo>=2"):
        project = tmp_path / "pyproject.toml"
        project.write_text(
            '[project]\ndependencies = ["foo>=1"]\n[project.optional-dependencies]\n'
            f'dev = ["{second}"]\n'
        )
        with pytest.raises(ValueError, match=f"^{second}: expected name>=version"):
            lower_bounds(project)
