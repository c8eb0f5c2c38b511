"""A run of a second, and what of it must not depend on what happened to it. For test_faults."""

import os
import signal
from pathlib import Path

import torch
from torch import nn

from robust_ham.analysis.tables import write_tables
from robust_ham.config.files import parse_config
from robust_ham.runs.plan.plan import make_plan
from robust_ham.runs.runner import inline, run_plan
from robust_ham.storage import files

CONFIG = """
schema: 1
name: faults
dataset: {name: fashion_mnist, num_train: 1000, num_test: 40}
models:
  - architecture: cnn
    depth: 2
    widths: [8]
    first_kernel: same
    kernel_size: 3
    sweep: {window: [none, hamming]}
training: {epochs: 2, batch_size: 16, lr: 0.2, precision: float32}
attacks:
  deepfool_l2: {attack: deepfool, budget: 0.25, budgets: [0.1, 0.25, 0.5], steps: 10}
  shift: {attack: spatial_shift, max_translation: 1, stop: null}
transfer: {attack: deepfool_l2, budget: 0.5}
evaluation: {num_images: 12, shard_size: 6, threads: 1, keep_adversarials: true, gate: false}
"""
NUM_JOBS = 2 + 2 * 2 * 2
_VARIES = ("timings.csv", "manifest.json", "run.log", "SHA256SUMS")


class Listening:
    """Keeps what it is told."""

    def __init__(self):
        self.outcomes, self.notes = {}, []

    def started(self, num_jobs):
        pass

    def job_started(self, name):
        return lambda done, total: None

    def job_ended(self, name, outcome, seconds):
        self.outcomes[name] = outcome

    def note(self, line):
        self.notes.append(line)


def run_here(folder, data, config=CONFIG, executor=inline, monitor=None):
    """Run, write the tables, and say what became of each job and what was noted."""
    monitor, folder = monitor or Listening(), Path(folder)
    plan = make_plan(parse_config(config), Path(data))
    assert run_plan(plan, folder, torch.device("cpu"), monitor, executor).num_failed == 0
    write_tables(folder)
    return monitor


def results(folder):
    """Every file of a run but times and logs."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
        and path.name not in _VARIES
        and path.relative_to(folder).parts[0] not in ("superseded", "locks")
    }


def run_in_child(folder, data, report=None):
    """The same in a process of its own, which writes down what became of each job."""
    monitor = run_here(folder, data)
    if report is not None:
        files.write_json(Path(report), {"outcomes": monitor.outcomes})


def run_until_killed(folder, data):
    """The same, for a process that its parent kills."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    run_here(folder, data)


def run_as_nobody(folder, data, report):
    """The same by a user who may not write there; the report is sent how it ended."""
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    try:
        run_here(folder, data)
    except OSError as error:
        report.send(type(error).__name__)


def dies_once():
    """A factory whose process the system kills the first time, as for want of memory."""
    marker = Path(os.environ["FAULTS_MARKER"])
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def dies_always():
    """A factory whose process the system kills whenever it is called."""
    os.kill(os.getpid(), signal.SIGKILL)
