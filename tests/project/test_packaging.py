"""The wheel is complete and works outside the checkout."""

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
from robust_ham.config.files import config_folder
from robust_ham.data.datasets import PACKAGED
from robust_ham.models.checkpoints import ZOO
assert attacks.__file__.startswith({target!r}), attacks.__file__
assert robust_ham.__file__.startswith({target!r})
assert str(config_folder()) == {target!r} + "/robust_ham/configs"
assert len(list((ZOO / "fashion_mnist").iterdir())) == 30
assert (PACKAGED / "fashion_mnist" / "LICENSE").is_file()
from robust_ham.cli import main
main.main()
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


def test_the_wheel_works_outside_the_checkout(wheel, tmp_path):
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    code = USE.format(target=str(target))
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "6 jobs: 2 models, 2 attacks" in done.stdout


def test_the_wheel_contains_our_files_only(wheel):
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


# --- in an untrusted folder ----------------------------------------------------------------------

BARE = "import sys; print(*sys.modules)"
HOSTILE = "import sys; sys.stderr.write(f'imported {__name__}'); sys.exit(99)"
PACKAGES = (
    "attacks torch yaml numpy pandas typer pydantic rich foolbox ray scipy sitecustomize mine"
)


@pytest.fixture(scope="module")
def untrusted_folder(tmp_path_factory):
    """A folder of modules named like ours, except those that ``python -m`` imports first."""
    bare, folder = tmp_path_factory.mktemp("bare"), tmp_path_factory.mktemp("untrusted_folder")
    (bare / "bare.py").write_text(BARE)
    command = [sys.executable, "-m", "bare"]
    done = subprocess.run(command, cwd=bare, check=True, capture_output=True, text=True).stdout
    for name in {*sys.stdlib_module_names, *PACKAGES.split()} - {*done.split()}:
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
def test_nothing_is_imported_from_the_current_folder(words, shown, untrusted_folder):
    done = subprocess.run(
        [sys.executable, *words], cwd=untrusted_folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert shown in done.stdout


def test_a_custom_attack_is_found_in_the_current_folder(tmp_path):
    (tmp_path / "custom_attack_here.py").write_text(
        "def attack(model, images, labels): return images"
    )
    (tmp_path / "torch.py").write_text(HOSTILE)
    command = [sys.executable, "-m", "robust_ham", "run", "smoke", "--dry-run"]
    command += ["-o", "attacks.custom={attack: 'custom_attack_here:attack'}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cnn2-w8-k5-hamming-s0/custom" in done.stdout


def test_the_package_in_the_current_folder_is_used_if_no_other_is_installed(wheel, tmp_path):
    """As in a checkout that is not installed."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    command = [sys.executable, "-m", "robust_ham", "list", "windows"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "hamming" in done.stdout


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
