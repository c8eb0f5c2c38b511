"""Capacity matching: the replication's widths, and twins both ways."""

import pytest

from robust_ham.config.files import parse_config
from robust_ham.config.models import CnnGroup, MatchConfig, ResNet18CifarGroup
from robust_ham.models.matching import count_size, matched_width, resolve_matches

CIFAR = (3, 32, 32)
PARAMS = MatchConfig()


def resolved(lines: str):
    text = f"schema: 1\nname: m\nmodels:\n{lines}\nattacks:\n  d: {{attack: deepfool}}\n"
    return resolve_matches(parse_config(text), CIFAR, 10).model_specs()


@pytest.mark.parametrize(
    ("options", "width", "params"),
    [
        ("kernel_size: 7", 0.4375, 11_491_462),
        ("kernel_size: 7, window: hamming", 0.4375, 11_491_462),
        ("kernel_size: 7, factorised: true", 0.78125, 11_300_060),
        ("kernel_size: 3", 1.0, 11_173_962),
    ],
)
def test_the_replications_widths(options, width, params):
    (spec,) = resolved(f"  - {{architecture: resnet18_cifar, {options}, match: {{to: params}}}}")
    assert spec.width == width
    assert count_size(spec, PARAMS, CIFAR, 10) == params


def test_twins_both_ways():
    group = "depth: 4, widths: [16, 32], first_kernel: 7"
    narrow, widened = resolved(
        f"  - {{{group}, kernel_size: 7, match: {{kernel_size: 3}}}}\n"
        f"  - {{{group}, kernel_size: 3, match: {{kernel_size: 7}}}}"
    )
    three, seven = (
        count_size(
            CnnGroup(depth=4, widths=(16, 32), first_kernel=7, kernel_size=k), PARAMS, CIFAR, 10
        )
        for k in (3, 7)
    )
    assert narrow.width < 1 < widened.width
    assert count_size(narrow, PARAMS, CIFAR, 10) == pytest.approx(three, rel=0.05)
    assert count_size(widened, PARAMS, CIFAR, 10) == pytest.approx(seven, rel=0.05)


def test_the_reference_may_be_narrower():
    match = "match: {kernel_size: 3, width: 0.125}"
    (spec,) = resolved(f"  - {{architecture: resnet18_cifar, kernel_size: 7, {match}}}")
    reference = ResNet18CifarGroup(architecture="resnet18_cifar", kernel_size=3, width=0.125)
    target = count_size(reference, PARAMS, CIFAR, 10)
    below, found, above = (
        count_size(spec.model_copy(update={"width": spec.width + step / 64}), PARAMS, CIFAR, 10)
        for step in (-1, 0, 1)
    )
    assert abs(found - target) <= min(abs(below - target), abs(above - target))
    assert 0.5 < found / target < 2  # a 64th is a third of so narrow a network
    assert spec.family == "resnet18-x1-params3x0.125"


def test_flops():
    (spec,) = resolved(
        "  - {architecture: resnet18_cifar, kernel_size: 5, match: {to: flops, kernel_size: 3}}"
    )
    match = MatchConfig(to="flops")
    reference = ResNet18CifarGroup(architecture="resnet18_cifar", kernel_size=3)
    found, target = (count_size(s, match, CIFAR, 10) for s in (spec, reference))
    below = count_size(spec.model_copy(update={"width": spec.width - 1 / 64}), match, CIFAR, 10)
    above = count_size(spec.model_copy(update={"width": spec.width + 1 / 64}), match, CIFAR, 10)
    assert abs(found - target) <= min(abs(below - target), abs(above - target))


def test_a_sweep_gets_a_width_each_and_one_family():
    specs = resolved(
        "  - {architecture: resnet18_cifar, match: {kernel_size: 3},\n"
        "     sweep: {kernel_size: [3, 5, 7], window: [none, hamming]}}"
    )
    assert [spec.width for spec in specs] == [1, 1, 39 / 64, 39 / 64, 28 / 64, 28 / 64]
    assert len({spec.family for spec in specs}) == 1
    assert len({spec.model_id for spec in specs}) == 6


def test_nearest_of_two():
    assert matched_width(lambda w: int(64 * w) ** 2, 10) == 3 / 64
    assert matched_width(lambda w: int(64 * w) ** 2, 13) == 4 / 64
    assert matched_width(lambda w: 5, 1) == 1 / 64


def test_only_where_there_is_a_width():
    with pytest.raises(Exception, match="match: only for cnn and resnet18_cifar"):
        resolved("  - {architecture: resnet18, match: {to: params}}")
