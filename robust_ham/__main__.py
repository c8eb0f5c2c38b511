"""``python -m robust_ham`` is ``robust-ham``."""

from typing import NoReturn

from robust_ham import stopping


def main() -> NoReturn:
    """Entry point: notes signals from the start, before everything else is imported."""
    stopping.hold()
    from robust_ham import cli

    cli.main()


if __name__ == "__main__":
    main()
