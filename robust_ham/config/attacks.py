"""Facts about each attack, one row per attack. Free of torch.

To add an attack, write its function in ``attacks/``, list it in ``attacks.ATTACKS``, add a row
here and test it. All other code reads the row by ``attack_facts``; none decides by an attack's
name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Norm = Literal["l2", "linf"]
Kind = Literal["minimum_norm", "fixed_epsilon", "spatial"]
Candidates = Literal["grid", "draws", "shifts"]
Library = Literal["robust-ham", "foolbox", "adversarial-library", "user code"]

EPSILON_OPTIONS = ("epsilon", "eps", "max_epsilon", "max_eps")
"""Options that fix the perturbation size; an attack with one of them has no distance budget."""
FOOLBOX_DEFAULT = "DDNAttack"
NORM_SYMBOLS: dict[Norm, str] = {"l2": "L2", "linf": "L∞"}

_NORM_NAMES: dict[str, Norm] = {
    "l2": "l2",
    "2": "l2",
    "linf": "linf",
    "inf": "linf",
    "l∞": "linf",
    "∞": "linf",
}


@dataclass(frozen=True, kw_only=True)
class AttackFacts:
    """What the suite needs to know about an attack besides its function."""

    name: str
    """As in a configuration."""
    kind: Kind | None
    """``minimum_norm`` seeks the smallest perturbation and is measured against distance budgets;
    the others either fool an image or do not. None: the configuration decides."""
    norms: tuple[Norm, ...] = ()
    """Norms in which it can measure distances; the first is the default."""
    label: str = ""
    """Title in figures, with the fields ``{norm}``, ``{band}``, ``{bands}``; empty: the attack's
    id."""
    library: Library = "robust-ham"
    """Where the code comes from."""
    library_attack: str = ""
    """The attack's name in that library, where one function of ``ATTACKS`` runs several."""
    function: str = ""
    """Key in ``attacks.ATTACKS`` where it differs from ``name``; see ``catalogue_name``."""
    in_band: bool = False
    """Limits the perturbation to a frequency band; other attacks' distances are not comparable."""
    candidates: Candidates | None = None
    """How it chooses the transforms that it tries on an image; None: it has no such list."""
    few_candidates: Mapping[str, int] = field(default_factory=dict)
    """Options that leave about a thousand candidates, to estimate the run time."""
    stops_at_boundary: bool = False
    """Follows one path and returns its first point beyond the decision boundary, which need not be
    the nearest: the gate tolerates that other attacks come nearer."""
    retry_survivors: bool = False
    """The gate retries images that it did not fool with many more steps of DeepFool."""

    @property
    def is_user_code(self) -> bool:
        """Whether the attack is a user's function, ``module:function``."""
        return self.library == "user code"

    @property
    def catalogue_name(self) -> str:
        """Key of its function in ``attacks.ATTACKS``; empty for user code."""
        return "" if self.is_user_code else self.function or self.name


_ROWS = (
    AttackFacts(
        name="deepfool",
        kind="minimum_norm",
        norms=("l2", "linf"),
        label="DeepFool {norm}",
        stops_at_boundary=True,
        retry_survivors=True,
    ),
    AttackFacts(
        name="superdeepfool",
        kind="minimum_norm",
        norms=("l2",),
        label="SuperDeepFool L2",
        retry_survivors=True,
    ),
    AttackFacts(
        name="band_deepfool",
        kind="minimum_norm",
        norms=("l2",),
        label="DeepFool L2, band {band} of {bands}",
        in_band=True,
    ),
    AttackFacts(
        name="fmn", kind="minimum_norm", norms=("l2", "linf"), library="adversarial-library"
    ),
    AttackFacts(
        name="spatial_grid",
        kind="spatial",
        label="rotation + translation grid",
        candidates="grid",
        few_candidates={"num_rotations": 31, "num_translations": 5},
    ),
    AttackFacts(
        name="spatial_random",
        kind="spatial",
        label="random rotations + translations",
        candidates="draws",
        few_candidates={"num_draws": 1_000},
    ),
    AttackFacts(
        name="spatial_shift",
        kind="spatial",
        label="whole-pixel shifts",
        candidates="shifts",
        few_candidates={"max_translation": 15},
    ),
    AttackFacts(name="stadv", kind="spatial", label="stAdv"),
    AttackFacts(
        name="foolbox",
        kind="minimum_norm",
        norms=("l2", "linf"),
        library="foolbox",
        library_attack=FOOLBOX_DEFAULT,
    ),
    AttackFacts(
        name="foolbox:SpatialAttack",
        kind="spatial",
        library="foolbox",
        library_attack="SpatialAttack",
        function="foolbox",
    ),
    AttackFacts(
        name="best",
        kind="minimum_norm",
        norms=("l2", "linf"),
        label="best of the minimum-norm attacks {norm}",
    ),
)
ATTACK_FACTS = {row.name: row for row in _ROWS}
"""Facts by attack name. ``best``, computed from finished attacks, is not in ``ATTACKS``."""


def attack_facts(name: str) -> AttackFacts:
    """Facts about the attack that a configuration calls ``name``.

    ``foolbox:NAME`` is an attack of foolbox and ``module:function`` is user code. An unknown name,
    such as that of an imported table, is a minimum-norm attack.
    """
    if name in ATTACK_FACTS:
        return ATTACK_FACTS[name]
    library, colon, library_attack = name.partition(":")
    if not colon:
        return AttackFacts(name=name, kind="minimum_norm", norms=("l2", "linf"))
    if library == "foolbox":
        row = ATTACK_FACTS[library]
        return replace(row, name=name, library_attack=library_attack, function=library)
    return AttackFacts(name=name, kind=None, norms=("l2", "linf"), library="user code")


def parse_norm(value: Any) -> Norm | None:  # noqa: ANN401
    """The norm that a value such as ``l2``, ``L2``, 2, ``linf``, ``L_inf`` or infinity names."""
    text = f"{value:g}" if isinstance(value, int | float) else str(value)
    return _NORM_NAMES.get(re.sub("^l[ _-]", "l", text.lower()))
