"""Block-diagonal curvature, a block for each layer; Kronecker-factored blocks.

With D = [W | b] (out, in + 1), a Kronecker block is scale G (x) A in PyTorch's row-major order of
D: its product with D is scale G D A, and nothing of the size of the block is ever built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, Self

import torch
from torch import Tensor

from cl_bench.core.flat import FlatParams
from cl_bench.core.state import stored_as
from cl_bench.curvature.base import eigh


@stored_as("layer_place")
@dataclass(frozen=True)
class Place:
    """Where a layer's [W | b] lies in the flat vector: D (..., out, in or in + 1)."""

    weight: tuple[int, int]
    bias: tuple[int, int] | None
    out: int

    @property
    def size(self) -> int:
        """Columns of D."""
        return (self.weight[1] - self.weight[0]) // self.out + (self.bias is not None)

    @classmethod
    def of(cls, layer: str, flat: FlatParams) -> Place:
        """The place of the layer of this name."""
        names = [f"{layer}.{part}" if layer else part for part in ("weight", "bias")]
        weight, bias = (flat.slices.get(name) for name in names)
        assert weight is not None
        spans = (weight.start, weight.stop), None if bias is None else (bias.start, bias.stop)
        return cls(*spans, flat.shapes[names[0]][0])

    def read(self, v: Tensor) -> Tensor:
        """D of a flat vector."""
        parts = v[..., slice(*self.weight)].unflatten(-1, (self.out, -1))
        if self.bias is None:
            return parts
        return torch.cat([parts, v[..., slice(*self.bias), None]], -1)

    def write(self, v: Tensor, d: Tensor) -> None:
        """Put D back into a flat vector."""
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
    def merge(self, other: Self, mine: float, theirs: float) -> Self: ...
    def shrinkage(self, damping: float) -> Block: ...
    def trace(self) -> Tensor: ...
    def max_eigenvalue(self) -> Tensor: ...


@stored_as("kronecker_factors")
@dataclass(frozen=True)
class KroneckerFactors:
    """scale G (x) A with G (out, out), A (in, in), scale ()."""

    place: Place
    a: Tensor
    g: Tensor
    scale: Tensor

    @cached_property
    def eigen(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Eigenvalues and eigenvectors: of A, then of G."""
        (low_a, u_a), (low_g, u_g) = eigh(self.a), eigh(self.g)
        return low_a.clamp(min=0), u_a, low_g.clamp(min=0), u_g

    def matvec(self, d: Tensor) -> Tensor:
        return (self.scale * self.g) @ d @ self.a

    def solve(self, d: Tensor, damping: float) -> Tensor:
        """Exactly, in the eigenbasis: the damping is not split over the factors."""
        return Corrected(self, self._values()).solve(d, damping)

    def shrinkage(self, damping: float) -> Corrected:
        return Corrected(self, self._values()).shrinkage(damping)

    def _values(self) -> Tensor:
        """(out, in): the eigenvalues."""
        values_a, _, values_g, _ = self.eigen
        return self.scale * values_g.unsqueeze(-1) * values_a

    def merge(self, other: Self, mine: float, theirs: float) -> Self:
        """What the two data sets give together: factors averaged, scales added.

        For K-FAC the K-FAC, and for TK-FAC the TK-FAC of the pooled data (at one theta), times
        the sum of the weights; not the sum of the two products.
        """
        one, two = mine * self.scale, theirs * other.scale
        scale = one + two
        share = one / scale.clamp(min=torch.finfo(scale.dtype).tiny)
        a, g = torch.lerp(other.a, self.a, share), torch.lerp(other.g, self.g, share)
        return replace(self, a=a, g=g, scale=scale)

    def trace(self) -> Tensor:
        return self.scale * self.a.trace() * self.g.trace()

    def max_eigenvalue(self) -> Tensor:
        values_a, _, values_g, _ = self.eigen
        return self.scale * values_a[-1] * values_g[-1]


@stored_as("eigenvalue_corrected_factors")
@dataclass(frozen=True)
class Corrected:
    """EKFAC: (U_G (x) U_A) diag(values) (U_G (x) U_A)', with values (out, in) in the eigenbasis."""

    basis: KroneckerFactors
    values: Tensor

    @property
    def place(self) -> Place:
        return self.basis.place

    def matvec(self, d: Tensor) -> Tensor:
        return self._in_basis(d, self.values)

    def solve(self, d: Tensor, damping: float) -> Tensor:
        return self._in_basis(d, 1 / (self.values + damping))

    def shrinkage(self, damping: float) -> Self:
        return type(self)(self.basis, self.values / (self.values + damping))

    def _in_basis(self, d: Tensor, values: Tensor) -> Tensor:
        _, u_a, _, u_g = self.basis.eigen
        return u_g @ (values * (u_g.T @ d @ u_a)) @ u_a.T

    def merge(self, other: Self, mine: float, theirs: float) -> Self:
        """In the basis of the merged factors, the diagonal that the weighted sum has there."""
        basis = self.basis.merge(other.basis, mine, theirs)
        values = mine * self._seen_from(basis) + theirs * other._seen_from(basis)
        return type(self)(basis, values)

    def _seen_from(self, basis: KroneckerFactors) -> Tensor:
        """(out, in): the diagonal of this matrix in another eigenbasis."""
        (_, u_a, _, u_g), (_, new_a, _, new_g) = self.basis.eigen, basis.eigen
        return (new_g.T @ u_g).square() @ self.values @ (u_a.T @ new_a).square()

    def trace(self) -> Tensor:
        return self.values.sum()

    def max_eigenvalue(self) -> Tensor:
        return self.values.amax()


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

    def quadratic(self, v: Tensor) -> Tensor:
        return (self.matvec(v) * v).sum(-1)

    def solve(self, v: Tensor, damping: float) -> Tensor:
        out = v / (self.rest + damping)
        for block in self.blocks:
            block.place.write(out, block.solve(block.place.read(v), damping))
        return out

    def merge(self, other: Self, mine: float, theirs: float) -> Self:
        pairs = zip(self.blocks, other.blocks, strict=True)
        blocks = [one.merge(two, mine, theirs) for one, two in pairs]
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

    def max_eigenvalue(self) -> Tensor:
        tops = [block.max_eigenvalue() for block in self.blocks]
        return torch.stack([*tops, self.rest.amax(-1)]).amax()
