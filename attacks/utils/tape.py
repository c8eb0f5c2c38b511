"""Backward passes for any (image, class) pairs from one forward pass of a traced network.

Autograd computes the gradients of all images of a forward pass, also of those that need no further
class. A tape keeps what the backward pass needs, and runs it operation by operation on a list of
rows, each of them one pair: an image may have several rows, and rows may be dropped on the way from
the logits to the pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from attacks.utils.operations import Kept, Network, Values, take

_SIZES_OF_ALL_LAYERS = 40
"""Different batch sizes between powers of 2, times layers: so many programs fit in the cache."""


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
        """Prepare the forward pass.

        Raises:
            Exception: the graph does not map one input to one tensor.
        """
        self.network = network = Network(graph)
        operations = network.operations.values()
        self.head = network.head
        layers = max(1, sum(operation.is_cut for operation in operations))
        self.sizes = max(2, 1 << (max(1, _SIZES_OF_ALL_LAYERS // layers).bit_length() - 1))
        """Number of batch sizes between powers of 2."""
        kept = {node for operation in operations for node in operation.kept()}
        self._cuts = _find_cuts(network)
        self._released = _last_uses(network, {network.target})
        self._released_while_recording = _last_uses(network, {network.target} | kept)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W), without gradients."""
        values = self._inputs(images)
        operations = self.network.operations.items()
        for (node, operation), released in zip(operations, self._released, strict=True):
            values[node] = operation.run(values)
            for used in released:
                del values[used]
        logits: Tensor = values[self.network.target]
        return logits[: len(images)]

    @torch.no_grad()
    def record(self, images: Tensor) -> Recording:
        """Run the network forward on images (B, C, H, W), and keep what gradients need."""
        values, work = self._inputs(images), [0.0]
        padded: Tensor = values[self.network.source]
        shapes = {self.network.source: padded.shape}
        operations, released_after = self.network.operations, self._released_while_recording
        for (node, operation), released in zip(operations.items(), released_after, strict=True):
            values[node] = operation.run(values)
            if isinstance(values[node], Tensor):
                shapes[node] = values[node].shape
            work.append(work[-1] + operation.cost(values[node]))
            for used in released:
                del values[used]
        until = dict(zip(operations, work[1:], strict=True))
        cuts = {
            node: Cut(1 - index / len(self._cuts), until[node] / (work[-1] or 1.0))
            for index, node in enumerate(self._cuts)
        }
        return Recording(self, len(images), Kept(self.network, values, shapes, len(padded)), cuts)

    def padded_count(self, count: int, device: torch.device) -> int:
        """Number of rows to compute for ``count`` rows.

        A CPU generates code for the convolutions of each batch size, which takes longer than a
        small batch. Between powers of 2, only ``sizes`` different ones are therefore used.
        """
        if device.type != "cpu" or count < 2:
            return count
        step = max(1, (1 << ((count - 1).bit_length() - 1)) // self.sizes)
        return -(-count // step) * step

    def padded(self, rows: Tensor) -> Tensor:
        """Pad int64 (P,) by copies of the last one."""
        missing = self.padded_count(len(rows), rows.device) - len(rows)
        return torch.cat([rows, rows[-1:].expand(missing)]) if missing else rows

    def _inputs(self, images: Tensor) -> Values:
        """Constants, and a padded copy of the images with channels last."""
        count = self.padded_count(len(images), images.device)
        padded = torch.empty(
            (count, *images.shape[1:]),
            dtype=images.dtype,
            device=images.device,
            memory_format=torch.channels_last,
        )
        padded[: len(images)] = images
        padded[len(images) :] = images[-1:]
        return {**self.network.constants, self.network.source: padded}


@dataclass
class Recording:
    """A forward pass on B images, padded by copies of the last one.

    ``cuts``: by the operation that follows on the way to the pixels.
    """

    tape: Tape
    count: int
    kept: Kept
    cuts: dict[fx.Node, Cut]

    @property
    def logits(self) -> Tensor:
        """Logits (B, K)."""
        logits: Tensor = self.kept.values[self.tape.network.target]
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
        network, padded = self.tape.network, self.tape.padded
        pairs = torch.arange(len(images), device=images.device)
        rows = padded(images)
        pending = {network.target: take(seeds, padded(pairs))}
        shared = {network.target}  # nodes whose gradient may be that of another node too
        for node, operation in reversed(network.operations.items()):
            slope = pending.pop(node, None)
            if slope is None:
                continue
            if drop and node in self.cuts:
                going = drop(pairs, norms_of(slope)[: len(pairs)], self.cuts[node])
                if not going.all():
                    kept = going.nonzero().squeeze(1)
                    pairs = pairs[kept]
                    kept = padded(kept)
                    slope, rows = take(slope, kept), rows[kept]
                    shared.discard(node)
            selected = None if self._are_all(rows) else rows
            for needed, part in operation.pull_back(
                slope, self.kept, selected, owned=node not in shared
            ):
                if needed not in pending:
                    pending[needed] = part
                    shared |= {needed} if operation.passes_on else set()
                    continue
                other = pending[needed]
                pending[needed] = other + part if operation.passes_on else part.add_(other)
                shared.discard(needed)
        slope = pending.get(network.source)
        if slope is None:  # the logits do not depend on the pixels
            slope = seeds.new_zeros(len(pairs), *self.kept.shapes[network.source][1:])
        return slope[: len(pairs)], pairs

    def _are_all(self, rows: Tensor) -> bool:
        """Whether the rows are all images in order, so that nothing needs to be copied."""
        every = torch.arange(self.count, device=rows.device)
        return torch.equal(rows, self.tape.padded(every))


def norms_of(values: Tensor) -> Tensor:
    """L2 norm of each row: (P, …) to (P,)."""
    norms: Tensor = torch.linalg.vector_norm(values, dim=tuple(range(1, values.ndim)))
    return norms


def _find_cuts(network: Network) -> list[fx.Node]:
    """Operations, from the last to the first, before which pairs may be dropped."""
    cuts, pending = [], {network.target}
    for node, operation in reversed(network.operations.items()):
        if pending == {node} and operation.is_cut and node is not network.target:
            cuts.append(node)
        if node in pending:
            pending.remove(node)
            pending |= set(node.all_input_nodes) - set(network.constants)
    return cuts


def _last_uses(network: Network, kept: set[fx.Node]) -> list[list[fx.Node]]:
    """Nodes whose values may be released after each operation."""
    last = {}
    for index, node in enumerate(network.operations):
        last[node] = index
        last |= dict.fromkeys(node.all_input_nodes, index)
    released: list[list[fx.Node]] = [[] for _ in network.operations]
    for node, index in last.items():
        if node not in kept and node not in network.constants:
            released[index].append(node)
    return released
