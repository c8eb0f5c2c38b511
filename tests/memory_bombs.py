"""Small files that stand for gigabytes, each given to its reader; run as a program.

Prints a JSON object: name of a file to its size, the message, and by how much the memory of this
process has grown at most.
"""

from __future__ import annotations

import gzip
import json
import os
import resource
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robust_ham import memory
from robust_ham.analysis.importing.readers import read_rows
from robust_ham.analysis.importing.validate import validate_rows
from robust_ham.config.experiment import DatasetConfig
from robust_ham.data.datasets import load_split
from robust_ham.errors import RequestError
from robust_ham.models.importing.state_dicts import read_network
from robust_ham.storage.array_files import read_arrays
from robust_ham.storage.files import read_csv, read_json
from robust_ham.storage.parquet_tables import read_table

MILLION = 10**6


def png(width: int, height: int) -> bytes:
    """A grey image without content, which packs a thousand times."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    packer, row = zlib.compressobj(9), bytes(1 + width)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def repeated(value: str | bytes, count: int) -> pa.Array:
    """A column of one value, stored once."""
    return pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), pa.array([value]))


def save_table(path: Path, **columns: object) -> None:
    """Write a parquet file that does not say that its columns are dictionaries."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, compression="zstd", store_schema=False)


def repeated_text(path: Path) -> None:
    """A text of 8,000 characters in a million rows."""
    save_table(path, attack=repeated("x" * 8000, MILLION), l2=np.zeros(MILLION))


def many_columns(path: Path) -> None:
    """90 columns of two million zeros."""
    zeros = pa.DictionaryArray.from_arrays(np.zeros(2 * MILLION, np.int8), pa.array([0]))
    save_table(path, **{f"c{i}": zeros for i in range(90)})


def nested_lists(path: Path) -> None:
    """Ten lists of a million numbers."""
    offsets = pa.array(np.arange(11) * MILLION, pa.int32())
    save_table(path, l2=pa.ListArray.from_arrays(offsets, np.zeros(10 * MILLION, np.int8)))


def repeated_image(path: Path) -> None:
    """One image of 80 million pixels in a thousand rows."""
    image = pa.StructArray.from_arrays([repeated(png(8_900, 9_000), 1000)], ["bytes"])
    save_table(path / "mine/test.parquet", image=image, label=np.arange(1000) % 2)


def repeated_bytes(path: Path) -> None:
    """100 MB that are no image, in a thousand rows."""
    image = pa.StructArray.from_arrays([repeated(bytes(100 * MILLION), 1000)], ["bytes"])
    save_table(path / "mine/test.parquet", image=image, label=np.arange(1000) % 2)


def large_images(path: Path) -> None:
    """20 images of 80 million pixels."""
    content = png(8_900, 9_000)
    for i in range(20):
        place = path / f"mine/test/{i % 2}/{i:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


def long_images(path: Path) -> None:
    """Two images of 2,000,000 × 1 pixels."""
    for i in range(2):
        place = path / f"mine/test/{i}/a.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(png(2 * MILLION, 1) if i else png(1, 2 * MILLION))


def idx(path: Path) -> None:
    """A header that says 10⁹ images."""
    raw = path / "MNIST/raw"
    raw.mkdir(parents=True)
    header = struct.pack(">IIII", 0x803, 10**9, 28, 28)
    (raw / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + bytes(MILLION)))
    labels = struct.pack(">II", 0x801, 10**9)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(labels)


def foreign_parquet(path: Path) -> None:
    """Names of 8,000 characters in two million rows."""
    count = 2 * MILLION
    names = {name: repeated("x" * 8000, count) for name in ("model", "attack")}
    save_table(path, **names, sample_id=np.arange(count), l2=np.ones(count))


def foreign_csv(path: Path) -> None:
    """The same in 20,000 rows of a text that packs nothing."""
    line = f"{'x' * 4000},a,1,1\n"
    path.write_text("model,attack,sample_id,l2\n" + line * 20_000)


def wide_csv(path: Path) -> None:
    """Fifty million columns."""
    path.write_bytes(b"," * (50 * MILLION) + b"\n" + b"," * 10)


def deep_json(path: Path) -> None:
    """Three million empty objects."""
    path.write_bytes(b'{"schema": 1, "x": [' + b"{}," * (3 * MILLION) + b"{}]}")


def npz(path: Path) -> None:
    """10 GB, as it says."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2500000000,), }\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("a.npy", "w", force_zip64=True) as member:
            member.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
            member.write(bytes(10 * MILLION))
        archive.infolist()[0].file_size = 10**10


def zip_with_pickle(path: Path, *opcodes: bytes) -> None:
    """What torch.save writes, with one number stored."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"".join(opcodes) + b".")
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", struct.pack("<f", 1.0))


def name(full: str) -> bytes:
    """GLOBAL."""
    module, _, last = full.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def whole(number: int) -> bytes:
    """LONG1."""
    return b"\x8a\x08" + number.to_bytes(8, "little")


