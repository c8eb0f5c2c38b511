"""Adversarial robustness of baseline and windowed CNNs across kernel sizes.

``load_images`` and ``load_model``, or bring your own; ``evaluate`` networks on images, ``compare``
what came out, put windows into a network by ``windowed``; the command line, ``robust-ham``, does
whole studies.
"""

# With `python -m robust_ham`, this runs while a stranger's folder is still the first place to
# import from: nothing is imported here that Python itself has not imported already.
import importlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from robust_ham.analysis.compare_tables import compare
    from robust_ham.api import evaluate, load_images, load_model
    from robust_ham.models.surgery import windowed

__version__ = "0.1.0"
__all__ = ["compare", "evaluate", "load_images", "load_model", "windowed"]

_PLACES = {
    "compare": "analysis.compare_tables",
    "evaluate": "api",
    "load_images": "api",
    "load_model": "api",
    "windowed": "models.surgery",
}


def __getattr__(name: str) -> object:
    """Import on first use: the package itself stays without torch."""
    if name not in _PLACES:
        raise AttributeError(f"module 'robust_ham' has no attribute {name!r}")
    return getattr(importlib.import_module(f"robust_ham.{_PLACES[name]}"), name)
