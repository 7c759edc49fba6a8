"""Estimators of Kronecker factors: K-FAC, TK-FAC and EKFAC.

At place l of L in a layer, a_l (d) is the input of a unit, with a 1 appended for the bias, and
s_l (out) the gradient at the output; E is the mean over samples and the sum over roots of the
output Hessian (`labels`).

K-FAC (Martens & Grosse 2015, arXiv:1503.05671; convolutions: Grosse & Martens 2016,
arXiv:1602.01407): A = E[sum_l a_l a_l'], G = E[sum_l s_l s_l' / L].
TK-FAC (Gao et al. 2021, arXiv:2011.10741, eq. 4.9 and theorem 4.3): both factors weighted by the
other's trace and normalised to trace 1, the scale delta their joint trace.
EKFAC (George et al. 2018, arXiv:1806.03884): K-FAC's eigenbasis with the Fisher's own diagonal.

Places are those of a convolution, or the tokens of a sequence to each of which a linear layer is
applied. The formulas above are those of K-FAC-expand; K-FAC-reduce takes the mean of a_l and the
sum of s_l over the places first (Eschenhagen et al. 2023, arXiv:2311.00636).

A convolution in groups is a layer for each group. Where a group has one output, as in a depthwise
convolution, all three use the exact block of that output, which is no larger than A.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor, nn

from cl_bench.base.bounds import Count
from cl_bench.base.exceptions import UserError
from cl_bench.core.learner import Learner
from cl_bench.core.types import Task
from cl_bench.curvature.backward import streamed, visits
from cl_bench.curvature.base import Estimator, fork, subset
from cl_bench.curvature.blocks import Blocks
from cl_bench.curvature.capture import FLOATS, Site, layers, unserved
from cl_bench.curvature.kronecker import Corrected, KroneckerFactors
from cl_bench.curvature.layer_check import check_layers
from cl_bench.curvature.roots import Labels, output_hessian_factor
from cl_bench.curvature.sums import ExactlyTraced, ReducedSum, Squares, Sum, Traced, UnitSum


class Factored(Estimator):
    """The options that K-FAC, TK-FAC and EKFAC share.

    labels      exact, sampled or empirical (see `diagonal`). With sampled, the head still uses the
                exact output Hessian, which needs no backward pass
    samples     of the task, drawn at random; None: all
    batch_norm  of the weights of batch norm: diagonal, their diagonal Fisher; frozen, none, as they
                do not move (schedule.batch_norm=frozen)
    """

    linear: ClassVar[bool] = False
    kind: type[Sum] = Sum

    def __init__(
        self,
        labels: Literal["exact", "sampled"],
        samples: Count | None,
        batch_norm: Literal["diagonal", "frozen"],
    ) -> None:
        self.labels: Labels = labels
        self.samples, self.batch_norm = samples, batch_norm

    def check(self, learner: Learner, task: Task) -> None:
        name = unserved(learner.net)
        if name is not None:
            raise UserError(
                f"curvature: no Kronecker factors for {name}; use curvature=diag_fisher"
            )
        check_layers(learner, task)

    def __call__(self, learner: Learner, task: Task) -> Blocks:
        chosen = subset(task, self.samples, learner.rng)
        found, rest = self.sums(learner, chosen, fork(learner.rng))
        return Blocks([part.factors(len(chosen)) for part in found.values()], rest)

    def sums(
        self, learner: Learner, task: Task, rng: Generator
    ) -> tuple[dict[str, Sum | UnitSum], Tensor]:
        """For each layer its sums over the task, and the diagonal (P,) of batch norm's weights."""
        self.check(learner, task)
        found = {
            name: (UnitSum if has_unit_groups(layer) else self.kind)(name, layer, learner)
            for name, layer in factored(learner.net)
        }
        squares = Squares(learner, self.batch_norm == "diagonal")
        for sites, gradients in streamed(
            learner,
            task,
            output_hessian_factor(self.labels, rng),
            output_hessian_factor("exact", rng),
        ):
            for group in gradients:
                for site, s in zip(sites, group, strict=True):
                    found.get(site.name, squares).outputs(site, s)
            for site in sites:
                found.get(site.name, squares).inputs(site)
        for part in (*found.values(), squares):
            learner.machine.processes.sum_(
                *(value for value in vars(part).values() if isinstance(value, Tensor))
            )
        return found, squares.total / len(task)


