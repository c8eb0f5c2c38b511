"""Operations of a traced network: how each one runs, and how its gradient goes back.

Convolutions, linear layers, BatchNorm, ReLU, additions, scalings and global average pooling have
rules of their own. Every other operation is run again on its rows and left to autograd.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from attacks.utils.blocked_backward import BlockedBackward
from attacks.utils.fourier import FourierConvolution

Values = dict[fx.Node, Any]
Slopes = Iterator[tuple[fx.Node, Tensor]]
"""Gradients (P, …) with respect to inputs of an operation."""


class Network:
    """A traced network with one input and one output.

    ``source``, ``target``: nodes of input and output; ``constants``: parameters and buffers that
    the graph uses itself; ``operations``: all others, in the order of the forward pass.
    """

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
        self.operations: dict[fx.Node, Operation] = {}
        for node in nodes:
            if node.op not in ("placeholder", "output", "get_attr"):
                self.operations[node] = _rule_of(node, self)(self, node)

    @property
    def head(self) -> Tensor | None:
        """Weight (K, d) of the final layer, if that is linear."""
        last = self.operations.get(self.target)
        return last.layer.weight if isinstance(last, _Linear) else None

    def layer(self, node: fx.Node) -> nn.Module:
        """The module that a node calls."""
        return self.graph.get_submodule(str(node.target))

    def is_disposable(self, node: fx.Node) -> bool:
        """Whether the output of ``node`` is a new tensor with a single use."""
        operation = self.operations.get(node)
        return operation is not None and operation.is_fresh and len(node.users) == 1


@dataclass
class Kept:
    """What a forward pass on a batch has left for backward passes.

    ``values``: outputs by node; ``shapes``: of all tensors; ``count``: size of the batch.
    """

    network: Network
    values: Values
    shapes: dict[fx.Node, torch.Size]
    count: int

    def of_rows(self, node: fx.Node, rows: Tensor | None) -> Tensor:
        """Value of ``node`` for the image of each row, (P, …); ``rows`` None: all images."""
        value: Tensor = self.values[node]
        if len(value) != self.count:
            raise ValueError(f"{node}: not one value per image")
        return value if rows is None else take(value, rows)


def take(values: Tensor, rows: Tensor) -> Tensor:
    """``values[rows]`` in the memory format of ``values``."""
    if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
        return values.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return values.index_select(0, rows)


def _attribute(graph: fx.GraphModule, node: fx.Node) -> Any:  # noqa: ANN401 - any constant
    value: Any = graph
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value


class Operation:
    """An operation without a rule of its own: run again on its rows, and left to autograd."""

    is_cut = False
    """Whether rows are dropped before it."""
    is_fresh = False
    """Whether its output is a new tensor, which may be changed in place."""
    passes_on = True
    """Whether ``pull_back`` may return the gradient of the output itself."""

    def __init__(self, network: Network, node: fx.Node) -> None:
        self.network, self.node = network, node
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
            return self.network.layer(node)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def pull_back(self, slope: Tensor, kept: Kept, rows: Tensor | None, owned: bool) -> Slopes:
        """Yield the gradient with respect to each input.

        Args:
            slope: gradient with respect to the output, (P, …).
            kept: the forward pass.
            rows: image of each row; None: all images in order.
            owned: whether ``slope`` may be overwritten.
        """
        network = kept.network
        values: Values = {**network.constants}
        leaves: dict[fx.Node, Tensor] = {}

        def provide(node: fx.Node) -> None:
            if node in values:
                return
            if node in kept.shapes:
                values[node] = kept.of_rows(node, rows).detach()
                if values[node].is_floating_point():
                    leaves[node] = values[node].requires_grad_()
            else:  # a size, or the parts of a split
                for needed in node.all_input_nodes:
                    provide(needed)
                values[node] = network.operations[node].run(values)

        with torch.enable_grad():
            for node in self.inputs:
                provide(node)
            output = self.run(values)
        slopes = torch.autograd.grad(output, list(leaves.values()), slope, allow_unused=True)
        for node, part in zip(leaves, slopes, strict=True):
            if part is not None:
                yield node, part


class _Layer(Operation):
    """A layer with one input, whose gradient does not depend on the input's values."""

    def __init__(self, network: Network, node: fx.Node) -> None:
        super().__init__(network, node)
        self.layer: Any = network.layer(node)
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

    def pull_back(self, slope: Tensor, kept: Kept, rows: Tensor | None, owned: bool) -> Slopes:
        yield self.input, slope @ self.layer.weight


class _BatchNorm(_Layer):
    is_fresh = True
    passes_on = False

    def pull_back(self, slope: Tensor, kept: Kept, rows: Tensor | None, owned: bool) -> Slopes:
        scale = (self.layer.running_var + self.layer.eps).rsqrt()
        if self.layer.weight is not None:
            scale = scale * self.layer.weight
        yield self.input, slope * scale.view(-1, 1, 1)


class _GlobalAverage(_Layer):
    def pull_back(self, slope: Tensor, kept: Kept, rows: Tensor | None, owned: bool) -> Slopes:
        height, width = kept.shapes[self.input][2:]
        yield self.input, (slope / (height * width)).expand(-1, -1, height, width)


