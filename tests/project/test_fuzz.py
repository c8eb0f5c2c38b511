"""Files that are damaged or made to harm: one line says so; no traceback, no hang, nothing written.

`make test-slow` tries more than 10,000 of them, others every time.
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import SPEC
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from image_files import mnist_like, png
from PIL import Image
from safetensors.torch import save
from test_curves import CARD, CONFIG, six_rows
from test_import_tables import BENCH, INFO
from test_import_tables import TABLE as FOREIGN

from robust_ham.analysis.curves import budget_curves
from robust_ham.analysis.importing.convert import COLUMNS, write_run_folder
from robust_ham.analysis.read_tables import HISTORY_COLUMNS, KERNEL_MEASURES
from robust_ham.analysis.run import Run, load_gallery
from robust_ham.analysis.summary import summarise
from robust_ham.config.experiment import DatasetConfig
from robust_ham.config.files import load_config, parse_config, shipped_configs
from robust_ham.data.datasets import load_split
from robust_ham.data.formats.images import open_image
from robust_ham.errors import RequestError
from robust_ham.models import checkpoints, factories
from robust_ham.models.build import build
from robust_ham.models.importing import state_dicts
from robust_ham.report.figures.gallery import gallery_figure
from robust_ham.report.page import _failures, _manifest
from robust_ham.storage.array_files import read_arrays
from robust_ham.storage.parquet_tables import write_table
from robust_ham.storage.run_folder import RunFolder

FEW, MANY = 100, 2000
HANGS = timedelta(seconds=20)

# --- nothing is written or started but in the folder of the test --------------------------------

_watched: list[Path] = []
_seen: list[str] = []
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.chmod"}
_STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect"}


def _hook(event, arguments):
    if not _watched or not (event == "open" or event in _CHANGES or event in _STARTS):
        return
    if event in _STARTS:
        _seen.append(f"{event} {arguments}")
    elif (event != "open" or arguments[2] & _WRITES) and isinstance(arguments[0], str | bytes):
        if event in {"os.remove", "os.rmdir"} and arguments[1] != -1:
            return  # relative to a folder that was opened
        path = Path(os.fsdecode(arguments[0])).absolute()
        if "__pycache__" not in path.parts and not path.is_relative_to(_watched[0]):
            _seen.append(f"{event} {path}")


sys.addaudithook(_hook)


@contextmanager
def nothing_outside(folder):
    _seen.clear()
    _watched.append(folder)
    try:
        yield
    finally:
        _watched.clear()
    assert _seen == []


def refused_in_one_line(function, *arguments):
    """What it returns, or None where it says in one line why it does not."""
    try:
        return function(*arguments)
    except RequestError as error:
        line = str(error)
    assert "\n" not in line
    assert len(line) <= 2000
    return None


def bad_inputs(strategy, *examples, few=FEW):
    """Turn ``check(folder, input)`` into a test over many inputs."""

    def decorate(check):
        def test(count, tmp_path):
            def holds(content):
                with nothing_outside(tmp_path):
                    check(tmp_path, content)

            for known in examples:
                holds = example(known)(holds)
            checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
            limits = {"max_examples": count, "deadline": HANGS, "suppress_health_check": checks}
            once_and_for_all = {"derandomize": True} if count == few else {"database": None}
            settings(**limits, **once_and_for_all)(given(strategy)(holds))()

        counts = [pytest.param(few, id="few"), pytest.param(MANY, id="many", marks=SLOW)]
        return pytest.mark.parametrize("count", counts)(test)

    return decorate


SLOW = pytest.mark.slow


@st.composite
def damaged(draw, *wholes):
    """One of some files with bytes changed, left out, repeated or put in."""
    content = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.sampled_from((1, 1, 4, 8, 100)))
        how = draw(st.integers(0, 4))
        if how == 0:
            content[at : at + length] = draw(st.binary(min_size=1, max_size=8))
        elif how == 1:
            del content[at : at + length]
        elif how == 2:
            content[at:at] = content[at : at + length]
        elif how == 3:
            content[at : at + 4] = draw(
                st.sampled_from((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80"))
            )
        else:
            del content[at:]
    return bytes(content)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 20)
    | st.sampled_from((2**31, 2**63, -(2**63) - 1, 10**30, 10**1500, 1e308, "9" * 400, "1/0"))
    | st.floats()
    | st.sampled_from(("train", "zoo", "../x", "/etc/passwd", "none", "hamming", "same", "a\nb"))
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(content, path=()):
    """Paths to all values inside lists and mappings."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


