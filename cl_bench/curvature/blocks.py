"""Block-diagonal curvature, a block for each layer.

A block acts on D = [W | b] (out, in + 1), a layer's weight and bias side by side; weights of
convolutions have `in` = channels times places of the kernel. A convolution in g groups is g layers
side by side, each with out / g outputs and the inputs of its own: there D is (g, out / g, in + 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from cl_bench.core.flat import FlatParams
from cl_bench.core.state import stored_as


@stored_as("layer_place")
@dataclass(frozen=True)
class Place:
    """Where a layer's [W | b] lies in the flat vector: D (..., out, in or in + 1).

    With more than one group, D is (..., groups, out / groups, in or in + 1).
    """

    weight: tuple[int, int]
    bias: tuple[int, int] | None
    out: int
    groups: int

    @property
    def inputs(self) -> int:
        """Columns of D that belong to the weight: all but the bias's, which is the last."""
        return (self.weight[1] - self.weight[0]) // self.out

    @property
    def size(self) -> int:
        """Columns of D."""
        return self.inputs + (self.bias is not None)

    @classmethod
    def of(cls, name: str, layer: nn.Module, flat: FlatParams) -> Place:
        """The place of the layer of this name."""
        names = [f"{name}.{part}" if name else part for part in ("weight", "bias")]
        weight, bias = (flat.slices.get(name) for name in names)
        assert weight is not None
        spans = (weight.start, weight.stop), None if bias is None else (bias.start, bias.stop)
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        return cls(*spans, flat.shapes[names[0]][0], groups)

    def by_group(self, d: Tensor) -> Tensor:
        """(..., out, in) -> (..., groups, out / groups, in)."""
        return d.unflatten(-2, (self.groups, -1))

    def one_or_all(self, factors: Tensor) -> Tensor:
        """(groups, ...) as blocks have it: without its first dimension where that is 1."""
        return factors.squeeze(0) if self.groups == 1 else factors

    def read(self, v: Tensor) -> Tensor:
        """D of a flat vector."""
        d = v[..., slice(*self.weight)].unflatten(-1, (self.out, -1))
        if self.bias is not None:
            d = torch.cat([d, v[..., slice(*self.bias), None]], -1)
        return d if self.groups == 1 else self.by_group(d)

    def write(self, v: Tensor, d: Tensor) -> None:
        """Put D back into a flat vector."""
        if self.groups > 1:
            d = d.flatten(-3, -2)
        if self.bias is not None:
            v[..., slice(*self.bias)] = d[..., -1]
            d = d[..., :-1]
        v[..., slice(*self.weight)].unflatten(-1, (self.out, -1)).copy_(d)


class Block(Protocol):
    """The curvature of one layer, on D."""

    @property
    def place(self) -> Place: ...
    def matvec(self, d: Tensor) -> Tensor: ...
    def solve(self, d: Tensor, damping: float) -> Tensor: ...
    def merge(self, other: Self, mine: float, theirs: float, plain: bool = False) -> Self: ...
    def shrinkage(self, damping: float) -> Block: ...
    def trace(self) -> Tensor: ...
    def weight_trace(self) -> Tensor: ...
    def weight_norm(self) -> Tensor: ...
    def max_eigenvalue(self) -> Tensor: ...


@stored_as("kronecker")
@dataclass(frozen=True)
class Blocks:
    """Block-diagonal: a block for each Linear and Conv2d, `rest` (P,) on all other diagonals."""

    blocks: Sequence[Block]
    rest: Tensor

    def matvec(self, v: Tensor) -> Tensor:
        out = self.rest * v
        for block in self.blocks:
            block.place.write(out, block.matvec(block.place.read(v)))
        return out

    def solve(self, v: Tensor, damping: float) -> Tensor:
        out = v / (self.rest + damping)
        for block in self.blocks:
            block.place.write(out, block.solve(block.place.read(v), damping))
        return out

    def merge(self, other: Self, mine: float, theirs: float, plain: bool = False) -> Self:
        """The sum, as each class of block has it; `plain` as in `KroneckerFactors`."""
        pairs = zip(self.blocks, other.blocks, strict=True)
        blocks = [one.merge(two, mine, theirs, plain) for one, two in pairs]
        return type(self)(blocks, mine * self.rest + theirs * other.rest)

    def shrinkage(self, damping: float) -> Self:
        blocks = [block.shrinkage(damping) for block in self.blocks]
        return type(self)(blocks, self.rest / (self.rest + damping))

    def pull_towards_(self, theta: Tensor, anchor: Tensor) -> None:
        theta.add_(self.matvec(anchor - theta))

    def add_matvec_(self, out: Tensor, v: Tensor, scale: float) -> None:
        out.add_(self.matvec(v), alpha=scale)

    def trace(self) -> Tensor:
        return torch.stack([block.trace() for block in self.blocks]).sum() + self.rest.sum(-1)

    def block_trace(self, span: slice) -> Tensor:
        block = self._block_of(span)
        return self.rest[span].sum() if block is None else block.weight_trace()

    def block_norm(self, span: slice) -> Tensor:
        block = self._block_of(span)
        return self.rest[span].norm() if block is None else block.weight_norm()

    def _block_of(self, span: slice) -> Block | None:
        """The block whose weight lies at `span`; None where no block has these parameters."""
        for block in self.blocks:
            weight, bias = block.place.weight, block.place.bias
            if weight[0] == span.start:
                return block
            assert bias is None or bias[0] != span.start, "a bias has no block of its own"
        return None

    def max_eigenvalue(self) -> Tensor:
        tops = [block.max_eigenvalue() for block in self.blocks]
        return torch.stack([*tops, self.rest.amax(-1)]).amax()
