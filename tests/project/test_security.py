"""Files from strangers: nothing in them is run, too large is refused, no path leaves its folder."""

import ast
import base64
import gzip
import hashlib
import json
import os
import re
import struct
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import SPEC
from image_files import assert_refused, mnist_like, png, write_folders, write_idx, write_parquet
from matplotlib.figure import Figure
from PIL import Image
from test_curves import CONFIG
from test_page import folder  # noqa: F401

from robust_ham import memory
from robust_ham.analysis.run import Run
from robust_ham.config.experiment import DatasetConfig
from robust_ham.config.files import parse_config
from robust_ham.data.datasets import load_split
from robust_ham.data.formats import images as images_module
from robust_ham.errors import RequestError
from robust_ham.models import checkpoints, factories
from robust_ham.models.importing import state_dicts
from robust_ham.report.figures.style import save_figure
from robust_ham.report.page import build_report
from robust_ham.runs.jobs.model import _copy_card
from robust_ham.storage import files, parquet_tables
from robust_ham.storage.array_files import read_arrays
from robust_ham.storage.files import read_csv, read_json
from robust_ham.storage.parquet_tables import read_table
from robust_ham.storage.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("robust_ham/**/*.py"), *ROOT.glob("attacks/**/*.py")])

# --- the code loads nothing that could run ------------------------------------------------------

ALLOWED = {
    # Reads the claims that ship with the package; test_claims checks them.
    ("analysis/claims/schema.py", "yaml.safe_load"),
    # Figures that this process has just drawn: matplotlib escapes text, as tested below.
    ("report/inline.py", "Markup"),
}
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
LOADERS = {"load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all"}


def unsafe(source, name=""):
    """List the forbidden imports and calls of a module."""
    forbidden = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            forbidden += [n for n in names if n.partition(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [alias.name for alias in node.names]
            if node.module.partition(".")[0] in MODULES and names != ["UnpicklingError"]:
                forbidden.append(node.module)
            if node.module == "os" and {"system", "popen"} & set(names):
                forbidden.append("os")
        elif isinstance(node, ast.Call):
            forbidden += [c for c in forbidden_calls(node) if (name, c) not in ALLOWED]
        elif isinstance(node, ast.Attribute) and node.attr == "read_pickle":
            forbidden.append("read_pickle")
    return forbidden


def forbidden_calls(call):
    """Name the call if it is forbidden."""
    dotted = ast.unparse(call.func)
    module, _, function = dotted.rpartition(".")
    keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
    if dotted in {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}:
        yield dotted
    if dotted == "torch.load" and keywords.get("weights_only") != "True":
        yield dotted
    if dotted in {"np.load", "numpy.load"} and keywords.get("allow_pickle") != "False":
        yield dotted
    if keywords.get("allow_pickle") == "True" or keywords.get("shell") == "True":
        yield dotted
    if module == "yaml" and (function in LOADERS or function == "safe_load"):
        yield dotted
    if function in {"extractall", "extract", "unpack_archive"}:
        yield function
    if function == "Environment" and keywords.get("autoescape") != "True":
        yield dotted
    if dotted.endswith("Markup") and not isinstance(call.args[0], ast.Constant):
        yield "Markup"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_loads_what_could_run(path):
    parts = path.relative_to(ROOT).parts
    assert unsafe(path.read_text(), "/".join(parts[1:])) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import dill as d",
        "import marshal",
        "def f():\n    import shelve",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.savez(file, allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
        "yaml.full_load(text)",
        "yaml.safe_load(text)",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "os.system(command)",
        "subprocess.run(command, shell=True)",
        "archive.extractall(folder)",
        "shutil.unpack_archive(path)",
        "pd.read_pickle(path)",
        "jinja2.Environment(loader=loader)",
        "jinja2.Environment(autoescape=False)",
        "Markup(text)",
        "markupsafe.Markup(f'<b>{text}</b>')",
    ],
)
def test_the_rules_can_fail(source):
    assert unsafe(source)


def test_what_may_stay():
    source = "from pickle import UnpicklingError\nMarkup('<b>')\nmodel.eval()\nre.compile('x')"
    assert unsafe(source) == []


# --- sizes ---------------------------------------------------------------------------------------


def laughs(levels):
    lines = ["a0: &a0 [lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (laughs(12), "aliases that stand for more than 20,000 values"),
        ("a: &a [*a]", "line 1: a value that contains itself"),
        ("a: &a {<<: *a}", "a value that contains itself"),
        ("[" * 50 + "]" * 50, "more than 20 levels"),
        ("[" * 100_000, "more than 20 levels|not valid YAML"),
        ("[" + "1," * 400_000 + "]", "more than 20,000 values"),
        ("name: " + "x" * 2001, "more than 2,000 characters"),
        ("name: 0x" + "f" * 17, "more than 64 bits"),
        ("name: " + "9" * 1900, "more than 64 bits"),
        ('name: "a\\0b"', "a control character"),
        ('name: "\\ud800"', "a control character|not valid YAML"),
        ("name: 2001-01-01", "expected text, numbers, lists and mappings, got timestamp"),
        ("name: !!binary aGk=", "got binary"),
        ("name: !!bool maybe", "not valid YAML"),
        ("name: !!int ''", "not valid YAML"),
    ],
)
def test_yaml_is_limited(text, message):
    start = time.monotonic()
    with pytest.raises(RequestError, match=message) as error:
        parse_config(text)
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 10


