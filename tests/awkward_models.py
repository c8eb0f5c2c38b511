"""Small networks with unusual features that attacks must support.

All take images (N, 3, 8, 8) in [0, 1] and have four classes.
"""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from robust_ham.models.layers import WindowedConv2d

AWKWARD: dict[str, Callable[[], nn.Module]] = {}
"""Deterministic networks."""
RANDOM: dict[str, Callable[[], nn.Module]] = {}
"""Networks with random outputs."""

SHAPE, CLASSES = (3, 8, 8), 4


def _awkward(kind):
    AWKWARD[kind.__name__] = kind
    return kind


def _random(kind):
    RANDOM[kind.__name__] = kind
    return kind


class Base(nn.Module):
    """Convolution, ReLU, linear layer; subclasses change a detail."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, padding=1)
        self.linear = _linear(128)

    def features(self, x):
        return F.relu(self.conv(x)).flatten(1)

    def forward(self, x):
        return 20 * self.linear(self.features(x))


def _linear(num_features):
    """A layer with logits near 0 on average over images, so that no class dominates."""
    layer = nn.Linear(num_features, CLASSES, bias=False)
    with torch.no_grad():
        layer.weight -= layer.weight.mean(1, keepdim=True)
    return layer


@_awkward
class ViewAfterPooling(Base):
    def features(self, x):
        x = F.adaptive_avg_pool2d(self.conv(x).relu(), 4)
        return x.view(x.size(0), -1)


@_awkward
class ViewAfterMaxPooling(Base):
    def __init__(self):
        super().__init__()
        self.linear = _linear(32)

    def forward(self, x):
        x = F.max_pool2d(self.conv(x).relu(), 2)
        return 20 * self.linear(x.view(-1, 32))


@_awkward
class ViewOfTheImage(Base):
    def __init__(self):
        super().__init__()
        self.linear = _linear(192)

    def features(self, x):
        return x.view(len(x), -1)


@_awkward
class NormalisesInPlace(Base):
    def forward(self, x):
        x.sub_(torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)).div_(0.25)
        return super().forward(x)


@_awkward
class ReluInPlaceOnTheImage(Base):
    def forward(self, x):
        x -= 0.3
        return super().forward(F.relu_(x))


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(15 * x) / 15

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class StraightThroughRounding(nn.Module):
    """Fifteen grey levels, with the gradient of the identity."""

    def forward(self, x):
        return _Round.apply(x)


@_awkward
class StraightThrough(Base):
    def forward(self, x):
        return super().forward(_Round.apply(x))


class _Median(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        windows = F.unfold(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3)
        return windows.view(len(x), 3, 9, 64).median(2).values.view(x.shape)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@_awkward
class BackwardPassDifferentiableApproximation(Base):
    def forward(self, x):
        return super().forward(_Median.apply(x))


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient + gradient.roll(1, 3)


@_awkward
class BackwardOfItsOwn(Base):
    def features(self, x):
        return super().features(_Scaled.apply(x))


@_awkward
class StraightThroughByDetach(Base):
    def forward(self, x):
        return super().forward(x + (torch.round(15 * x) / 15 - x).detach())


@_awkward
class BlurByDetach(Base):
    def forward(self, x):
        blurred = F.avg_pool2d(x, 3, 1, 1)
        return super().forward(blurred + (x - blurred).detach())


@_awkward
class MemberWithoutGradient(Base):
    def __init__(self):
        super().__init__()
        self.other = Base()

    def forward(self, x):
        with torch.no_grad():
            other = self.other(x)
        return super().forward(x) + other


@_awkward
class AsksWhetherThereAreGradients(Base):
    def forward(self, x):
        logits = super().forward(x)
        return logits if torch.is_grad_enabled() else logits + torch.arange(4.0)


@_awkward
class FullBackwardHook(Base):
    def __init__(self):
        super().__init__()
        self.pass_on = nn.Identity()
        self.pass_on.register_full_backward_hook(lambda layer, given, out: (given[0].flip(3),))

    def features(self, x):
        return super().features(self.pass_on(x))


@_awkward
class ForwardHook(Base):
    def __init__(self):
        super().__init__()
        self.register_forward_hook(lambda layer, inputs, logits: logits.roll(1, 1))


@_awkward
class ForwardPreHook(Base):
    def __init__(self):
        super().__init__()
        self.register_forward_pre_hook(lambda layer, inputs: ((inputs[0] - 0.5) / 0.2,))


@_awkward
class TensorHook(Base):
    def forward(self, x):
        x = x * 1.0
        if x.requires_grad:
            x.register_hook(lambda gradient: gradient.flip(2))
        return super().forward(x)


@_awkward
class CopiesAreTheOriginal(Base):
    def __init__(self):
        super().__init__()
        self.conv = WindowedConv2d(3, 8, 3, stride=2, padding=1)

    def __deepcopy__(self, memo):
        return self


@_awkward
class PartOfTheCopyIsTheOriginal(Base):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = WindowedConv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(x)

        def __deepcopy__(self, memo):
            return self

    def __init__(self):
        super().__init__()
        self.shared = self.Shared()

    def features(self, x):
        return super().features(self.shared(x))


@_awkward
class LargeConstantInAllLogits(Base):
    def forward(self, x):
        return super().forward(x) + 1000.0


@_awkward
class AutocastInside(Base):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


@_awkward
class Bfloat16Logits(Base):
    def forward(self, x):
        return super().forward(x).bfloat16()


@_awkward
class HalfLogits(Base):
    def forward(self, x):
        return super().forward(x).half()


@_awkward
class Float64Inside(Base):
    def __init__(self):
        super().__init__()
        self.double()

    def forward(self, x):
        return super().forward(x.double()) + 1e6


@_awkward
def Scripted():  # noqa: N802
    return torch.jit.script(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), _linear(72))
    )


@_awkward
def TracedByJit():  # noqa: N802
    return torch.jit.trace(Base().eval(), torch.rand(2, *SHAPE))


@_awkward
def FrozenByJit():  # noqa: N802
    layers = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), _linear(72)
    return torch.jit.freeze(torch.jit.script(nn.Sequential(*layers).eval()))


@_awkward
class NamedTuple(Base):
    Output = collections.namedtuple("Output", "logits features")

    def forward(self, x):
        return self.Output(super().forward(x), self.features(x))


@_awkward
class Dictionary(Base):
    def forward(self, x):
        return {"logits": super().forward(x), "features": self.features(x)}


class _ModelOutput(collections.OrderedDict):
    """Like an output of Hugging Face's transformers: entries are also attributes."""

    def __getattr__(self, name):
        return self[name]


