"""What the reference works state, as assertions over tables: ``claims.yaml``, read and checked."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from robust_ham.config.fields import Section
from robust_ham.regular_files import read_text

CLAIMS_FILE = Path(__file__).with_name("claims.yaml")

Expected = Literal["higher", "lower", "equal", "not higher", "not lower"]


class AttackChoice(Section):
    """Which attack of a run, whatever its id: by function and norm; best: of all of that norm."""

    name: str
    norm: Literal["l2", "linf"] = "l2"


class ArmsPart(Section):
    """Two arms compared by a figure: they differ in the named keys and in nothing else."""

    metric: Literal[
        "clean_accuracy",
        "validation_accuracy",
        "train_loss",
        "validation_loss",
        "effective_width_learned",
        "robust_area",
        "robust_accuracy",
    ]
    attack: AttackChoice | None = None
    every_epoch: bool = False
    compare: dict[str, Any]
    against: dict[str, Any]
    only: dict[str, Any] = Field(default_factory=dict)
    vary: str | None = None
    expect: Expected
    margin: float | None = None


class CorrelationPart(Section):
    """Rank correlation over a run's arms of a number on the cards with a figure of robustness."""

    correlate: Literal["effective_width_learned", "effective_width", "params"]
    to: Literal["robust_area"]
    attack: AttackChoice
    expect: Literal["higher", "lower"]


class ImagesPart(Section):
    """A figure of the attacked images themselves, beside that before subsampling."""

    images: Literal["high_frequency"]
    expect: Literal["higher", "lower"]


class ColumnPart(Section):
    """A column of an experiment's table, paired by seed."""

    experiment: str
    column: str
    at: dict[str, Any] = Field(default_factory=dict)
    per: str
    compare: dict[str, Any]
    against: dict[str, Any]
    expect: Expected


class ExponentPart(Section):
    """The exponent of a power law in an experiment's table."""

    experiment: str
    exponent: str
    of: str
    at: dict[str, Any] = Field(default_factory=dict)
    value: float
    margin: float
    expect: Literal["equal"]


Part = ArmsPart | CorrelationPart | ImagesPart | ColumnPart | ExponentPart


class Claim(Section):
    """A statement, who makes it, and the parts that answer it."""

    id: str
    statement: str
    source: str
    where: dict[str, Any] = Field(default_factory=dict)
    unless: dict[str, Any] = Field(default_factory=dict)
    parts: list[Part] = Field(min_length=1)


class _Claims(Section):
    schema_version: Literal[1] = Field(alias="schema")
    arms: dict[str, Any]  # what several claims refer to
    data: dict[str, Any]
    claims: list[Claim]


@cache
def claims() -> list[Claim]:
    """All statements of ``claims.yaml``."""
    text = read_text(CLAIMS_FILE, 1_000_000, follow_links=True)
    return _Claims.model_validate(yaml.safe_load(text)).claims
