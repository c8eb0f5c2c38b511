"""Invalid and too large numbers are refused in one line, before they cost memory or time."""

import itertools
import math
import resource
import time
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY_RUN
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import ATTACKS
from robust_ham import compare, evaluate, load_images, memory, windowed
from robust_ham.config import bounds
from robust_ham.config.experiment import AttackConfig, Config
from robust_ham.config.fields import first_error
from robust_ham.config.files import config_keys, parse_config
from robust_ham.errors import RequestError
from robust_ham.evaluation.memory import check_attack_memory, check_images_memory
from robust_ham.evaluation.options import check_attack_options
from robust_ham.evaluation.registry import attack_function
from robust_ham.models.cnn import cnn
from robust_ham.runs import estimate
from robust_ham.runs.plan.context import Context
from robust_ham.runs.plan.plan import make_plan
from robust_ham.storage.run_folder import RunFolder
from robust_ham.training.memory import check_step_memory

LONG = pytest.param(10**5000, id="long")  # longer than Python prints
SIXTY = "1:" + ":".join(["59"] * 600)


def parsed(*overrides):
    return parse_config(TINY_RUN, list(overrides))


# --- any value for any key -----------------------------------------------------------------------

HUGE = [2**31, 2**40, 2**63, 10**9 + 1, 10**18, 10**30, 1e300, 1.7e308]
TINY = [0, -1, -0.0, 5e-324, -5e-324, 1e-300, -(2**63), -(10**30)]
ODD = [math.nan, math.inf, -math.inf, True, False, None, "", "1e400", "-1e400", "1/3e-320", "nan"]
ODD += ["8/255", SIXTY, "9" * 1500, "0x" + "f" * 900, "é\u2028", "../../x", "/etc", "os:system"]
scalars = st.sampled_from([*HUGE, *TINY, *ODD, 1, 2, 3, 0.5]) | st.integers() | st.floats()
numbers = scalars | st.integers(min_value=0, max_value=10**7)
parts = st.sampled_from([*HUGE, *TINY, *ODD, 1, 3])
long = st.sampled_from([[1] * 1100, [0.5] * 1001, list(range(1000)), ["a"] * 1500])
mappings = st.dictionaries(st.sampled_from(["to", "lr", "seed", "a"]), parts, max_size=2)
values = numbers | st.lists(parts | mappings, max_size=3) | mappings | long


@cache
def places():
    """Places for a value in a configuration, one for each key."""
    for key in config_keys():
        path = key.name.replace("attacks.<id>", "attacks.d").replace("endpoints[]", "endpoints.0")
        group, bracket, rest = path.removeprefix("models[").partition("]")
        if bracket and "," not in group:
            yield f"models.{group}{rest}"
        elif bracket:
            yield f"models.cnn{rest}"
        else:
            yield path


PLACES = sorted(set(places()))


def configuration(place, value):
    content = yaml.safe_load(TINY_RUN)
    parts = place.split(".")
    if parts[0] == "models":
        group = {"architecture": parts[1]}
        group |= {"factory": {"factory": "a:b"}, "table": {"name": "x"}}.get(parts[1], {})
        content["models"], parts = [group], ["models", "0", *parts[2:]]
    if parts[0] == "endpoints":
        content["endpoints"] = [{"metric": "robust_accuracy", "attack": "d"}]
    if parts[0] == "transfer":
        content["transfer"] = {"attack": "d", "budget": 0.1}
        content["evaluation"]["keep_adversarials"] = True
    content["attacks"] = {"d": {"attack": "deepfool"}}
    node = content
    for part in parts[:-1]:
        node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
    node[parts[-1]] = value
    return content


