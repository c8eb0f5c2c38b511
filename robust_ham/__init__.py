"""Adversarial robustness of baseline and windowed CNNs across kernel sizes.

Load images and networks by ``load_images`` and ``load_model``, or use your own. ``windowed`` adds
windows to a network, ``evaluate`` attacks networks, and ``compare`` compares the results. The
command line, ``robust-ham``, runs whole studies, and ``open_run`` reads their results.
"""

# `python -m robust_ham` runs this before `__main__` removes the current folder from the import
# path. Import only modules that Python itself has already imported.
import importlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from robust_ham.analysis.compare_tables import compare
    from robust_ham.api import evaluate, load_images, load_model
    from robust_ham.models.surgery import windowed
    from robust_ham.report.results import open_run

__version__ = "0.1.0"
__all__ = ["compare", "evaluate", "load_images", "load_model", "open_run", "windowed"]

_MODULES = {
    "compare": "analysis.compare_tables",
    "evaluate": "api",
    "load_images": "api",
    "load_model": "api",
    "open_run": "report.results",
    "windowed": "models.surgery",
}


def __getattr__(name: str) -> object:
    """Import a public function on first use, so that the package itself does not import torch."""
    if name not in _MODULES:
        raise AttributeError(f"module 'robust_ham' has no attribute {name!r}")
    return getattr(importlib.import_module(f"robust_ham.{_MODULES[name]}"), name)