@_awkward
class ModelOutput(Base):
    def forward(self, x):
        return _ModelOutput(loss=None, logits=super().forward(x))


@_awkward
class WholeNumbers(Base):
    def forward(self, x):
        return (5 * super().forward(x)).round().long()


@_awkward
class HidesItsGradient(Base):
    def forward(self, x):
        return super().forward(x.detach())


@_awkward
class AnswersFromNumpy(Base):
    def forward(self, x):
        return torch.from_numpy(super().forward(x).detach().numpy())


@_awkward
class InferenceModeInside(Base):
    @torch.inference_mode()
    def forward(self, x):
        return super().forward(x)


@_awkward
class FlatGradient(Base):
    def forward(self, x):
        return super().forward(x).sign() + 0.1 * torch.arange(4.0)


@_awkward
class Squeezes(Base):
    def forward(self, x):
        return super().forward(x).squeeze()


@_awkward
class CountsItsCalls(Base):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (1 if self.calls % 1 == 0 else -1)


@_awkward
class KeepsItsFeatures(Base):
    def features(self, x):
        self.latest = super().features(x)
        return self.latest


@_awkward
class ConstantMadeInForward(Base):
    def forward(self, x):
        return super().forward(x - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1))


@_awkward
class DependsOnTheData(Base):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


