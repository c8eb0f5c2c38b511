"""Can a model's numbers be trusted? Small checks, each of which a known defect sets off.

``run_gate`` checks every finished model and attack of a run on a few images and writes
``gate.csv``. A *fail* means that the numbers of that model, or of that attack on it, say nothing of
its robustness: gradients that are masked, answers that are random, an attack too weak.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attacks import deepfool, margins_of
from attacks.draws import image_streams
from attacks.prepare import attack_mode
from robust_ham.catalogue import attack_function, attack_options
from robust_ham.cells import Context, load_model
from robust_ham.checkpoints import CARD, read_card
from robust_ham.config import AttackConfig, ModelGroup
from robust_ham.evaluation import ACCURACY_TOLERANCE, Progress, accuracy, judge, logits_of
from robust_ham.store import content_key, read_metadata, read_table, write_csv

VERSION = 1
"""Raised when the same model gets other findings; part of every key."""

NUM_IMAGES = 32
_SURVIVORS, _MANY_STEPS = 0.01, 1000
NUM_OTHERS = 4
"""Models whose adversarial images are tried on a model."""

COLUMNS = "model_id attack check severity value limit reason key".split()

log = logging.getLogger(__name__)

Severity = Literal["pass", "warn", "fail"]
Values = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Finding:
    """What one check has measured, its limit, and in one line why it trips; empty: it does not."""

    check: str
    severity: Severity
    value: float
    limit: float
    reason: str


def _finding(
    check: str, value: float, limit: float, reason: str, severity: Severity = "fail"
) -> Finding:
    """Passes up to the limit; a value that is not a number trips."""
    passed = value <= limit
    return Finding(check, "pass" if passed else severity, value, limit, "" if passed else reason)


# --- the model alone -------------------------------------------------------------------------


def check_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> Finding:
    """The margin's gradient is zero or not finite on an image that is classified right."""
    with attack_mode(model), torch.enable_grad():
        inputs = images.clone().requires_grad_(True)
        margins = margins_of(model(inputs), labels)
        try:
            (gradient,) = torch.autograd.grad(margins.sum(), inputs, allow_unused=True)
        except RuntimeError:  # nothing between input and logits has a gradient
            gradient = None
    right = margins.detach() > 0
    if gradient is None:
        gradient = torch.zeros_like(images)
    size = gradient.flatten(1).norm(dim=1)
    lost = int((right & ~(torch.isfinite(size) & (size > 0))).sum())
    reason = f"no usable gradient on {lost} of {int(right.sum())} images that are right"
    return _finding("gradient", lost, 0, reason)


def check_determinism(model: nn.Module, images: Tensor, device: torch.device) -> Finding:
    """Five passes on one batch give other logits."""
    passes = torch.stack([logits_of(model, images, device) for _ in range(5)])
    spread = (passes - passes[0]).abs().max() / passes[0].abs().max().clamp_min(1e-30)
    reason = f"logits of one batch differ by {spread:.1g} of the largest from pass to pass"
    return _finding("determinism", float(spread), 1e-4, reason)


def check_logits(model: nn.Module, images: Tensor, device: torch.device) -> Finding:
    """The outputs look like probabilities: a softmax hides the margin from the attack."""
    logits = logits_of(model, images, device)
    inside = bool(((logits >= 0) & (logits <= 1)).all())
    sums = bool(((logits.sum(1) - 1).abs() <= 1e-5).all())
    reason = "outputs lie in [0, 1] and sum to 1: probabilities, not logits"
    return _finding("logits", float(inside and sums), 0, reason)


def check_accuracy(found: float, card: float) -> Finding:
    """Accuracy over the whole test split is not what the card says."""
    reason = f"test accuracy {found:.4f}, the card says {card:.4f}"
    return _finding("accuracy", abs(found - card), ACCURACY_TOLERANCE, reason)


# --- an attack on the model ------------------------------------------------------------------


