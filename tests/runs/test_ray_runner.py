"""Jobs on a Ray cluster of two nodes, one of which dies: the same bytes as in one process."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from faulty_runs import CONFIG, Listening, results, run_here
from test_faults import write_data
from test_ray_worker import job_elsewhere

from robust_ham.config.files import parse_config
from robust_ham.errors import RequestError
from robust_ham.runs.plan.plan import make_plan
from robust_ham.runs.ray_driver import why_unreachable
from robust_ham.runs.ray_runner import on_ray
from robust_ham.runs.runner import run_plan
from robust_ham.storage import signals

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
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:  # its workers get what is set here
        patch.setenv("PYTHONPATH", path.rstrip(os.pathsep))
        patch.setenv("FAULTS_MARKER", str(marker))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        yield cluster
    cluster.shutdown()


def processes_of_ray(name):
    """Workers on this machine that are called so, of clusters that this test has started."""
    import psutil  # ray brings its own

    return [
        process
        for process in psutil.Process().children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE and [*process.cmdline(), ""][0].startswith(name)
    ]


OWN_MODEL = CONFIG.replace(
    CONFIG[CONFIG.index("models:") : CONFIG.index("attacks:")],
    'models:\n  - {factory: "faulty_runs:dies_once", pretrained: true, prefix: own}\n',
).replace("transfer: {attack: deepfool_l2, budget: 0.5}\n", "")


class KillsANode(Listening):
    """A second node joins after the run has, and dies once the first attack has ended."""

    def __init__(self, cluster):
        super().__init__()
        self.cluster, self.node = cluster, None

    def note(self, line):
        super().note(line)
        if "joined" in line:
            self.node = self.cluster.add_node(num_cpus=1)

    def job_ended(self, name, outcome, seconds):
        super().job_ended(name, outcome, seconds)
        if "/" in name and self.node is not None:
            self.cluster.remove_node(self.node, allow_graceful=False)
            self.node = None


def test_a_node_dies(cluster, data, expected, tmp_path):
    monitor = KillsANode(cluster)
    run_here(tmp_path, data, executor=on_ray(data, cluster.address), monitor=monitor)
    assert monitor.node is None
    assert results(tmp_path) == expected
    again = [name for name, outcome in monitor.outcomes.items() if outcome != "done"]
    assert len(again) <= 1  # one that the node had just written, and could not tell of
    assert {monitor.outcomes[name] for name in again} <= {"already there"}
    again = run_here(tmp_path, data, executor=on_ray(data, cluster.address))
    assert set(again.outcomes.values()) - {"done"} == {"already there"}


class KillsTheBoard(Listening):
    """Once the first model is trained, the actor that collects progress dies."""

    killed = ()

    def job_ended(self, name, outcome, seconds):
        super().job_ended(name, outcome, seconds)
        if not self.killed:
            self.killed = [p for p in processes_of_ray("ray::ProgressBoard") if p.kill() is None]


def test_lost_progress_does_not_matter(cluster, data, expected, tmp_path):
    monitor = KillsTheBoard()
    run_here(tmp_path, data, executor=on_ray(data, cluster.address), monitor=monitor)
    assert len(monitor.killed) == 1
    assert results(tmp_path) == expected
    assert set(monitor.outcomes.values()) == {"done"}


def test_a_worker_that_does_not_see_the_folder_is_refused(cluster, data, tmp_path, monkeypatch):
    monkeypatch.setattr("robust_ham.runs.ray_runner.WorkerSetup.of", job_elsewhere)
    message = r"^\S+: this worker does not see the run folder /nowhere: write the run \(--out\) to"
    with pytest.raises(RequestError, match=message):
        run_here(tmp_path, data, executor=on_ray(data, cluster.address))
    assert not any((tmp_path / "models").glob("*"))


def test_a_worker_is_killed(cluster, data, tmp_path, monkeypatch):
    monkeypatch.setenv("FAULTS_MARKER", str(tmp_path))  # here, nobody is to die
    plan = make_plan(parse_config(OWN_MODEL), data)
    monitor = Listening()
    executor = on_ray(data, cluster.address)
    failed = run_plan(plan, tmp_path / "run", CPU, monitor, executor).num_failed
    assert failed == 0
    assert list(monitor.outcomes.values()) == ["done"] * 5


def test_a_job_that_fits_nowhere_is_told_and_ctrl_c_stops(cluster, data, tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "_exit_code", None)
    before = signal.getsignal(signal.SIGINT)
    monitor = Listening()
    large = CONFIG.replace("threads: 1", "threads: 64")
    signals.listen()
    timer = threading.Timer(5, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        with pytest.raises(signals.Stopped) as stopped:
            run_here(tmp_path, data, large, on_ray(data, cluster.address), monitor)
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
        torch.set_num_threads(1)
    assert stopped.value.code == 130
    assert monitor.notes == [
        f"joined the Ray cluster at {cluster.address}",
        "no node of the cluster has 64 CPU for a job: waiting",
    ]


# --- addresses -----------------------------------------------------------------------------------


@contextlib.contextmanager
def server(answer):
    """The address of a server that sends this to each who connects, and then stays silent."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        connections = []

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection = listening.accept()[0]
                    connections.append(connection)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}", connections
        listening.shutdown(socket.SHUT_RDWR)
    for connection in connections:
        connection.close()


