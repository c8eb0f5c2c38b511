"""The process that talks to Ray for a run; ``ray_runner`` starts it and reads its messages.

Ray's library blocks inside C++, replaces signal handlers, prints, and exits when a cluster dies. In
a separate process, which can be killed at any time, none of this affects the run.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from robust_ham.errors import RequestError
from robust_ham.runs.plan.job import Job
from robust_ham.runs.worker_setup import WorkerSetup

Answer = RequestError | tuple[Any, ...] | None
"""Answer of a worker: why it cannot take part, the fields of an ``Attempt``, or None: another
process is running the job."""

LOCAL, AUTO = "local", "auto"
"""Addresses: Ray on this machine only; the cluster that ``RAY_ADDRESS`` or Ray itself names."""

PROBE_SECONDS = 4.0
_POLL_SECONDS = 0.5
_CHECK_SECONDS = 2.0
_END_SECONDS = 40.0
_RETRIES = 3  # of a job whose worker has died
_NODE_DIED = "its process on this machine, raylet, has died"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4  # type of the first frame that an HTTP/2 server sends


def drive(link: Connection, address: str, cpus: int, gpus: float) -> None:
    """Join the cluster and run jobs on it until ``link`` is closed.

    Receives ``(setup, job)``. Sends ``("refused", reason)`` or ``("joined", address, [resources of
    each node])``, then for each job ``("ended", name, answer of run_job)``, ``("died", name,
    error)`` or ``("failed", name, reason)``, twice a second ``("news", {name: (done, total)})``,
    and ``("lost", reason)`` if the cluster is lost.
    """
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C is for the process that runs the plan
    os.chdir("/")  # Ray puts the current folder first on its workers' module path
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(link, events), daemon=True).start()
    try:
        reached = _reachable(address)
        for name in ("RAY_ADDRESS", "RAY_CLIENT_MODE"):  # the address is already decided
            os.environ.pop(name, None)
        import ray

        ray.init(address, logging_level="error", log_to_driver=False)
        driver = _Driver(link, events, cpus, gpus)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        link.send(("joined", reached, nodes))
    except (Exception, SystemExit) as error:
        link.send(("refused", one_line(error)))
        return
    try:
        driver.serve()
    except Exception as error:
        link.send(("lost", one_line(error)))
        os._exit(1)  # a normal exit would wait for the cluster
    ray.shutdown()


def one_line(error: BaseException) -> str:
    """Shorten an error of Ray, which may fill a page, to its reason."""
    error = error.__cause__ or error
    lines = str(error).splitlines()
    if any(line.endswith("Traceback (most recent call last):") for line in lines):
        lines = lines[max(n for n, line in enumerate(lines) if not line.startswith(" ")) :]
    reason = " ".join(" ".join(lines).split())[:500]
    plain = reason and isinstance(error, ConnectionError | RuntimeError)
    return reason if plain else f"{type(error).__name__}: {reason}".removesuffix(": ")


def _receive(link: Connection, events: queue.SimpleQueue[Any]) -> None:
    """In a thread: forward requests; end this process when ``link`` is closed."""
    while True:
        try:
            events.put(link.recv())
        except (EOFError, OSError):
            break
    events.put(None)
    time.sleep(_END_SECONDS)
    os._exit(1)  # Ray blocks the normal exit


def _reachable(address: str) -> str:
    """Return the address, with ``auto`` resolved, if a Ray head answers there.

    Raises:
        ConnectionError: none answers.
    """
    if address == LOCAL:
        return address
    if address == AUTO:
        from ray._private.services import canonicalize_bootstrap_address

        address = canonicalize_bootstrap_address(AUTO) or AUTO
    reasons = [f"no answer within {PROBE_SECONDS:g} s"]

    def probe() -> None:
        reasons.append(why_unreachable(address))

    thread = threading.Thread(target=probe, daemon=True)  # name resolution may take minutes
    thread.start()
    thread.join(PROBE_SECONDS + 0.5)
    if reasons[-1]:
        raise ConnectionError(reasons[-1])
    return address


def why_unreachable(address: str) -> str:
    """Return why ``host:port`` is not an HTTP/2 server, such as a Ray head; empty if it is."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PROBE_SECONDS / 2) as server:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return ""
            server.settimeout(PROBE_SECONDS / 2)
            server.sendall(_PREFACE)
            header = server.recv(9)
    except TimeoutError:
        return "no answer from a Ray head"
    except (OSError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return "" if header[3:4] == bytes([_SETTINGS]) else "the server there is not a Ray head"


class ProgressBoard:
    """Ray actor beside the driver that collects the progress of all workers."""

    def __init__(self) -> None:
        self.news = dict[str, tuple[int, int]]()

    def write_news(self, name: str, done: int, total: int) -> None:
        """Record the progress of a job."""
        self.news[name] = done, total

    def read_news(self) -> dict[str, tuple[int, int]]:
        """Return the progress recorded since the last call."""
        news, self.news = self.news, {}
        return news


class _Driver:
    """Submits jobs to Ray and reports how they end."""

    def __init__(
        self,
        link: Connection,
        events: queue.SimpleQueue[Any],
        cpus: int,
        gpus: float,
    ) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.ray, self.link, self.events = ray, link, events
        self.node = ray.get_runtime_context().get_node_id()
        self.run_job = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=_RETRIES)(run_job)
        self.board = ray.remote(  # restarted if it dies, without its recorded progress
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(self.node, soft=False),
        )(ProgressBoard).remote()
        self.news: Any = None
        self.reported = self.checked = time.monotonic()

    def serve(self) -> None:
        """Serve requests until the other end of the link is closed.

        Raises:
            Exception: the cluster is lost.
        """
        while True:
            try:
                event = self.events.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                event = ()
            if event is None:
                return
            if event and isinstance(event[0], WorkerSetup):
                self._start(*event)
            elif event:
                self._report_end(*event)
            if time.monotonic() - self.reported > _POLL_SECONDS:
                self._report_news()
            if time.monotonic() - self.checked > _CHECK_SECONDS:
                self._check()

    def _start(self, setup: WorkerSetup, job: Job) -> None:
        future = self.run_job.remote(setup, job, self.board).future()
        future.add_done_callback(lambda future: self.events.put((job.name, future)))

    def _report_end(self, name: str, future: Any) -> None:  # noqa: ANN401
        error = future.exception()
        errors = self.ray.exceptions
        if error is None:
            self.link.send(("ended", name, future.result()))
        elif isinstance(error, errors.LocalRayletDiedError):
            raise ConnectionError(_NODE_DIED)
        elif isinstance(error, errors.RayTaskError | errors.RaySystemError):
            self.link.send(("failed", name, one_line(getattr(error, "cause", None) or error)))
        else:  # its worker died at every retry
            self.link.send(("died", name, type(error).__name__))

    def _report_news(self) -> None:
        self.reported, news = time.monotonic(), {}
        if self.news is not None and self.ray.wait([self.news], timeout=0)[0]:
            try:
                news = self.ray.get(self.news)
            except self.ray.exceptions.RayError:  # the board is being restarted
                news = {}
            self.news = None
        if self.news is None:
            self.news = self.board.read_news.remote()
        self.link.send(("news", news))

    def _check(self) -> None:
        """Ask the head whether the node of this process is alive."""
        self.checked = time.monotonic()
        alive = {node["NodeID"] for node in self.ray.nodes() if node["Alive"]}
        if self.node not in alive:
            raise ConnectionError(_NODE_DIED)


def run_job(setup: WorkerSetup, job: Job, board: Any) -> Answer:  # noqa: ANN401
    """On a worker: run one job and report its progress twice a second."""
    from robust_ham.runs.ray_worker import run_on_worker

    reported = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal reported
        if time.monotonic() - reported > _POLL_SECONDS:
            reported = time.monotonic()
            board.write_news.remote(job.name, done, total)

    try:
        attempt = run_on_worker(setup, job, progress)
    except RequestError as error:
        return RequestError(f"{socket.gethostname()}: {error}")
    return tuple(attempt) if attempt else None
