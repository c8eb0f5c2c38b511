"""All attacks on all awkward networks give the same result as on the network as a function."""

import subprocess
import sys
import threading
import warnings

import pytest
import torch
from awkward_models import AWKWARD, CLASSES, RANDOM, SHAPE, Base, StraightThroughRounding
from torch import nn

from attacks import (
    ATTACKS,
    band_deepfool,
    deepfool,
    foolbox_attack,
    spatial_grid,
    spatial_random,
    spatial_shift,
    stadv,
    superdeepfool,
)
from attacks.utils.model import predict_logits

OPTIONS = {
    "deepfool": [(deepfool, {"steps": 12}), (deepfool, {"steps": 12, "norm": "linf"})],
    "superdeepfool": [(superdeepfool, {"steps": 6})],
    "band_deepfool": [(band_deepfool, {"steps": 6, "bands": 2})],
    "spatial_grid": [
        (spatial_grid, {"num_rotations": 3, "num_translations": 3, "max_translation": 2}),
        (spatial_grid, {"num_rotations": 3, "num_translations": 3, "stop": "first"}),
    ],
    "spatial_random": [(spatial_random, {"num_draws": 4})],
    "spatial_shift": [(spatial_shift, {"max_translation": 1})],
    "stadv": [(stadv, {"steps": 6})],
    "foolbox": [
        (foolbox_attack, {"steps": 8}),
        (foolbox_attack, {"attack": "LinfPGD", "norm": "linf", "epsilon": 8 / 255, "steps": 4}),
    ],
    "fmn": [],  # an optional dependency; it gets models like foolbox
}
WITHOUT_GRADIENT = {
    *("WholeNumbers", "HidesItsGradient", "AnswersFromNumpy", "InferenceModeInside"),
    "FlatGradient",
}
CALLS = [
    pytest.param(*call, id=f"{name}{i}") for name in OPTIONS for i, call in enumerate(OPTIONS[name])
]


def case(kind, count=6):
    """A network in training mode, images, and its predictions as labels."""
    torch.manual_seed(7)
    model = kind()
    images = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        was = model.training if hasattr(model, "training") else None
        model.eval()
        labels = predict_logits(model, images).argmax(1)
        if was is not None:
            model.train(was)
    return model, images, labels


