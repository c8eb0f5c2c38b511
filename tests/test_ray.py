"""Cells on a Ray cluster of two nodes, one of which dies: the same bytes as in one process."""

import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from faulty_runs import CONFIG, Listening, results, run_here
from test_faults import write_data
from test_remote import job_elsewhere

from robust_ham import stopping
from robust_ham.config_files import parse_config
from robust_ham.executors import run_plan
from robust_ham.plan import make_plan
from robust_ham.ray_executor import on_ray

CPU = torch.device("cpu")
ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def expected(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inline")
    run_here(folder, data)
    return results(folder)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    from ray.cluster_utils import Cluster

    marker = tmp_path_factory.mktemp("marker") / "died"
    environment = {"PYTHONPATH": str(Path(__file__).parent), "FAULTS_MARKER": str(marker)}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    ray.init(
        cluster.address,
        logging_level="error",
        log_to_driver=False,
        runtime_env={"env_vars": environment},
    )
    yield cluster
    ray.shutdown()
    cluster.shutdown()


OWN_MODEL = CONFIG.replace(
    CONFIG[CONFIG.index("models:") : CONFIG.index("attacks:")],
    'models:\n  - {factory: "faulty_runs:dies_once", pretrained: true, prefix: own}\n',
).replace("transfer: {attack: deepfool_l2, budget: 0.5}\n", "")


class KillsANode(Listening):
    """Once the first attack has ended."""

    def __init__(self, cluster, node):
        super().__init__()
        self.cluster, self.node = cluster, node

    def cell_ended(self, name, outcome, seconds):
        super().cell_ended(name, outcome, seconds)
        if "/" in name and self.node is not None:
            self.cluster.remove_node(self.node, allow_graceful=False)
            self.node = None


def test_a_node_dies(cluster, data, expected, tmp_path):
    monitor = KillsANode(cluster, cluster.add_node(num_cpus=1))
    run_here(tmp_path, data, executor=on_ray(data), monitor=monitor)
    assert monitor.node is None
    assert results(tmp_path) == expected
    again = [name for name, outcome in monitor.outcomes.items() if outcome != "done"]
    assert len(again) <= 1  # one that the node had just written, and could not tell of
    assert {monitor.outcomes[name] for name in again} <= {"already there"}
    again = run_here(tmp_path, data, executor=on_ray(data))
    assert set(again.outcomes.values()) - {"done"} == {"already there"}


def test_results_come_back_where_the_folder_is_not_shared(
    cluster, data, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr("robust_ham.ray_executor.Job.of", job_elsewhere)
    monitor = run_here(tmp_path, data, executor=on_ray(data))
    assert results(tmp_path) == expected
    assert set(monitor.outcomes.values()) == {"done"}
    again = run_here(tmp_path, data, executor=on_ray(data))
    assert {o for name, o in again.outcomes.items() if name != "transfer"} == {"already there"}


def test_a_worker_is_killed(cluster, data, tmp_path, monkeypatch):
    monkeypatch.setenv("FAULTS_MARKER", str(tmp_path))  # here, nobody is to die
    plan = make_plan(parse_config(OWN_MODEL), data)
    monitor = Listening()
    failed = run_plan(plan, tmp_path / "run", CPU, monitor, on_ray(data)).num_failed
    assert failed == 0
    assert list(monitor.outcomes.values()) == ["done"] * 5


def test_a_cell_that_fits_nowhere_is_told_and_ctrl_c_stops(cluster, data, tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "_asked", None)
    before = signal.getsignal(signal.SIGINT)
    monitor = Listening()
    large = CONFIG.replace("threads: 1", "threads: 64")
    stopping.listen()
    timer = threading.Timer(5, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        with pytest.raises(stopping.Stopped) as stopped:
            run_here(tmp_path, data, large, on_ray(data), monitor)
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
        torch.set_num_threads(1)
    assert stopped.value.code == 130
    assert monitor.notes == ["no node of the cluster has 64 CPU for a cell: waiting"]


@pytest.mark.slow
def test_a_cell_that_kills_every_worker_fails_alone(cluster, data, tmp_path, monkeypatch):
    monkeypatch.setenv("FAULTS_MARKER", str(tmp_path))
    both = OWN_MODEL.replace(
        "  - {fac",
        '  - {factory: "faulty_runs:dies_always", pretrained: true, prefix: bad}\n  - {fac',
    )
    plan = make_plan(parse_config(both), data)
    monitor = Listening()
    assert run_plan(plan, tmp_path, CPU, monitor, on_ray(data)).num_failed == 5
    assert (
        monitor.outcomes["bad-faulty_runs-dies_always-k7-none-s0"] == "failed: WorkerCrashedError"
    )
    assert list(monitor.outcomes.values()).count("done") == 5
    assert "WorkerCrashedError" in (tmp_path / "failures.jsonl").read_text()
