"""The wheel holds everything, and works outside of the checkout as the editable install does."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import robust_ham
from robust_ham.config_files import config_folder

ROOT = Path(__file__).parent.parent
USE = """
import sys
sys.argv = ["robust-ham", "run", "smoke", "--dry-run"]
import attacks, robust_ham, robust_ham.plan
from robust_ham.config_files import config_folder
from robust_ham.data import PACKAGED
assert attacks.__file__.startswith({target!r}), attacks.__file__
assert robust_ham.__file__.startswith({target!r})
assert str(config_folder()) == {target!r} + "/robust_ham/configs"
assert len(list((robust_ham.plan.ZOO / "fashion_mnist").iterdir())) == 30
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
    assert "6 cells: 2 models, 2 attacks" in found.stdout


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
