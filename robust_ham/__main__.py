"""``python -m robust_ham`` is ``robust-ham``."""

from robust_ham.cli import main

main()