def check_survivors(
    model: nn.Module, images: Tensor, labels: Tensor, samples: pd.DataFrame
) -> Finding:
    """An attack without a bound does not fool: its gradients lead nowhere, or it lacks steps.

    ``samples`` are the rows of the images (n, C, H, W) and, perhaps, of more. Survivors among the
    images are attacked again by DeepFool with 1,000 steps: fails where that does not fool them.
    """
    right = samples["clean_prediction"] == samples["label"]
    survived = (right & (samples["status"] != "fooled")).to_numpy()
    share = float(survived.sum() / max(right.sum(), 1))
    reason = f"{share:.1%} of the images that are right survive an attack without a bound"
    rows = torch.from_numpy(np.flatnonzero(survived[: len(images)])).to(images.device)
    if share <= _SURVIVORS or len(rows) == 0:
        return _finding("survivors", share, _SURVIVORS, f"{reason}: raise steps", "warn")
    found = deepfool(model, images[rows], labels[rows], steps=_MANY_STEPS, prune=None)
    if bool(found.fooled.all()):
        return _finding("survivors", share, _SURVIVORS, f"{reason}: raise steps", "warn")
    return _finding("survivors", share, _SURVIVORS, f"{reason}, {_MANY_STEPS} steps too")


def check_random_direction(
    model: nn.Module, images: Tensor, labels: Tensor, distances: Values, norm: str
) -> Finding:
    """A random direction of the same length fools as the attack does.

    ``distances`` (n,) in ``norm``; only images at a finite distance above 0 are tried.
    """
    tried = np.isfinite(distances) & (distances > 0)
    share = 0.0
    if tried.any():
        rows = torch.from_numpy(np.flatnonzero(tried)).to(images.device)
        part, length = images[rows], torch.from_numpy(distances[tried]).to(images)
        streams = image_streams(part.cpu(), "gate")
        draws = np.stack([stream.standard_normal(part.shape[1:]) for stream in streams])
        direction = torch.from_numpy(draws).to(images)
        if norm == "linf":
            direction = direction.sign()
        else:
            direction = direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        moved = (part + length.view(-1, 1, 1, 1) * direction).clamp(0, 1)
        with attack_mode(model), torch.no_grad():
            share = float((margins_of(model(moved), labels[rows]) < 0).double().mean())
    reason = f"a random direction of the same length fools {share:.0%} of what the attack fooled"
    return _finding("random direction", share, 0.1, reason)


def check_stronger(distances: Values, reference: Values, severity: Severity) -> Finding:
    """DDN (arXiv 1811.09600) comes nearer than the run's best minimum-norm attack, L2."""
    shortfall = 1 - _median_ratio(reference, distances)
    reason = f"DDN comes {shortfall:.1%} nearer in the median: the attack is too weak here"
    return _finding("stronger attack", shortfall, 0.05, reason, severity)


def check_doubled_steps(distances: Values, doubled: Values) -> Finding:
    """Twice the steps move the median."""
    moved = abs(_median_ratio(doubled, distances) - 1)
    reason = f"twice the steps move the median distance by {moved:.1%}"
    return _finding("doubled steps", moved, 0.01, reason, "warn")


def check_black_box(distances: Values, transferred: Values) -> Finding:
    """Other models' adversarial images, brought back to the boundary, lie nearer than the attack's.

    Both (n,); 0: wrong at first.
    """
    right = distances > 0
    nearer = transferred[right] < 0.95 * distances[right]
    share = float(nearer.mean()) if right.any() else 0.0
    reason = f"images made for other models are over 5 % nearer on {share:.0%} of the images"
    return _finding("black box", share, 0.05, reason, "warn")


def _median_ratio(one: Values, other: Values) -> float:
    """Median over images of one / other; images wrong at first are left out, ∞ / ∞ is 1."""
    right = (one > 0) & (other > 0)
    if not right.any():
        return 1.0
    with np.errstate(invalid="ignore"):
        ratios = one[right] / other[right]
    ratios[np.isinf(one[right]) & np.isinf(other[right])] = 1.0
    return float(np.median(ratios))


