"""Signals wait for a file to be written, and are not lost in destructors."""

import contextlib
import os
import signal

import pytest

from robust_ham import stopping
from robust_ham.stopping import Stopped
from robust_ham.store import writing


@pytest.fixture(autouse=True)
def _own_handlers(monkeypatch):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(stopping, "_asked", None)
    stopping.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
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
        stopping.check()