def test_a_configuration_stands_for_so_many_models():
    sweep = {"seed": list(range(1000)), "kernel_size": [3, 5, 7, 9], "width": [1, 2, 3, 4]}
    text = f"name: x\nmodels: [{{sweep: {json.dumps(sweep)}}}]\nattacks: {{d: {{attack: d}}}}"
    with pytest.raises(RequestError, match=r"models: expected at most 10,000 in all, got 16,000"):
        parse_config(text)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            f"models.0.widths={[4444] * 60}",
            "is too long for a file name: expected at most 200 bytes",
        ),
        (f"models.0.prefix={'x' * 100}", None),
        ("models.0.prefix=../up", "models.0.prefix: expected letters"),
        ("models.0.prefix=.hidden", "models.0.prefix: expected letters"),
        ("name=..", "name: expected letters"),
        ("attacks={../x: {attack: deepfool}}", "attacks.*: expected letters"),
        ("attacks.b={attack: band_deepfool, band: <b>}", "attacks.b.*band: expected a whole"),
        ("evaluation={num_images: 90000000, shard_size: 1}", "at most 1,000,000 jobs"),
        (
            "training.epochs='99999999999999999999'",
            "epochs: .* less than or equal to 100000",
        ),
        ('training={"a\\nb": 1}', "a.nb: unknown key"),
    ],
)
def test_names_and_numbers_fit(override, message):
    if message is None:
        parse_config(CONFIG, [override])
        return
    with pytest.raises(RequestError, match=message) as error:
        parse_config(CONFIG, [override])
    assert "\n" not in str(error.value)


def test_a_line_stays_a_line():
    line = str(RequestError("a\nb\x1b[2Jc\u202ed" + "x" * 5000))
    assert line.startswith("a\\nb\\x1b[2Jc\\u202edxxx")
    assert len(line) == 2000


def test_json_is_limited(tmp_path, monkeypatch):
    path = tmp_path / "model.json"
    for text in ("[" * 200_000, '{"schema": 1, "x": NaN}', '{"x": 1e999}', "9" * 5000, '"\\'):
        path.write_text(text)
        with pytest.raises(ValueError, match="model.json: not a JSON file"):
            read_json(path)
    path.write_text('{"schema": 1}')
    monkeypatch.setattr(files, "MAX_TEXT_BYTES", 10)
    with pytest.raises(RequestError, match=r"model.json: expected at most 10 bytes, got \d+"):
        read_json(path)


def test_idx_headers_ask_for_no_more_than_is_there(tmp_path):
    raw = tmp_path / "MNIST/raw"
    write_idx(raw, "t10k", *mnist_like(5))
    path = raw / "t10k-images-idx3-ubyte"
    path.write_bytes(struct.pack(">IIII", 0x803, 1000, 1000, 1000) + b"x")
    assert_refused("mnist", tmp_path, "images-idx3-ubyte: damaged: shorter than its header")
    path.write_bytes(struct.pack(">IIII", 0x803, *[2**32 - 1] * 3))
    assert_refused("mnist", tmp_path, "images-idx3-ubyte: expected at most 10,000,000 images")
    path.write_bytes(struct.pack(">IIII", 0x803, 10**6, 100, 100))
    assert_refused("mnist", tmp_path, "images-idx3-ubyte: expected at most 1,073,741,824 bytes")
    path.write_bytes(struct.pack(">IIII", 0x803, 5, 0, 7))
    assert_refused("mnist", tmp_path, "raw: no images")
    path.unlink()
    bomb = struct.pack(">IIII", 0x803, 5, 28, 28) + bytes(10_000_000)
    (raw / f"{path.name}.gz").write_bytes(gzip.compress(bomb))
    assert_refused("mnist", tmp_path, "expected 3920 bytes after the header, got")


