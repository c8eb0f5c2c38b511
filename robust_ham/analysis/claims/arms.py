"""Which arms of a run a claim compares, and under which of its attacks."""

from __future__ import annotations

from typing import Any

from robust_ham.analysis.claims.schema import ArmsPart, AttackChoice
from robust_ham.analysis.contrasts import Arm, Comparison, paired_by_seed
from robust_ham.analysis.curves import arms_of
from robust_ham.analysis.run import Run
from robust_ham.config.experiment import BEST
from robust_ham.config.models import ModelGroup

Attributes = dict[str, Any]


def pairs_of(run: Run, part: ArmsPart) -> list[Comparison]:
    """The comparisons that a part asks for, of the arms that the run has."""
    pairs = _pairs(run, part)
    if part.vary is not None:
        pairs = _varied(pairs, part.vary)
    return [comparison for _, comparison in pairs]


def _pairs(run: Run, part: ArmsPart) -> list[tuple[Attributes, Comparison]]:
    """Arms of the run that differ as the part says and in nothing else, paired by seed."""
    arms: list[tuple[Attributes, Arm]] = [
        (_attributes(run, arm[0]), arm) for arm in arms_of(run).values()
    ]
    found = []
    for attributes, arm in arms:
        if not _matches(attributes, part.compare | part.only):
            continue
        wanted = attributes | part.against
        for others, other in arms:
            if others == wanted and other is not arm:
                paired = paired_by_seed(arm, other)
                if paired is not None:
                    found.append((attributes, Comparison(*paired, "claim")))
    return found


def _varied(
    pairs: list[tuple[Attributes, Comparison]], key: str
) -> list[tuple[Attributes, Comparison]]:
    """Those of which there are others that differ in ``key`` and in no more than the name."""
    groups: dict[str, list[tuple[Attributes, Comparison]]] = {}
    for attributes, comparison in pairs:
        rest = {k: v for k, v in attributes.items() if k not in {key, "prefix"}}
        groups.setdefault(repr(rest), []).append((attributes, comparison))
    varied = [g for g in groups.values() if len({repr(a[key]) for a, _ in g}) > 1]
    return [pair for group in varied for pair in group]


def _attributes(run: Run, spec: ModelGroup) -> Attributes:
    """All that describes an arm but its learning rate; a fitted width is told by ``match``."""
    elsewhere = {"source", "weights", "factory"}  # where it comes from
    values = spec.model_dump(exclude={"seed", "sweep", "training", "match"} | elsewhere)
    match = spec.match
    values["match"] = f"{match.to}{match.kernel_size}" if match is not None else None
    if match is not None:
        values["width"] = match.width
    recipe = run.config.training_of(spec).model_dump(exclude={"lr"})
    return values | {"weight_decay": recipe.pop("weight_decay"), "recipe": recipe}


def _matches(attributes: Attributes, wanted: Attributes) -> bool:
    """Whether every wanted key has the value, or one of the values; a key not there: null."""
    for key, values in wanted.items():
        options = values if isinstance(values, list) else [values]
        if attributes.get(key) not in options:
            return False
    return True


def attack_id_of(run: Run, choice: AttackChoice) -> str | None:
    """The run's attack of that function and norm, on most models and images, the first of equals.

    ``best`` needs several to choose from.
    """
    if choice.name == "best":
        best = BEST[choice.norm]
        return best if best in run.attacks else None
    able = {
        attack_id: attack
        for attack_id, attack in run.attacks.items()
        if attack.attack == choice.name and attack.norm == choice.norm
    }
    most = run.config.evaluation.num_images
    return max(
        able,
        key=lambda a: (able[a].seeds is None, able[a].num_images or most),
        default=None,
    )
