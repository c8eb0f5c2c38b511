"""Small files that stand for gigabytes are refused before they are unpacked."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_files import mnist_like, write_parquet
from memory_bombs import BOMBS, PICKLES, make_all
from PIL import Image

from robust_ham.config.experiment import DatasetConfig
from robust_ham.data.datasets import load_split
from robust_ham.data.formats.images import resize_and_crop
from robust_ham.models.importing.state_dicts import read_network
from robust_ham.storage.parquet_tables import read_table

ROOT = Path(__file__).parents[2]
FILES = [*BOMBS, *(f"{name}.pth" for name in PICKLES)]
SHARE = r"expected at most \S+ [GM]B when unpacked \(.* of this machine's memory\), got "
EXPECTED = {
    "text.parquet": SHARE + "more",
    "columns.parquet": SHARE + "1.4 GB",
    "lists.parquet": "l2: expected numbers or text, got list",
    "image": "mine: 1,000 decoded images: " + SHARE + "80.1 GB",
    "bytes": "test.parquet row 0: not a readable image",
    "folders": "test: 20 decoded images: " + SHARE + "1.6 GB",
    "long": "^$",
    "idx": "ubyte.gz: expected at most 10,000,000 images, got 1,000,000,000",
    "foreign.parquet": SHARE + "more",
    "foreign.csv": "row 1: model: expected at most 1,000 characters, got 4,000",
    "wide.csv": "expected at most 1,000 columns, got 50,000,001",
    "deep.json": "not a JSON file",
    "a.npz": SHARE + "10.0 GB",
    "old.pth": "it calls builtins.bytearray with an argument that is not text",
    "a.safetensors": SHARE + "1.0 TB",
    "bytearray.pth": "it calls builtins.bytearray with an argument that is not text",
    "python2_bytearray.pth": "it calls builtins.bytearray with an argument that is not",
    "new_tensor.pth": "refused, because it calls torch.FloatTensor, which weights do not need",
    "call_storage.pth": "refused, because it calls torch.FloatStorage, which weights do not need",
    "too_large_tensor.pth": "a tensor that is larger than its storage",
    "too_large_storage.pth": "it requests 4,000,000,000 bytes of storage, more than it contains",
    "expanded_tensor.pth": "weight: has 4,000,000,000 bytes, more than the file",
    "quantized_tensor.pth": "a tensor that is larger than its storage",
    "encoded.pth": "it calls _codecs.encode with an argument that is not text",
    "many_sets.pth": "its pickle has more than 2,000,000 opcodes",
    "long_text.pth": "damaged",
    "copied_lists.pth": "its pickle copies the same values repeatedly",
}


@pytest.fixture(scope="module")
def readings(tmp_path_factory):
    """Name of each file to the message, and to what memory the process that read it had taken."""
    folder = tmp_path_factory.mktemp("bombs")
    make_all(folder)
    program = [sys.executable, "tests/memory_bombs.py", str(folder)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("file", FILES)
def test_what_stands_for_gigabytes_takes_none(file, readings):
    message, growth = readings[file]
    assert re.search(EXPECTED[file], message)
    assert "\n" not in message
    assert growth < 0.8  # GB


def test_ten_million_rows_are_read(tmp_path):
    count = 10_000_000
    table = pa.table({"sample_id": np.arange(count), "l2": np.zeros(count, np.float32)})
    pq.write_table(table, tmp_path / "a.parquet")
    rows = read_table(tmp_path / "a.parquet", ["l2"])
    assert rows.shape == (count, 1)
    assert rows["l2"].dtype == np.float32


def test_tables_are_read_as_pandas_wrote_them(tmp_path):
    path, index = tmp_path / "a.parquet", pd.Index([3, 4], name="q")
    values = {"a": [1, 2], "s": ["x", None], "b": [True, None], "c": [1.5, None]}
    frame = pd.DataFrame(values, index=index)
    for table in (frame, frame.reset_index(), frame.iloc[:0]):
        table.to_parquet(path)
        pd.testing.assert_frame_equal(read_table(path), pq.read_table(path).to_pandas())


def test_a_grey_image_among_colour_ones(tmp_path):
    grey = mnist_like(3, 8)[0]
    colour = np.stack([grey[1], grey[0], grey[2]], axis=2)
    images = [grey[0], colour, grey[2]]
    write_parquet(tmp_path / "mine/test-0.parquet", images, [0, 1, 0])
    split = load_split(DatasetConfig(name="mine"), "test", tmp_path)
    expected = np.stack([np.stack([grey[0]] * 3), colour.transpose(2, 0, 1), [grey[2]] * 3])
    assert np.array_equal(split.images.numpy(), expected)


def test_a_long_image_is_cropped_as_a_short_one_is(monkeypatch):
    from robust_ham.data.formats import images

    pixels = np.random.default_rng(0).integers(0, 256, (40, 900, 3), np.uint8)
    image = Image.fromarray(pixels)
    whole = np.asarray(resize_and_crop(image, 28, 32), np.int64)
    monkeypatch.setattr(images, "_LARGE_PIXELS", 0)
    assert np.abs(np.asarray(resize_and_crop(image, 28, 32)) - whole).max() <= 1


@pytest.mark.parametrize("is_zip", [True, False])
def test_what_checkpoints_hold_beside_weights_is_read(tmp_path, is_zip):
    numbers = torch.arange(12.0).reshape(3, 4)
    state = {
        "weight": numbers[:, 1:3],
        "tied.weight": numbers,
        "half": numbers.half(),
        "bias": torch.zeros(0),
        "counter": torch.tensor(3),
        "mask": torch.ones(1).expand(10),
    }
    others = {"s": {1, 2}, "b": bytearray(b"a"), "q": b"b", "l": [0.5] * 9, "z": 1j, "t": (1,)}
    others |= {"size": torch.Size([2]), "device": torch.device("cpu"), "dtype": torch.float16}
    parameter = torch.nn.Parameter(numbers)
    content = {"state_dict": state, "model": {"weight": parameter}, "o": others}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=is_zip)
    found = read_network(tmp_path / "a.pth", "state_dict").tensors
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert torch.equal(read_network(tmp_path / "a.pth", "model").tensors["weight"], numbers)