def test_images_are_limited(tmp_path, monkeypatch):
    path = tmp_path / "mine/test-0.parquet"
    images, labels = mnist_like(5)
    write_parquet(path, images, labels)
    monkeypatch.setattr(images_module, "_MAX_PIXELS", 700)
    assert_refused("mine", tmp_path, "row 0: expected an image of at most 700 pixels, got 28×28")
    monkeypatch.undo()
    write_folders(tmp_path / "folders/test", images, labels)
    monkeypatch.setattr(memory, "total_memory", lambda: 3 * 3900)
    assert_refused(
        "folders",
        tmp_path,
        r"folders/test: 5 decoded images: expected at most 3,900 bytes when unpacked \(a third of "
        r"this machine's memory\), got 3,920 bytes; set dataset.image_size to shrink them",
    )
    monkeypatch.setattr(memory, "total_memory", lambda: 400)
    assert_refused("mine", tmp_path, "test-0.parquet: expected at most 100 bytes when unpacked")
    monkeypatch.undo()
    monkeypatch.setattr(parquet_tables, "MAX_ROWS", 4)
    assert_refused("mine", tmp_path, "test-0.parquet: expected at most 4 rows, got 5")


def test_formats_that_start_programs_are_not_images(tmp_path):
    path = tmp_path / "mine/test-0.parquet"
    path.parent.mkdir()
    eps = tmp_path / "a.eps"
    Image.new("L", (8, 8)).save(eps)
    pq.write_table(pa.table({"image": [{"bytes": eps.read_bytes()}], "label": [0]}), path)
    assert_refused("mine", tmp_path, "test-0.parquet row 0: not a readable image")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5, 1.0], "label: expected whole numbers"),
        (["a", "b"], "label: expected whole numbers"),
        ([0, None], "label: expected a label in every row"),
        ([0, 10**12], "label out of range: expected below 100,000"),
    ],
)
def test_labels_are_whole_numbers(tmp_path, labels, message):
    path = tmp_path / "mine/test-0.parquet"
    path.parent.mkdir()
    cells = [{"bytes": png(pixels)} for pixels in mnist_like(2)[0]]
    pq.write_table(pa.table({"image": cells, "label": labels}), path)
    assert_refused("mine", tmp_path, message)


def npz(path, header, content=b"", packing=zipfile.ZIP_DEFLATED, magic=b"\x93NUMPY\x01\x00"):
    text = header.encode() + b"\n"
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("a.npy", magic + struct.pack("<H", len(text)) + text + content)


def test_arrays_are_what_they_say(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    shape = "{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}"
    npz(path, shape.format("<f4", (2,)), bytes(8))
    assert read_arrays(path)["a"].tolist() == [0, 0]
    for descr, size, content in [
        ("<f4", (10**12,), bytes(8)),
        ("<f4", (-1,), bytes(8)),
        ("|O", (1,), b"cos\nsystem\n(S'x'\ntR."),
        ("<U4", (1,), bytes(16)),
    ]:
        npz(path, shape.format(descr, size), content)
        with pytest.raises(RequestError, match=r"a.npz: damaged"):
            read_arrays(path)
    npz(path, shape.format("<f4", (10**6,)), bytes(4 * 10**6))
    with pytest.raises(RequestError, match=r"a.npz: expected at most 1,000 bytes when unp.* 4,0"):
        read_arrays(path, 1000)
    monkeypatch.setattr(memory, "total_memory", lambda: 3 * 10**6)
    with pytest.raises(RequestError, match=r"a.npz: expected at most 1.0 MB when .*, got 4.0 MB"):
        read_arrays(path)


def test_tables_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_CSV_BYTES", 10)
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(RequestError, match=r"a.csv: expected at most 10 bytes, got 12"):
        read_csv(tmp_path / "a.csv")
    monkeypatch.setattr(parquet_tables, "MAX_COLUMNS", 2)
    pq.write_table(pa.table({"a": [1], "b": [1], "c": [1]}), tmp_path / "a.parquet")
    with pytest.raises(RequestError, match=r"a.parquet: expected at most 2 columns, got 3"):
        read_table(tmp_path / "a.parquet")


# --- checkpoints ---------------------------------------------------------------------------------


def rewrite_card(model_folder, **changes):
    card = json.loads((model_folder / "model.json").read_text())
    (model_folder / "model.json").write_text(json.dumps(card | changes))
    return card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": "3"}, "in_channels: expected a whole number, got '3'"),
        ({"in_channels": True}, "in_channels: expected a whole number, got True"),
        ({"num_classes": 10**12}, "num_classes: expected a number from 1 to 100,000"),
        ({"num_classes": 0}, "num_classes: expected a number from 1"),
        ({"model": []}, "model: expected a mapping"),
        ({"weights_sha256": None}, "weights_sha256: expected text"),
        ({"test_accuracy": "high"}, "test_accuracy: expected a number"),
        (
            {"model": checkpoints.describe(SPEC) | {"widths": [10**15]}},
            "model.json: model: widths",
        ),
        (
            {"model": checkpoints.describe(SPEC) | {"widths": [65_536], "kernel_size": 99}},
            r"safetensors: conv1.weight: expected shape \(65536, 1, 99, 99\), got",
        ),
    ],
)
def test_a_card_builds_nothing_large(saved, changes, message):
    model_folder, _ = saved
    rewrite_card(model_folder, **changes)
    with pytest.raises(RequestError, match=message) as error:
        checkpoints.load(model_folder)
    assert "\n" not in str(error.value)


