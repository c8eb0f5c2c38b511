"""DeepFool against closed forms, against foolbox, and on degenerate input."""

import foolbox
import pytest
import torch
from conftest import fashion_images, zoo_model
from torch import nn

from attacks import deepfool, superdeepfool
from attacks.deepfool import STEP_CONSTANT
from attacks.utils.prepare import prepare


class Affine(nn.Module):
    """Logits A x + b with correctly classified images, far from the box."""

    def __init__(self, classes=5, pixels=12, dtype=torch.float32, layers=1, scale=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        weights = torch.randn(classes, pixels, generator=generator, dtype=torch.float64) * scale
        self.second = torch.eye(classes, dtype=dtype) if layers == 2 else None
        if layers == 2:
            mix = torch.randn(classes, classes, generator=generator, dtype=torch.float64)
            self.second = mix.to(dtype)
            weights = torch.linalg.solve(mix, weights)
        self.weight = weights.to(dtype)
        self.bias = torch.zeros(classes, dtype=dtype)

    def forward(self, x):
        logits = x.flatten(1) @ self.weight.T + self.bias
        return logits @ self.second.T if self.second is not None else logits

    def effective(self):
        weight = self.weight.double()
        return self.second.double() @ weight if self.second is not None else weight


def affine_case(count=16, **options):
    model = Affine(**options)
    generator = torch.Generator().manual_seed(4)
    x = 0.5 + 0.02 * torch.randn(count, 1, 3, 4, generator=generator, dtype=torch.float64)
    x = x.to(model.weight.dtype)
    return model, x, model(x).argmax(1)


def closed_form(model, x, labels, norm):
    """Distance to the nearest boundary, in float64."""
    weight = model.effective()
    logits = x.double().flatten(1) @ weight.T
    gaps = logits.gather(1, labels[:, None]) - logits
    difference = weight[None] - weight[labels][:, None]  # (N, K, D)
    dual = difference.norm(dim=2, p=2 if norm == "l2" else 1)
    ratios = torch.where(dual > 0, gaps / dual, torch.inf)
    return ratios.amin(1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("count", [1, 7, 64])
def test_affine_classifier_is_fooled_in_one_step(norm, dtype, tolerance, layers, count):
    model, x, labels = affine_case(count, dtype=dtype, layers=layers)
    outcome = deepfool(model, x, labels, norm=norm)
    r = (outcome.images.double() - x.double()).flatten(1)
    size = r.norm(dim=1) if norm == "l2" else r.abs().amax(1)
    expected = 1.02 * closed_form(model, x, labels, norm)
    assert outcome.fooled.all()
    assert ((size - expected).abs() <= tolerance * expected.clamp_min(0.05)).all()
    assert ((outcome.images > 0) & (outcome.images < 1)).all()


def test_affine_with_permuted_classes():
    model, x, labels = affine_case()
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = Affine()
    permuted.weight = model.weight[order]
    inverse = order.argsort()
    a, b = deepfool(model, x, labels), deepfool(permuted, x, inverse[labels])
    torch.testing.assert_close(a.images, b.images)


def test_affine_needs_one_gradient_per_class_and_step():
    model, x, labels = affine_case(candidates := 8)
    outcome = deepfool(model, x, labels, prune=None)
    assert (outcome.backwards == 4).all()  # five classes, the label excluded
    assert candidates == len(outcome.forwards)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("window", ["none", "hamming"])
def test_batch_invariance(norm, kernel_size, window):
    model = zoo_model(kernel_size, window)
    x, y = fashion_images(24)
    together = deepfool(model, x, y, norm=norm)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    shuffled = deepfool(model, x[order], y[order], norm=norm)
    alone = [deepfool(model, x[i : i + 1], y[i : i + 1], norm=norm) for i in range(len(x))]
    norms = (together.images - x).flatten(1).norm(dim=1)
    for other in (
        torch.cat([o.images for o in alone]),
        shuffled.images[order.argsort()],
    ):
        other_norms = (other - x).flatten(1).norm(dim=1)
        assert ((other_norms - norms).abs() <= 1e-4 * norms.clamp_min(1e-3)).all()
    assert torch.equal(together.fooled, torch.cat([o.fooled for o in alone]))
    assert torch.equal(together.fooled, shuffled.fooled[order.argsort()])


@pytest.mark.parametrize(("norm", "tolerance"), [("l2", 0.001), ("linf", 0.01)])
@pytest.mark.parametrize(("kernel_size", "window"), [(3, "none"), (7, "hamming")])
def test_agrees_with_foolbox(norm, tolerance, kernel_size, window):
    model = zoo_model(kernel_size, window)
    x, y = fashion_images(50)
    right = model(x).argmax(1) == y
    x, y = x[right], y[right]
    kind = foolbox.attacks.L2DeepFoolAttack if norm == "l2" else foolbox.attacks.LinfDeepFoolAttack
    attack = kind(steps=50, candidates=10, overshoot=0.02)
    _, other, success = attack(foolbox.PyTorchModel(model, (0, 1)), x, y, epsilons=None)
    ours = deepfool(model, x, y, norm=norm)

    def size(images):
        r = (images - x).flatten(1)
        return r.norm(dim=1) if norm == "l2" else r.abs().amax(1)

    assert torch.equal(ours.fooled, success)
    both = success.nonzero().squeeze(1)
    ratio = size(ours.images)[both].mean() / size(other)[both].mean()
    assert ratio.item() == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("window", ["none", "hamming"])
def test_pruning_saves_gradients_and_keeps_the_answer(kernel_size, window):
    model = zoo_model(kernel_size, window)
    x, y = fashion_images(64)
    pruned, full = (deepfool(model, x, y, steps=200, prune=p) for p in (2.5, None))
    assert torch.equal(pruned.fooled, full.fooled)
    a, b = ((o.images - x).flatten(1).norm(dim=1) for o in (pruned, full))
    same = ((a - b).abs() <= 1e-3 * b).float().mean()
    # The windowed 3×3 network, effectively 1×1, needs up to 200 steps; few paths diverge.
    assert same == 1 or ((kernel_size, window) == (3, "hamming") and same >= 0.95)
    assert pruned.backwards.sum() < 0.6 * full.backwards.sum()


class OneRowTripled(nn.Module):
    """A network of the zoo with one class row × 3, so that gradients differ in size."""

    def __init__(self):
        super().__init__()
        self.base = zoo_model(3, "none")

    def forward(self, x):
        logits = self.base(x)
        return torch.cat([logits[:, :4], 3 * logits[:, 4:5], logits[:, 5:]], 1)


def test_pruning_with_one_class_row_tripled():
    model = OneRowTripled()
    x, y = fashion_images(64)
    pruned, full = deepfool(model, x, y), deepfool(model, x, y, prune=None)
    assert torch.equal(pruned.fooled, full.fooled)
    a, b = ((o.images - x).flatten(1).norm(dim=1).mean() for o in (pruned, full))
    assert a.item() == pytest.approx(b.item(), rel=2e-3)


class UnequalRows(nn.Module):
    """Class k reads pixel k alone, times 0, 1, 10, …: the nearest has the largest gradient.

    ``layers``: a matrix product; a linear layer; or two, so that all rows of the last are equal.
    """

    def __init__(self, layers, slopes=(0.0, 1.0, 10.0)):
        super().__init__()
        weight = torch.diag(torch.tensor(slopes))
        gaps = torch.tensor([0.0] + [0.1 * 3**k for k in range(len(slopes) - 1)])  # 0.1, 0.3, …
        bias = -weight.sum(1) / 2 - gaps  # at a grey image
        matrices = {"product": [weight], "linear": [weight], "two": [weight, torch.eye(len(gaps))]}
        self.product = weight if layers == "product" else None
        self.layers = nn.Sequential(*(nn.Linear(*m.shape, bias=False) for m in matrices[layers]))
        for layer, matrix in zip(self.layers, matrices[layers], strict=True):
            layer.weight.data = matrix
        self.bias = nn.Parameter(bias)

    def forward(self, x):
        x = x.flatten(1)
        return (x @ self.product if self.product is not None else self.layers(x)) + self.bias


@pytest.mark.parametrize("layers", ["product", "linear", "two"])
@pytest.mark.parametrize("count", [1, 8, 9, 200])
@pytest.mark.parametrize("slopes", [(0.0, 1.0, 10.0), (0.0, 1.0, 10.0, 100.0, 1000.0)])
def test_pruning_with_rows_of_unequal_size(layers, count, slopes):
    model = UnequalRows(layers, slopes)
    images = torch.full((count, 1, 1, len(slopes)), 0.5)
    labels = torch.zeros(count, dtype=torch.int64)
    gaps = [0.1 * 3**k for k in range(len(slopes) - 1)]
    nearest = min(gap / slope for gap, slope in zip(gaps, slopes[1:], strict=True))
    for attack, factor in ((deepfool, 1.02), (superdeepfool, 1.001)):
        outcome = attack(model, images, labels)
        length = (outcome.images - images).flatten(1).norm(dim=1)
        assert outcome.fooled.all()
        assert length.tolist() == pytest.approx([factor * nearest] * count, rel=1e-3)
        unpruned = attack(model, images, labels, prune=None)
        torch.testing.assert_close(outcome.images, unpruned.images)


class OneClassUnequal(nn.Module):
    """Two equal layers for all images but those of class 6, whose gradients differ in size."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(7, 7)
        self.head.weight.data = torch.eye(7)
        self.head.bias.data = torch.zeros(7)

    def forward(self, x):
        x = x.flatten(1)
        scale = torch.ones(7).index_fill(0, torch.tensor([3]), 30.0)
        steep = x.detach().argmax(1, keepdim=True) == 6
        return self.head(torch.where(steep, scale * (x - 0.45), x))


def test_the_audit_of_pruning_looks_at_many_classes():
    """Classes take turns, so that evenly spaced images could all be of one class."""
    labels = torch.arange(7).repeat(36)
    images = torch.full((len(labels), 1, 1, 7), 0.4)
    images[torch.arange(len(labels)), 0, 0, labels] = 0.6
    model = OneClassUnequal()
    assert torch.equal(model(images).argmax(1), labels)
    pruned, full = (deepfool(model, images, labels, prune=p) for p in (2.5, None))
    torch.testing.assert_close(pruned.images, full.images)


def test_a_gradient_that_grows_is_not_pruned_by_what_others_had():
    """After the first step, class 2's gradient is 20 times class 1's; it was computed before."""

    def model(x):
        a, b = x.flatten(1).unbind(1)
        return torch.stack([0 * a, a - 0.9, 20 * (b + 0.05 * (a - 0.5)) - 14.6], 1)

    images, labels = torch.full((64, 1, 1, 2), 0.5), torch.zeros(64, dtype=torch.int64)
    pruned, full = (deepfool(model, images, labels, prune=p) for p in (2.5, None))
    torch.testing.assert_close(pruned.images, full.images)


@pytest.mark.parametrize("num_classes", [10, 60, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_pruning_with_many_classes(num_classes, norm):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, num_classes)
    ).eval()
    model[3].weight.data *= torch.logspace(-1, 1, num_classes)[:, None]
    x = torch.rand(60, 1, 8, 8)
    y = model(x).argmax(1)
    pruned, full = (
        deepfool(model, x, y, norm=norm, candidates="all", prune=p) for p in (2.5, None)
    )
    assert torch.equal(pruned.fooled, full.fooled)
    a, b = ((o.images - x).flatten(1).norm(dim=1) for o in (pruned, full))
    assert ((a - b).abs() <= 1e-3 * b).float().mean() >= 0.98


def test_refined_points_are_nearer_and_still_fool():
    model = zoo_model(7, "none")
    x, y = fashion_images(40)
    plain, refined = deepfool(model, x, y), deepfool(model, x, y, refine=True)
    assert torch.equal(plain.fooled, refined.fooled)
    far, near = ((o.images - x).flatten(1).norm(dim=1) for o in (plain, refined))
    assert (near <= far + 1e-6).all()
    assert near.sum() < far.sum()
    moved = refined.fooled & (near > 0)
    assert (model(refined.images).argmax(1) != y)[moved].all()


@pytest.mark.parametrize("fails", [False, True])
def test_the_caller_finds_everything_as_it_was(fails):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    ).train()
    model[0].weight.requires_grad_(False)
    model[1].eval()
    model[4].weight.grad = torch.ones_like(model[4].weight)
    if fails:
        model[2].register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("boom")))
    x, y = torch.rand(6, 1, 4, 4), torch.zeros(6, dtype=torch.int64)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes, flags = (
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
    )
    images, random_state = x.clone(), torch.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError, match="boom"):
            deepfool(model, x, y)
    else:
        deepfool(model, x, y, refine=True)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(model[4].weight.grad, torch.ones_like(model[4].weight))
    assert model[0].weight.grad is None
    assert torch.equal(x, images)
    assert not x.requires_grad
    assert torch.equal(torch.get_rng_state(), random_state)


def test_inside_no_grad_and_autocast_it_still_works():
    model, x, labels = affine_case()
    expected = deepfool(model, x, labels)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        inside = deepfool(model, x, labels)
    torch.testing.assert_close(inside.images, expected.images)


def test_an_image_wrong_before_comes_back_untouched():
    model, x, labels = affine_case()
    wrong = (labels + 1) % 5
    outcome = deepfool(model, x, wrong)
    assert torch.equal(outcome.images, x)
    assert outcome.fooled.all()
    assert (outcome.backwards == 0).all()


def test_zero_gradient_is_a_failure():
    class Flat(nn.Module):
        def forward(self, x):
            return torch.tensor([1.0, 0.0]).expand(len(x), 2) + 0 * x.flatten(1).sum(
                1, keepdim=True
            )

    x = torch.rand(3, 1, 2, 2)
    outcome = deepfool(Flat(), x, torch.zeros(3, dtype=torch.int64))
    assert not outcome.fooled.any()
    assert torch.equal(outcome.images, x)


def test_a_class_with_the_labels_own_gradient_does_not_hide_the_others():
    def model(x):
        pixel = x.flatten(1)[:, 0]
        return torch.stack([pixel, pixel - 0.1, 1 - pixel], 1)

    x = torch.full((1, 1, 1, 2), 0.9)
    outcome = deepfool(model, x, torch.zeros(1, dtype=torch.int64))
    assert outcome.fooled.all()
    assert (outcome.images - x).norm().item() == pytest.approx(1.02 * 0.4, rel=1e-4)


def test_a_model_that_hides_its_gradient_is_not_fooled():
    def model(x):
        return x.detach().flatten(1)[:, :3]

    outcome = deepfool(model, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))
    assert (outcome.backwards == 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_fool_nobody(bad):
    def model(x):
        logits = x.flatten(1)[:, :3] * 1.0
        logits[:, 1] = bad
        return logits

    outcome = deepfool(model, torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64))
    assert not outcome.fooled.any()


def test_a_nan_image_is_a_failure_and_leaves_its_neighbours_alone():
    model, x, labels = affine_case()
    expected = deepfool(model, x, labels)
    x = x.clone()
    x[2, 0, 0, 0] = float("nan")
    outcome = deepfool(model, x, labels)
    assert not outcome.fooled[2]
    others = torch.arange(len(x)) != 2
    assert outcome.fooled[others].all()
    torch.testing.assert_close(outcome.images[others], expected.images[others])


def test_two_classes_a_tie_and_one_step():
    model, x, labels = affine_case(classes=2)
    assert deepfool(model, x, labels, steps=1).fooled.all()  # the point after it is judged
    tied = torch.full_like(x[:1], 0.5)
    model.weight = model.weight - model.weight.mean(1, keepdim=True)  # both logits 0 at grey
    logits = model(tied)
    model.bias = model.bias - logits[0]
    outcome = deepfool(model, tied, model(tied).argmax(1))
    assert outcome.fooled.all()
    assert (outcome.images - tied).norm().item() <= 3 * STEP_CONSTANT


def test_the_box_is_kept():
    model = zoo_model(7, "none")
    x, y = fashion_images(30)
    outcome = deepfool(model, x, y)
    assert outcome.images.amin() >= 0
    assert outcome.images.amax() <= 1
    assert torch.equal(outcome.fooled, model(outcome.images).argmax(1) != y)


def test_an_empty_batch_gives_an_empty_outcome():
    outcome = deepfool(zoo_model(3, "none"), torch.zeros(0, 1, 28, 28), torch.zeros(0).long())
    assert outcome.images.shape == (0, 1, 28, 28)
    assert len(outcome.fooled) == len(outcome.forwards) == len(outcome.backwards) == 0


def test_all_candidates_includes_every_class():
    model, x, labels = affine_case()
    assert (deepfool(model, x, labels, candidates="all", prune=None).backwards == 4).all()
    assert (deepfool(model, x, labels, candidates=3, prune=None, steps=1).backwards == 2).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l1"}, "norm: expected l2 or linf, got 'l1'"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"overshoot": -0.1}, "overshoot: expected at least 0"),
        ({"candidates": 1}, "candidates: expected all or at least 2, got 1"),
        ({"candidates": "some"}, "candidates: expected all"),
        ({"prune": 0}, "prune: expected a positive number"),
        ({"prune": torch.inf}, "prune: expected a positive number or null, got inf"),
    ],
)
def test_bad_options_are_refused_even_on_an_empty_batch(options, message):
    with pytest.raises(ValueError, match=message):
        deepfool(lambda x: x.flatten(1), torch.zeros(0, 1, 2, 2), torch.zeros(0).long(), **options)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.full((1, 1, 2, 2), 1.1), torch.zeros(1).long(), r"pixels in \[0, 1\], got 1.1"),
        (torch.zeros(1, 1, 2, 2).byte(), torch.zeros(1).long(), "images: expected floats"),
        (torch.zeros(1, 2, 2), torch.zeros(1).long(), "images: expected floats"),
        (torch.zeros(1, 1, 2, 2), torch.zeros(2).long(), "labels: expected int64"),
        (torch.zeros(1, 1, 2, 2), torch.zeros(1), "labels: expected int64"),
        (torch.zeros(1, 1, 2, 2), torch.full((1,), 4), "labels: expected 0 … 3, got 4"),
        (torch.zeros(1, 1, 2, 2), torch.full((1,), -1), "labels: expected 0 … 3, got -1"),
        (torch.zeros(2, 1, 2, 2), torch.tensor([0, 9]), "labels: expected 0 … 3, got 9"),
    ],
)
def test_bad_input_is_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        deepfool(lambda x: x.flatten(1), images, labels)


def test_logits_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="model: expected logits"):
        deepfool(lambda x: x, torch.zeros(1, 1, 2, 2), torch.zeros(1).long())


class ConvolutionalHead(nn.Module):
    """Convolutional head: the last layer with parameters is not linear."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.features = nn.Conv2d(1, 8, 5, padding=2)
        self.head = nn.Conv2d(8, 6, 3)

    def forward(self, x):
        return self.head(self.features(x).relu()).mean((2, 3))


def test_only_a_linear_last_layer_sizes_the_classes():
    x, _ = fashion_images(3)
    with_head, without = prepare(zoo_model(3, "none"), x), prepare(ConvolutionalHead(), x)
    assert with_head.tape.head.shape == (10, 32)
    assert without.tape.head is None


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_pruning_without_a_linear_last_layer(norm):
    model = ConvolutionalHead()
    x, _ = fashion_images(60)
    y = model(x).argmax(1)
    pruned, full = (deepfool(model, x, y, norm=norm, prune=p) for p in (2.5, None))
    assert torch.equal(pruned.fooled, full.fooled)
    torch.testing.assert_close(pruned.images, full.images, atol=1e-5, rtol=0)
    assert pruned.backwards.sum() < full.backwards.sum()
