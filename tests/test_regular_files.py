"""Only regular files are read, within a limit, and nothing waits for a pipe."""

import os
import socket

import pytest

from robust_ham.errors import RequestError
from robust_ham.regular_files import is_regular, memory_share, open_regular, read_bytes


def test_a_file_is_read_up_to_its_limit(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(RequestError, match="file: expected at most 4 bytes, got 5"):
        read_bytes(path, 4)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")


def test_pipes_folders_sockets_and_devices_are_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    os.mkfifo("pipe")
    os.mkdir("folder")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for name, kind in (
            ("pipe", "pipe"),
            ("folder", "folder"),
            ("socket", "socket"),
            ("/dev/zero", "device"),
        ):
            with pytest.raises(RequestError, match=f"{name}: expected a file, got a.*{kind}"):
                open_regular(tmp_path / name)
            assert not is_regular(tmp_path / name)


def test_links_are_followed_only_where_asked_and_never_to_a_device(tmp_path):
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "endless").symlink_to("/dev/zero")
    assert read_bytes(tmp_path / "link", 1, follow_links=True) == b"1"
    assert is_regular(tmp_path / "link", follow_links=True)
    assert not is_regular(tmp_path / "link")
    with pytest.raises(RequestError, match="link: expected a file, got a symbolic link"):
        open_regular(tmp_path / "link")
    for follow_links in (False, True):
        with pytest.raises(RequestError, match="endless: expected a file, got a"):
            open_regular(tmp_path / "endless", follow_links=follow_links)


def test_the_memory_of_this_machine_is_shared_out():
    assert 1 << 28 < memory_share(1.0) < 1 << 50
    assert memory_share(0.25) == memory_share(1.0) // 4
