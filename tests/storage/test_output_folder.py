"""Nothing of somebody else is removed or written over: neither files, nor the configuration."""

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import TINY_RUN
from faulty_runs import results

from robust_ham.config.files import parse_config
from robust_ham.errors import RequestError
from robust_ham.storage.files import write_json, write_text, writing
from robust_ham.storage.output_folder import claim, refuse_strangers, write_config
from robust_ham.storage.run_folder import FILES, FOLDERS, RunFolder

TRAINING = ("--stop-after", "train")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(f"# my notes\n{TINY_RUN}")
    return path


def everything(folder):
    """Every path below a folder: content, kind and time of its last change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        found[str(path.relative_to(folder))] = content, path.lstat().st_mtime_ns
    return found


STRANGERS = {
    "thesis": {".tmp/thesis.txt": "chapter 1"},
    "git": {".git/.tmp-objects/pack": "pack", ".git/HEAD": "ref"},
    "images": {"shards/m/a/0/a.jpg": "jpg"},
    "locks": {"locks/mine.lock": "", "locks/start.lock": ""},
    "failures": {"failures.jsonl": "{}\n"},
    "configuration": {"config.yaml": f"# my notes\n{TINY_RUN}"},
    "log": {"run.log": "monday\n"},
    "mlflow": {"manifest.json": '{"schema": 1, "name": "theirs"}'},
    "web page": {"manifest.json": '{"name": "x", "short_name": "y", "icons": []}'},
    "no JSON": {"manifest.json": "manifest"},
    "a list": {"manifest.json": "[1]"},
    "deep JSON": {"manifest.json": "[" * 100_000},
    "another schema": {"manifest.json": '{"schema": 9, "name": "", "versions": {"robust-ham": 1}}'},
    "temporary": {".thesis.tex.01234567.tmp.tex": "chapter 1"},
    "hidden": {".DS_Store": "", ".env": "secret"},
    "tables": {"summary.csv": "a\n", "report.html": "<p>", "figures/a.svg": "<svg/>"},
    "results": {"comparison.csv": "a\n", "claims.csv": "a\n", "kernels.csv": "a\n"},
    "empty folder": {"samples/": ""},
}


REFUSED = "mine: expected an empty folder or one made by|another version of robust-ham made"


def write_files(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        else:
            path.write_text(text)


@pytest.mark.parametrize("files", STRANGERS.values(), ids=STRANGERS)
@pytest.mark.parametrize("verb", ["run", "explain", "compare"])
def test_a_folder_of_somebody_else_is_refused_and_left_as_it_is(tmp_path, verb, files):
    folder = tmp_path / "mine"
    write_files(folder, files)
    before = everything(tmp_path)
    with pytest.raises(RequestError, match=REFUSED) as caught:
        claim(folder, "name", verb)
    assert str(caught.value).count("\n") == 0
    assert everything(tmp_path) == before


@pytest.mark.parametrize("verb", ["run", "dry run", "bench", "explain", "compare", "default"])
def test_every_verb_refuses_before_it_writes(run_cli, config, tmp_path, monkeypatch, verb):
    folder = tmp_path / "mine"
    write_files(folder, {name: "mine" for name in (*FILES, "comparison.csv", "kernels.csv")})
    monkeypatch.chdir(tmp_path)
    words = {
        "run": ("run", config, "--out", folder),
        "dry run": ("run", config, "--dry-run", "--out", folder),
        "bench": ("bench", config, "--out", folder),
        "explain": ("explain", "tapering", "--out", folder),
        "compare": ("compare", tmp_path, tmp_path, "--out", folder),
        "default": ("run", config),
    }
    if verb == "default":
        shutil.copytree(folder, tmp_path / "results" / "tiny")
    before = everything(tmp_path)
    code, _, errors = run_cli(*words[verb])
    assert (code, errors.count("\n")) == (2, 1)
    assert "expected an empty folder or one made by `robust-ham" in errors
    assert everything(tmp_path) == before


@pytest.mark.parametrize("verb", ["report", "verify", "status"])
@pytest.mark.parametrize("files", STRANGERS.values(), ids=STRANGERS)
def test_verbs_that_read_a_run_write_nothing_into_other_folders(run_cli, tmp_path, verb, files):
    folder = tmp_path / "mine"
    write_files(folder, files)
    before = everything(tmp_path)
    code, _, errors = run_cli(verb, folder)
    if "config.yaml" not in files:  # else it may be a run that has not begun
        assert (code, errors.count("\n")) in ((2, 1), (3, 1))
    assert everything(tmp_path) == before


def test_a_folder_that_another_verb_has_made_is_refused(tmp_path):
    claim(tmp_path / "a", "kernels", "explain")
    claim(tmp_path / "a", "leakage", "explain")
    for verb in ("run", "compare"):
        with pytest.raises(RequestError, match=r"made by `robust-ham explain`; `robust-ham "):
            claim(tmp_path / "a", "name", verb)


@pytest.mark.parametrize("name", [".DS_Store", ".gitkeep", "Thumbs.db", "desktop.ini"])
def test_an_empty_folder_may_hold_what_says_nothing(tmp_path, name):
    (tmp_path / name).touch()
    claim(tmp_path, "name")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "manifest.json"])


def test_a_process_killed_before_its_manifest_leaves_a_folder_that_can_be_used(tmp_path):
    manifest = RunFolder(tmp_path).manifest
    for name in (".tmp.lock", ".tmp.json", ".tmp.lock.held"):
        (tmp_path / f".manifest.json.01234567{name}").write_text("half")
    (tmp_path / "..manifest.json.01234567.tmp.lock.held.89abcdef.tmp").touch()
    refuse_strangers(tmp_path)
    with writing(manifest):
        refuse_strangers(tmp_path)
        manifest.with_name(f"{next(tmp_path.glob('.*.tmp.json')).name}").touch()
        for path in tmp_path.glob(".manifest.json.*.tmp.lock"):
            path.with_name(path.name.replace(".lock", ".json")).touch()
    (tmp_path / ".config.yaml.01234567.tmp.yaml").touch()
    (tmp_path / "manifest.json").unlink()
    name = r"\.config\.yaml\.01234567\.tmp\.yaml"
    with pytest.raises(RequestError, match=f"got {name} without robust-ham's"):
        refuse_strangers(tmp_path)


def test_the_first_file_of_a_run_is_its_manifest(tmp_path, monkeypatch):
    written, real = [], os.replace

    def replace(source, target):
        written.append(Path(target).name)
        return real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    claim(tmp_path / "run", "name")
    claim(tmp_path / "run", "name")
    assert written == ["manifest.json"]
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["name"] == "name"


def test_every_path_of_a_run_is_in_its_lists(tmp_path):
    """What is in neither would keep its half-written files for ever."""
    run, places = RunFolder(tmp_path), ("m", "a")
    paths = [getattr(run, n) for n, p in vars(RunFolder).items() if isinstance(p, property)]
    below = (run.model, run.unfinished, run.predictions)
    of_attacks = (run.samples, run.gallery, run.margins, run.grid, run.spectrum, run.adversarials)
    paths += [*(f("m") for f in below), *(f(*places) for f in of_attacks), run.shard(*places, 0)]
    firsts = {p.relative_to(tmp_path).parts[0] for p in paths if isinstance(p, Path)}
    assert firsts <= {*FILES, *FOLDERS}
    assert len(firsts) > 25


# --- the configuration ---------------------------------------------------------------------------


def test_the_file_that_is_run_is_never_written(run_cli, config, tmp_path, monkeypatch):
    """Its comments stay: it may be the run's own record, by whatever name it is called."""
    folder = tmp_path / "results" / "x"
    folder.mkdir(parents=True)
    own = folder / "config.yaml"
    shutil.copy(config, own)
    code, _, errors = run_cli("run", own, *TRAINING, "--out", folder)
    assert (code, own.read_text()) == (2, config.read_text())
    assert "got config.yaml without robust-ham's manifest.json" in errors
    own.unlink()
    assert run_cli("run", config, *TRAINING, "--out", folder)[0] == 0
    resolved = own.read_text()
    assert run_cli("run", own, *TRAINING, "--out", folder)[0] == 0  # what we wrote works
    assert own.read_text() == resolved
    own.write_text(f"# mine\n{resolved}")
    link = tmp_path / "link.yaml"
    link.symlink_to(own)
    monkeypatch.chdir(folder)
    for name in (own, link, "config.yaml", "../x/config.yaml"):
        assert run_cli("run", name, *TRAINING, "--out", folder)[0] == 0
        assert own.read_text() == f"# mine\n{resolved}"
        code, _, errors = run_cli("run", name, "-o", "training.epochs=2", "--out", folder)
        assert (code, errors.count("\n")) == (2, 1)
        assert "config.yaml: the record of this run" in errors
    assert own.read_text() == f"# mine\n{resolved}"
    assert not (folder / "superseded").exists()
    before = results(folder)
    _, printed, _ = run_cli("run", config, *TRAINING, "--out", folder)
    assert own.read_text() == resolved  # another file asks for the same
    assert (
        f"{own}: was edited; the edited file is now {folder / 'superseded/config.yaml.1'}"
        in printed
    )
    assert (folder / "superseded" / "config.yaml.1").read_text() == f"# mine\n{resolved}"
    assert results(folder) == before | {"config.yaml": resolved.encode()}