@_awkward
class WeightNorm(Base):
    def __init__(self):
        super().__init__()
        self.conv = parametrizations.weight_norm(self.conv)


@_awkward
class SpectralNorm(Base):
    def __init__(self):
        super().__init__()
        self.conv = parametrizations.spectral_norm(self.conv)
        self.linear = nn.utils.spectral_norm(self.linear)


@_awkward
class Pruned(Base):
    def __init__(self):
        super().__init__()
        prune.random_unstructured(self.conv, "weight", 0.5)


@_awkward
class SharedConvolution(Base):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(2))
        self.norms[0].running_var.fill_(0.25)
        self.linear = _linear(192)

    def features(self, x):
        for norm in self.norms:
            x = F.relu(norm(self.conv(x)))
        return x.flatten(1)


@_awkward
class Transformer(Base):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.linear = _linear(32)

    def features(self, x):
        return self.layer(self.patches(x).flatten(2).transpose(1, 2)).flatten(1)


@_awkward
def DataParallel():  # noqa: N802
    return nn.DataParallel(ViewAfterPooling())


@_awkward
class Checkpointed(Base):
    def features(self, x):
        return checkpoint(super().features, x, use_reentrant=False)


@_awkward
class CheckpointedReentrant(Base):
    def features(self, x):
        return checkpoint(super().features, x, use_reentrant=True)


@_awkward
def MadeInInferenceMode():  # noqa: N802
    with torch.inference_mode():
        return Base()


@_awkward
class GradientInside(Base):
    """Moves the image along a gradient before classifying it."""

    def forward(self, x):
        with torch.enable_grad():
            inner = x.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.features(inner).sum(), inner)
        return super().forward(x + 0.1 * slope)


class _Same(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias)


@_awkward
class SubclassedConvolution(Base):
    def __init__(self):
        super().__init__()
        self.conv = _Same(3, 8, 2, 2)


@_awkward
class FourierTransform(Base):
    def features(self, x):
        return super().features(torch.fft.fft2(x).abs().log1p())


@_awkward
class Permuted(Base):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(3, 3)

    def features(self, x):
        return super().features(self.mix(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    def forward(self, x):
        return super().forward(x).T.contiguous().T


@_awkward
def ChannelsLast():  # noqa: N802
    return Base().to(memory_format=torch.channels_last)


@_awkward
class Lazy(Base):
    def __init__(self):
        super().__init__()
        self.linear = nn.LazyLinear(CLASSES)
        self(torch.zeros(1, *SHAPE))


@_awkward
class PlainTensors(Base):
    """Weights that are neither parameters nor buffers."""

    def __init__(self):
        super().__init__()
        self.scale = torch.tensor([2.0, 1.0, 3.0, 1.5])
        self.matrix = _linear(128).weight.detach().T.contiguous()

    def forward(self, x):
        return 20 * self.features(x) @ self.matrix * self.scale


@_awkward
class DataAttribute(Base):
    def forward(self, x):
        return super().forward(x + 0.5 * x.data)


@_random
class OwnGenerator(Base):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        noise = torch.randn(x.shape, generator=self.generator)
        return super().forward(x + 0.05 * noise)

    def __deepcopy__(self, memo):
        twin = OwnGenerator()
        twin.load_state_dict(copy.deepcopy(self.state_dict()))
        return twin


@_random
class DropoutStaysOn(Base):
    def features(self, x):
        return self.dropout(super().features(x))

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.2)

    def train(self, mode=True):
        super().train(mode)
        self.dropout.training = True
        return self


@_random
class FunctionalDropout(Base):
    def features(self, x):
        return F.dropout(super().features(x), 0.2, training=True)
