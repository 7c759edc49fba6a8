"""Kronecker-factored curvature of a layer, and its eigenvalue-corrected form.

With D = [W | b] (out, in + 1), a block is scale G (x) A in PyTorch's row-major order of D: its
product with D is scale G D A, and nothing of the size of the block is ever built. Of a convolution
in groups, D, G, A and the scale have a first dimension more: a block for each group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from cl_bench.core.state import stored_as
from cl_bench.core.types import in_float64
from cl_bench.curvature.base import eigh
from cl_bench.curvature.blocks import Place


@stored_as("kronecker_factors")
@dataclass(frozen=True)
class KroneckerFactors:
    """The block scale G (x) A, with G (out, out), A (in, in) and a scalar scale.

    With groups: G (groups, out / groups, out / groups), A (groups, in, in), scale (groups,).
    """

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
        return (_of_matrices(self.scale) * self.g) @ d @ self.a

    def solve(self, d: Tensor, damping: float) -> Tensor:
        """The exact solution, in the eigenbasis: damping is not split over the factors."""
        return Corrected(self, self.eigenvalues()).solve(d, damping)

    def shrinkage(self, damping: float) -> Corrected:
        return Corrected(self, self.eigenvalues()).shrinkage(damping)

    def eigenvalues(self) -> Tensor:
        """(out, in), with groups (groups, out / groups, in)."""
        values_a, _, values_g, _ = self.eigen
        return _of_matrices(self.scale) * values_g.unsqueeze(-1) * values_a.unsqueeze(-2)

    def merge(self, other: Self, mine: float, theirs: float, plain: bool = False) -> Self:
        """Average the factors, and add the scales.

        The result is the K-FAC (or TK-FAC) of the pooled data at one theta, times the sum of the
        weights. It is not the sum of the two Kronecker products, which is none. With `plain` the
        factors are averaged by `mine` and `theirs` alone, whatever the scales are.
        """
        one, two = mine * self.scale, theirs * other.scale
        scale = one + two
        share = _of_matrices(one / scale.clamp(min=torch.finfo(scale.dtype).tiny))
        share = torch.full_like(share, mine / (mine + theirs)) if plain else share
        a, g = torch.lerp(other.a, self.a, share), torch.lerp(other.g, self.g, share)
        return replace(self, a=a, g=g, scale=scale)

    def trace(self) -> Tensor:
        return (self.scale * _trace(self.a) * _trace(self.g)).sum()

    def weight_trace(self) -> Tensor:
        """The trace of the weight's part of the block, without the bias."""
        return (self.scale * (_trace(self._weight_a) * _trace(self.g))).sum()

    def weight_norm(self) -> Tensor:
        """The Frobenius norm of the weight's part of the block, without the bias."""
        norm_a, norm_g = (torch.linalg.matrix_norm(x) for x in (self._weight_a, self.g))
        return (self.scale * (norm_a * norm_g)).norm()

    @property
    def _weight_a(self) -> Tensor:
        return self.a[..., : self.place.inputs, : self.place.inputs]

    def max_eigenvalue(self) -> Tensor:
        """The largest eigenvalue, a scalar, from those of both factors, without eigenvectors."""
        top_a, top_g = (_eigenvalues(x)[..., -1] for x in (self.a, self.g))
        return (self.scale * top_a * top_g).amax()


@stored_as("eigenvalue_corrected_factors")
@dataclass(frozen=True)
class Corrected:
    """EKFAC: (U_G (x) U_A) diag(values) (U_G (x) U_A)', with values (out, in) in the eigenbasis.

    With groups: values (groups, out / groups, in).
    """

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
        return u_g @ (values * (u_g.mT @ d @ u_a)) @ u_a.mT

    def merge(self, other: Self, mine: float, theirs: float, plain: bool = False) -> Self:
        """The diagonal of the weighted sum, in the eigenbasis of the merged factors."""
        assert not plain, "TK-FAC alone"
        basis = self.basis.merge(other.basis, mine, theirs)
        values = mine * self._seen_from(basis) + theirs * other._seen_from(basis)
        return type(self)(basis, values)

    def _seen_from(self, basis: KroneckerFactors) -> Tensor:
        """(out, in): the diagonal of this matrix in another eigenbasis."""
        (_, u_a, _, u_g), (_, new_a, _, new_g) = self.basis.eigen, basis.eigen
        return (new_g.mT @ u_g).square() @ self.values @ (u_a.mT @ new_a).square()

    def trace(self) -> Tensor:
        return self.values.sum()

    def weight_trace(self) -> Tensor:
        """The trace of the weight's part of the block, without the bias."""
        return (self.values @ self._weight_overlap.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)).sum()

    def weight_norm(self) -> Tensor:
        """The Frobenius norm of the weight's part of the block, without the bias."""
        return ((self.values @ self._weight_overlap.square()) * self.values).sum().sqrt()

    @property
    def _weight_overlap(self) -> Tensor:
        """U_A' M U_A with M the projection on the weight's columns: I where there is no bias."""
        rows = self.basis.eigen[1][..., : self.place.inputs, :]
        return rows.mT @ rows

    def max_eigenvalue(self) -> Tensor:
        return self.values.amax()


def _eigenvalues(matrix: Tensor) -> Tensor:
    """Ascending, not below 0, computed in float64 as those of `eigh`."""
    return torch.linalg.eigvalsh(in_float64(matrix)).to(matrix).clamp(min=0)


def _of_matrices(scale: Tensor) -> Tensor:
    """(...) -> (..., 1, 1): a number for each matrix."""
    return scale[..., None, None]


def _trace(matrices: Tensor) -> Tensor:
    """(..., n, n) -> (...)."""
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
