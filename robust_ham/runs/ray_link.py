"""A Ray cluster, through the process that talks to it (``ray_driver.drive``)."""

from __future__ import annotations

import multiprocessing
import re
import time
from typing import Any, NoReturn

from robust_ham.errors import RequestError
from robust_ham.runs.plan.job import Job
from robust_ham.runs.ray_driver import AUTO, LOCAL, drive
from robust_ham.runs.worker_setup import WorkerSetup
from robust_ham.storage import signals

POLL_SECONDS = 0.5
_JOIN_SECONDS = 30.0
_START_SECONDS = 120.0  # of Ray on this machine
_SILENT_SECONDS = 90.0  # Ray itself waits a minute for its head to come back
_CLOSE_SECONDS = 10.0
_ENDED = "Ray ended its process on this machine"
_NO_START = "cannot start Ray on this machine"
_ADDRESS = re.compile(r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})", re.ASCII)


def check_address(key: str, address: str) -> str:
    """Return a valid address.

    Raises:
        RequestError: it is invalid.
    """
    port = _ADDRESS.fullmatch(address)
    if address in (AUTO, LOCAL) or (port and 0 < int(port[1]) < 2**16):
        return address
    raise RequestError(
        f"{key}: expected host:port of a Ray cluster's head, as `ray start --head` prints it, "
        f"auto or local, got {address!r}"
    )


class RayLink:
    """A Ray cluster, through the process that talks to it (``ray_driver.drive``)."""

    def __init__(self, address: str, cpus: int, gpus: float) -> None:
        self.address, self.needed = address, {"CPU": cpus, "GPU": gpus}
        spawn = multiprocessing.get_context("spawn")
        self.link, theirs = spawn.Pipe()
        self.process = spawn.Process(target=drive, args=(theirs, address, cpus, gpus))
        with signals.uninterrupted():
            self.process.start()
            theirs.close()
        self.answers, self.heard = False, time.monotonic()

    def join(self) -> str:
        """Wait for the cluster and return its address.

        Raises:
            ConnectionError: the cluster cannot be joined.
        """
        is_local = self.address == LOCAL
        limit = _START_SECONDS if is_local else _JOIN_SECONDS
        answer = self._receive(limit) or ("refused", f"no answer within {limit:g} s")
        if answer[0] != "joined":
            failure = f"the Ray cluster at {self.address} cannot be joined"
            raise ConnectionError(f"{_NO_START if is_local else failure}: {answer[1]}")
        _, joined, self.nodes = answer
        self.answers, self.heard = True, time.monotonic()
        return str(joined)

    def too_small(self) -> str | None:
        """Describe what no node of the cluster has for a job; None: some node is large enough."""
        if any(all(node.get(k, 0) >= v for k, v in self.needed.items()) for node in self.nodes):
            return None
        needed = " and ".join(f"{count:g} {name}" for name, count in self.needed.items() if count)
        return f"no node of the cluster has {needed} for a job: waiting"

    def start(self, setup: WorkerSetup, job: Job) -> None:
        """Submit a job."""
        try:
            self.link.send((setup, job))
        except OSError:
            self._raise_lost(_ENDED)

    def receive(self) -> tuple[Any, ...]:
        """Return the next message of ``drive``; empty if none comes within half a second.

        Raises:
            ConnectionError: the cluster is lost.
        """
        message = self._receive(POLL_SECONDS)
        if message and message[0] == "lost":
            self._raise_lost(message[1])
        if message:
            self.heard = time.monotonic()
        elif time.monotonic() - self.heard > _SILENT_SECONDS:
            self._raise_lost(f"no message for {_SILENT_SECONDS:g} s")
        return message

    def close(self) -> None:
        """End the process; if it still answers, give it time to end its tasks on Ray."""
        self.link.close()
        self.process.join(_CLOSE_SECONDS if self.answers else 0)
        self.process.kill()
        self.process.join()

    def _receive(self, seconds: float) -> tuple[Any, ...]:
        try:
            return self.link.recv() if self.link.poll(seconds) else ()
        except (EOFError, OSError):
            return "lost", _ENDED

    def _raise_lost(self, reason: str) -> NoReturn:
        self.answers = False
        raise ConnectionError(
            f"the Ray cluster is lost ({reason}); finished jobs are kept: rerun the same command "
            "to resume"
        )