@st.composite
def edited(draw, *wholes):
    """One of some mappings with values replaced, left out, or added."""
    content = json.loads(json.dumps(draw(st.sampled_from(wholes))))
    for _ in range(draw(st.integers(1, 3))):
        if not content:
            break
        *parents, last = draw(st.sampled_from(list(places(content))))
        node = content
        for key in parents:
            node = node[key]
        how = draw(st.integers(0, 3))
        if how == 0:
            del node[last]
        elif how == 1 and isinstance(node, dict):
            node[draw(st.text(max_size=5))] = draw(values)
        else:
            node[last] = draw(values)
    return content


def test_what_is_written_elsewhere_is_seen(tmp_path):
    for act in (
        lambda: (tmp_path / "x").write_text("x"),
        lambda: (tmp_path / "x").rename(tmp_path / "y"),
        lambda: subprocess.run(["true"], check=True),
    ):
        with pytest.raises(AssertionError), nothing_outside(tmp_path / "inside"):
            act()


# --- configurations ------------------------------------------------------------------------------

SHIPPED = [shipped_configs()[name].read_text() for name in ("quickstart", "cifar10_controls")]
CONFIGS = [yaml.safe_load(text) for text in (CONFIG, *SHIPPED)]


def check_config(config):
    if config is not None:
        assert parse_config(config.to_yaml()).to_yaml() == config.to_yaml()


@bad_inputs(
    damaged(*(text.encode() for text in (CONFIG, *SHIPPED))) | st.binary(max_size=60),
    b"a: !!bool maybe",
    b"a: !!float ''",
    b"name: 0x" + b"f" * 1900,
    b"a: &a [*a]",
    b"\xef\xbb\xbf",
)
def test_texts_of_configurations(folder, content):
    (folder / "c.yaml").write_bytes(content)
    check_config(refused_in_one_line(load_config, str(folder / "c.yaml")))


@bad_inputs(edited(*CONFIGS))
def test_values_of_configurations(folder, content):
    text = yaml.safe_dump(content, allow_unicode=True)
    check_config(refused_in_one_line(parse_config, text))


@bad_inputs(
    st.tuples(st.sampled_from([".".join(map(str, p)) for p in places(CONFIGS[0])]), values).map(
        lambda pair: f"{pair[0]}={json.dumps(pair[1])}"
    )
    | st.text(max_size=30)
)
def test_overrides(folder, content):
    check_config(refused_in_one_line(parse_config, CONFIG, [content]))


# --- data sets -----------------------------------------------------------------------------------

IMAGES, LABELS = mnist_like(5, 6)
IDX = [
    struct.pack(">IIII", 0x803, *IMAGES.shape) + IMAGES.tobytes(),
    struct.pack(">II", 0x801, len(LABELS)) + LABELS.astype(np.uint8).tobytes(),
]


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def check_split(name, root):
    split = refused_in_one_line(load_split, DatasetConfig(name=name), "test", root)
    if split is not None:
        assert len(split.images) == len(split.labels) > 0
        assert split.images.dtype == torch.uint8
        assert 0 <= int(split.labels.min()) <= int(split.labels.max()) < split.num_classes


@bad_inputs(
    st.tuples(st.booleans(), damaged(IDX[0]) | damaged(gzip.compress(IDX[0])), st.just(IDX[1]))
    | st.tuples(st.booleans(), st.just(IDX[0]), damaged(IDX[1]) | st.binary(max_size=20))
)
def test_idx_files(folder, content):
    packed, images, labels = content
    raw, suffix = fresh(folder / "MNIST/raw"), ".gz" if packed else ""
    (raw / f"t10k-images-idx3-ubyte{suffix}").write_bytes(images)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(labels)
    check_split("mnist", folder)


def parquet(columns):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


