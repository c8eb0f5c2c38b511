"""The suite imports, and writes and locks files, without what only Unix has."""

import subprocess
import sys

CODE = """
import importlib, json, multiprocessing, os, pkgutil, signal, sys
from pathlib import Path

import foolbox, matplotlib.pyplot, pandas, pyarrow.parquet, rich.progress, torchvision, typer
import torch.distributed, torch.utils.data, torch.profiler, kornia.geometry, scipy.stats, seaborn

for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("geteuid", "getegid", "fork", "register_at_fork", "pread", "setsid", "statvfs"):
    delattr(os, name)
for name in ("sysconf", "listxattr"):
    delattr(os, name)
del signal.SIGHUP

import attacks, robust_ham
for package in (attacks, robust_ham):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if module.name != "robust_ham.__main__":
            importlib.import_module(module.name)

from robust_ham.storage import run_logs, signals
from robust_ham.storage.files import read_json, write_json
from robust_ham.storage.locks import locked, owner, try_lock
from robust_ham.storage.output_folder import claim, refuse_unusable
from robust_ham.storage.run_folder import RunFolder
from robust_ham.runs.manifest import peak_memory_mb

run = RunFolder(Path(sys.argv[1]))
claim(run.root, "portable")
refuse_unusable(run)
signals.listen()
with locked(run.lock("job")):
    assert owner(run.lock("job"))["pid"] == os.getpid()
    assert try_lock(run.lock("job")) is None
assert owner(run.lock("job")) is None
for _ in range(2):
    run_logs.note_timing(run, "job", 1.0)
assert run_logs.read_timings(run) == {"job": "1.0"}
write_json(run.root / "a.json", {"b": 1})
assert read_json(run.root / "a.json")["b"] == 1
assert peak_memory_mb() is None
print("done")
"""


def test_everything_imports_and_files_are_written(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", CODE, str(tmp_path / "run")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_file()) == [
        "a.json",
        "manifest.json",
        "timings.csv",
    ]