def test_a_card_runs_no_function(saved, tmp_path, monkeypatch):
    """Only a configuration may name one: a card comes with the folder."""
    model_folder, _ = saved
    (tmp_path / "planted.py").write_text("open('was here', 'w')\ndef make():\n    pass\n")
    monkeypatch.chdir(tmp_path)
    rewrite_card(model_folder, model={"factory": "planted:make"})
    with pytest.raises(RequestError, match=r"names factory .* the configuration does not name"):
        checkpoints.load(model_folder)
    assert not (tmp_path / "was here").exists()


def test_checkpoints_do_not_unpack_without_end(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(10_000_000))
    with pytest.raises(RequestError, match=r"refused, because it unpacks to more than 20 times"):
        state_dicts.read_network(path)
    with pytest.raises(RequestError, match=r"refused, because it unpacks to more than 20 times"):
        factories.load_weights(torch.nn.Linear(1, 1), path)


def test_a_mapping_that_stands_everywhere_is_not_searched_for_ever(tmp_path):
    inner = {f"k{i}": 0 for i in range(300)}
    for _ in range(3):
        inner = {f"k{i}": inner for i in range(300)}
    torch.save(inner, tmp_path / "wide.pth")
    with pytest.raises(RequestError, match=r"wide.pth: expected at most 1,000,000 keys"):
        state_dicts.read_network(tmp_path / "wide.pth")


def safetensors(header, content=b"", length=None):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        safetensors({}, length=2**63),
        safetensors({}, length=99_999_999),
        safetensors({"a": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4]}}, b"1234"),
        safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 10**12]}}, b"1234"),
        safetensors({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
        safetensors({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 0]}}),
    ],
)
def test_safetensors_headers(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"a.safetensors: "):
        factories.load_weights(torch.nn.Linear(1, 1), path)


def test_weights_of_kinds_that_cannot_be_checked(tmp_path):
    path = tmp_path / "a.safetensors"
    for dtype, size in (("F8_E4M3", 1), ("C64", 8)):
        header = {
            "weight": {"dtype": dtype, "shape": [1, 1], "data_offsets": [0, size]},
            "bias": {"dtype": dtype, "shape": [1], "data_offsets": [size, 2 * size]},
        }
        path.write_bytes(safetensors(header, bytes(2 * size)))
        with pytest.raises(RequestError, match=r"a.safetensors: .*float32"):
            factories.load_weights(torch.nn.Linear(1, 1), path)


# --- paths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["models", "models/m", "samples/m/d.parquet", "run.log"])
def test_nothing_is_written_through_links(folder, tmp_path_factory, place):  # noqa: F811
    outside = tmp_path_factory.mktemp("outside")
    link = folder.root / place
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.exists():
        link.rename(outside / "moved")
    link.symlink_to(outside)
    before = sorted(outside.rglob("*"))
    with pytest.raises(RequestError, match=f"{place}: a symbolic link; a run folder must not"):
        build_report(folder.root)
    assert sorted(outside.rglob("*")) == before
    assert not folder.report.exists()


def test_a_run_refuses_links_before_it_writes(run_cli, tmp_path):
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    out.mkdir()
    (out / "run.log").symlink_to(outside / "log")
    (out / "models").symlink_to(outside)
    code, _, errors = run_cli("run", "quickstart", "--out", out)
    assert code == 2
    assert "a symbolic link; a run folder must not hold any" in errors
    assert list(outside.iterdir()) == []


