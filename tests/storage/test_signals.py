"""Signals wait for a file to be written, and are not lost in destructors."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from conftest import TINY_RUN

from robust_ham.storage import signals
from robust_ham.storage.files import writing
from robust_ham.storage.signals import Stopped


@pytest.fixture(autouse=True)
def _own_handlers(monkeypatch):
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
    monkeypatch.setattr(signals, "_exit_code", None)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    signals.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
def test_a_signal_stops_at_once(number, code):
    with pytest.raises(Stopped) as stopped:
        os.kill(os.getpid(), number)
    assert stopped.value.code == code


def test_a_file_being_written_is_finished_first(tmp_path):
    path = tmp_path / "file.txt"
    reached = []

    def write():
        with writing(path) as temporary:
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("still here")
            temporary.write_text("whole")

    with pytest.raises(Stopped):
        write()
    assert reached == ["still here"]
    assert path.read_text() == "whole"


def test_a_signal_that_was_swallowed_stops_at_the_next_check():
    with contextlib.suppress(Stopped):  # as a destructor would
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped):
        signals.check()


# --- many signals --------------------------------------------------------------------------------

SETUP = """
import os, signal, sys
from robust_ham.cli import main as cli
from robust_ham.storage import signals
"""
LINE = "robust-ham: Stopped. Finished jobs are kept; rerun the same command to resume.\n"


def ended(program):
    """How a Python process of its own ends: exit code and standard error."""
    command = [sys.executable, "-c", SETUP + textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("signals.hold(); flood(); cli.main()", id="before the command line"),
        pytest.param("cli.app = lambda *_, **__: flood(); cli.main()", id="at work"),
        pytest.param("cli.app = lambda *_, **__: fail(flood); cli.main()", id="while it cleans up"),
        pytest.param("cli.app = lambda *_, **__: convert(); cli.main()", id="as another error"),
        pytest.param("cli.app = lambda *_, **__: write(); cli.main()", id="while it writes"),
        pytest.param("cli.app = lambda *_, **__: destroy(); cli.main()", id="in a destructor"),
        pytest.param(
            "cli.report_error = lambda e: flood(); cli.main()", id="while an error is shown"
        ),
        pytest.param("cli.complain = last; cli.app = flood; cli.main()", id="at the last line"),
    ],
)
def test_a_flood_of_signals_ends_in_one_line(moment):
    program = f"""
    def flood(*_, **__):
        for _ in range(300):
            for number in signals.SIGNALS:
                os.kill(os.getpid(), number)

    def fail(clean_up):
        try:
            flood()
        finally:
            clean_up()

    def convert():
        try:
            flood()
        except BaseException:
            raise RuntimeError("a library's own error")

    def write():
        with signals.uninterrupted():
            flood()

    class Destroyed:
        def __del__(self):
            flood()

    def destroy():
        Destroyed()
        signals.check()

    complain = cli.complain
    def last(line):
        flood()
        complain(line)

    sys.argv = ["robust-ham", "list", "no such topic"]
    {moment}
    """
    assert ended(program) == (143, LINE)


def test_signals_after_the_work_change_nothing():
    program = """
    import atexit
    def flood():
        for _ in range(300):
            os.kill(os.getpid(), signal.SIGTERM)
    atexit.register(flood)
    cli.flush_streams = lambda: flood() or True
    cli.app = lambda *_, **__: 3
    cli.main()
    """
    assert ended(program) == (3, "")


def test_a_signal_seconds_after_the_first_ends_a_process_that_hangs():
    program = """
    import time
    signals.PATIENCE_SECONDS = 0.2
    def hang(*_, **__):
        with signals.uninterrupted():
            for _ in range(100):
                os.kill(os.getpid(), signal.SIGHUP)
                time.sleep(0.05)
    cli.app = hang
    cli.main()
    """
    assert ended(program) == (143, LINE)


def test_nohup_is_respected():
    program = """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    cli.app = lambda *_, **__: os.kill(os.getpid(), signal.SIGHUP)
    cli.main()
    """
    assert ended(program) == (0, "")


def caught(pid):
    """Whether a process has a handler for SIGTERM."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("SigCgt"))
    return int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("shown", ["", "tiny: ", "[1/6]"])
def test_a_command_that_is_flooded_with_signals(tmp_path, shown):
    """From the moment on that it hears of signals; then the same command goes on."""
    (tmp_path / "tiny.yaml").write_text(TINY_RUN)
    command = [sys.executable, "-m", "robust_ham", "run", "tiny.yaml", "--out", "run"]
    command += ["-o", "evaluation.threads=1"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not caught(process.pid):
        time.sleep(0.001)
    while shown and not process.stdout.readline().startswith(shown):
        pass
    count = 0
    while process.poll() is None:
        process.send_signal(signals.SIGNALS[count % 3])
        count += 1
        time.sleep(0.001)
    _, errors = process.communicate()
    assert (process.returncode in (130, 143), errors) == (True, LINE)
    assert count > 1