CELLS = [{"bytes": png(pixels), "path": None} for pixels in IMAGES]
cells = st.sampled_from(CELLS) | st.none() | st.binary(max_size=4)
columns = st.sampled_from(
    [
        LABELS,
        LABELS.astype(np.float32),
        LABELS * 10**18,
        -LABELS,
        LABELS.astype(np.uint64) + 2**63,
        [str(i) for i in LABELS],
        [None, 0, 0, 0, 0],
        [[0], [1], [], [2], [3]],
        [{"bytes": 3}] * 5,
        [{"path": "a.png"}] * 5,
        [{"bytes": "text"}] * 5,
        [b"", b"x", None, b"\x89PNG\r\n\x1a\n", b"P5 9999999 9999999 255 "],
        pa.array(LABELS).cast(pa.timestamp("ns")),
        pa.array(["a"] * 5).dictionary_encode(),
        pa.array([0] * 5).dictionary_encode(),
        pa.nulls(5),
        CELLS,
        [cell["bytes"] for cell in CELLS],
    ]
)
names = st.sampled_from(("image", "img", "label", "fine_label", "x", ""))


@bad_inputs(
    damaged(parquet({"image": CELLS, "label": LABELS}))
    | st.dictionaries(names, columns, min_size=1).map(parquet)
    | st.binary(max_size=20)
)
def test_parquet_data(folder, content):
    (fresh(folder / "mine") / "test-0.parquet").write_bytes(content)
    check_split("mine", folder)


def encoded(kind, **options):
    file = io.BytesIO()
    picture = Image.fromarray(np.repeat(IMAGES[0][:, :, None], 3, axis=2))
    picture.save(file, kind, **options)
    return file.getvalue()


@bad_inputs(
    damaged(*map(encoded, ("PNG", "JPEG", "WEBP", "BMP", "PPM", "GIF", "TIFF", "EPS", "ICO")))
)
def test_image_files(folder, content):
    image = refused_in_one_line(open_image, content, "x")
    assert image is None or image.mode in {"L", "RGB"}


# --- checkpoints ---------------------------------------------------------------------------------

NETWORK = build(SPEC, 1, 10).eval()
WEIGHTS = save(NETWORK.state_dict())
_pth = io.BytesIO()
torch.save(NETWORK.state_dict(), _pth)
MODEL_CARD = {
    "schema": 1,
    "model_id": SPEC.model_id,
    "model": checkpoints.describe(SPEC),
    "in_channels": 1,
    "num_classes": 10,
    "weights_sha256": hashlib.sha256(WEIGHTS).hexdigest(),
    "test_accuracy": 0.5,
}


@bad_inputs(
    edited(MODEL_CARD).map(lambda card: json.dumps(card).encode())
    | damaged(json.dumps(MODEL_CARD).encode())
)
def test_model_cards(folder, content):
    model = fresh(folder / "m")
    (model / "model.json").write_bytes(content)
    (model / "model.safetensors").write_bytes(WEIGHTS)
    refused_in_one_line(checkpoints.load, model)


def check_weights(path):
    refused_in_one_line(factories.load_weights, build(SPEC, 1, 10), path)
    refused_in_one_line(state_dicts.read_network, path)


_length = struct.unpack("<Q", WEIGHTS[:8])[0]
HEADER, BODY = json.loads(WEIGHTS[8 : 8 + _length]), WEIGHTS[8 + _length :]


def with_header(header):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + BODY


@bad_inputs(damaged(WEIGHTS, WEIGHTS[:200]) | edited(HEADER).map(with_header))
def test_safetensors(folder, content):
    (folder / "w.safetensors").write_bytes(content)
    check_weights(folder / "w.safetensors")


@bad_inputs(damaged(_pth.getvalue(), _pth.getvalue()[:1000]) | st.binary(max_size=20))
def test_torch_files(folder, content):
    (folder / "w.pth").write_bytes(content)
    check_weights(folder / "w.pth")


# --- tables of others ----------------------------------------------------------------------------


def csv_of(header, rows):
    return "\n".join(map(",".join, (header, *rows))).encode()


