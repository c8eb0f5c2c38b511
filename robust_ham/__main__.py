"""``python -m robust_ham`` is ``robust-ham``.

Python puts the current folder first on the import path, where a file ``torch.py`` would be run;
remove it before anything else is imported.
"""

import os
import sys

_PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if __name__ == "__main__" and not sys.flags.safe_path and os.path.abspath(sys.path[0]) != _PACKAGES:
    del sys.path[0]

from collections.abc import MutableMapping  # noqa: E402 - see above
from typing import NoReturn  # noqa: E402

from robust_ham.storage import signals  # noqa: E402


def limit_spinning(environment: MutableMapping[str, str]) -> None:
    """Let waiting threads of OpenMP sleep soon, unless the user has chosen otherwise.

    By default they spin for so long that a run that shares its cores becomes many times slower.
    OpenMP reads the environment when torch is imported.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(environment):
        environment["GOMP_SPINCOUNT"] = "2000"


def main() -> NoReturn:
    """Run the command line; signals are held until it is imported."""
    signals.hold()
    limit_spinning(os.environ)
    from robust_ham.cli import main

    main.main()


if __name__ == "__main__":
    main()