def nearest_along(model: nn.Module, images: Tensor, labels: Tensor, ends: list[Tensor]) -> Values:
    """L2 distance to the nearest image that fools on the lines from images to ``ends``, (n,).

    Each line is scanned from a sixteenth to four times its length and the first crossing bisected;
    0: wrong at first, ∞: no line leads across.
    """
    found = torch.full((len(images),), np.inf, dtype=torch.float64)
    with attack_mode(model), torch.no_grad():

        def fools(ways: Tensor, share: Tensor) -> Tensor:
            moved = (images + share.view(-1, 1, 1, 1) * ways).clamp(0, 1)
            return margins_of(model(moved), labels) < 0

        for end in ends:
            ways = end - images
            scale = torch.ones(len(images), device=images.device)
            low, high = torch.zeros_like(scale), torch.full_like(scale, np.inf)
            for share in np.geomspace(1 / 16, 4, 13):
                crossed = fools(ways, scale * share) & high.isinf()
                high = torch.where(crossed, scale * share, high)
                low = torch.where(high.isinf(), scale * share, low)
            reached = high.isfinite()
            high = torch.where(reached, high, 0.0)
            for _ in range(8):
                middle = (low + high) / 2
                crossed = fools(ways, middle)
                low, high = torch.where(crossed, low, middle), torch.where(crossed, middle, high)
            moved = (images + high.view(-1, 1, 1, 1) * ways).clamp(0, 1)
            distance = (moved - images).double().flatten(1).norm(dim=1).cpu()
            found = torch.minimum(found, torch.where(reached.cpu(), distance, np.inf))
        wrong = margins_of(model(images), labels) <= 0
    return found.where(~wrong.cpu(), 0.0).numpy()


# --- a run -----------------------------------------------------------------------------------


class Suspect:
    """One finished model of a run, with what several checks need."""

    def __init__(self, context: Context, spec: ModelGroup) -> None:
        self.context = context
        self.spec = spec
        attacked = context.plan.attacked
        self.images = attacked.images[:NUM_IMAGES].to(context.device)
        self.labels = attacked.labels[:NUM_IMAGES].to(context.device)
        self.card = read_card(context.run.model(spec.model_id))

    @cached_property
    def model(self) -> nn.Module:
        """The network, on the run's device."""
        return load_model(self.context, self.spec)[0]

    @cached_property
    def adversarials(self) -> Tensor:
        """DeepFool's images, which other models are tried on."""
        model = load_model(self.context, self.spec)[0]  # not kept: there may be many others
        return deepfool(model, self.images, self.labels, steps=100).images

    def forget_model(self) -> None:
        """Free the network's memory."""
        self.__dict__.pop("model", None)

    def samples(self, attack_id: str) -> pd.DataFrame | None:
        """Rows of all attacked images under an attack; None: not there."""
        path = self.context.run.samples(self.spec.model_id, attack_id)
        return read_table(path) if path.is_file() else None

    def distances(self, attack_id: str) -> Values | None:
        """Of the checked images, in the attack's norm."""
        samples = self.samples(attack_id)
        norm = self.context.plan.config.attacks[attack_id].norm
        return None if samples is None else samples[norm].to_numpy(np.float64)[:NUM_IMAGES]

    def again(self, attack: str, options: dict[str, Any], norm: str) -> Values:
        """Distances of the checked images under an attack run anew."""
        outcome = attack_function(attack)[0](self.model, self.images, self.labels, **options)
        images, labels = self.images.cpu(), self.labels.cpu()
        rows = judge(self.model, images, labels, outcome, self.context.device)
        return rows[norm].to_numpy(np.float64)


def check_model(suspect: Suspect) -> list[Finding]:
    """All checks that need no attack."""
    model, images, device = suspect.model, suspect.images, suspect.context.device
    found = accuracy(read_table(suspect.context.run.predictions(suspect.spec.model_id)))
    return [
        check_gradients(model, images, suspect.labels),
        check_determinism(model, images, device),
        check_logits(model, images, device),
        check_accuracy(found, suspect.card["test_accuracy"]),
    ]


def check_attack(suspect: Suspect, attack_id: str, others: list[Suspect]) -> list[Finding]:
    """All checks of one minimum-norm attack on one model."""
    attacks = suspect.context.plan.config.attacks
    attack = attacks[attack_id]
    samples, distances = suspect.samples(attack_id), suspect.distances(attack_id)
    assert samples is not None
    assert distances is not None
    args = (suspect.model, suspect.images, suspect.labels)
    findings = [check_random_direction(*args, distances, attack.norm)]
    if attack.attack in ("deepfool", "superdeepfool"):
        findings.append(check_survivors(*args, samples))
    options = attack_options(attack, attack_id)
    walks = attack.attack == "deepfool" and not np.isinf(distances).any()  # and each has arrived
    if walks:
        findings.append(check_doubled_steps(distances, distances))
    elif "steps" in options:
        doubled = options | {"steps": 2 * options["steps"]}
        again = suspect.again(attack.attack, doubled, attack.norm)
        findings.append(check_doubled_steps(distances, again))
    if attack.norm == "l2" and attack_id == _strongest(suspect, attacks):
        rivals = [a for a, c in attacks.items() if c.has_budget and c.norm == "l2"]
        known = [d for d in map(suspect.distances, rivals) if d is not None]
        best = np.minimum.reduce(known)
        reference = suspect.again("foolbox:DDNAttack", {"steps": 100, "norm": "l2"}, "l2")
        alone = all(attacks[a].attack == "deepfool" for a in rivals)
        findings.append(check_stronger(best, reference, "warn" if alone else "fail"))
        ends = [other.adversarials for other in others]
        findings.append(check_black_box(best, nearest_along(*args, ends)))
    return findings


