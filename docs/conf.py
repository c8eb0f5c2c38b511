"""Sphinx configuration of the documentation site: ``make docs``."""

import inspect
import shutil
import sys
from pathlib import Path

from sphinx.util.inspect import stringify_signature

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
shutil.copy(HERE.parent / "examples" / "compare_windows.ipynb", HERE)  # Sphinx reads docs/ only

project = "robust-ham"
copyright = "the robust-ham authors"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "robust-ham"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
nb_execution_mode = "off"
myst_heading_anchors = 3
napoleon_google_docstring = True
napoleon_numpy_docstring = False
suppress_warnings = ["misc.highlighting_failure"]  # Pygments has no lexer for csv


def setup(app):
    app.connect("autodoc-process-docstring", _escape_bars)
    app.connect("autodoc-process-signature", _keep_annotations)


def _escape_bars(app, what, name, obj, options, lines):
    """Read | in docstrings as mathematics, not as a substitution of reStructuredText."""
    lines[:] = [line.replace("|", "\\|") for line in lines]


def _keep_annotations(app, what, name, obj, options, arguments, returns):
    """Show type aliases by name, as in the source, not expanded."""
    if what == "function":
        return stringify_signature(inspect.signature(obj)), ""
    return None