def text(value: str) -> bytes:
    """BINUNICODE."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def call(full: str, *arguments: bytes) -> bytes:
    """REDUCE."""
    return name(full) + b"(" + b"".join(arguments) + b"tR"


def stored(count: int) -> bytes:
    """The storage, and how many numbers it is said to hold."""
    pid = b"(" + text("storage") + name("torch.FloatStorage") + text("0") + text("cpu")
    return pid + whole(count) + b"tQ"


def tensor(count: int, shape: int, stride: int, function: str = "tensor_v2") -> bytes:
    """A tensor of a storage of ``count`` numbers."""
    parts = [stored(count), whole(0), whole(shape) + b"\x85", whole(stride) + b"\x85", b"\x89"]
    return call(f"torch._utils._rebuild_{function}", *parts, call("collections.OrderedDict"))


def weight(value: bytes) -> bytes:
    """A mapping of one weight."""
    return b"}" + text("weight") + value + b"s"


PICKLES = {
    "bytearray": weight(call("builtins.bytearray", whole(3 * 10**9))),
    "python2_bytearray": weight(call("__builtin__.bytearray", whole(3 * 10**9))),
    "new_tensor": weight(name("torch.FloatTensor") + whole(10**9) + b"\x85\x81"),
    "call_storage": weight(call("torch.FloatStorage", whole(10**9))),
    "too_large_tensor": weight(tensor(1, 10**9, 1)),
    "too_large_storage": weight(tensor(10**9, 10**9, 1)),
    "expanded_tensor": weight(tensor(1, 10**9, 0)),
    "quantized_tensor": weight(tensor(1, 10**9, 0, "qtensor")),
    "encoded": weight(call("_codecs.encode", text("x" * 1000), text("utf-32"))),
    "many_sets": b"](" + b"\x8f" * (4 * MILLION) + b"e",
    "long_text": b"X" + struct.pack("<I", 3 * 10**9) + b"x",
    "copied_lists": b"]q\x00("
    + b"K\x01" * 10**5
    + b"e]("
    + name("builtins.set")
    + b"q\x01h\x00\x85R"
    + b"h\x01h\x00\x85R" * 10**4
    + b"e",
}


def old_layout(path: Path) -> None:
    """torch's layout before 1.6, with the first of the pickles above."""
    start = b"".join(b"\x80\x02" + whole(n) + b"." for n in (0x1950A86A20F9469CFC6C, 1001)[1:])
    path.write_bytes(start * 3 + b"\x80\x02" + PICKLES["bytearray"] + b"." + start)


def sparse_safetensors(path: Path) -> None:
    """A file of 1 TB, none of which is on the disk."""
    header = b'{"a":{"dtype":"U8","shape":[1000000000000],"data_offsets":[0,1000000000000]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + 10**12)


def read_data(name: str, image_size: int | None = None) -> Callable[[Path], object]:
    """Read the test split of a data set."""
    config = DatasetConfig(name=name, image_size=image_size)
    return lambda path: load_split(config, "test", path)


def read_foreign(path: Path) -> None:
    """Somebody else's table."""
    validate_rows(read_rows([path]))


BOMBS: dict[str, tuple[Callable[[Path], None], Callable[[Path], object]]] = {
    "text.parquet": (repeated_text, read_table),
    "columns.parquet": (many_columns, read_table),
    "lists.parquet": (nested_lists, read_table),
    "image": (repeated_image, read_data("mine")),
    "bytes": (repeated_bytes, read_data("mine", 28)),
    "folders": (large_images, read_data("mine")),
    "long": (long_images, read_data("mine", 28)),
    "idx": (idx, read_data("mnist")),
    "foreign.parquet": (foreign_parquet, read_foreign),
    "foreign.csv": (foreign_csv, read_foreign),
    "wide.csv": (wide_csv, read_csv),
    "deep.json": (deep_json, read_json),
    "a.npz": (npz, read_arrays),
    "old.pth": (old_layout, read_network),
    "a.safetensors": (sparse_safetensors, read_network),
}


def peak() -> float:
    """Most memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Read every bomb, as on a machine of 4 GB; another process has made them."""
    memory.total_memory = lambda: 4 * 10**9
    folder, found, before = Path(sys.argv[1]), {}, peak()
    for file, (_, read) in [*BOMBS.items(), *((f"{n}.pth", (None, read_network)) for n in PICKLES)]:
        try:
            read(folder / file)
            message = ""
        except (RequestError, ValueError) as error:
            message = str(error)
        found[file] = (message, peak() - before)
    print(json.dumps(found))


def make_all(folder: Path) -> None:
    """Write every bomb."""
    for file, (make, _) in BOMBS.items():
        make(folder / file)
    for file, opcodes in PICKLES.items():
        zip_with_pickle(folder / f"{file}.pth", opcodes)


if __name__ == "__main__":
    main()
