"""Backward passes for any (image, class) pairs from one forward pass of a traced network.

Autograd computes the gradients of all images of a forward pass, also of those that need no further
class. A tape keeps what the backward pass needs, and runs it by hand on a list of rows, each of
them one pair: an image may have several rows, and rows may be dropped on the way from the logits to
the pixels.

Convolutions, linear layers, BatchNorm, ReLU, additions and global average pooling have rules of
their own. Every other operation is run again on its rows and left to autograd.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

_LANES = 16
"""Channels that the convolutions of a CPU compute at once."""

_SIZES_OF_ALL_LAYERS = 40
"""Different batch sizes between powers of 2, times layers: so many programs fit in the cache."""

Values = dict[fx.Node, Any]


@dataclass(frozen=True)
class Cut:
    """A place on the way to the pixels where the gradient of all that is ahead is one tensor.

    ``layers_ahead``: share of the network's cuts from here to the pixels; ``work_ahead``: share of
    its multiplications.
    """

    layers_ahead: float
    work_ahead: float


Drop = Callable[[Tensor, Tensor, Cut], Tensor]
"""Pairs (P,), ascending, and the norms (P,) of their gradients at a cut, to those that go on:
bool (P,)."""


class Tape:
    """A traced network in eval mode that treats each image separately."""

    def __init__(self, graph: fx.GraphModule) -> None:
        """Choose a rule for each operation of ``graph``.

        Raises:
            Exception: the graph does not map one input to one tensor.
        """
        nodes = list(graph.graph.nodes)
        (self.source,) = [node for node in nodes if node.op == "placeholder"]
        (output,) = [node for node in nodes if node.op == "output"]
        self.target: fx.Node = output.args[0]
        if not isinstance(self.target, fx.Node):
            raise TypeError("the output is not one tensor")
        self.graph = graph
        self.constants = {node: _attribute(graph, node) for node in nodes if node.op == "get_attr"}
        self.operations: dict[fx.Node, _Operation] = {}
        for node in nodes:
            if node.op not in ("placeholder", "output", "get_attr"):
                self.operations[node] = _operation(self, node)
        last = self.operations.get(self.target)
        self.head: Tensor | None = last.layer.weight if isinstance(last, _Linear) else None
        """Weight (K, d) of the final layer, if that is linear."""
        kept = {node for operation in self.operations.values() for node in operation.kept()}
        layers = sum(operation.is_cut for operation in self.operations.values())
        self.sizes = max(2, 1 << max(0, _SIZES_OF_ALL_LAYERS // max(1, layers)).bit_length() - 1)
        self.cuts = self._find_cuts()
        self._released = _last_uses(self, {self.target})
        self._released_while_recording = _last_uses(self, {self.target} | kept)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W), without gradients."""
        values = self._values(images)
        for operation, released in zip(self.operations.values(), self._released, strict=True):
            values[operation.node] = operation.run(values)
            for node in released:
                del values[node]
        logits: Tensor = values[self.target]
        return logits[: len(images)]

    @torch.no_grad()
    def record(self, images: Tensor) -> Recording:
        """Run the network forward on images (B, C, H, W), and keep what gradients need."""
        values = self._values(images)
        shapes, costs = {self.source: images.shape}, []
        released_after = self._released_while_recording
        for operation, released in zip(self.operations.values(), released_after, strict=True):
            value = values[operation.node] = operation.run(values)
            if isinstance(value, Tensor):
                shapes[operation.node] = value.shape
            costs.append(operation.cost(value))
            for node in released:
                del values[node]
        ahead = torch.tensor(costs, dtype=torch.float64).cumsum(0)
        work = dict(zip(self.operations, (ahead / ahead[-1].clamp_min(1)).tolist(), strict=True))
        count = len(self.cuts)
        cuts = {n: Cut(1 - i / count, work[n]) for i, n in enumerate(self.cuts)}
        return Recording(self, len(images), values, shapes, cuts)

    def padded(self, rows: Tensor) -> Tensor:
        """Pad int64 (P,) by copies of the last one.

        A CPU generates code for the convolutions of each batch size, which takes longer than a
        small batch. Between powers of 2, only ``sizes`` different ones are therefore used.
        """
        count = len(rows)
        if rows.is_cpu and count > 1:
            step = max(1, (1 << (count - 1).bit_length() - 1) // self.sizes)
            count = -(-count // step) * step
        return (
            rows if count == len(rows) else torch.cat([rows, rows[-1:].expand(count - len(rows))])
        )

    def _find_cuts(self) -> list[fx.Node]:
        """Operations, from the last to the first, before which pairs may be dropped."""
        cuts, pending = [], {self.target}
        for node, operation in reversed(self.operations.items()):
            if pending == {node} and operation.is_cut and node is not self.target:
                cuts.append(node)
            if node in pending:
                pending.remove(node)
                pending |= set(node.all_input_nodes) - set(self.constants)
        return cuts

    def _values(self, images: Tensor) -> Values:
        count = len(self.padded(torch.arange(len(images), device=images.device)))
        padded = images.new_empty(count, *images.shape[1:]).contiguous(
            memory_format=torch.channels_last
        )
        padded[: len(images)] = images
        padded[len(images) :] = images[-1:]
        return {**self.constants, self.source: padded}


@dataclass
class Recording:
    """A forward pass on B images, padded by copies of the last one.

    ``values``: kept outputs by node; ``shapes``: of all tensors; ``cuts``: by the operation that
    follows on the way to the pixels.
    """

    tape: Tape
    count: int
    values: Values
    shapes: dict[fx.Node, torch.Size]
    cuts: dict[fx.Node, Cut]

    @property
    def logits(self) -> Tensor:
        """Logits (B, K)."""
        logits: Tensor = self.values[self.tape.target]
        return logits[: self.count]

    @torch.no_grad()
    def gradients(
        self, images: Tensor, seeds: Tensor, drop: Drop | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gradients of ``seeds`` · logits with respect to the pixels.

        Args:
            images: image of each pair, int64 (P,).
            seeds: (P, K).
            drop: chooses the pairs that go on at each cut; None: all go on.

        Returns:
            Gradients (P', C, H, W) of the pairs that reach the pixels, and these pairs, int64
            (P',), ascending.
        """
        pairs = torch.arange(len(images), device=images.device)
        rows = self.tape.padded(images)
        pending = {self.tape.target: take(seeds, self.tape.padded(pairs))}
        shared = {self.tape.target}  # nodes whose gradient may be that of another node too
        for node, operation in reversed(self.tape.operations.items()):
            slope = pending.pop(node, None)
            if slope is None:
                continue
            if drop and node in self.cuts:
                going = drop(pairs, norms_of(slope)[: len(pairs)], self.cuts[node])
                if not going.all():
                    kept = going.nonzero().squeeze(1)
                    slope, rows = take(slope, self.tape.padded(kept)), rows[self.tape.padded(kept)]
                    pairs = pairs[kept]
                    shared.discard(node)
            if operation.overwrites and node in shared:
                slope = slope.clone()
            selected = None if self._are_all(rows) else rows
            for needed, part in operation.pull_back(slope, self, selected):
                if needed not in pending:
                    pending[needed] = part
                    shared |= {needed} if operation.passes_on else set()
                elif not operation.passes_on:
                    pending[needed] = part.add_(pending[needed])
                    shared.discard(needed)
                else:
                    pending[needed] = pending[needed] + part
                    shared.discard(needed)
        slope = pending.get(self.tape.source)
        if slope is None:
            slope = seeds.new_zeros(len(pairs), *self.shapes[self.tape.source][1:])
        return slope[: len(pairs)], pairs

    def _are_all(self, rows: Tensor) -> bool:
        """Whether the rows are all images in order, so that nothing needs to be copied."""
        every = torch.arange(self.count, device=rows.device)
        return torch.equal(rows, self.tape.padded(every))

    def of_rows(self, node: fx.Node, rows: Tensor | None) -> Tensor:
        """Value of ``node`` for the image of each row, (P, …)."""
        value: Tensor = self.values[node]
        if len(value) != len(self.values[self.tape.target]):
            raise ValueError(f"{node}: not one value per image")
        return value if rows is None else take(value, rows)


def take(values: Tensor, rows: Tensor) -> Tensor:
    """``values[rows]`` in the memory format of ``values``."""
    if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
        return values.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return values.index_select(0, rows)


def norms_of(values: Tensor) -> Tensor:
    """L2 norm of each row: (P, …) to (P,)."""
    norms: Tensor = torch.linalg.vector_norm(values, dim=tuple(range(1, values.ndim)))
    return norms


def _attribute(graph: fx.GraphModule, node: fx.Node) -> Any:  # noqa: ANN401 - any constant
    value: Any = graph
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value


def _last_uses(tape: Tape, kept: set[fx.Node]) -> list[list[fx.Node]]:
    """Nodes whose values may be released after each operation."""
    released: list[list[fx.Node]] = [[] for _ in tape.operations]
    last = {}
    for index, node in enumerate(tape.operations):
        last[node] = index
        last |= dict.fromkeys(node.all_input_nodes, index)
    for node, index in last.items():
        if node not in kept and node not in tape.constants:
            released[index].append(node)
    return released


# --- operations ------------------------------------------------------------------------------


Slopes = Iterator[tuple[fx.Node, Tensor]]
"""Gradients (P, …) with respect to inputs of an operation."""


class _Operation:
    """An operation without a rule of its own: run again on its rows, and left to autograd."""

    is_cut = False
    """Whether rows are dropped before it."""
    is_fresh = False
    """Whether its output is a new tensor, which may be changed in place."""
    overwrites = False
    """Whether ``pull_back`` changes the gradient of the output."""
    passes_on = True
    """Whether ``pull_back`` may return the gradient of the output itself."""

    def __init__(self, tape: Tape, node: fx.Node) -> None:
        self.node = node
        self.graph = tape.graph
        self.inputs = node.all_input_nodes

    def kept(self) -> list[fx.Node]:
        """Nodes whose values the backward pass needs."""
        return self.inputs

    def cost(self, output: Any) -> float:  # noqa: ANN401 - any output
        """Multiplications per image; 0 without weights."""
        return 0.0

    def run(self, values: Values) -> Any:  # noqa: ANN401 - any output
        """Compute the output."""
        node = self.node
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        if node.op == "call_module":
            return self.graph.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def pull_back(self, slope: Tensor, recording: Recording, rows: Tensor | None) -> Slopes:
        """Yield the gradient with respect to each input, from that of the output."""
        tape = recording.tape
        values: Values = {**tape.constants}
        leaves: dict[fx.Node, Tensor] = {}

        def provide(node: fx.Node) -> None:
            if node in values:
                return
            if node in recording.shapes:
                values[node] = recording.of_rows(node, rows).detach()
                if values[node].is_floating_point():
                    leaves[node] = values[node].requires_grad_()
            else:  # a size, or the parts of a split
                for needed in node.all_input_nodes:
                    provide(needed)
                values[node] = tape.operations[node].run(values)

        with torch.enable_grad():
            for node in self.inputs:
                provide(node)
            output = self.run(values)
        slopes = torch.autograd.grad(output, list(leaves.values()), slope, allow_unused=True)
        for node, part in zip(leaves, slopes, strict=True):
            if part is not None:
                yield node, part


class _Layer(_Operation):
    """A layer with one input, whose gradient does not depend on the input's values."""

    def __init__(self, tape: Tape, node: fx.Node) -> None:
        super().__init__(tape, node)
        self.layer: Any = tape.graph.get_submodule(str(node.target))
        (self.input,) = node.all_input_nodes

    def kept(self) -> list[fx.Node]:
        return []

    def run(self, values: Values) -> Tensor:
        output: Tensor = self.layer(values[self.input])
        return output


class _Linear(_Layer):
    is_cut = is_fresh = True
    passes_on = False

    def cost(self, output: Tensor) -> float:
        return float(output[0].numel() * self.layer.in_features)

    def pull_back(self, slope: Tensor, recording: Recording, rows: Tensor | None) -> Slopes:
        yield self.input, slope @ self.layer.weight


class _BatchNorm(_Layer):
    is_fresh = True
    passes_on = False

    def pull_back(self, slope: Tensor, recording: Recording, rows: Tensor | None) -> Slopes:
        scale = (self.layer.running_var + self.layer.eps).rsqrt()
        if self.layer.weight is not None:
            scale = scale * self.layer.weight
        yield self.input, slope * scale.view(-1, 1, 1)


class _GlobalAverage(_Layer):
    def pull_back(self, slope: Tensor, recording: Recording, rows: Tensor | None) -> Slopes:
        height, width = recording.shapes[self.input][2:]
        yield self.input, (slope / (height * width)).expand(-1, -1, height, width)


class _Convolution(_Layer):
    is_cut = is_fresh = True
    passes_on = False

    def __init__(self, tape: Tape, node: fx.Node) -> None:
        super().__init__(tape, node)
        self.blocks = _BlockedBackward(self.layer)

    def cost(self, output: Tensor) -> float:
        return float(output[0].numel() * self.layer.weight[0].numel())

    def pull_back(self, slope: Tensor, recording: Recording, rows: Tensor | None) -> Slopes:
        height, width = recording.shapes[self.input][2:]
        slope = slope.contiguous(memory_format=torch.channels_last)
        if self.blocks.suit(height, width, slope.device):
            yield self.input, self.blocks.gradient(slope)
            return
        layer = self.layer
        smallest = [
            (side - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1
            for side, stride, padding, dilation, kernel in zip(
                slope.shape[2:],
                layer.stride,
                layer.padding,
                layer.dilation,
                layer.kernel_size,
                strict=True,
            )
        ]
        yield (
            self.input,
            F.conv_transpose2d(
                slope,
                layer.weight,
                None,
                layer.stride,
                layer.padding,
                (height - smallest[0], width - smallest[1]),
                layer.groups,
                layer.dilation,
            ),
        )


class _BlockedBackward:
    """Backward pass of a convolution with few input channels, in blocks of b × b pixels.

    The convolutions of a CPU compute 16 channels at once, also where images have 1 or 3. The same
    gradient is a convolution with stride b, whose output channels are the b² · C values of a block.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        self.side = int((_LANES / layer.in_channels) ** 0.5)
        regular = layer.stride == layer.dilation == (1, 1) and layer.groups == 1
        height, width = layer.kernel_size
        down, right = layer.padding if isinstance(layer.padding, tuple) else (height, width)
        self.padding = height - 1 - down, width - 1 - right
        if self.side < 2 or not regular or min(self.padding) < 0:
            self.side = 1
            return
        side, flipped = self.side, layer.weight.detach().flip(2, 3).transpose(0, 1)
        channels, outputs = flipped.shape[:2]
        shape = (channels, side, side, outputs, height + side - 1, width + side - 1)
        weight = flipped.new_zeros(shape)
        for y in range(side):
            for x in range(side):
                weight[:, y, x, :, y : y + height, x : x + width] = flipped
        self.weight = weight.flatten(0, 2).contiguous(memory_format=torch.channels_last)

    def suit(self, height: int, width: int, device: torch.device) -> bool:
        """Whether images of this size are whole blocks, on a CPU."""
        fits = height % self.side == width % self.side == 0
        return self.side > 1 and fits and device.type == "cpu"

    def gradient(self, slope: Tensor) -> Tensor:
        """Gradient with respect to the layer's input, from that of its output."""
        blocks = F.conv2d(slope, self.weight, stride=self.side, padding=self.padding)
        return F.pixel_shuffle(blocks, self.side)


class _Relu(_Operation):
    """ReLU, in place if its input is a new tensor that nothing else uses."""

    overwrites = True
    passes_on = False

    def __init__(self, tape: Tape, node: fx.Node) -> None:
        super().__init__(tape, node)
        (self.input,) = node.all_input_nodes
        self.in_place = _is_disposable(tape, self.input)

    def kept(self) -> list[fx.Node]:
        return [self.node]

    def run(self, values: Values) -> Tensor:
        value: Tensor = values[self.input]
        return value.relu_() if self.in_place else value.relu()

    def pull_back(self, slope: Tensor, recording: Recording, rows: Tensor | None) -> Slopes:
        output = recording.of_rows(self.node, rows)
        if slope.is_contiguous(memory_format=torch.channels_last):
            torch.ops.aten.threshold_backward.grad_input(slope, output, 0, grad_input=slope)
            yield self.input, slope
        else:  # expanded by global pooling
            yield self.input, torch.ops.aten.threshold_backward(slope, output, 0)


class _Sum(_Operation):
    """Sum of two tensors of equal shape, in place if one of them is not needed otherwise."""

    is_cut = is_fresh = True

    def __init__(self, tape: Tape, node: fx.Node) -> None:
        super().__init__(tape, node)
        one, other = (x for x in node.args if isinstance(x, fx.Node))
        if not _is_disposable(tape, one):
            one, other = other, one
        self.one, self.other = one, other
        self.in_place = _is_disposable(tape, one)

    def kept(self) -> list[fx.Node]:
        return []

    def run(self, values: Values) -> Tensor:
        one, other = values[self.one], values[self.other]
        if one.shape != other.shape:
            raise ValueError("a sum of tensors of different shapes has no rule")
        total: Tensor = one.add_(other) if self.in_place else one + other
        return total

    def pull_back(self, slope: Tensor, recording: Recording, rows: Tensor | None) -> Slopes:
        yield self.one, slope
        yield self.other, slope


class _Scaling(_Operation):
    """Sum, difference, product or quotient of a tensor and a constant."""

    def __init__(self, tape: Tape, node: fx.Node) -> None:
        super().__init__(tape, node)
        (self.input,) = (x for x in self.inputs if x not in tape.constants)
        (self.constant,) = (x for x in node.args if x is not self.input)

    def kept(self) -> list[fx.Node]:
        return []

    def run(self, values: Values) -> Tensor:
        output: Tensor = super().run(values)
        if output.shape != values[self.input].shape:
            raise ValueError("a constant that is larger than the tensor has no rule")
        return output

    def pull_back(self, slope: Tensor, recording: Recording, rows: Tensor | None) -> Slopes:
        constant: Any = recording.tape.constants.get(self.constant, self.constant)
        if self.node.target in _PRODUCTS:
            slope = slope * constant
        elif self.node.target in _QUOTIENTS:
            slope = slope / constant
        yield self.input, slope


def _is_disposable(tape: Tape, node: fx.Node) -> bool:
    """Whether the output of ``node`` is a new tensor with a single use."""
    operation = tape.operations.get(node)
    return operation is not None and operation.is_fresh and len(node.users) == 1


_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_DIFFERENCES = (operator.sub, torch.sub, "sub")
_PRODUCTS = (operator.mul, torch.mul, "mul")
_QUOTIENTS = (operator.truediv, torch.div, "div")


def _operation(tape: Tape, node: fx.Node) -> _Operation:
    """Choose the rule of a node."""
    is_module = node.op == "call_module"
    layer = tape.graph.get_submodule(str(node.target)) if is_module else None
    rule = _rule_of_layer(layer) if layer is not None else _rule_of_function(node, tape)
    return rule(tape, node)


def _rule_of_layer(layer: nn.Module) -> type[_Operation]:
    kind = type(layer)
    if kind is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return _Convolution
    if kind is nn.BatchNorm2d and layer.running_var is not None:
        return _BatchNorm
    if kind is nn.AdaptiveAvgPool2d and layer.output_size in (1, (1, 1)):
        return _GlobalAverage
    simple: dict[type[nn.Module], type[_Operation]] = {nn.Linear: _Linear, nn.ReLU: _Relu}
    return simple.get(kind, _Operation)


def _rule_of_function(node: fx.Node, tape: Tape) -> type[_Operation]:
    if node.target in _RELUS and len(node.all_input_nodes) == 1:
        return _Relu
    if len(node.args) != 2 or node.kwargs:
        return _Operation
    varies = [isinstance(x, fx.Node) and x not in tape.constants for x in node.args]
    if node.target in _SUMS and all(varies):
        return _Sum
    commute = node.target in (*_SUMS, *_PRODUCTS)
    with_constant = varies == [True, False] or (commute and varies == [False, True])
    if commute or node.target in (*_DIFFERENCES, *_QUOTIENTS):
        return _Scaling if with_constant else _Operation
    return _Operation
