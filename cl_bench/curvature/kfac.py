"""Estimators of Kronecker factors: K-FAC, TK-FAC and EKFAC.

At place l of L in a layer, a_l (d) is the input of a unit, with a 1 appended for the bias, and
s_l (out) the gradient at the output; E is the mean over samples and the sum over roots of the
output Hessian (`labels`).

K-FAC (Martens & Grosse 2015, arXiv:1503.05671; convolutions: Grosse & Martens 2016,
arXiv:1602.01407): A = E[sum_l a_l a_l'], G = E[sum_l s_l s_l' / L].
TK-FAC (Gao et al. 2021, arXiv:2011.10741, eq. 4.9 and theorem 4.3): both factors weighted by the
other's trace and normalised to trace 1, the scale delta their joint trace.
EKFAC (George et al. 2018, arXiv:1806.03884): K-FAC's eigenbasis with the Fisher's own diagonal.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor, nn

from cl_bench.base.bounds import Count
from cl_bench.base.exceptions import UserError
from cl_bench.core.learner import Learner
from cl_bench.core.types import Task
from cl_bench.curvature.base import Estimator, fork, subset
from cl_bench.curvature.blocks import Blocks
from cl_bench.curvature.capture import (
    FLOATS,
    Labels,
    Site,
    check_hooks,
    layers,
    output_hessian_factor,
    streamed,
    unserved,
    visits,
)
from cl_bench.curvature.kronecker import Corrected, KroneckerFactors
from cl_bench.curvature.sums import ExactlyTraced, Squares, Sum, Traced, places


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
            raise UserError(f"curvature: no Kronecker factors for layer {name}; use diag_fisher")
        check_hooks(learner, task)

    def __call__(self, learner: Learner, task: Task) -> Blocks:
        chosen = subset(task, self.samples, learner.rng)
        found, rest = self.sums(learner, chosen, fork(learner.rng))
        return Blocks([part.factors(len(chosen)) for part in found.values()], rest)

    def sums(self, learner: Learner, task: Task, rng: Generator) -> tuple[dict[str, Sum], Tensor]:
        """For each layer its sums over the task, and the diagonal (P,) of batch norm's weights."""
        self.check(learner, task)
        found = {name: self.kind(name, layer, learner) for name, layer in factored(learner.net)}
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
        return found, squares.total / len(task)


def factored(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers that have a block."""
    return [(name, m) for name, m in layers(net) if isinstance(m, nn.Linear | nn.Conv2d)]


class KFAC(Factored):
    """K-FAC: the block of each layer is G (x) A."""


class TKFAC(Factored):
    """TK-FAC: the block of each layer is delta Psi (x) Phi.

    delta=published  as the paper: gradients at different places of a convolution are uncorrelated
    delta=exact      the trace of the layer's Fisher, from its per-sample gradients
    """

    def __init__(
        self,
        labels: Literal["exact", "sampled"],
        samples: Count | None,
        batch_norm: Literal["diagonal", "frozen"],
        delta: Literal["published", "exact"],
    ) -> None:
        super().__init__(labels, samples, batch_norm)
        self.kind = ExactlyTraced if delta == "exact" else Traced


class EKFAC(Factored):
    """EKFAC: K-FAC's eigenbasis, and the diagonal in it by a second pass with the same labels."""

    def __call__(self, learner: Learner, task: Task) -> Blocks:
        chosen = subset(task, self.samples, learner.rng)
        rng = fork(learner.rng)
        start = rng.get_state()
        found, rest = self.sums(learner, chosen, rng)
        bases = {name: part.factors(len(chosen)) for name, part in found.items()}
        totals = {name: torch.zeros_like(b.g @ b.place.read(rest)) for name, b in bases.items()}
        rng.set_state(start)
        for site, s in visits(
            learner,
            chosen,
            output_hessian_factor(self.labels, rng),
            output_hessian_factor("exact", rng),
        ):
            if site.name in bases:
                _add_rotated(totals[site.name], found[site.name], bases[site.name], site, s)
        blocks = [Corrected(bases[name], total / len(chosen)) for name, total in totals.items()]
        return Blocks(blocks, rest)


def _add_rotated(total: Tensor, part: Sum, basis: KroneckerFactors, site: Site, s: Tensor) -> None:
    """total (out, d) += sum over roots and samples of (U_G' grad U_A)^2."""
    _, u_a, _, u_g = basis.eigen
    s = u_g.T @ places(s)
    if s.shape[-1] == 1:
        for a, where in part.seen(site):
            slopes = s[:, where].squeeze(-1).square().sum(0)
            total.addmm_(slopes.T, (a.squeeze(-1) @ u_a).square())
        return
    size = max(1, FLOATS // (len(s) * total.numel()))
    for a, where in part.seen(site):
        inner = zip((u_a.T @ a).split(size), s[:, where].split(size, 1), strict=True)
        for turned, slopes in inner:
            total.add_((slopes @ turned.transpose(1, 2)).square().sum((0, 1)))
