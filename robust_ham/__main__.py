"""``python -m robust_ham`` is ``robust-ham``.

Python puts the current folder first on the import path, where a file ``torch.py`` would be run;
remove it before anything else is imported.
"""

import os
import sys

_PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if __name__ == "__main__" and not sys.flags.safe_path and os.path.abspath(sys.path[0]) != _PACKAGES:
    del sys.path[0]

from typing import NoReturn  # noqa: E402 - see above

from robust_ham.storage import signals  # noqa: E402


def main() -> NoReturn:
    """Run the command line; signals are held until it is imported."""
    signals.hold()
    from robust_ham.cli import main

    main.main()


if __name__ == "__main__":
    main()
