"""Command lines in forks of a process that has imported everything, with faults below Python.

The library of ``faulty_calls.c`` lets calls of the C library fail: what Python, C++ and Rust write
meets the fault alike. Where the user may, the process has mounts of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

KILLED, SHORT_WRITE = -1, -2
"""Beside the numbers of ``errno``: faults that a call may suffer."""
ALL = 1 << 60
_TIMEOUT_SECONDS, _TRACEBACK = 120, 70
_UNSHARE = ["unshare", "--mount"]


@dataclass(frozen=True)
class Fault:
    """Of the calls ``first`` to ``last`` on files below a folder."""

    kind: int
    first: int
    last: int


NO_FAULT = Fault(0, ALL, ALL)


@dataclass(frozen=True)
class Ended:
    """How a command has ended; ``num_calls``: on files below the folder, unless it was killed."""

    code: int
    output: str
    errors: str
    num_calls: int


class Commands:
    """Runs command lines of robust-ham, each in a fork; the first runs once before, to warm up."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def run(
        self,
        *words: object,
        below: object = "",
        fault: Fault = NO_FAULT,
        limits: dict[str, int] | None = None,
        environment: dict[str, str] | None = None,
        stdout: str | None = None,
    ) -> Ended:
        """Run a command line.

        Args:
            words: of the command line, without the program.
            below: the folder whose files the fault is of.
            fault: which calls suffer what.
            limits: names of ``resource.RLIMIT_…`` to numbers.
            environment: variables that are set.
            stdout: a file that is written to; else the output is part of what is returned.
        """
        return Ended(
            **self._ask(
                words=list(map(str, words)),
                below=str(below),
                fault=[fault.first, fault.last, fault.kind],
                limits=limits or {},
                environment=environment or {},
                stdout=stdout,
            )
        )

    def shell(self, *words: object) -> int:
        """Run another program where the commands are run, as ``mount``; its exit code."""
        code: int = self._ask(shell=list(map(str, words)))["code"]
        return code

    def seen(self, path: Path) -> Path:
        """The path to a file of a file system that is mounted there alone."""
        return Path(f"/proc/{self.process.pid}/root{path}")

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


def can_mount() -> bool:
    """Whether this user may mount file systems that nobody else sees."""
    command = [*_UNSHARE, "sh", "-c", "mount -t tmpfs none /mnt"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


def build_library(folder: Path) -> Path:
    """The library of faults; skips the test where it cannot be built or preloaded."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler, or no Linux: no faults below Python")
    library = folder / "faulty_calls.so"
    source = Path(__file__).with_name("faulty_calls.c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    return library


@contextlib.contextmanager
def commands(library: Path | None, warm_up: Sequence[object]) -> Iterator[Commands]:
    """Start the process, which runs a command line once to have everything imported."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if library is not None:
        environment["LD_PRELOAD"] = str(library)
    words = [*(_UNSHARE if can_mount() else []), sys.executable, __file__, *map(str, warm_up)]
    with subprocess.Popen(
        words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        started = Commands(process)
        assert started._ask(shell=["true"])["code"] == 0
        yield started
        assert process.stdin is not None
        process.stdin.close()


# --- in the process itself -------------------------------------------------------------------


def _serve() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    requests = os.fdopen(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    gc.freeze()
    logs = os.memfd_create("output"), os.memfd_create("errors"), os.memfd_create("calls")
    for line in requests:
        request = json.loads(line)
        if "shell" in request:
            ended = subprocess.run(request["shell"], check=False)
            answers.write(json.dumps({"code": ended.returncode}) + "\n")
            answers.flush()
            continue
        for log in logs:
            os.ftruncate(log, 0)
            os.lseek(log, 0, os.SEEK_SET)
        child = os.fork()
        if child == 0:
            os._exit(_run(request, *logs))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output, errors, calls = (os.pread(log, 1 << 20, 0).decode() for log in logs)
        about = {"output": output, "errors": errors, "num_calls": int(calls or -1)}
        answers.write(json.dumps({"code": code} | about) + "\n")
        answers.flush()


def _run(request: dict[str, Any], output: int, errors: int, calls: int) -> int:
    """Run a command line in the child, as the request asks for; its exit code."""
    from robust_ham.cli import main

    signal.alarm(_TIMEOUT_SECONDS)
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # found anew
    if request["stdout"] is not None:
        output = os.open(request["stdout"], os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    sys.argv = ["robust-ham", *request["words"]]
    for name, number in request["limits"].items():
        resource.setrlimit(getattr(resource, name), (number, number))
    library = ctypes.CDLL(None)
    if hasattr(library, "inject"):
        first, last, kind = map(ctypes.c_long, request["fault"])
        library.inject(request["below"].encode(), first, last, kind)
    code = _TRACEBACK
    try:
        main.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    gc.collect()  # destructors may complain, too
    sys.stderr.flush()
    if hasattr(library, "inject"):
        os.write(calls, str(library.count_calls()).encode())
    return code


def _warm_up(words: list[str]) -> None:
    """Run a command line here, and forget what it was."""
    from robust_ham.cli import main

    sys.argv = ["robust-ham", *words]
    with contextlib.suppress(SystemExit):
        main.main()


if __name__ == "__main__":
    _own_output = os.dup(1)
    os.dup2(2, 1)
    _warm_up(sys.argv[1:])
    os.dup2(_own_output, 1)
    _serve()
