"""Gradients of several losses at one theta, as the rows of a matrix: GEM's constraints.

A method needs their inner products and one weighted sum of them, which for a perceptron is cheaper
without writing the rows out.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from cl_bench.core.direct import DirectGradient
from cl_bench.core.learner import Learner
from cl_bench.core.mlp_gradient import LayerFactors, MLPGradient
from cl_bench.core.types import Batch, in_float64, to_device_of


class GradientMatrix(Protocol):
    """n gradients g_1, ..., g_n of length P."""

    def products(self) -> Tensor:
        """(n, n) in float64: the inner products g_i'g_j."""
        ...

    def write(self, weights: Tensor) -> None:
        """Write sum_i weights_i g_i to `flat.grad`."""
        ...


class DenseGradients:
    """The gradients stored as a matrix (n, P)."""

    def __init__(self, rows: Tensor, out: Tensor) -> None:
        self.rows, self.out = rows, out

    def products(self) -> Tensor:
        rows = in_float64(self.rows)
        return rows @ rows.T

    def write(self, weights: Tensor) -> None:
        torch.mv(self.rows.T, weights.to(self.rows), out=self.out)


class FactoredGradients:
    """The gradients of a perceptron as sums of outer products s a', which are not written out.

    <s a', u b'> = (s'u)(a'b), so that N samples need N^2 numbers for each layer instead of n P.
    """

    def __init__(self, mlp: MLPGradient, factors: list[LayerFactors], sizes: list[int]) -> None:
        self.mlp, self.factors = mlp, factors
        owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        self.membership = in_float64(
            to_device_of(torch.nn.functional.one_hot(owner, len(sizes)), factors[0][0])
        )

    def products(self) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for s, a in ((in_float64(s), in_float64(a)) for s, a in self.factors):
            total = (s @ s.T).mul_((a @ a.T).add_(1)) + total
        return self.membership.T @ total @ self.membership

    def write(self, weights: Tensor) -> None:
        self.mlp.write(
            self.factors, (self.membership @ weights.to(self.membership)).to(self.factors[0][0])
        )


def gradients(learner: Learner, parts: list[Batch]) -> tuple[GradientMatrix, Tensor]:
    """The gradients of the mean loss on each batch of `parts`, and the last one's loss.

    Each batch is augmented first.
    """
    if learner.direct is not None and isinstance(learner.direct.passes, MLPGradient):
        return _by_mlp(learner, learner.direct, [learner.augmented(part) for part in parts])
    grad = learner.flat.grad
    rows, loss = grad.new_empty(len(parts), len(grad)), grad.new_zeros(())
    for row, part in zip(rows, parts, strict=True):
        loss = learner.gradient(part)
        row.copy_(grad)
    return DenseGradients(rows, grad), loss


def _by_mlp(
    learner: Learner, direct: DirectGradient, parts: list[Batch]
) -> tuple[GradientMatrix, Tensor]:
    """`gradients` by one pass over all samples; factored where products are cheaper so."""
    whole = parts[0].cat(*parts[1:])
    sizes, grad = [len(part.y) for part in parts], learner.flat.grad
    learner.sample_gradients += len(whole.y)
    counts = torch.tensor(sizes, dtype=grad.dtype).repeat_interleave(torch.tensor(sizes))
    mlp: Any = direct.passes
    losses, factors = mlp.factors(
        *direct.inputs(whole, learner.criterion), to_device_of(counts, grad)
    )
    loss, total = losses[-sizes[-1] :].mean(), sum(sizes)
    ends = sum(s.shape[1] + a.shape[1] for s, a in factors)
    if total**2 * ends < (total + len(parts) ** 2) * len(grad):
        return FactoredGradients(mlp, factors, sizes), loss
    rows = grad.new_empty(len(parts), len(grad))
    cuts = zip(*(zip(s.split(sizes), a.split(sizes), strict=True) for s, a in factors), strict=True)
    for row, own in zip(rows, cuts, strict=True):
        mlp.write(list(own), None)
        row.copy_(grad)
    return DenseGradients(rows, grad), loss