def check_foreign(folder, path):
    """What is not refused is reported."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    refused_in_one_line(write_run_folder, [path], out)
    if out.exists():
        summary = summarise(Run(RunFolder(out)))
        shares = summary[["clean_accuracy", "robust_accuracy"]]
        assert ((shares >= 0) & (shares <= 1)).all(axis=None)
        budget_curves(Run(RunFolder(out)))


cell_texts = st.sampled_from(
    (
        "",
        "0",
        "0.5",
        "inf",
        "nan",
        "-1",
        "1e400",
        "true",
        "False",
        "3",
        "hamming",
        "l2",
        "x",
        "../x",
    )
)
table_rows = st.lists(st.tuples(*[cell_texts] * len(COLUMNS)), min_size=1, max_size=4)


@bad_inputs(
    damaged(FOREIGN.encode()) | table_rows.map(lambda rows: csv_of(COLUMNS, rows)),
    b"\xef\xbb\xbf" + FOREIGN.encode(),
    FOREIGN.replace("\n", "\r\n").encode(),
)
def test_foreign_csv_files(folder, content):
    path = folder / "t.csv"
    path.write_bytes(content)
    check_foreign(folder, path)


foreign_values = st.sampled_from(
    [
        *([0.5, 0.0, np.inf], [1, 2, 3], ["a", "b", "c"], [None] * 3, [True] * 3, [[1], [], [2]]),
        *([{"a": 1}] * 3, [b"x", b"y", b"z"], [2**62] * 3, [np.nan] * 3),
    ]
)


@bad_inputs(
    st.dictionaries(st.sampled_from(list(COLUMNS)), foreign_values)
    .map(lambda some: {"model": ["a"] * 3, "attack": ["d"] * 3, "sample_id": [1, 2, 3]} | some)
    .map(parquet)
    | damaged(parquet({"model": ["a"], "attack": ["d"], "sample_id": [1], "l2": [0.5]}))
)
def test_foreign_parquet_files(folder, content):
    path = folder / "t.parquet"
    path.write_bytes(content)
    check_foreign(folder, path)


@bad_inputs(
    st.tuples(edited(BENCH), st.just(INFO) | edited(INFO))
    | st.tuples(st.just(BENCH), edited(INFO)),
    ({"attack": {"threat_model": "l2", "name": "\ud800"}, "model": {"dataset": "\ud800\n"}}, INFO),
)
def test_results_of_attackbench(folder, content):
    place = fresh(folder / "result")
    for name, values in zip(("config", "info"), content, strict=True):
        (place / f"{name}.json").write_text(json.dumps(values))
    check_foreign(folder, place / "info.json")


# --- run folders ---------------------------------------------------------------------------------


def run_folder(folder):
    run = RunFolder(fresh(folder / "run"))
    run.config.write_text(CONFIG)
    specs = Run(run).config.model_specs()
    for spec in specs:
        run.model(spec.model_id).mkdir(parents=True)
        (run.model(spec.model_id) / "model.json").write_text(json.dumps(CARD | {"schema": 1}))
    return run, specs[0].model_id


def check_tables(run):
    def tables():
        summarise(Run(run))
        budget_curves(Run(run))

    refused_in_one_line(tables)


def _samples():
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(six_rows()), file)
    return file.getvalue()


@st.composite
def other_columns(draw):
    table = six_rows()
    for name in draw(st.lists(st.sampled_from(list(table.columns)), min_size=1, max_size=3)):
        table = table.drop(columns=name, errors="ignore")
        kind = draw(st.integers(0, 5))
        if kind:
            table[name] = [None, [None] * 6, ["x"] * 6, [1j] * 6, [[1]] * 6, [2**62] * 6][kind]
    return parquet_of(table)


def parquet_of(table):
    file = io.BytesIO()
    table = table[[c for c in table if table[c].dtype.kind != "c"]]
    pq.write_table(pa.Table.from_pandas(table), file)
    return file.getvalue()


@bad_inputs(damaged(_samples()) | other_columns())
def test_tables_of_attacked_images(folder, content):
    run, model_id = run_folder(folder)
    path = run.samples(model_id, "d")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    check_tables(run)


@bad_inputs(edited(CARD | {"schema": 1}).map(json.dumps))
def test_cards_of_a_run(folder, content):
    run, model_id = run_folder(folder)
    (run.model(model_id) / "model.json").write_text(content)
    write_table(run.samples(model_id, "d"), six_rows(), {})
    check_tables(run)


MANIFEST = {
    "schema": 1,
    "versions": {"torch": "2"},
    "git_commit": None,
    "device": "cpu",
    "threads": 2,
    "dataset": {"name": "x", "sha256": {"test": "0"}},
}
CSVS = {
    "gate": b"model_id,attack,check,severity,reason\na,d,c,fail,r\n",
    "history": b"epoch,train_loss,train_accuracy,validation_loss,validation_accuracy\n1,1,1,1,1\n",
    "kernels": b"model_id,layer,effective_taps,bandwidth,side_lobe_energy,edge_energy\n"
    b"a,b,1,1,1,1\n",
    "transfer": b"source_id,target_id,attack,budget,num_images,num_fooled\na,b,d,1,1,1\n",
}


@bad_inputs(
    st.one_of([st.tuples(st.just(name), damaged(whole)) for name, whole in CSVS.items()])
    | st.tuples(st.just("manifest"), edited(MANIFEST).map(lambda m: json.dumps(m).encode()))
    | st.tuples(st.just("failures"), damaged(b'{"cell": "a", "reason": "b"}\n'))
)
def test_other_files_of_a_run(folder, content):
    name, text = content
    run, model_id = run_folder(folder)
    if name in ("manifest", "failures"):
        getattr(run, name).write_bytes(text)
        found = refused_in_one_line(
            {"manifest": _manifest, "failures": _failures}[name], getattr(run, name)
        )
        if name == "manifest":
            assert found is None or isinstance(found["versions"], dict)
        else:
            assert found is None or all(isinstance(line, dict) for line in found)
        return
    path = run.model(model_id) / "training.csv" if name == "history" else getattr(run, name)
    path.write_bytes(text)
    if name == "history":
        table = refused_in_one_line(Run(run).history, model_id)
    else:
        table = refused_in_one_line(getattr, Run(run), name)
    numbers = {"history": HISTORY_COLUMNS, "kernels": KERNEL_MEASURES}.get(name, [])
    assert table is None or table.empty or all(table[n].dtype.kind in "iuf" for n in numbers)


def gallery(**changes):
    count = 3
    arrays = {
        "label": np.zeros(count, np.int64),
        "clean_prediction": np.zeros(count, np.int64),
        "adversarial_prediction": np.ones(count, np.int64),
        "clean": np.zeros((count, 1, 4, 4), np.uint8),
        "adversarial": np.zeros((count, 1, 4, 4), np.float16),
        "perturbation": np.ones((count, 1, 4, 4), np.float16),
        "fooled": np.ones(count, bool),
        "l2": np.ones(count),
        "transform": np.full((count, 3), np.nan),
    }
    file = io.BytesIO()
    np.savez_compressed(file, **(arrays | changes))
    return file.getvalue()


arrays = st.sampled_from(
    [
        np.zeros(0),
        np.zeros(3),
        np.full(3, np.nan),
        np.array(["a"] * 3),
        np.zeros((3, 2, 4, 4)),
        np.full((3, 1, 4, 4), np.inf, np.float16),
        np.full(3, 2**62),
        np.full((3, 3), np.inf),
        np.zeros((3, 1, 0, 4), np.uint8),
    ]
)
keys = st.sampled_from(("label", "clean", "adversarial", "perturbation", "l2", "transform", "x"))


@bad_inputs(
    damaged(gallery()) | st.dictionaries(keys, arrays, min_size=1).map(lambda c: gallery(**c)),
    gallery()[1:],  # its members would begin before the file
)
def test_galleries(folder, content):
    run, model_id = run_folder(folder)
    path = run.gallery(model_id, "d")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    refused_in_one_line(read_arrays, path)
    shown = refused_in_one_line(load_gallery, Run(run), model_id, "d")
    if shown is not None:
        assert shown["clean"].shape == shown["adversarial"].shape
        assert gallery_figure(Run(run), "d") is not None
