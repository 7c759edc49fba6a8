"""What a curvature is worth in each layer: trace or Frobenius norm of its weight's own block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from hydra.utils import get_object
from torch import Tensor

from cl_bench.base.bounds import Count
from cl_bench.base.exceptions import UserError
from cl_bench.core.flat import FlatParams
from cl_bench.core.learner import Learner
from cl_bench.core.types import Task, to_device_of
from cl_bench.curvature.base import Curvature, Estimator, fork, subset
from cl_bench.curvature.dense import Dense
from cl_bench.curvature.diagonal import Diagonal
from cl_bench.curvature.kronecker import Block, Blocks, Corrected, KroneckerFactors
from cl_bench.curvature.products import Product, hessian_product

Size = Literal["trace", "norm"]


@dataclass(frozen=True)
class Probed:
    """A matrix by its products alone, and the random signs (R, P) that its blocks are seen by."""

    product: Product
    signs: Tensor


class LayerHessian(Estimator):
    """The Hessian of the mean loss as it is, for its layers' sizes (Theorem 1 of Li et al. 2024).

    `probes` passes with random signs for each layer (Hutchinson 1989), over `samples` of the task
    (null: all). It is no matrix to make a penalty of.
    """

    penalty: ClassVar[bool] = False

    def __init__(self, probes: Count, samples: Count | None) -> None:
        self.probes, self.samples = probes, samples

    def check(self, learner: Learner, task: Task) -> None:
        """Any network will do."""

    def __call__(self, learner: Learner, task: Task) -> Probed:  # type: ignore[override]
        """At the learner's theta, as long as it stays there."""
        chosen, rng = subset(task, self.samples, learner.rng), fork(learner.rng)
        shape = (self.probes, learner.flat.grad.numel())
        drawn = torch.randint(2, shape, generator=rng, dtype=torch.int8)  # a byte, until it is used
        signs = to_device_of(drawn, learner.flat.grad).to(learner.flat.grad.dtype) * 2 - 1
        return Probed(hessian_product(learner, chosen), signs)


def by_layer(
    curvature: Curvature | Probed, flat: FlatParams, names: Sequence[str], size: Size
) -> Tensor:
    """(L,): of the blocks of these weights; exact, but of a Hessian by products.

    There E[v'Hv] is the trace and E[|Hv|^2] the squared norm of a block, v in that layer alone.
    """
    spans = [flat.slices[name] for name in names]
    if isinstance(curvature, Probed):
        return torch.stack([_probed(curvature, span, size) for span in spans])
    if isinstance(curvature, Blocks):
        blocks = {block.place.weight[0]: block for block in curvature.blocks}
        return torch.stack([_factored(blocks[span.start], size) for span in spans])
    if isinstance(curvature, Dense):
        found = [curvature.matrix[span, span] for span in spans]
        return torch.stack([m.trace() if size == "trace" else m.norm() for m in found])
    assert isinstance(curvature, Diagonal)
    values = [curvature.values[span] for span in spans]
    return torch.stack([v.sum() if size == "trace" else v.norm() for v in values])


def _probed(matrix: Probed, span: slice, size: Size) -> Tensor:
    found = []
    for signs in matrix.signs:
        v = torch.zeros_like(signs)
        v[span] = signs[span]
        moved = matrix.product(v)[span]
        found.append((moved * (v[span] if size == "trace" else moved)).sum())
    mean = torch.stack(found).mean()
    return mean if size == "trace" else mean.sqrt()


def _factored(block: Block, size: Size) -> Tensor:
    """Of the weight's part of a block: without the bias, the last of what comes in."""
    into = (block.place.weight[1] - block.place.weight[0]) // block.place.out
    if isinstance(block, KroneckerFactors):
        a, g = block.a[:into, :into], block.g
        return block.scale * (a.trace() * g.trace() if size == "trace" else a.norm() * g.norm())
    assert isinstance(block, Corrected)
    basis = block.basis.eigen[1][:into]
    seen = basis.T @ basis  # U_A restricted to the weight: the identity where there is no bias
    if size == "trace":
        return (block.values @ seen.diagonal()).sum()
    return ((block.values @ seen.square()) * block.values).sum().sqrt()


def check_importance(importance: str, curvature: dict[str, Any]) -> None:
    """UserError where the importance of a layer would be a trace that may be negative."""
    kind = get_object(curvature["_target_"])
    indefinite = not kind.penalty or kind.may_be_negative(curvature)
    if indefinite and importance in ("trace", "mean"):
        raise UserError(
            f"method.importance={importance}: a Hessian's trace may be negative; use norm, or "
            "another curvature"
        )