def test_a_source_hands_on_curves_and_nothing_else(saved, tmp_path):
    """Its training.csv may be a link of a stranger's to a private file."""
    source, _ = saved
    secret = tmp_path / "secret"
    secret.write_text("user:password\n")
    (source / "training.csv").unlink()
    (source / "training.csv").symlink_to(secret)
    context = SimpleNamespace(run=RunFolder(tmp_path / "run"))
    with pytest.raises(RequestError, match=r"training.csv: damaged"):
        _copy_card(context, SPEC, source)
    assert not (tmp_path / "run").exists()


def test_class_folders_may_hold_links_but_no_pipes(tmp_path):
    images, labels = mnist_like(4, 8)
    write_folders(tmp_path / "elsewhere", images, labels % 2)
    for i in range(2):
        (tmp_path / f"mine/test/class{i}").mkdir(parents=True)
        link = tmp_path / f"mine/test/class{i}/a.png"
        link.symlink_to(tmp_path / f"elsewhere/class{i}/00{i}.png")
    os.mkfifo(tmp_path / "mine/test/class0/b.png")
    assert_refused("mine", tmp_path, "b.png: expected a file, got a broken link or a device")
    (tmp_path / "mine/test/class0/b.png").unlink()
    split = load_split(DatasetConfig(name="mine"), "test", tmp_path)
    assert np.array_equal(split.images[:, 0].numpy(), images[:2])


def test_the_run_folder_itself_may_be_a_link(folder, tmp_path_factory):  # noqa: F811
    link = tmp_path_factory.mktemp("elsewhere") / "run"
    link.symlink_to(folder.root)
    RunFolder(link).refuse_links()
    (folder.root / "inside").symlink_to(link.parent)
    with pytest.raises(RequestError, match="inside: a symbolic link"):
        RunFolder(link).refuse_links()


# --- what a report shows is text -----------------------------------------------------------------

SCRIPT, ATTRIBUTE = "<script>alert(1)</script>", '"><img src=x onerror="alert(1)">'
HOSTILE = f"{SCRIPT} {ATTRIBUTE} --> ]]> $x^{{$ {{{{ 7 * 7 }}}}"


def test_every_string_of_a_run_stays_text(folder):  # noqa: F811
    attack = f"attack: {json.dumps('foolbox:' + HOSTILE)}"
    text = folder.config.read_text().replace("attack: deepfool", attack)
    text = text.replace("models:", f"dataset: {{name: {json.dumps(HOSTILE)}}}\nmodels:", 1)
    folder.config.write_text(text)
    model_id = Run(folder).specs[0].model_id
    rows = f"model_id,attack,check,severity,reason\n{model_id},d,{{0}},fail,{{0}}\n"
    quoted = '"' + HOSTILE.replace('"', '""') + '"'
    folder.gate.write_text(rows.format(quoted))
    line = {"cell": HOSTILE, "reason": HOSTILE}
    folder.failures.write_text(json.dumps(line) + "\n")
    data = {"name": HOSTILE, "sha256": {HOSTILE: HOSTILE}}
    names = dict.fromkeys(("git_commit", "device", "threads"), HOSTILE)
    manifest = {"schema": 1, "versions": {HOSTILE: HOSTILE}, "dataset": data} | names
    folder.manifest.write_text(json.dumps(manifest))
    card = json.loads((folder.model(model_id) / "model.json").read_text())
    card["model"] |= {"architecture": HOSTILE, "depth": HOSTILE, "widths": HOSTILE}
    (folder.model(model_id) / "model.json").write_text(json.dumps(card))
    page = build_report(folder.root).page.read_text()
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 10
    assert "{{ 7 * 7 }}" in page  # what a template yields is none
    policy, script = re.search(r"script-src '([^']+)'", page), page.split("<script>")[1]
    digest = hashlib.sha256(script.split("</script>")[0].encode()).digest()
    assert policy[1] == f"sha256-{base64.b64encode(digest).decode()}"  # ours runs, nothing else
    assert page.count("<script") == 1
    for content in (page, *(path.read_text() for path in folder.figures.glob("*.svg"))):
        assert SCRIPT not in content
        assert "<img src=x" not in content


def test_text_in_figures_stays_text(tmp_path):
    figure = Figure()
    axes = figure.subplots()
    axes.set_title(f"{SCRIPT} --><script>")
    axes.plot([1, 2], label=ATTRIBUTE)
    axes.legend()
    save_figure(figure, tmp_path, "x")
    content = (tmp_path / "x.svg").read_text()
    assert content.count("&lt;script&gt;") == 2
    assert "<script" not in content
    assert "<img" not in content
    assert "-->&lt;" not in content