class _Convolution(_Layer):
    is_cut = is_fresh = True
    passes_on = False

    def __init__(self, network: Network, node: fx.Node) -> None:
        super().__init__(network, node)
        self.blocks = BlockedBackward(self.layer)
        self.by_fft = FourierConvolution(self.layer)

    def run(self, values: Values) -> Tensor:
        images: Tensor = values[self.input]
        if images.ndim == 4 and self.by_fft.suits(*images.shape[2:]):
            return self.by_fft.output(images)
        return super().run(values)

    def cost(self, output: Tensor) -> float:
        return float(output[0].numel() * self.layer.weight[0].numel())

    def pull_back(self, slope: Tensor, kept: Kept, rows: Tensor | None, owned: bool) -> Slopes:
        height, width = kept.shapes[self.input][2:]
        if self.by_fft.suits(height, width):
            yield self.input, self.by_fft.gradient(slope, height, width)
            return
        slope = slope.contiguous(memory_format=torch.channels_last)
        if self.blocks.suit(height, width, slope.device):
            yield self.input, self.blocks.gradient(slope)
            return
        layer = self.layer
        unreached = [  # rows and columns at the end that the stride leaves out
            (side + 2 * padding - dilation * (kernel - 1) - 1) % stride
            for side, padding, dilation, kernel, stride in zip(
                (height, width),
                layer.padding,
                layer.dilation,
                layer.kernel_size,
                layer.stride,
                strict=True,
            )
        ]
        part = F.conv_transpose2d(
            slope,
            layer.weight,
            None,
            layer.stride,
            layer.padding,
            unreached,
            layer.groups,
            layer.dilation,
        )
        yield self.input, part


class _Relu(Operation):
    """ReLU, in place if its input is a new tensor that nothing else uses."""

    passes_on = False

    def __init__(self, network: Network, node: fx.Node) -> None:
        super().__init__(network, node)
        (self.input,) = node.all_input_nodes
        self.in_place = network.is_disposable(self.input)

    def kept(self) -> list[fx.Node]:
        return [self.node]

    def run(self, values: Values) -> Tensor:
        value: Tensor = values[self.input]
        return value.relu_() if self.in_place else value.relu()

    def pull_back(self, slope: Tensor, kept: Kept, rows: Tensor | None, owned: bool) -> Slopes:
        output = kept.of_rows(self.node, rows)
        if owned:
            torch.ops.aten.threshold_backward.grad_input(slope, output, 0, grad_input=slope)
        else:
            slope = torch.ops.aten.threshold_backward(slope, output, 0)
        yield self.input, slope


class _Sum(Operation):
    """Sum of two tensors of equal shape, in place if one of them is not needed otherwise."""

    is_cut = is_fresh = True

    def __init__(self, network: Network, node: fx.Node) -> None:
        super().__init__(network, node)
        one, other = (x for x in node.args if isinstance(x, fx.Node))
        if not network.is_disposable(one):
            one, other = other, one
        self.one, self.other = one, other
        self.in_place = network.is_disposable(one)

    def kept(self) -> list[fx.Node]:
        return []

    def run(self, values: Values) -> Tensor:
        one, other = values[self.one], values[self.other]
        if one.shape != other.shape:
            raise ValueError("a sum of tensors of different shapes has no rule")
        total: Tensor = one.add_(other) if self.in_place else one + other
        return total

    def pull_back(self, slope: Tensor, kept: Kept, rows: Tensor | None, owned: bool) -> Slopes:
        yield self.one, slope
        yield self.other, slope


class _Scaling(Operation):
    """Sum, difference, product or quotient of a tensor and a constant."""

    def __init__(self, network: Network, node: fx.Node) -> None:
        super().__init__(network, node)
        (self.input,) = (x for x in self.inputs if x not in network.constants)
        (self.constant,) = (x for x in node.args if x is not self.input)

    def kept(self) -> list[fx.Node]:
        return []

    def run(self, values: Values) -> Tensor:
        output: Tensor = super().run(values)
        if output.shape != values[self.input].shape:
            raise ValueError("a constant that is larger than the tensor has no rule")
        return output

    def pull_back(self, slope: Tensor, kept: Kept, rows: Tensor | None, owned: bool) -> Slopes:
        constant: Any = kept.network.constants.get(self.constant, self.constant)
        if self.node.target in _PRODUCTS:
            slope = slope * constant
        elif self.node.target in _QUOTIENTS:
            slope = slope / constant
        yield self.input, slope


_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_DIFFERENCES = (operator.sub, torch.sub, "sub")
_PRODUCTS = (operator.mul, torch.mul, "mul")
_QUOTIENTS = (operator.truediv, torch.div, "div")


def _rule_of(node: fx.Node, network: Network) -> type[Operation]:
    if node.op == "call_module":
        return _rule_of_layer(network.layer(node))
    return _rule_of_function(node, network)


def _rule_of_layer(layer: nn.Module) -> type[Operation]:
    kind = type(layer)
    if kind is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return _Convolution
    if kind is nn.BatchNorm2d and layer.running_var is not None:
        return _BatchNorm
    if kind is nn.AdaptiveAvgPool2d and layer.output_size in (1, (1, 1)):
        return _GlobalAverage
    simple: dict[type[nn.Module], type[Operation]] = {nn.Linear: _Linear, nn.ReLU: _Relu}
    return simple.get(kind, Operation)


def _rule_of_function(node: fx.Node, network: Network) -> type[Operation]:
    if node.target in _RELUS and len(node.all_input_nodes) == 1:
        return _Relu
    if len(node.args) != 2 or node.kwargs:
        return Operation
    varies = [isinstance(x, fx.Node) and x not in network.constants for x in node.args]
    if node.target in _SUMS and all(varies):
        return _Sum
    commute = node.target in (*_SUMS, *_PRODUCTS)
    with_constant = varies == [True, False] or (commute and varies == [False, True])
    if commute or node.target in (*_DIFFERENCES, *_QUOTIENTS):
        return _Scaling if with_constant else Operation
    return Operation