def test_what_we_wrote_is_replaced_and_what_was_edited_is_kept(tmp_path):
    run, one = RunFolder(tmp_path), parse_config(TINY_RUN)
    other = parse_config(TINY_RUN, ["name=other"])
    assert write_config(run, one) is None
    assert write_config(run, other) is None
    assert run.config.read_text() == other.to_yaml()
    for text in (f"{other.to_yaml()}# mine\n", "not: a configuration\n", "\x00", "a: b: c"):
        write_text(run.config, text)
        aside = write_config(run, one)
        assert aside is not None
        assert aside.read_text() == text
        assert run.config.read_text() == one.to_yaml()


def test_a_link_in_a_folder_is_named(tmp_path):
    write_json(tmp_path / "secret.json", {})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(RequestError, match=r"manifest.json: a symbolic link; a run folder must"):
        claim(tmp_path / "run", "name")


@pytest.mark.parametrize("manifest", [None, "", "{", "[]"], ids=str)
def test_a_run_whose_manifest_is_lost_goes_on(tmp_path, manifest):
    receipt = {"key": "a" * 64, "files": {}}
    write_json(tmp_path / "receipts/models/cnn.json", receipt)
    (tmp_path / "config.yaml").write_text("name: x")
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    refuse_strangers(tmp_path, "run")
    with pytest.raises(RequestError, match="made by `robust-ham run`"):
        refuse_strangers(tmp_path, "explain")


def test_another_version_is_named(tmp_path):
    about = {"schema": 9, "name": "x", "versions": {"robust-ham": "9"}}
    (tmp_path / "manifest.json").write_text(json.dumps(about))
    with pytest.raises(RequestError, match="expected schema 1, got 9: another version of"):
        refuse_strangers(tmp_path, "run")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file/inside"):
        with pytest.raises(RequestError, match="expected a folder, got a file"):
            refuse_strangers(path, "run")


def test_what_earlier_versions_wrote_without_a_manifest_is_taken_up(tmp_path):
    earlier = ["cost.csv", "cost.svg", "claims.csv"]
    for name in earlier[:2]:
        (tmp_path / name).write_text("a")
    refuse_strangers(tmp_path, "explain", earlier)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RequestError, match="without robust-ham's manifest.json"):
        refuse_strangers(tmp_path, "explain", earlier)
