"""The house: imports run downwards, only the command line prints."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = [  # each may import what stands before it
    {"errors", "stopping", "progress", "bounds"},
    {"working_folder", "regular_files", "spreadsheets", "memory"},
    {"locks", "config_fields", "yaml_reader", "streams"},
    {"model_groups", "monitor"},
    {"config"},
    {"run_folder", "store", "windows", "config_files", "splits", "renaming"},
    {"checksums", "ownership", "parquet_tables", "array_files", "pickle_check", "run_logs"},
    {"receipts", "cell", "safe_load"},
    {"layers", "analysis", "layouts", "foreign", "own_code", "distributed", "unfinished"},
    {"models", "normalisation", "data", "report", "batches", "status", "foreign_tables", "given"},
    {"fitting"},
    {"checkpoints", "catalogue", "perturbations"},
    {"memory_needs"},
    {"training", "judging"},
    {"evaluation"},
    {"plan", "peers", "importing"},
    {"context"},
    {"model_cells", "manifest", "profiling"},
    {"attack_cells"},
    {"cells"},
    {"job"},
    {"remote"},
    {"ray_driver", "stale", "black_box", "kernels", "transfer"},
    {"checks"},
    {"model_checks", "checked_model"},
    {"gate"},
    {"explain", "executors"},
    {"verify_files"},
    {"bench", "verify", "ray_executor", "api", "expected"},
    {"listing"},
    {"cli"},
    {"__main__"},
]
TORCHLESS = {
    "bounds",
    "config",
    "errors",
    "working_folder",
    "ownership",
    "regular_files",
    "memory",
    "array_files",
    "spreadsheets",
    "config_fields",
    "model_groups",
    "config_files",
    "yaml_reader",
    "stopping",
    "run_folder",
    "locks",
    "checksums",
    "receipts",
    "ray_driver",
    "run_logs",
    "job",
    "cell",
    "status",
    "monitor",
    "progress",
    "store",
    "parquet_tables",
    "analysis",
    "report",
    "foreign_tables",
}
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
FILES = sorted([*ROOT.glob("robust_ham/**/*.py"), *ROOT.glob("attacks/**/*.py")])


def imports(path):
    """Modules named by import statements, those for type checkers left out."""
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
            yield node.module
            if node.module == "robust_ham":
                yield from (f"robust_ham.{alias.name}" for alias in node.names)


def room(path):
    return path.relative_to(ROOT).parts[1].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path):
    package = path.relative_to(ROOT).parts[0]
    for name in imports(path):
        parts = name.split(".")
        if package == "attacks":
            assert parts[0] != "robust_ham", f"{path} imports {name}"
            assert parts[0] != "kornia" or path.name == "warp.py"
        elif parts[0] == "robust_ham" and len(parts) > 1 and path.name != "__init__.py":
            here, there = LEVEL[room(path)], LEVEL[parts[1]]
            assert there < here or parts[1] == room(path), f"{path} imports {name}: upwards"
        if package == "robust_ham" and room(path) in TORCHLESS:
            assert parts[0] not in {"torch", "torchvision", "kornia", "foolbox", "attacks"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_command_line_prints(path):
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    prints = [c for c in calls if getattr(c.func, "id", "") == "print"]
    assert not prints or path.name == "cli.py"


def test_every_room_has_its_level():
    rooms = {room(path) for path in FILES if "robust_ham" in path.parts} - {"__init__"}
    assert rooms == set(LEVEL)
