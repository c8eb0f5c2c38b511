"""Keys of mappings and members of sets that would take forever to hash are refused at once."""

import argparse
import collections
import datetime
import pathlib
import zipfile

import pytest
import torch
from torch import nn

from robust_ham.errors import RequestError
from robust_ham.models.importing.state_dicts import read_network

WEIGHTS = nn.Linear(2, 2).state_dict()
NESTED = b")" + b"q\x00h\x00\x86" * 60  # a tuple of the same tuple twice, 60 times
EQUAL_HASHES = [(2**61 - 1) * i for i in range(5, 20_000)]


def number(value):
    content = value.to_bytes(12, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


PICKLES = {
    "key": b"}" + NESTED + b"K\x01s",
    "keys": b"}(" + NESTED + b"K\x01u",
    "member of a set": b"c__builtin__\nset\n](" + NESTED + b"e\x85R",
    "key of pairs": b"ccollections\nOrderedDict\n](](" + NESTED + b"K\x01ee\x85R",
    "element to count": b"ccollections\nCounter\n](" + NESTED + b"e\x85R",
    "equal hashes": b"}(" + b"".join(number(value) + b"K\x01" for value in EQUAL_HASHES) + b"u",
}


@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES)
def test_keys_that_take_forever_to_hash_are_refused(tmp_path, content):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + content + b".")
        archive.writestr("a/version", "3\n")
    with pytest.raises(RequestError, match="a key that checkpoints do not need"):
        read_network(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "other",
    [
        pathlib.PurePosixPath("data"),
        argparse.Namespace(root=pathlib.Path("data"), started=datetime.datetime(2020, 1, 1)),
        {1, 2, "a", (1, 2)},
        collections.Counter("abc"),
        {(1, "a"): 2, None: 3, 1.5: 4, True: 5, 2**62: 6},
        torch.optim.Adam(nn.Linear(2, 2).parameters()).state_dict(),
    ],
    ids=["path", "options", "set", "counter", "mapping", "optimizer"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_training_programs_keep_beside_weights_is_read(tmp_path, other, zipped):
    content = {"state_dict": WEIGHTS, "other": other}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    tensors = read_network(tmp_path / "a.pth").tensors
    assert torch.equal(tensors["weight"], WEIGHTS["weight"])


def test_another_protocol_is_named(tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.pth", pickle_protocol=4)
    with pytest.raises(RequestError, match="not written by torch.save with its defaults"):
        read_network(tmp_path / "a.pth")