def in_one_line(call, *arguments):
    """Return the result, or None after an error in one line; fast and with little memory."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = "accepted"
    try:
        return call(*arguments)
    except RequestError as error:
        line = str(error)
        return None
    finally:
        assert "\n" not in line
        assert 0 < len(line) <= 2000
        assert time.process_time() - start < 1
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


QUIETLY = [HealthCheck.too_slow, HealthCheck.data_too_large]
FEW, MANY = 120, 3000


def fuzz(*strategies):
    """Turn a check of some inputs into a test over many; `make test-slow` tries others."""

    def decorate(check):
        def test(count):
            once = {"derandomize": True} if count == FEW else {"database": None}
            limits = {"max_examples": count, "deadline": None, "suppress_health_check": QUIETLY}
            settings(**limits, **once)(given(*strategies)(check))()

        many = pytest.param(MANY, id="many", marks=pytest.mark.slow)
        return pytest.mark.parametrize("count", [pytest.param(FEW, id="few"), many])(test)

    return decorate


@fuzz(st.sampled_from(PLACES), values)
def test_any_value_of_any_key_is_taken_or_refused_in_one_line(place, value):
    text = yaml.safe_dump(configuration(place, value), allow_unicode=True)
    config = in_one_line(parse_config, text)
    if config is not None:
        assert parse_config(config.to_yaml()) == config


@fuzz(st.sampled_from(PLACES), values | st.sampled_from([10**400, -(10**5000), [10**5000]]))
def test_any_value_from_python(place, value):
    """Python, where numbers may be larger than in YAML."""
    from pydantic import ValidationError

    def checked():
        try:
            return Config.model_validate(configuration(place, value))
        except ValidationError as error:
            raise RequestError(first_error(error)) from None

    in_one_line(checked)


@cache
def options():
    """All options of all attacks of the package, and of some of foolbox."""
    names = [*ATTACKS, *map("foolbox:{}".format, ("HopSkipJumpAttack", "GenAttack", "LinfPGD"))]
    names += map(
        "foolbox:{}".format, ("SpatialAttack", "BoundaryAttack", "VirtualAdversarialAttack")
    )
    return [(name, option) for name in names for option in attack_function(name)[1]]


@fuzz(st.data(), values | st.sampled_from([10**400, 10**5000]))
def test_any_value_of_any_option_of_an_attack(data, value):
    attack, option = data.draw(st.sampled_from(options()))
    if attack == "fmn":
        return  # an optional package
    given_options = {"epsilon": 0.1} if attack.startswith("foolbox") else {}

    def checked():
        from pydantic import ValidationError

        try:
            attack_config = AttackConfig.model_validate(
                {"attack": attack} | given_options | {option: value}
            )
        except ValidationError as error:
            raise RequestError(first_error(error)) from None
        check_attack_options(attack_config, "d", (1, 28, 28))
        check_attack_memory(attack_config, "d", (1, 28, 28), 100, 50)

    in_one_line(checked)


# --- known cases ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"training.lr={SIXTY}.0", "base 60"),
        (f'training.lr=!!float "{SIXTY}.0"', "1:59:59.*… would be a number in base 60"),
        (f'training.epochs=!!int "{SIXTY}"', "base 60"),
        ('training.epochs=!!int "010"', "octal"),
        ("training.lr=1e400", "training.lr: expected a finite number, got '1e400'"),
        ("training.lr=1.0e+400", "training.lr: expected a finite number, got inf"),
        (f"training.lr='{'9' * 1500}'", "finite number, got '99999.*[.]{3}9999"),
        (f"dataset.name={'x' * 256}", "dataset.name: .* parts of at most 255 bytes"),
        (f"models.0.source=a/{'é' * 128}/b", "models.0.source: .* parts of at most 255 bytes"),
        ("training.lr=1.1e30", "training.lr: .*, got 1.1e[+]30"),
        ("models.0.widths=[1000000000]", "models.0.widths.0: .* 65536, got 1000000000"),
        (f"models.0.widths={[1] * 101}", "models.0.widths: .* 100 items"),
        ("models.0.depth=101", "models.0.depth: .* 100, got 101"),
        ("evaluation.threads=1000000", "evaluation.threads: .* 1024, got 1000000"),
        (f"evaluation.threads={2**40}", "evaluation.threads: .* 1024, got"),
        ("dataset.image_size=100000", "dataset.image_size: .* 4096, got 100000"),
        ("evaluation.batch_size=10000000", "evaluation.batch_size: .* 1048576"),
        ("training.milestones=[1000000]", "training.milestones.0: .* 100000"),
        ("attacks.deepfool_l2.seeds=[-1]", "attacks.deepfool_l2.seeds.0: .* 0, got -1"),
        ("attacks.deepfool_l2.budget=1e300", "attacks.deepfool_l2.budget: .* 10000, got 1e[+]300"),
    ],
)
def test_numbers_out_of_bounds(override, message):
    with pytest.raises(RequestError, match=message) as error:
        parsed(override)
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("attack: spatial_grid, num_rotations: 1000000001", "num_rotations: .* at most 1,000,000"),
        ("attack: spatial_grid, num_translations: 100001", "100,001² shifts = 310,006,200,031"),
        ("attack: deepfool, steps: 1000001", "attacks.d.steps: expected at most 1,000,000"),
        ("attack: deepfool, overshoot: 1e300", "attacks.d.overshoot: expected at most 1,000,000"),
        ("attack: 'foolbox:DDNAttack', seed: -5", "attacks.d.seed: expected at least 0, got -5"),
        (
            f"attack: spatial_random, seed: {2**31}",
            "attacks.d.seed: expected at most 2,147,483,647",
        ),
        ("attack: 'foolbox:LinfPGD', norm: linf, epsilon: 0.1, steps: 1e12", "d.steps: expected"),
        ("attack: 'foolbox:VirtualAdversarialAttack', epsilon: 0.1", "d.steps: .* has no default"),
    ],
)
def test_options_out_of_bounds(options, message):
    with pytest.raises(RequestError, match=message):
        make_plan(parsed(f"attacks={{d: {{{options}}}}}"))


REASONABLE = [
    "dataset.image_size=1024",
    "training.epochs=10000",
    "training.batch_size=32768",
    "models.0={widths: [4096], depth: 1}",
    "models.0={kernel_size: 99, depth: 1}",
    "evaluation.num_images=1000000",
    "evaluation.threads=256",
    "attacks.deepfool_l2.candidates=all",
    "attacks.deepfool_l2.steps=25000",
    "attacks.spatial_shift={attack: spatial_grid, num_translations: 301, num_rotations: 31}",
    "training.weight_decay=-0.0",
]


@pytest.mark.parametrize("override", REASONABLE)
def test_what_researchers_ask_for_is_taken(override):
    config = parsed(override)
    assert not str(config.training.weight_decay).startswith("-")
    for attack_id, attack in config.attacks.items():
        check_attack_options(attack, attack_id, (3, 224, 224))


# --- products ------------------------------------------------------------------------------------


def with_memory(monkeypatch, gigabytes):
    monkeypatch.setattr(memory, "memory_share", lambda share: int(share * gigabytes * 1e9))


def test_weights_are_counted_before_they_are_made(monkeypatch):
    """3 layers of 1024 channels, 7×7: 2·1024²·49 weights and more, 0.41 GB."""
    config = parsed("models=[{depth: 3, widths: [1024], kernel_size: 7}]")
    with_memory(monkeypatch, 0.6)
    make_plan(config)
    with_memory(monkeypatch, 0.5)
    with pytest.raises(RequestError, match=r"models: cnn3-w1024.* weights needs at least 4.* MB"):
        make_plan(config)


def test_attacked_images_are_counted(monkeypatch):
    """1,000 images of 28 × 28 floats, twice: 6.3 MB."""
    config = parsed("evaluation.num_images=1000")
    with_memory(monkeypatch, 0.0079)
    check_images_memory(config, 1000, (1, 28, 28))
    with_memory(monkeypatch, 0.0078)
    with pytest.raises(RequestError, match="evaluation.num_images: 1,000 images of 28×28×1"):
        check_images_memory(config, 1000, (1, 28, 28))
    check_images_memory(parsed("evaluation={shard_size: 10}"), 1000, (1, 28, 28))


def test_candidates_are_counted(monkeypatch):
    """775 margins of 1,000 images and twice of 100 at once: 3.72 MB; kept none: 0.62 MB."""
    grid = AttackConfig(attack="spatial_grid")
    with_memory(monkeypatch, 0.00466)
    check_attack_memory(grid, "g", (1, 28, 28), 1000, 100)
    with_memory(monkeypatch, 0.00464)
    with pytest.raises(RequestError, match="attacks.g: 775 candidates for 1,000 images, 100 at"):
        check_attack_memory(grid, "g", (1, 28, 28), 1000, 100)
    first = AttackConfig.model_validate({"attack": "spatial_grid", "stop": "first"})
    check_attack_memory(first, "g", (1, 28, 28), 1000, 100)


def test_copies_inside_foolbox_are_counted(monkeypatch):
    with_memory(monkeypatch, 10)
    options = {"attack": "foolbox:HopSkipJumpAttack", "max_gradient_eval_steps": 1_000_000}
    with pytest.raises(RequestError, match="a.max_gradient_eval_steps: 1,000,000 copies of 64 im"):
        check_attack_memory(AttackConfig.model_validate(options), "a", (1, 28, 28), 100, 100)


def test_a_step_is_counted_on_the_cpu(monkeypatch):
    """Two convolutions of 4 channels at 14 × 14: 6,272 bytes of float32 an image."""
    config = parsed()
    spec = config.model_specs()[0]
    split = SimpleNamespace(image_shape=(1, 28, 28), num_classes=10)

    class Images(SimpleNamespace):
        def __len__(self):
            return 1000

    split = Images(image_shape=(1, 28, 28), num_classes=10)
    recipe = config.training.model_copy(update={"batch_size": 5000})
    need = 1000 * 2 * 4 * 14 * 14 * 4 / 1e9
    with_memory(monkeypatch, need / 0.8 * 1.001)
    check_step_memory(spec, recipe, split, 4)
    with_memory(monkeypatch, need / 0.8 * 0.999)
    with pytest.raises(RequestError, match="training.batch_size: cnn2-w4.*a pass of 1,000 images"):
        check_step_memory(spec, recipe, split, 4)
    check_step_memory(spec, recipe.model_copy(update={"accumulate": 2}), split, 4)


def test_a_dry_run_times_a_thousand_candidates_and_multiplies(tmp_path, monkeypatch):
    calls = []

    def attack(model, images, labels, **options):
        calls.append((options["num_rotations"], options["num_translations"], len(images)))
        return SimpleNamespace(fooled=torch.zeros(len(images), dtype=torch.bool))

    ticks = itertools.count()
    monkeypatch.setattr(estimate, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    monkeypatch.setattr(estimate, "attack_function", lambda name: (attack, {}))
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

    def seconds_per_image(translations):
        grid = f"{{attack: spatial_grid, num_rotations: 1, num_translations: {translations}}}"
        plan = make_plan(parsed(f"attacks={{g: {grid}}}"))
        context = Context(plan, RunFolder(tmp_path), torch.device("cpu"))
        return estimate._seconds_per_image(context, model, "g")

    assert seconds_per_image(27) == 1 / 16  # 729 candidates, all timed; a second for 16 images
    assert seconds_per_image(301) == 301**2 / (31 * 5**2)  # and long on one image already
    assert calls == [(1, 27, 1), (1, 27, 16), (31, 5, 1)]


# --- the command line, Python --------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["run", "quickstart", "--threads", 10**6],
        ["run", "quickstart", "--threads", 10**30],
        ["run", "quickstart", "--executor", "ray", "--workers", 10**9],
        ["run", "quickstart", "--executor", "ray", "--gpus-per-cell", "nan"],
        ["run", "quickstart", "--executor", "ray", "--gpus-per-cell", "1e300"],
        ["run", "quickstart", "--executor", "ray", "--gpus-per-cell", "1.5"],
        ["bench", "quickstart", "--rounds", 10**9],
        ["explain", "cost", "--threads", 10**6],
        ["import", "x.pth", "--as", "cnn", "--dataset", "cifar10", "--accuracy", "nan"],
        ["import", "x.pth", "--as", "cnn", "--dataset", "{name: cifar10, image_size: 99999}"],
        ["import", "x.pth", "--as", "{widths: [1000000000]}", "--dataset", "cifar10"],
        ["import", "x.pth", "--as", "cnn", "--dataset", "cifar10", "--mean", "1e400"],
        ["verify", "x", "--cells", 10**12],
        ["report", "x", "--export", "pdf", "--width", "1e400"],
    ],
)
def test_numbers_of_the_command_line(run_cli, words):
    code, _, errors = run_cli(*words)
    assert code == 2
    assert errors.count("\n") == 1


NETWORK = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
IMAGES = np.zeros((2, 1, 8, 8), np.float32)


@pytest.mark.parametrize("batch_size", [0, -1, LONG, True, 2.0, math.nan, "2"])
def test_batch_size_from_python(batch_size):
    with pytest.raises(ValueError, match="batch_size: expected 1 to 1,048,576, got"):
        evaluate(NETWORK, IMAGES, [0, 1], progress=False, batch_size=batch_size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": 10**5000}, "num_images: expected 1 to 100,000,000, got a number of th"),
        ({"seed": -1}, "seed: expected 0 to 2,147,483,647, got -1"),
        ({"seed": 2**31}, "seed: expected 0 to 2,147,483,647"),
        ({"image_size": 10**5}, "image_size: .* 4096, got 100000"),
    ],
)
def test_load_images_from_python(options, message):
    with pytest.raises(ValueError, match=message):
        load_images(**options)


def test_kernels_and_budgets_from_python():
    with pytest.raises(ValueError, match="kernel_size: expected at most 99, got 10001"):
        windowed(cnn(1, 10, depth=1, widths=[1]), kernel_size=10_001)
    rows = evaluate(lambda x: x.flatten(1), np.random.rand(2, 1, 8, 8), [0, 1], progress=False)  # noqa: NPY002
    for budget in (math.nan, math.inf, -1.0, 0.0, 1e300):
        with pytest.raises(ValueError, match=r"budget: [^\n]*$"):
            compare(rows, rows, budget=budget)


@pytest.mark.parametrize("value", [10**400, LONG, [10**400], {"a": [2**70]}])
def test_options_of_ones_own_attack_are_of_64_bits(value):
    def mine(model, images, labels, a=None):
        return images

    with pytest.raises(RequestError, match="a: expected a number of at most 64 bits"):
        evaluate(NETWORK, IMAGES, [0, 1], mine, progress=False, a=value)


def test_every_bound_has_its_reason():
    """A line of documentation below each constant."""
    import ast
    import inspect

    body = ast.parse(inspect.getsource(bounds)).body
    for statement, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.Assign):
            assert isinstance(after, ast.Expr), ast.unparse(statement)
