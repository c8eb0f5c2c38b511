"""Select the arms and the attack of a run that a claim is about."""

from __future__ import annotations

from typing import Any

from robust_ham.analysis.arms import Arm, arms_of, pair_by_seed
from robust_ham.analysis.claims.schema import ArmsPart, AttackChoice
from robust_ham.analysis.contrasts import Comparison
from robust_ham.analysis.run import Run
from robust_ham.config.experiment import BEST
from robust_ham.config.models import ModelGroup

Attributes = dict[str, Any]


def pairs_of(run: Run, part: ArmsPart) -> list[Comparison]:
    """Return the comparisons of a part for which the run has arms."""
    pairs = _pairs(run, part)
    if part.vary is not None:
        pairs = _varied(pairs, part.vary)
    return [comparison for _, comparison in pairs]


def _pairs(run: Run, part: ArmsPart) -> list[tuple[Attributes, Comparison]]:
    """Pair, by seed, the arms of the run that differ only as the part states."""
    arms: list[tuple[Attributes, Arm]] = [
        (_attributes(run, arm[0]), arm) for arm in arms_of(run).values()
    ]
    pairs = []
    for attributes, arm in arms:
        if not _matches(attributes, part.compare | part.only):
            continue
        reference = attributes | part.against
        for other_attributes, other in arms:
            if other_attributes == reference and other is not arm:
                paired = pair_by_seed(arm, other)
                if paired is not None:
                    pairs.append((attributes, Comparison(*paired, "claim")))
    return pairs


def _varied(
    pairs: list[tuple[Attributes, Comparison]], key: str
) -> list[tuple[Attributes, Comparison]]:
    """Keep pairs for which another pair differs in ``key`` and the name alone."""
    groups: dict[str, list[tuple[Attributes, Comparison]]] = {}
    for attributes, comparison in pairs:
        rest = {k: v for k, v in attributes.items() if k not in {key, "prefix"}}
        groups.setdefault(repr(rest), []).append((attributes, comparison))
    varied = [g for g in groups.values() if len({repr(a[key]) for a, _ in g}) > 1]
    return [pair for group in varied for pair in group]


def _attributes(run: Run, spec: ModelGroup) -> Attributes:
    """Describe an arm without its learning rate; ``match`` stands for a fitted width."""
    origin = {"source", "weights", "factory"}
    values = spec.model_dump(exclude={"seed", "sweep", "training", "match"} | origin)
    match = spec.match
    values["match"] = f"{match.to}{match.kernel_size}" if match is not None else None
    if match is not None:
        values["width"] = match.width
    recipe = run.config.training_of(spec).model_dump(exclude={"lr"})
    return values | {"weight_decay": recipe.pop("weight_decay"), "recipe": recipe}


def _matches(attributes: Attributes, wanted: Attributes) -> bool:
    """Return whether each key has the wanted value or one of them; missing keys are null."""
    for key, values in wanted.items():
        options = values if isinstance(values, list) else [values]
        if attributes.get(key) not in options:
            return False
    return True


def attack_id_of(run: Run, choice: AttackChoice) -> str | None:
    """Return the run's attack of that function and norm with the most models and images.

    ``best`` requires several attacks.
    """
    if choice.name == "best":
        best = BEST[choice.norm]
        return best if best in run.attacks else None
    candidates = {
        attack_id: attack
        for attack_id, attack in run.attacks.items()
        if attack.attack == choice.name and attack.norm == choice.norm
    }
    most = run.config.evaluation.num_images
    return max(
        candidates,
        key=lambda a: (candidates[a].seeds is None, candidates[a].num_images or most),
        default=None,
    )
