"""Schema of ``claims.yaml``: claims of the reference works as assertions over tables."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field

from robust_ham.analysis.metrics import METRICS
from robust_ham.config.fields import Section
from robust_ham.regular_files import read_text

CLAIMS_FILE = Path(__file__).with_name("claims.yaml")


def _check_metric(metric: str) -> str:
    if metric not in METRICS:
        raise ValueError(f"expected one of {', '.join(METRICS)}, got {metric!r}")
    return metric


MetricId = Annotated[str, AfterValidator(_check_metric)]
Expected = Literal["higher", "lower", "equal", "not higher", "not lower"]


class AttackChoice(Section):
    """An attack of a run by function and norm; ``best``: the best attack of that norm."""

    name: str
    norm: Literal["l2", "linf"] = "l2"


class ArmsPart(Section):
    """Compare two arms by a metric; they differ in the named keys alone."""

    metric: MetricId
    attack: AttackChoice | None = None
    every_epoch: bool = False
    compare: dict[str, Any]
    against: dict[str, Any]
    only: dict[str, Any] = Field(default_factory=dict)
    vary: str | None = None
    expect: Expected
    margin: float | None = None


class CorrelationPart(Section):
    """Correlate, over a run's arms, a number on the cards with a metric."""

    correlate: Literal["effective_width_learned", "effective_width", "params"]
    to: MetricId
    attack: AttackChoice
    expect: Literal["higher", "lower"]


class ImagesPart(Section):
    """Compare the attacked images with themselves before subsampling."""

    images: Literal["high_frequency"]
    expect: Literal["higher", "lower"]


class ColumnPart(Section):
    """Compare a column of an experiment's table, paired by seed."""

    experiment: str
    column: str
    at: dict[str, Any] = Field(default_factory=dict)
    per: str
    compare: dict[str, Any]
    against: dict[str, Any]
    expect: Expected


class ExponentPart(Section):
    """Compare the exponent of a power law in an experiment's table with a value."""

    experiment: str
    exponent: str
    of: str
    at: dict[str, Any] = Field(default_factory=dict)
    value: float
    margin: float
    expect: Literal["equal"]


Part = ArmsPart | CorrelationPart | ImagesPart | ColumnPart | ExponentPart


class Claim(Section):
    """A statement, its source, and the parts that answer it."""

    id: str
    statement: str
    source: str
    where: dict[str, Any] = Field(default_factory=dict)
    unless: dict[str, Any] = Field(default_factory=dict)
    parts: list[Part] = Field(min_length=1)


class _Claims(Section):
    schema_version: Literal[1] = Field(alias="schema")
    arms: dict[str, Any]  # shared by several claims
    data: dict[str, Any]
    claims: list[Claim]


@cache
def claims() -> list[Claim]:
    """Read all claims of ``claims.yaml``."""
    text = read_text(CLAIMS_FILE, 1_000_000, follow_links=True)
    return _Claims.model_validate(yaml.safe_load(text)).claims
