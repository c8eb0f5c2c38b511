"""A finished run of thousands of jobs, made in seconds: a few networks are run, the rest copied.

As a script: ``python tests/many_jobs.py FOLDER NUM_SEEDS`` makes a run of 100 jobs per seed in
FOLDER/run, with its data in FOLDER/data, and prints how long each verb takes on it.
"""

import resource
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from faulty_runs import Listening
from test_faults import write_data

from robust_ham.config.files import parse_config
from robust_ham.models.checkpoints import CARD, describe
from robust_ham.runs.jobs import gate
from robust_ham.runs.jobs.attack_checks import Finding
from robust_ham.runs.plan.context import Context
from robust_ham.runs.plan.keys import attack_key, model_key, predictions_key
from robust_ham.runs.plan.plan import make_plan
from robust_ham.runs.runner import run_plan
from robust_ham.storage import files
from robust_ham.storage.files import read_json, write_json
from robust_ham.storage.parquet_tables import read_table, write_table
from robust_ham.storage.receipts import sign
from robust_ham.storage.run_folder import RunFolder

CONFIG = """
schema: 1
name: many
dataset: {name: fashion_mnist, num_train: 1000, num_test: 40}
models:
  - architecture: cnn
    depth: 2
    widths: [8]
    first_kernel: same
    sweep: {kernel_size: [3, 5, 7, 9, 11], window: [none, hamming], seed: SEEDS}
training: {epochs: 2, batch_size: 16, lr: 0.2, precision: float32}
attacks:
  deepfool_l2: {attack: deepfool, budget: 0.25, budgets: [0.1, 0.25, 0.5], steps: 10}
  deepfool_linf: {attack: deepfool, norm: linf, steps: 10}
  superdeepfool: {attack: superdeepfool, steps: 10}
  band_0: {attack: band_deepfool, band: 0, bands: 4, steps: 10}
  band_3: {attack: band_deepfool, band: 3, bands: 4, steps: 10}
  deepfool_5: {attack: deepfool, steps: 5}
  deepfool_20: {attack: deepfool, steps: 20}
  shift: {attack: spatial_shift, max_translation: 1, stop: null}
  pgd: {attack: "foolbox:L2PGD", epsilon: 0.25, steps: 2}
evaluation: {num_images: 24, threads: 1}
"""
JOBS_PER_SEED = 5 * 2 * (1 + 9)


def config_of(num_seeds, config=CONFIG):
    """The configuration with so many seeds."""
    return parse_config(config.replace("SEEDS", str(list(range(num_seeds)))))


@contextmanager
def _in_haste():
    """Without waiting for the disk; the gate finds that all is well."""
    before = files._flush, gate._findings
    files._flush, gate._findings = lambda path: None, _no_faults
    try:
        yield
    finally:
        files._flush, gate._findings = before


def _no_faults(checked, attack_id, others, key):
    about = {"model_id": checked.spec.model_id, "attack": attack_id, "key": key}
    found = [asdict(Finding(f"check {i}", "pass", 0.5, 1.0, "well")) for i in range(4)]
    return pd.DataFrame([about | finding for finding in found], columns=gate.COLUMNS)


def make_many(folder, data, num_seeds, config=CONFIG):
    """A finished run with ``num_seeds`` seeds of each network, all but the first one copied."""
    device, run = torch.device("cpu"), RunFolder(Path(folder))
    first = make_plan(config_of(1, config), Path(data))
    with _in_haste():
        assert run_plan(first, run.root, device, Listening()).num_failed == 0
        context = Context(make_plan(config_of(num_seeds, config), Path(data)), run, device)
        originals = {_arm(spec): spec for spec in first.config.model_specs()}
        for spec in context.plan.config.model_specs():
            if spec.seed:
                _copy_model(context, originals[_arm(spec)], spec)
        run_plan(context.plan, run.root, device, Listening())
    lines = "".join(f"{job.name},0.25\n" for job in context.plan.jobs)
    run.timings.write_text(f"cell,seconds\n{lines}")
    return context


def _arm(spec):
    return spec.family, spec.kernel_size, spec.window


def _copy_model(context, original, spec):
    run, generator = context.run, np.random.default_rng(spec.seed)
    old, new = run.model(original.model_id), run.model(spec.model_id)
    shutil.copytree(old, new)
    key = model_key(context, spec)
    card = read_json(new / CARD)
    del card["schema"]
    write_json(new / CARD, card | {"model_id": spec.model_id, "model": describe(spec), "key": key})
    sign(run, new, key, list(new.iterdir()))
    path = run.predictions(spec.model_id)
    shutil.copy(run.predictions(original.model_id), path)
    weights = card["weights_sha256"]
    sign(run, path, predictions_key(context, spec), [path], weights=weights)
    factor = 1 + 0.1 * generator.random()
    for attack_id, attack in context.plan.config.attacks.items():
        files = []
        for place in (run.gallery, run.grid, run.margins, run.spectrum, run.adversarials):
            source, target = (place(s.model_id, attack_id) for s in (original, spec))
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
                files.append(target)
        table = read_table(run.samples(original.model_id, attack_id))
        table["model_id"] = spec.model_id
        for norm in ("l2", "linf", "l2_relative"):
            table[norm] *= factor
        key, path = attack_key(context, spec, attack_id), run.samples(spec.model_id, attack_id)
        metadata = key._asdict() | {"key": key.digest, "attack": attack.attack}
        write_table(path, table, metadata)
        sign(run, path, key.digest, [path, *files], **key._asdict())


def measure(folder, num_seeds):
    """Make the run and print the seconds and the memory of each verb."""
    folder, start = Path(folder), time.monotonic()
    run, data, config = folder / "run", folder / "data", folder / "many.yaml"
    if not run.is_dir():
        make_many(run, write_data(data), num_seeds)
        config.write_text(CONFIG.replace("SEEDS", str(list(range(num_seeds)))))
    print(f"made in {time.monotonic() - start:.0f} s", flush=True)
    for name, words in {
        "dry run": ["run", config, "--dry-run", "--out", run, "--data-root", data],
        "restart": ["run", config, "--out", run, "--data-root", data, "--stop-after", "attack"],
        "status": ["status", run],
        "report": ["report", run],
        "verify": ["verify", run, "--cells", "0", "--data-root", data],
        "compare": ["compare", run, run, "--out", folder / "compared"],
    }.items():
        start = time.monotonic()
        command = [sys.executable, "-m", "robust_ham", *map(str, words)]
        ended = subprocess.run(command, check=False, capture_output=True, text=True)
        seconds = time.monotonic() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
        print(f"{name}: {seconds:.1f} s, {peak:.0f} MB at most so far, exit {ended.returncode}")
        print("\n".join(ended.stderr.splitlines()[-3:]), flush=True)
    for name in ("report.html", "timings.csv", "run.log"):
        print(f"{name}: {(run / name).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    measure(sys.argv[1], int(sys.argv[2]))