def answer(attack, model, images, labels, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecated hooks and TorchScript
        return attack(model, images, labels, **options)


@pytest.fixture(autouse=True)
def _one_thread():
    """Use one thread, which is faster for small layers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _quiet_torch_script():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
        yield


def test_every_attack_is_tried():
    assert OPTIONS.keys() == ATTACKS.keys()
    assert len(AWKWARD) + len(RANDOM) >= 30


@pytest.mark.parametrize("name", AWKWARD)
def test_a_network_is_attacked_as_the_function_it_is(name):
    model, images, labels = case(AWKWARD[name])
    given = images.clone()
    twin, _, _ = case(Base if name == "MadeInInferenceMode" else AWKWARD[name])
    twin.eval()
    for attack, options in [call for calls in OPTIONS.values() for call in calls]:
        if attack is foolbox_attack and name in WITHOUT_GRADIENT:
            continue  # foolbox draws random numbers for a whole batch
        outcome = answer(attack, model, images, labels, options)
        expected = answer(attack, twin.__call__, given.clone(), labels, options)
        where = f"{name}, {attack.__name__} {options}"
        assert torch.equal(images, given), where
        assert outcome.images.amin() >= 0, where
        assert outcome.images.amax() <= 1, where
        assert torch.equal(outcome.fooled, expected.fooled), where
        far = (outcome.images - expected.images).flatten(1).norm(dim=1)
        size = (expected.images - images).flatten(1).norm(dim=1).clamp_min(0.01)
        assert (far <= 0.01 * size).all(), (where, far / size)
        if outcome.margins is not None:
            torch.testing.assert_close(outcome.margins, expected.margins, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize(("attack", "options"), CALLS)
def test_a_network_that_answers_at_random_is_attacked_too(name, attack, options):
    model, images, labels = case(RANDOM[name])
    outcome = answer(attack, model, images, labels, options)
    assert outcome.images.shape == images.shape
    assert ((outcome.images >= 0) & (outcome.images <= 1)).all()


@pytest.mark.parametrize("name", AWKWARD)
def test_the_caller_finds_the_network_as_it_was(name):
    model, images, labels = case(AWKWARD[name])
    model.train() if hasattr(model, "training") else None
    modules, state = list(model.modules()), {k: v.clone() for k, v in model.state_dict().items()}
    modes = [getattr(module, "training", None) for module in modules]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    answer(deepfool, model, images, labels, {"steps": 3})
    assert [a is b for a, b in zip(model.modules(), modules, strict=True)] == [True] * len(modules)
    assert [getattr(module, "training", None) for module in modules] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


class Quantised(nn.Module):
    """Fifteen grey levels with a straight-through gradient, convolution, pooling, linear layer."""

    def __init__(self):
        super().__init__()
        self.quantise = StraightThroughRounding()
        self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.linear(self.conv(self.quantise(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_straight_through_networks_are_fooled(seed):
    torch.manual_seed(seed)
    model, images = Quantised().eval(), torch.rand(8, *SHAPE)
    labels = model(images).argmax(1)
    assert deepfool(model, images, labels).fooled.all()


@pytest.mark.parametrize("prefer", ["inference images", "inside"])
def test_inside_inference_mode(prefer):
    model, images, labels = case(Base)
    expected = deepfool(model, images, labels)
    with torch.inference_mode():
        if prefer == "inference images":
            images, labels = images.clone(), labels.clone()
        outcome = deepfool(model, images, labels)
    assert expected.fooled.all()
    torch.testing.assert_close(outcome.images, expected.images)


@pytest.mark.parametrize("layout", ["channels last", "transposed", "subclass", "needs gradient"])
def test_images_in_any_layout(layout):
    model, images, labels = case(AWKWARD["ViewAfterPooling"])
    expected = deepfool(model, images, labels)
    if layout == "channels last":
        given = images.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        given = images.transpose(2, 3).contiguous().transpose(2, 3)
    elif layout == "subclass":
        tv_tensors = pytest.importorskip("torchvision.tv_tensors")
        given = tv_tensors.Image(images)
    else:
        given = images.clone().requires_grad_()
    outcome = deepfool(model, given, labels)
    assert type(outcome.images) is torch.Tensor
    assert not outcome.images.requires_grad
    torch.testing.assert_close(outcome.images, expected.images)


@pytest.mark.parametrize("name", sorted(WITHOUT_GRADIENT))
def test_without_a_gradient_nothing_is_fooled_and_nothing_raised(name):
    model, images, labels = case(AWKWARD[name])
    for attack in (deepfool, superdeepfool, band_deepfool):
        outcome = answer(attack, model, images, labels, {})
        assert not outcome.fooled.any()
        assert torch.equal(outcome.images, images)
    assert answer(foolbox_attack, model, images, labels, {"steps": 3}).images.shape == images.shape


def test_a_functions_hidden_parameters_get_no_gradients():
    model, images, labels = case(Base)
    for attack, options in [call for calls in OPTIONS.values() for call in calls]:
        answer(attack, lambda x: model(1 * x), images, labels, options)
        assert all(parameter.grad is None for parameter in model.parameters())


def test_two_threads_attack_one_model():
    model, images, labels = case(AWKWARD["ViewAfterPooling"], count=40)
    model.train()
    expected = deepfool(model, images, labels)
    outcomes, failures = [], []

    def work():
        try:
            outcomes.extend(deepfool(model, images, labels) for _ in range(4))
        except Exception as error:  # exceptions of threads are lost otherwise
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(torch.equal(outcome.images, expected.images) for outcome in outcomes)
    assert model.training
    assert model.conv.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_threads_attack_models_that_share_layers():
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
    models = [nn.Sequential(backbone, nn.Linear(72, CLASSES)).train() for _ in range(2)]
    images = torch.rand(30, *SHAPE)

    def work(model, repeats):
        for _ in range(repeats):
            deepfool(model, images, torch.zeros(30, dtype=torch.int64), steps=3)

    threads = [
        threading.Thread(target=work, args=(m, n)) for m, n in zip(models, (2, 6), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(module.training for model in models for module in model.modules())
    assert all(parameter.requires_grad for model in models for parameter in model.parameters())


@pytest.mark.parametrize("how", ["model", "function", "in place"])
def test_compiled_models(how):
    model, images, labels = case(Base)
    expected = deepfool(model, images, labels)
    compiled = Base()
    compiled.load_state_dict(model.state_dict())
    compiled.eval()
    if how == "in place":
        compiled.compile(backend="aot_eager")
    else:
        called = compiled if how == "model" else lambda x: 1.0 * model.eval()(x)
        compiled = torch.compile(called, backend="aot_eager")
    compiled(images)
    outcome = deepfool(compiled, images, labels)
    torch.testing.assert_close(outcome.images, expected.images)


class OneOutputTensor(Base):
    """Returns the same tensor at every call, like a captured CUDA graph."""

    def __init__(self):
        super().__init__()
        self.output = torch.zeros(64, CLASSES)

    @torch.no_grad()
    def forward(self, x):
        self.output[: len(x)] = super().forward(x)
        return self.output[: len(x)]


def test_a_model_that_returns_the_same_tensor_again():
    model, images, _ = case(OneOutputTensor, count=8)
    first, second = predict_logits(model, images[:4]), predict_logits(model, images[4:])
    torch.testing.assert_close(torch.cat([first, second]), model(images))


def test_buffers_that_a_model_replaces_are_given_back():
    class Averages(Base):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))
            self.register_buffer("sparse", torch.zeros(2, 2).to_sparse())

        def forward(self, x):
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3))
            return super().forward(x)

    model, images, labels = case(Averages)
    model.train()
    before = model.mean
    value = before.clone()
    deepfool(model, images, labels)
    assert model.mean is before
    assert torch.equal(model.mean, value)
    assert model.training


def test_a_bound_method_is_attacked_in_eval_mode():
    model, images, labels = case(Base)
    expected = deepfool(model, images, labels)
    model.train()
    outcome = deepfool(model.forward, images, labels)
    torch.testing.assert_close(outcome.images, expected.images)
    assert model.training


@pytest.mark.parametrize(
    ("answer_of", "message"),
    [
        (lambda x: (x.flatten(1), x), r"expected a tensor of logits \(N, K\), got tuple"),
        (lambda x: {"out": x.flatten(1)}, "got dict without a tensor `logits`"),
        (lambda x: None, "got NoneType"),
        (
            lambda x: x.flatten(1)[:, :1],
            r"K ≥ 2, got \(1, 1\) for 1 image",
        ),
        (lambda x: x, r"expected logits \(N, K\) with K ≥ 2, got \(1, 3, 8, 8\) for 1 image"),
        (lambda x: torch.fft.fft(x.flatten(1)), "expected real logits"),
        (lambda x: x.flatten(1).argmax(1), r"got \(1, 1\) for 1 image"),
    ],
)
def test_an_answer_that_holds_no_logits_is_refused_in_one_line(answer_of, message):
    images = torch.rand(6, *SHAPE)
    with pytest.raises(ValueError, match=message) as caught:
        deepfool(answer_of, images, torch.zeros(6, dtype=torch.int64))
    assert "\n" not in str(caught.value)


def test_float64_logits_keep_small_gaps_between_large_numbers():
    images = torch.rand(2, *SHAPE)

    def model(x):
        return 1e9 + torch.stack([0 * x.sum((1, 2, 3)), 1e-3 + 0 * x.sum((1, 2, 3))], 1).double()

    assert predict_logits(model, images).argmax(1).tolist() == [1, 1]
    assert predict_logits(model, images)[:, 0].tolist() == pytest.approx([-1e-3] * 2, rel=1e-3)


@pytest.mark.parametrize(
    "switch",
    [
        "torch.backends.fp32_precision = 'tf32'",
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
        "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
        "torch.backends.cuda.matmul.allow_tf32 = True",
        "torch.set_float32_matmul_precision('medium')",
        "torch.backends.cudnn.allow_tf32 = False",
    ],
)
def test_precision_switches_are_off_during_an_attack_and_restored(switch):
    code = f"""
import torch
from attacks import deepfool
backends = torch.backends
switches = [backends, backends.cudnn, backends.mkldnn, backends.cuda.matmul, backends.cudnn.conv,
    backends.cudnn.rnn, backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
def state():
    return [switch.fp32_precision for switch in switches]
def model(x):
    assert set(state()[3:]) == {{"ieee"}}
    assert not backends.cuda.matmul.allow_tf32 and not backends.cudnn.allow_tf32
    return x.flatten(1)[:, :3]
{switch}
before = state()
deepfool(model, torch.rand(2, 1, 2, 2), torch.zeros(2).long())
assert state() == before
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shape", [(3, 1, 8), (3, 8, 1), (3, 1, 1)])
def test_images_one_pixel_high_or_wide(shape):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * shape[1] * shape[2], CLASSES))
    images = torch.rand(5, *shape)
    labels = model(images).argmax(1)
    for attack, options in [call for calls in OPTIONS.values() for call in calls]:
        if attack is band_deepfool and shape[1:] == (1, 1):
            continue  # one pixel has one frequency
        outcome = answer(attack, model, images, labels, options)
        assert outcome.images.shape == images.shape
        assert torch.equal(outcome.fooled, model(outcome.images).argmax(1) != labels)


def test_a_model_whose_eval_raises_is_given_back_too():
    class Stubborn(Base):
        def train(self, mode=True):
            super().train(mode)
            if not mode:
                raise RuntimeError("stays in training mode")
            return self

    model = Stubborn()
    with pytest.raises(RuntimeError, match="stays in training mode"):
        deepfool(model, torch.rand(2, *SHAPE), torch.zeros(2, dtype=torch.int64))
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