def factored(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers that have a block."""
    return [(name, m) for name, m in layers(net) if isinstance(m, nn.Linear | nn.Conv2d)]


def has_unit_groups(layer: nn.Module) -> bool:
    """Whether a layer is a convolution in several groups of one output each."""
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.out_channels > 1


class Shared(Factored):
    """K-FAC and EKFAC, whose factors treat places as `sharing` says: expand, or reduce.

    The diagonal of EKFAC is that of the gradients of samples with both.
    """

    def __init__(
        self,
        labels: Literal["exact", "sampled"],
        samples: Count | None,
        batch_norm: Literal["diagonal", "frozen"],
        sharing: Literal["expand", "reduce"] = "expand",
    ) -> None:
        super().__init__(labels, samples, batch_norm)
        self.kind = ReducedSum if sharing == "reduce" else Sum

    @classmethod
    def unused_options(cls, options: dict[str, Any]) -> set[str]:
        return {"sharing"} if options.get("sharing") == "expand" else set()


class KFAC(Shared):
    """K-FAC: the block of each layer is G (x) A."""


class TKFAC(Factored):
    """TK-FAC: the block of each layer is delta Psi (x) Phi.

    delta=exact      the trace of the layer's Fisher
    delta=published  as the paper, whose derivation takes gradients at different places of a
                     convolution for uncorrelated: its trace is another one
    """

    scaled: ClassVar[bool] = True

    def __init__(
        self,
        labels: Literal["exact", "sampled"],
        samples: Count | None,
        batch_norm: Literal["diagonal", "frozen"],
        delta: Literal["published", "exact"],
    ) -> None:
        super().__init__(labels, samples, batch_norm)
        self.kind = ExactlyTraced if delta == "exact" else Traced


class EKFAC(Shared):
    """EKFAC: K-FAC's eigenbasis, and the diagonal in it by a second pass with the same labels."""

    def __call__(self, learner: Learner, task: Task) -> Blocks:
        chosen = subset(task, self.samples, learner.rng)
        rng = fork(learner.rng)
        start = rng.get_state()
        found, rest = self.sums(learner, chosen, rng)
        bases = {name: part.factors(len(chosen)) for name, part in found.items()}
        totals = {
            name: torch.zeros_like(bases[name].eigenvalues())
            for name, part in found.items()
            if isinstance(part, Sum)
        }
        rng.set_state(start)
        for site, s in visits(
            learner,
            chosen,
            output_hessian_factor(self.labels, rng),
            output_hessian_factor("exact", rng),
        ):
            part = found.get(site.name)
            if isinstance(part, Sum):
                _add_rotated(totals[site.name], part, bases[site.name], site, s)
        learner.machine.processes.sum_(*totals.values())
        blocks = [
            Corrected(base, totals[name] / len(chosen) if name in totals else base.eigenvalues())
            for name, base in bases.items()
        ]
        return Blocks(blocks, rest)


def _add_rotated(total: Tensor, part: Sum, basis: KroneckerFactors, site: Site, s: Tensor) -> None:
    """total ([g,] out, d) += sum over roots and samples of (U_G' grad U_A)^2."""
    _, u_a, _, u_g = (x.view(-1, *x.shape[-2:]) for x in basis.eigen)
    total = total.view(-1, *total.shape[-2:])  # (g, out, d)
    s = part.by_group(s)
    s = (u_g.mT @ s.flatten(2)).view(s.shape).permute(0, 2, 3, 1, 4)  # (g, R, B, out, L)
    for a, where in part.seen(site):
        turned, slopes = (u_a.mT @ a.flatten(2)).view(a.shape), s[:, :, where]
        if s.shape[-1] == 1:
            squares = slopes.squeeze(-1).square().sum(1)  # (g, b, out)
            total.baddbmm_(squares.mT, turned.squeeze(-1).square().mT)
            continue
        turned = turned.permute(0, 2, 3, 1).unsqueeze(1)  # (g, 1, b, L, d)
        size = max(1, FLOATS // (slopes.shape[1] * total.numel()))
        for inputs, outputs in zip(turned.split(size, 2), slopes.split(size, 2), strict=True):
            total.add_((outputs @ inputs).square().sum((1, 2)))
