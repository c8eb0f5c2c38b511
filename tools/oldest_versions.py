"""Print pip constraints that pin every dependency in pyproject.toml to its lower bound."""

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def lower_bounds(pyproject: Path = PYPROJECT) -> dict[str, str]:
    """Map each required or optional package to its lowest allowed version.

    Raises:
        ValueError: a requirement is not ``name>=version``, or a package has two bounds.
    """
    project = tomllib.loads(pyproject.read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    bounds = dict[str, str]()
    for requirement in (line for group in groups for line in group):
        parts = re.fullmatch(r"([\w-]+)>=([\w.]+)", requirement)
        if parts is None or bounds.setdefault(parts[1], parts[2]) != parts[2]:
            raise ValueError(f"{requirement}: expected name>=version, the same in every extra")
    return bounds


if __name__ == "__main__":
    for name, bound in lower_bounds().items():
        print(f"{name}=={bound}")
