"""W = diag(R) W0 diag(S) + U V, layer by layer (Li et al. 2024; "R-perturb" and "S-perturb").

In a convolution R scales the channels that go out, S those that come in, and the low-rank part is
the same at every place of the kernel. Weights are put together and used as they are, so that a
network costs what it costs; gradients come back by the chain rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cl_bench.core.flat import FlatParams
from cl_bench.core.state import stored_as


class LowRankFactors(NamedTuple):
    """One layer's: R (out,), S (in,), U (out, rank), V (rank, in)."""

    r: Tensor
    s: Tensor
    u: Tensor
    v: Tensor


@stored_as("low_rank_layout")
@dataclass(frozen=True)
class Layout:
    """Where everything lies in a task's vector phi (Q,): all R and S, all U and V, then its own.

    Its own are parameters that take the place of the base's: biases, batch norm, the head.
    """

    weights: tuple[str, ...]  # of the layers
    shapes: tuple[tuple[int, int], ...]  # (out, in) of each
    ranks: tuple[int, ...]
    own: Tensor  # (M,) places in theta

    @property
    def scales(self) -> int:
        """How many of phi are in R and S: the first ones."""
        return sum(out + into for out, into in self.shapes)

    @property
    def factors(self) -> int:
        """How many of phi are in U and V: those after them."""
        return sum(
            rank * (out + into) for rank, (out, into) in zip(self.ranks, self.shapes, strict=True)
        )

    @property
    def size(self) -> int:
        """Q"""
        return self.scales + self.factors + len(self.own)

    def split(self, phi: Tensor) -> tuple[list[LowRankFactors], Tensor]:
        """phi (Q,) as every layer's factors and the task's own: views of it."""
        sizes = [n for shape in self.shapes for n in shape]
        both = zip(self.ranks, self.shapes, strict=True)
        sizes += [rank * n for rank, shape in both for n in shape]
        *parts, own = phi.split([*sizes, len(self.own)])
        scales, low, layers = parts[: len(parts) // 2], parts[len(parts) // 2 :], []
        for i, (rank, (out, into)) in enumerate(zip(self.ranks, self.shapes, strict=True)):
            u, v = low[2 * i].view(out, rank), low[2 * i + 1].view(rank, into)
            layers.append(LowRankFactors(scales[2 * i], scales[2 * i + 1], u, v))
        return layers, own

    @torch.no_grad()
    def assemble(self, flat: FlatParams, base: Tensor, phi: Tensor, theta: Tensor) -> None:
        """theta (P,) <- what phi makes of base (P,), in place."""
        old, new = flat.views(base), flat.views(theta)
        layers, own = self.split(phi)
        for name, (r, s, u, v) in zip(self.weights, layers, strict=True):
            scale, low = torch.outer(r, s), u @ v
            new[name].copy_(
                torch.addcmul(_spread(low, old[name]), old[name], _spread(scale, old[name]))
            )
        theta.index_copy_(0, self.own, own)

    @torch.no_grad()
    def pull(self, flat: FlatParams, base: Tensor, phi: Tensor, grad: Tensor, out: Tensor) -> None:
        """out (Q,) <- d/d phi of what has the gradient `grad` (P,) in theta."""
        old, slope = flat.views(base), flat.views(grad)
        layers, _ = self.split(phi)
        found, own = self.split(out)
        for name, (r, s, u, v), to in zip(self.weights, layers, found, strict=True):
            through = _summed(slope[name] * old[name])
            torch.mv(through, s, out=to.r)
            torch.mv(through.T, r, out=to.s)
            low = _summed(slope[name])
            torch.mm(low, v.T, out=to.u)
            torch.mm(u.T, low, out=to.v)
        own.copy_(grad[self.own])


def _spread(matrix: Tensor, weight: Tensor) -> Tensor:
    """(out, in), to stand beside a weight (out, in, ...)."""
    return matrix.view(*matrix.shape, *[1] * (weight.dim() - 2))


def _summed(weight: Tensor) -> Tensor:
    """(out, in, ...) -> (out, in): over the places of the kernel."""
    return weight.flatten(2).sum(-1) if weight.dim() > 2 else weight


class Decomposition(NamedTuple):
    """What a warm weight is made of: scalings, and its residual's singular values and vectors."""

    r: Tensor
    s: Tensor
    sigma: Tensor  # (n,) falling
    left: Tensor  # (out, n)
    right: Tensor  # (n, in)
    places: int  # of the kernel

    def factors(self, rank: int) -> LowRankFactors:
        """U and V from the `rank` largest."""
        root = self.sigma[:rank].sqrt()
        return LowRankFactors(
            self.r, self.s, self.left[:, :rank] * root, root[:, None] * self.right[:rank]
        )


@torch.no_grad()
def decompose(base: Tensor, warm: Tensor, rounds: int) -> Decomposition:
    """The least-squares scalings of `warm` (out, in, ...) by `base`, and what they leave over.

    R first with S = 1, then S, `rounds` times: each minimises |warm - R base S|^2 given the other.
    Of a convolution's residual its mean over the kernel is decomposed.
    """
    w0, w = (weight.reshape(*base.shape[:2], -1) for weight in (base, warm))
    r, s = (w0.new_ones(count) for count in base.shape[:2])
    for _ in range(rounds):
        r = _fit(w0 * s[:, None], w, (1, 2))
        s = _fit(w0 * r[:, None, None], w, (0, 2))
    residual = (w - r[:, None, None] * w0 * s[:, None]).mean(-1)
    left, sigma, right = torch.linalg.svd(residual, full_matrices=False)
    return Decomposition(r, s, sigma, left, right, w.shape[-1])


def _fit(of: Tensor, to: Tensor, over: tuple[int, int]) -> Tensor:
    """The factors by which `of` comes nearest to `to`; 1 where there is nothing to scale."""
    norm = of.square().sum(over)
    return torch.where(norm > 0, (of * to).sum(over) / norm.clamp_min(1e-20), 1.0)


def scores(parts: Sequence[Decomposition], importances: Tensor) -> list[Tensor]:
    """Each singular direction's share in the loss: importance x |its part of the residual|^2."""
    pairs = zip(parts, importances, strict=True)
    return [part.places * part.sigma.square() * weight for part, weight in pairs]


def by_share(found: list[Tensor], share: float) -> list[int]:
    """How many of each list belong to the fewest that hold `share` of the sum of all."""
    together, order = torch.cat(found).double().sort(descending=True, stable=True)
    sums = together.cumsum(0)
    if not bool(sums[-1] > 0):
        return [0] * len(found)
    count = int(torch.searchsorted(sums, share * sums[-1])) + 1
    return _counted(found, order[:count])


def by_budget(found: list[Tensor], costs: list[int], budget: int) -> list[int]:
    """How many of each list are among those worth most for their cost, within the budget."""
    pairs = list(zip(costs, found, strict=True))
    order = torch.cat([v / cost for cost, v in pairs]).sort(descending=True, stable=True).indices
    each = torch.tensor([cost for cost, values in pairs for _ in range(len(values))])
    spent = each[order.cpu()].cumsum(0)
    return _counted(found, order[: int((spent <= budget).sum())])


def _counted(found: list[Tensor], chosen: Tensor) -> list[int]:
    owner = torch.cat([torch.full((len(v),), i) for i, v in enumerate(found)])
    return owner[chosen.cpu()].bincount(minlength=len(found)).tolist()


def equal_ranks(limits: list[int], costs: list[int], budget: int) -> list[int]:
    """The same number everywhere, as far as the limits go, within the budget."""
    best = 0
    for rank in range(1, max(limits, default=0) + 1):
        if sum(min(rank, limit) * cost for limit, cost in zip(limits, costs, strict=True)) > budget:
            break
        best = rank
    return [min(best, limit) for limit in limits]


def topk_mask(values: Tensor, count: int) -> Tensor:
    """Where the `count` highest of `values` lie: (n,) bool."""
    if count >= len(values):
        return torch.ones_like(values, dtype=torch.bool)
    kept = values.topk(max(count, 0)).indices
    return torch.zeros_like(values, dtype=torch.bool).index_fill(0, kept, True)


def layers_of(flat: FlatParams, head: object) -> Iterator[tuple[str, tuple[int, int]]]:
    """The weights of all linear and convolutional layers but the head: their names, (out, in)."""
    for name, shape in flat.shapes.items():
        if len(shape) > 1 and flat.owners[name] is not head:
            yield name, (shape[0], shape[1])
