"""Long runs: memory and open files do not grow with the number of jobs; large plans are quick."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from faulty_runs import CONFIG
from test_faults import write_data

SOAK = """
import os, sys
import torch
from faulty_runs import Listening, run_here

class Measures(Listening):
    def __init__(self):
        super().__init__()
        self.count = 0

    def job_ended(self, name, outcome, seconds):
        self.count += 1
        if self.count % 100 == 0:
            pages = int(open("/proc/self/statm").read().split()[1])
            megabytes = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
            print(self.count, megabytes, len(os.listdir("/proc/self/fd")), flush=True)

run_here(sys.argv[1], sys.argv[2], open(sys.argv[3]).read(), monitor=Measures())
"""

PLAN = """
import resource, sys, time
from pathlib import Path
from robust_ham.config.files import parse_config
from robust_ham.runs.plan.plan import make_plan
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.monotonic()
plan = make_plan(parse_config(open(sys.argv[2]).read()), Path(sys.argv[1]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(plan.jobs), time.monotonic() - start, (peak - before) / 1e3)
"""


def run_script(script, *words):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", script, *map(str, words)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [[float(word) for word in line.split()] for line in ended.stdout.splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.slow
def test_memory_and_open_files_stay_as_they_are_over_a_thousand_jobs(data, tmp_path):
    seeds = list(range(100))
    config = CONFIG.replace("window: [none, hamming]", f"window: [none, hamming], seed: {seeds}")
    (tmp_path / "soak.yaml").write_text(
        config.replace("transfer: {attack: deepfool_l2, budget: 0.5}", "")
    )
    lines = run_script(SOAK, tmp_path / "run", data, tmp_path / "soak.yaml")
    assert lines[-1][0] == 1000
    memory, files = ([line[column] for line in lines] for column in (1, 2))
    print(lines)
    assert memory[-1] - memory[1] < 0.05 * memory[1]
    assert files[-1] <= files[1]


def test_the_plan_of_ten_thousand_jobs(data, tmp_path):
    """In 500 MB beside what importing torch takes; how long it took is printed."""
    seeds = f"window: [none, hamming], seed: {list(range(1000))}"
    (tmp_path / "many.yaml").write_text(CONFIG.replace("window: [none, hamming]", seeds))
    ((count, seconds, megabytes),) = run_script(PLAN, data, tmp_path / "many.yaml")
    print(f"{count:.0f} jobs in {seconds:.1f} s, {megabytes:.0f} MB")
    assert count == 10_000
    assert megabytes < 500
