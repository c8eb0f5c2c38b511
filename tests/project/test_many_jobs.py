"""Runs of thousands of jobs: what is done per job must not grow with the number of jobs."""

import itertools
import json
import logging
import re
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from faulty_runs import Listening
from many_jobs import make_many
from scipy import stats
from test_faults import write_data

from robust_ham.analysis.statistics import wilcoxon
from robust_ham.analysis.tables import write_tables
from robust_ham.report.formats import Table
from robust_ham.report.paged import rows_as_json, shorten_svgs
from robust_ham.runs import attempt
from robust_ham.runs.runner import run_plan
from robust_ham.runs.status import read_status
from robust_ham.storage import locks

CONFIG = """
schema: 1
name: many
dataset: {name: fashion_mnist, num_train: 1000, num_test: 40}
models:
  - {architecture: cnn, depth: 1, widths: [4], first_kernel: same, kernel_size: 3,
     sweep: {window: [none, hamming], seed: SEEDS}}
training: {epochs: 1, batch_size: 100, lr: 0.2, precision: float32}
attacks:
  deepfool: {attack: deepfool, steps: 2}
  shift: {attack: spatial_shift, max_translation: 1}
evaluation: {num_images: 4, threads: 1}
"""
SIZES = (2, 8)
listening = []  # the last list hears of every file that is opened


def note_opened(event, arguments):
    if event == "open" and listening:
        listening[-1].append(str(arguments[0]))


sys.addaudithook(note_opened)


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    data = write_data(tmp_path_factory.mktemp("data"))
    folders = [tmp_path_factory.mktemp("run") for _ in SIZES]
    return [make_many(f, data, n, CONFIG) for f, n in zip(folders, SIZES, strict=True)]


def restart(context):
    monitor = Listening()
    outcome = run_plan(context.plan, context.run.root, torch.device("cpu"), monitor)
    assert (outcome.num_failed, outcome.distrusted) == (0, ())
    assert set(monitor.outcomes.values()) == {"already there", "0 fail, 0 warn"}


VERBS = {
    "restart": restart,
    "status": lambda context: read_status(context.run.root),
    "report": lambda context: write_tables(context.run.root),
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_no_file_is_opened_more_often_where_there_are_more_jobs(contexts, verb):
    most = []
    for context in contexts:
        listening.append([])
        verb(context)
        inside = [path for path in listening.pop() if path.startswith(str(context.run.root))]
        most.append(Counter(re.sub(r"\.[0-9a-f]{8}\.tmp", "", path) for path in inside))
    few, many = (max(counts.values()) for counts in most)
    assert few == many
    per_job = [sum(c.values()) / len(x.plan.jobs) for c, x in zip(most, contexts, strict=True)]
    assert per_job[1] <= per_job[0]


def test_an_idle_restart_takes_as_many_locks_whatever_there_is(contexts, monkeypatch):
    taken, lock = [], locks.try_lock
    for module in (locks, attempt):
        monkeypatch.setattr(module, "try_lock", lambda path: taken.append(path) or lock(path))
    numbers = []
    for context in contexts:
        taken.clear()
        restart(context)
        numbers.append(len(taken))
    assert numbers[0] == numbers[1] > 0


def test_an_idle_restart_logs_one_line_for_all_that_was_there(contexts, caplog):
    caplog.set_level(logging.DEBUG, "robust_ham")
    logging.getLogger("robust_ham").propagate = True
    logged = []
    for context in contexts:
        caplog.clear()
        size = context.run.timings.stat().st_size
        restart(context)
        logged.append(list(caplog.messages))
        added = context.run.timings.read_bytes()[size:]
        assert added.count(b"\n") == 1  # the gate's
    count = len(contexts[-1].plan.jobs)
    assert len(logged[0]) == len(logged[1]) < 5
    assert f"{count} of {count} jobs were already finished" in logged[1]


def test_tied_ranks_of_few_pairs_are_tested_exactly():
    generator = np.random.default_rng(0)
    for count in [*range(1, 14)] * 2:
        one, other = generator.integers(0, 4, (2, count)) / 4
        left = (one - other)[one != other]
        expected = stats.wilcoxon(left).pvalue if len(left) else 1.0
        if len(np.unique(np.abs(left))) < len(left):  # old versions of scipy ignore ties
            expected = p_of_all_signs(left)
        assert wilcoxon(one, other) == expected


def p_of_all_signs(left):
    """The two-sided p of the rank sum by its definition."""
    ranks = stats.rankdata(np.abs(left))
    signs = np.array(list(itertools.product([0, 1], repeat=len(left))))
    sums, seen = signs @ ranks, ranks[left > 0].sum()
    return min(1.0, 2 * min((sums <= seen).mean(), (sums >= seen).mean()))


def test_columns_of_numbers():
    rows = [["1", "1.5 [1, 2]", "nan", "3 of 4", "2x"], ["2", "×0.5", "−inf", "–", "none"]]
    table = Table("t", "", ["model", "effect", "energy", "seeds", "note"], rows)
    assert table.numeric == [False, True, True, True, False]


def test_rows_as_json_are_safe_inside_a_script():
    rows = [["</script><!--", "a"], ["x & y\u2028", "a"], ["ü∞", "b"], ["1", "b"], ["2", "b"]]
    text = rows_as_json(Table("t", "", ["one", "two"], rows))
    assert not set("<>&\u2028") & set(text)
    one, two = json.loads(text)["columns"]
    assert one == {"values": ["</script><!--", "x & y\\u2028", "ü∞", "1", "2"]}
    assert two == {"values": ["a", "b"], "places": [0, 0, 1, 1, 1]}


def test_pictures_are_shortened_without_mixing_them():
    picture = (
        '<svg><defs><path id="m0123456789" style="fill: red"/></defs>'
        '<use xlink:href="#m0123456789" style="fill: red"/>'
        '<text style="fill: blue" transform="rotate(-0 1 2)">0</text></svg>'
    )
    page = f'<head></head><p style="fill: red">"#m0123456789"</p>{picture}{picture}'
    assert shorten_svgs(page) == (
        "<head><style>\n.z0 { fill: red }\n.z1 { fill: blue }\n</style>\n</head>"
        '<p style="fill: red">"#m0123456789"</p>'
        + "".join(
            f'<svg><defs><path id="i{i}" class="z0"/></defs>'
            f'<use href="#i{i}" class="z0"/><text class="z1">0</text></svg>'
            for i in range(2)
        )
    )
