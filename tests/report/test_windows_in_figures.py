"""Every window has a row in each table, and a new window needs nothing else."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

from robust_ham.config.fields import Window
from robust_ham.models.windows import WINDOWS_2D
from robust_ham.report.figures.style import WINDOW_STYLES

TESTS = Path(__file__).parents[1]
ADD_A_WINDOW = """
import sys
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from robust_ham.config import fields

fields.Window = Literal[*get_args(fields.Window), "triangle"]

from robust_ham.models.windows import WINDOWS, window_2d
from robust_ham.report.figures.style import WINDOW_STYLES, WindowStyle

WINDOWS["triangle"] = np.bartlett
WINDOW_STYLES["triangle"] = WindowStyle("Triangle", 3, "*")

from test_curves import CONFIG
from test_page import make_run
from robust_ham.report.page import build_report

assert window_2d("triangle", 5, 5)[2, 2] == 1
config = CONFIG.replace("window: [none, hamming]", "window: [none, triangle]")
assert config != CONFIG
build_report(make_run(Path(sys.argv[1]), config).root)
"""


def test_all_tables_have_the_same_windows():
    assert set(get_args(Window)) == set(WINDOWS_2D) == set(WINDOW_STYLES)


def test_windows_differ_in_label_colour_and_marker():
    for values in zip(*WINDOW_STYLES.values(), strict=True):
        assert len(set(values)) == len(WINDOW_STYLES)


def test_a_new_window_is_one_row_in_each_table(tmp_path):
    folders = [TESTS / "report", TESTS / "analysis", *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-c", ADD_A_WINDOW, str(tmp_path)]
    subprocess.run(command, env=environment, check=True)
    page = (tmp_path / "report.html").read_text()
    assert "Triangle: equivalent at k = 3." in page
    assert "Triangle" in (tmp_path / "figures" / "robustness.svg").read_text()