def _strongest(suspect: Suspect, attacks: dict[str, AttackConfig]) -> str | None:
    """The L2 attack that comes nearest on average: it answers for the best of all."""
    means = {}
    for attack_id, attack in attacks.items():
        if attack.has_budget and attack.norm == "l2":
            distances = suspect.distances(attack_id)
            if distances is not None:
                means[attack_id] = np.minimum(distances, attack.curve_budgets[-1]).mean()
    return min(means, key=lambda attack_id: means[attack_id]) if means else None


def write_gate(
    context: Context,
    failed: Collection[str] = (),
    progress: Progress = lambda done, total: None,
) -> pd.DataFrame:
    """Write ``gate.csv`` of a run and return it; findings whose subject is the same are kept.

    Models called in ``failed`` and attacks that are not finished are left out.
    """
    before = _read(context)
    specs = [
        spec
        for spec in context.plan.config.model_specs()
        if spec.model_id not in failed and (context.run.model(spec.model_id) / CARD).is_file()
    ]
    suspects = [Suspect(context, spec) for spec in specs]
    tables = []
    for i, suspect in enumerate(suspects):
        steps = sorted({i + round(j * len(suspects) / (NUM_OTHERS + 1)) for j in range(NUM_OTHERS)})
        others = [suspects[j % len(suspects)] for j in steps if j % len(suspects) != i]
        for attack_id, key in _subjects(suspect, others).items():
            known = (before["model_id"] == suspect.spec.model_id) & (before["key"] == key)
            table = before[known & (before["attack"] == attack_id)]
            if table.empty:
                table = _checked(suspect, attack_id, others, key)
            tables.append(table)
        suspect.forget_model()
        progress(i + 1, len(suspects))
    gate = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)
    write_csv(context.run.gate, gate)
    return gate


def _checked(suspect: Suspect, attack_id: str, others: list[Suspect], key: str) -> pd.DataFrame:
    found = check_attack(suspect, attack_id, others) if attack_id else check_model(suspect)
    table = pd.DataFrame([asdict(finding) for finding in found])
    return table.assign(model_id=suspect.spec.model_id, attack=attack_id, key=key)[COLUMNS]


def _subjects(suspect: Suspect, others: list[Suspect]) -> dict[str, str]:
    """The model itself ("") and its finished attacks, each with a key of all that decides them."""
    context = suspect.context
    config = context.plan.config
    about = context.where | {
        "version": VERSION,
        "weights": suspect.card["weights_sha256"],
        "inputs": context.inputs_key,
    }
    made = {}
    for attack_id, attack in config.attacks.items():
        if attack.has_budget:
            metadata = read_metadata(context.run.samples(suspect.spec.model_id, attack_id))
            made[attack_id] = (metadata or {}).get("key")
    keys = {"": content_key(about)}
    everything = about | {"made": made, "others": [o.card["weights_sha256"] for o in others]}
    for attack_id, key in made.items():
        if key is not None:
            keys[attack_id] = content_key(everything | {"attack": attack_id})
    return keys


def _read(context: Context) -> pd.DataFrame:
    """The findings there are; none if the file is missing, damaged, or of other columns."""
    try:
        table = pd.read_csv(
            context.run.gate, dtype=str, keep_default_na=False
        )  # numbers as written
    except (FileNotFoundError, ValueError):
        return pd.DataFrame(columns=COLUMNS)
    return table if list(table.columns) == COLUMNS else pd.DataFrame(columns=COLUMNS)
