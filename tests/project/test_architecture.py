"""Imports point down the list of packages, without cycles; only the command line prints."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = (  # each may import the ones after it
    "__main__ cli api experiments runs report analysis evaluation training models data storage "
    "config regular_files memory progress errors"
).split()
WITHOUT_TORCH = "config storage analysis report regular_files memory progress errors".split()
NEEDS_TORCH = {"torch", "torchvision", "kornia", "foolbox", "attacks"} | {
    f"robust_ham.{name}" for name in ORDER if name not in WITHOUT_TORCH
}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in [*ROOT.glob("robust_ham/**/*.py"), *ROOT.glob("attacks/**/*.py")]
}


def imports(path):
    """Yield the modules that a file imports, except for type checkers only."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(node)
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and getattr(guard.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(guard)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            inner = [name for name in names if name in FILES]
            yield from inner
            if len(inner) < len(names):
                yield node.module


def broken_rules(module, imported):
    """Describe the rule that an import breaks; empty if it breaks none."""
    package, *rest = module.split(".")
    target, *inner = imported.split(".")
    if package == "attacks":
        return "attacks imports robust_ham" if target == "robust_ham" else ""
    here = rest[0] if rest else "__main__"  # robust_ham.__init__ imports lazily
    if here in WITHOUT_TORCH and NEEDS_TORCH & {target, ".".join([target, *inner[:1]])}:
        return f"{here} must stay without torch"
    if target == "robust_ham" and inner and ORDER.index(inner[0]) < ORDER.index(here):
        return f"{here} imports {inner[0]}: upwards"
    return ""


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_point_down(module):
    for imported in imports(FILES[module]):
        assert not broken_rules(module, imported), f"{module} imports {imported}"


def test_no_import_cycle():
    arrows = {name: {m for m in imports(path) if m in FILES} for name, path in FILES.items()}
    list(graphlib.TopologicalSorter(arrows).static_order())


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("robust_ham.config.yaml", "robust_ham.storage.files"),
        ("robust_ham.report.page", "torch"),
        ("robust_ham.analysis.run", "robust_ham.models.build"),
        ("attacks.deepfool", "robust_ham.errors"),
    ],
)
def test_a_forbidden_import_is_found(module, imported):
    assert broken_rules(module, imported)


@pytest.mark.parametrize("module", sorted(FILES))
def test_only_the_command_line_prints(module):
    calls = [n for n in ast.walk(ast.parse(FILES[module].read_text())) if isinstance(n, ast.Call)]
    prints = [c for c in calls if getattr(c.func, "id", "") == "print"]
    assert not prints or module.startswith("robust_ham.cli.")


@pytest.mark.parametrize(
    "package", sorted(name for name, path in FILES.items() if path.name == "__init__.py")
)
def test_a_package_has_a_docstring(package):
    assert ast.get_docstring(ast.parse(FILES[package].read_text()))