@pytest.mark.parametrize(
    "address",
    [
        *("", " ", "head", "head:", ":6379", "head:port", "head:0", "head:65536", "head:6379:1"),
        *("ray://head:10001", "http://head:8265", "head: 6379", "head:6379\n", "a/b:1", "::1:6379"),
        *("head:٦٣٧٩", "Auto", "user@head:6379", "[::1]", "-:-1"),
    ],
)
def test_what_is_no_address_is_refused_at_once(address, monkeypatch):
    with pytest.raises(RequestError, match="^--address: expected host:port of a Ray .*, got '"):
        on_ray(None, address)
    monkeypatch.setenv("RAY_ADDRESS", address or " ")
    on_ray(None)  # Ray on this machine
    with pytest.raises(RequestError, match="^RAY_ADDRESS: expected host:port"):
        on_ray(None, "auto")


@pytest.mark.parametrize("address", ["head:6379", "10.0.0.1:1", "[::1]:6379", "a-b.c_d:65535"])
def test_addresses(address):
    assert callable(on_ray(None, address))


NOT_RAY = "the server there is not a Ray head"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "no answer from a Ray head"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", NOT_RAY),
        (b"SSH-2.0-OpenSSH_9.2\r\n", NOT_RAY),
        (b"\x00\x00\x06\x04\x00\x00\x00\x00\x00", ""),
    ],
)
def test_what_answers_at_an_address(answer, reason, monkeypatch):
    monkeypatch.setattr("robust_ham.runs.ray_driver.PROBE_SECONDS", 0.5)
    with server(answer) as (address, _):
        assert why_unreachable(address) == reason


def test_addresses_where_nothing_is():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        closed = f"127.0.0.1:{listening.getsockname()[1]}"
    assert why_unreachable(closed) == "Connection refused"
    assert why_unreachable("nowhere.invalid:6379")
    assert why_unreachable(f"{'a' * 70}.invalid:6379")
    assert why_unreachable("a..b:6379")


def test_a_port_where_nothing_speaks_takes_seconds_and_a_line(data, tmp_path):
    with server(b"") as (address, _):
        start = time.monotonic()
        with pytest.raises(ConnectionError, match=f"at {address} cannot be joined: no answer"):
            run_here(tmp_path, data, executor=on_ray(data, address))
        assert time.monotonic() - start < 10
    assert not list(tmp_path.glob("locks/ray-*"))


def test_a_signal_stops_a_run_that_waits_for_an_address(data, tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "_exit_code", None)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    signals.listen()
    with server(b"") as (address, connections):

        def stop():
            while not connections:
                time.sleep(0.01)
            stopped.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGTERM)

        stopped = []
        threading.Thread(target=stop, daemon=True).start()
        try:
            with pytest.raises(signals.Stopped):
                run_here(tmp_path, data, executor=on_ray(data, address))
        finally:
            signal.signal(signal.SIGTERM, before[0])
            signal.signal(signal.SIGINT, before[1])
        assert time.monotonic() - stopped[0] < 1


class StopsAtANote(Listening):
    """The first note ends the run, before any job."""

    def note(self, line):
        raise InterruptedError(line)


def test_a_leftover_address_is_not_joined_without_a_word(data, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    ignored = "^RAY_ADDRESS=127.0.0.1:1 is ignored: Ray runs on this machine; to join that cluster"
    with pytest.raises(InterruptedError, match=ignored):
        run_here(tmp_path, data, executor=on_ray(data), monitor=StopsAtANote())
    with pytest.raises(ConnectionError, match="127.0.0.1:1 cannot be joined: Connection refused"):
        run_here(tmp_path, data, executor=on_ray(data, "auto"))


# --- a cluster that dies -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["raylet", "gcs_server"])
@pytest.mark.parametrize("moment", ["joined", ": done"])
def test_a_cluster_that_is_lost_ends_the_run_in_one_line(victim, moment, data, expected, tmp_path):
    from ray.cluster_utils import Cluster

    (tmp_path / "run.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "robust_ham", "run", "run.yaml", "--stop-after", "attack"]
    command += ["--executor", "ray", "--data-root", str(data), "--out", "run"]
    lost = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        process = subprocess.Popen(
            [*command, "--address", lost.address],
            cwd=tmp_path,
            env=os.environ | {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"},  # 60 as it comes
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        lines = iter(process.stdout.readline, "")
        assert next(line for line in lines if moment in line)
        for info in lost.head_node.all_processes[victim]:
            os.kill(info.process.pid, signal.SIGKILL)
        out, error = process.communicate(timeout=200)
    finally:
        lost.shutdown()
    assert process.returncode == 1, out + error
    assert error.count("\n") == 1
    assert error.startswith("robust-ham: the Ray cluster is lost (")
    done = {str(path) for path in (tmp_path / "run").rglob("receipt.json")}
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (again.stdout.count("already there") > 0) == (moment != "joined")
    assert again.stderr == ""
    assert {str(path) for path in (tmp_path / "run").rglob("receipt.json")} >= done


@pytest.mark.slow
def test_a_job_that_kills_every_worker_fails_alone(cluster, data, tmp_path, monkeypatch):
    monkeypatch.setenv("FAULTS_MARKER", str(tmp_path))
    both = OWN_MODEL.replace(
        "  - {fac",
        '  - {factory: "faulty_runs:dies_always", pretrained: true, prefix: bad}\n  - {fac',
    )
    plan = make_plan(parse_config(both), data)
    monitor = Listening()
    executor = on_ray(data, cluster.address)
    assert run_plan(plan, tmp_path, CPU, monitor, executor).num_failed == 5
    assert (
        monitor.outcomes["bad-faulty_runs-dies_always-k7-none-s0"] == "failed: WorkerCrashedError"
    )
    assert list(monitor.outcomes.values()).count("done") == 5
    assert "WorkerCrashedError" in (tmp_path / "failures.jsonl").read_text()
