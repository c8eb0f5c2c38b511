"""Only regular files are read, within a limit, and nothing waits for a pipe."""

import ast
import errno
import io
import os
import socket
from pathlib import Path

import pytest

from robust_ham import memory, regular_files
from robust_ham.data.formats.images import open_image
from robust_ham.errors import RequestError
from robust_ham.memory import check_memory, memory_share, total_memory
from robust_ham.models.safe_load import read_safetensors, read_torch_file
from robust_ham.regular_files import is_regular, open_regular, open_to_append, read_bytes, read_text
from robust_ham.storage.array_files import read_arrays
from robust_ham.storage.files import read_csv, read_json


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


def test_a_loop_of_links_and_a_dangling_link(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    with pytest.raises(RequestError, match="loop: expected a file, got a loop of symbolic links"):
        open_regular(tmp_path / "loop", follow_links=True)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "dangling", follow_links=True)
    with pytest.raises(RequestError, match="dangling: expected a file, got a symbolic link"):
        open_regular(tmp_path / "dangling")


def test_text_is_read_as_python_does(tmp_path):
    path = tmp_path / "file"
    path.write_bytes("é\r\nb\rc\n".encode())
    assert read_text(path, 100) == path.read_text(encoding="utf-8") == "é\nb\nc\n"
    path.write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        read_text(path, 100)
    assert read_text(path, 100, errors="replace") == "\ufffd"


def test_text_is_added_to_regular_files_only(tmp_path):
    path = tmp_path / "log"
    for text in ("a\n", "é\n"):
        with open_to_append(path) as file:
            file.write(text.encode())
    assert path.read_bytes() == "a\né\n".encode()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("log")
    (tmp_path / "dangling").symlink_to("elsewhere")
    for name in ("pipe", "link", "dangling", "."):
        with pytest.raises(RequestError, match="expected a file, got a"):
            open_to_append(tmp_path / name)
    assert path.read_bytes() == "a\né\n".encode()
    assert not (tmp_path / "elsewhere").exists()


class FailingDisk(io.BytesIO):
    def read(self, *_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


READERS = [read_torch_file, read_safetensors, read_arrays, read_json, read_csv, open_image]


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_a_disk_that_fails_is_not_taken_for_a_damaged_file(read, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    monkeypatch.setattr(regular_files, "open_regular", lambda *_, **__: FailingDisk())
    with pytest.raises(OSError, match="Input/output error") as caught:
        read(path)
    assert caught.value.filename == str(path)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(
    ("text", "limit"), [("5000000\n", 5_000_000), ("max\n", None), ("9223372036854771712\n", None)]
)
def test_a_control_group_limits_the_memory(tmp_path, monkeypatch, version, text, limit):
    without = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    files = [tmp_path / name for name in ("memory.max", "memory.limit_in_bytes")]
    assert [str(path) for path in memory._CGROUP_LIMITS] == [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ]
    monkeypatch.setattr(memory, "_CGROUP_LIMITS", files)
    assert total_memory() == without
    files[version].write_text(text)
    assert total_memory() == (without if limit is None else limit)


def test_the_limit_is_a_share_of_this_machines_memory(monkeypatch):
    assert 1 << 28 < total_memory() < 1 << 50
    assert memory_share(0.25) == total_memory() // 4
    monkeypatch.setattr(memory, "total_memory", lambda: 24 * 10**9)
    check_memory("x", 6 * 10**9)
    line = r"x: expected at most 6.0 GB when unpacked \(a quarter of this machine's memory\), got "
    with pytest.raises(RequestError, match=line + "12.5 GB"):
        check_memory("x", 125 * 10**8)
    with pytest.raises(RequestError, match=line + "more"):
        check_memory("x", 6 * 10**9 + 1, so_far=True)


# --- the code opens files in one way -------------------------------------------------------------

SOURCES = sorted(Path(regular_files.__file__).parent.rglob("*.py"))
OPENERS = {
    *("open", "read_text", "read_bytes", "fromfile", "loadtxt", "read_excel", "read_feather"),
    *("ZipFile", "GzipFile", "ParquetFile", "load_file", "safe_open", "read_pickle", "memory_map"),
}
"""Last names of calls that open a path, or may."""
ALLOWED = {
    ("regular_files.py", "os.open"),  # the only way for users' files
    ("memory.py", "path.read_text"),  # of the kernel
    ("experiments/benchmark/profiling.py", "_STATUS.read_text"),  # of the kernel
    ("cli/streams.py", "open"),  # /dev/null
    ("cli/streams.py", "os.open"),
    ("runs/ray_driver.py", "os.open"),  # /dev/null
    ("storage/files.py", "os.open"),  # to flush what was just written
    ("storage/locks.py", "os.open"),  # creates the file, exclusively
    ("storage/array_files.py", "zipfile.ZipFile"),  # of bytes
    ("storage/array_files.py", "archive.open"),
    ("models/safe_load.py", "zipfile.ZipFile"),
    ("data/formats/idx.py", "gzip.GzipFile"),
    ("data/formats/images.py", "Image.open"),
    ("storage/parquet_tables.py", "pq.ParquetFile"),
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_files_are_opened_in_one_way(path):
    name = path.relative_to(SOURCES[0].parent).as_posix()
    opened = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            if call.rpartition(".")[2] in OPENERS:
                opened.add((name, call))
    safe = {(name, call) for call in ("read_text", "read_bytes")}
    assert opened - safe <= ALLOWED
