"""The Hessian of single layers, by Hessian-vector products: for the ranks of HALRP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cl_bench.base.bounds import Count
from cl_bench.core.learner import Learner
from cl_bench.core.types import Task, to_device_of
from cl_bench.curvature.base import Estimator, fork, subset
from cl_bench.curvature.products import Product, hessian_product


@dataclass(frozen=True)
class LayerProducts:
    """A matrix that is known by its products alone, with random signs (R, P) to probe it by.

    With v random signs in one layer and 0 elsewhere, E[v'Hv] is the trace of the layer's block of
    H, and E[|Hv|^2] its squared Frobenius norm (Hutchinson 1989).
    """

    product: Product
    signs: Tensor

    def block_trace(self, span: slice) -> Tensor:
        return self._mean(span, lambda v, hv: (hv * v).sum())

    def block_norm(self, span: slice) -> Tensor:
        return self._mean(span, lambda v, hv: hv.square().sum()).sqrt()

    def _mean(self, span: slice, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The mean over probes of a number made from v and H v, both within the layer."""
        found = []
        for signs in self.signs:
            v = torch.zeros_like(signs)
            v[span] = signs[span]
            found.append(of(v[span], self.product(v)[span]))
        return torch.stack(found).mean()


class LayerHessian(Estimator):
    """The Hessian of the mean loss, for the sizes of its layers (Theorem 1 of Li et al. 2024).

    probes   passes with random signs for each layer
    samples  of the task, drawn at random; null: all

    It serves the importance of layers alone; no penalty can be made of it.
    """

    penalty: ClassVar[bool] = False

    def __init__(self, probes: Count, samples: Count | None) -> None:
        self.probes, self.samples = probes, samples

    def check(self, learner: Learner, task: Task) -> None:
        """Every network is served."""

    def __call__(self, learner: Learner, task: Task) -> LayerProducts:  # type: ignore[override]
        """At the learner's parameters, for as long as these stay as they are."""
        chosen, rng = subset(task, self.samples, learner.rng), fork(learner.rng)
        shape = (self.probes, learner.flat.grad.numel())
        drawn = torch.randint(2, shape, generator=rng, dtype=torch.int8)  # a byte, until it is used
        signs = to_device_of(drawn, learner.flat.grad).to(learner.flat.grad.dtype) * 2 - 1
        return LayerProducts(hessian_product(learner, chosen), signs)
