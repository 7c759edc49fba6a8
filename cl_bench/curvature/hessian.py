"""The diagonal of the Hessian: by random probes, exactly, or that of the GGN; and its row sums.

The diagonal of a Hessian may have negative entries, with which a penalty would be unbounded below:
`negative` says what replaces them.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

from cl_bench.base.bounds import Count
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Task, to_device_of
from cl_bench.curvature.base import NEGATIVE, Estimator, Negative, fork, subset
from cl_bench.curvature.capture import FLOATS
from cl_bench.curvature.dense import LARGEST, Small
from cl_bench.curvature.diagonal import Diagonal, Fisher
from cl_bench.curvature.products import hessian, hessian_product


class DiagonalHessian(Estimator):
    """The diagonal of the Hessian of the mean loss.

    estimate=hutchinson  mean over probes of v * (H v), v of random signs: unbiased (Bekas 2007)
    estimate=ggn         of the GGN: the exact Fisher
    estimate=exact       all of H, for small networks
    """

    @classmethod
    def may_be_negative(cls, options: dict[str, Any]) -> bool:
        return options["negative"] == "raw" and options["estimate"] != "ggn"

    @classmethod
    def most_parameters(cls, options: dict[str, Any]) -> int | None:
        return LARGEST if options["estimate"] == "exact" else None

    @classmethod
    def unused_options(cls, options: dict[str, Any]) -> set[str]:
        by = {"hutchinson": set(), "ggn": {"probes", "negative"}, "exact": {"probes"}}
        return by[options["estimate"]]

    def __init__(
        self,
        estimate: Literal["hutchinson", "ggn", "exact"],
        negative: Negative,
        probes: Count,
        samples: Count | None,
    ) -> None:
        self.estimate, self.negative = estimate, negative
        self.probes, self.samples = probes, samples

    def check(self, learner: Learner, task: Task) -> None:
        if self.estimate == "exact":
            Small().check(learner, task)
        if self.estimate == "ggn":
            Fisher("exact", None).check(learner, task)

    def __call__(self, learner: Learner, task: Task) -> Diagonal:
        self.check(learner, task)
        chosen = subset(task, self.samples, learner.rng)
        if self.estimate == "ggn":
            return Fisher("exact", None)(learner, chosen)
        exact = self.estimate == "exact"
        values = hessian(learner, chosen).diagonal() if exact else self._probed(learner, chosen)
        return Diagonal(NEGATIVE[self.negative](values).clone())

    def _probed(self, learner: Learner, task: Task) -> Tensor:
        product, rng = hessian_product(learner, task), fork(learner.rng)
        total = torch.zeros_like(learner.flat.grad)
        for _ in range(self.probes):
            drawn = torch.randint(2, total.shape, generator=rng, dtype=torch.int8)  # a byte each
            v = to_device_of(drawn, total).to(total.dtype) * 2 - 1
            total += v * product(v)
        return total / self.probes


class HessianRowSums(Estimator):
    """The mean over samples of |H_b 1|: the gradient of the sum of the entries of a gradient.

    The code published with the note on EWC (Yang 2022, secder_mode with abs_mode) computes this for
    the diagonal of the Hessian. It equals the absolute value of that only if H is diagonal.
    """

    def __init__(self, samples: Count | None) -> None:
        self.samples = samples

    def __call__(self, learner: Learner, task: Task) -> Diagonal:
        chosen = subset(task, self.samples, learner.rng)
        total, theta = torch.zeros_like(learner.flat.grad), learner.flat.theta.detach()
        ones = torch.ones_like(theta)

        def row_sums(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
            def slope(theta: Tensor) -> Tensor:
                return grad(lambda th: learner.losses(th, Batch(x[None], y[None], t[None])).sum())(
                    theta
                )

            return vjp(slope, theta)[1](ones)[0]

        size = min(32, max(1, FLOATS // theta.numel()))
        with learner.evaluating(full_precision=True):
            for batch in chosen.chunks(size):
                learner.sample_gradients += 2 * len(batch.y)
                total += vmap(row_sums)(batch.x, batch.y, batch.t).abs().sum(0)
        return Diagonal(total / len(chosen))
