"""W = diag(R) W0 diag(S) + U V, layer by layer (Li et al. 2024; "R-perturb" and "S-perturb").

In a convolution R scales output channels, S input channels, and the low-rank part is the same at
every place of the kernel. The weights W are assembled before each step, so that the network itself
costs no more than without factors; gradients in the factors follow by the chain rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cl_bench.base.exceptions import UserError
from cl_bench.core.flat import FlatParams
from cl_bench.core.state import stored_as
from cl_bench.core.types import in_float64

# modules whose parameters with several axes are linear or convolutional weights
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)


class LowRankFactors(NamedTuple):
    """The factors of one layer: R (out,), S (in,), U (out, rank), V (rank, in)."""

    r: Tensor
    s: Tensor
    u: Tensor
    v: Tensor


@stored_as("low_rank_layout")
@dataclass(frozen=True)
class Layout:
    """The layout of a task's vector phi (Q,): all R and S, all U and V, then its own parameters.

    Its own parameters replace those of the base: biases, batch norm, the head.
    """

    weights: tuple[str, ...]  # of the layers
    shapes: tuple[tuple[int, int], ...]  # (out, in) of each
    ranks: tuple[int, ...]
    own: Tensor  # (M,) places in theta

    @property
    def scales(self) -> int:
        """The number of entries of R and S, which come first in phi."""
        return sum(out + into for out, into in self.shapes)

    @property
    def factors(self) -> int:
        """The number of entries of U and V, which follow them."""
        return sum(
            rank * (out + into) for rank, (out, into) in zip(self.ranks, self.shapes, strict=True)
        )

    @property
    def size(self) -> int:
        """Q, the length of phi."""
        return self.scales + self.factors + len(self.own)

    def split(self, phi: Tensor) -> tuple[list[LowRankFactors], Tensor]:
        """Split phi (Q,) into each layer's factors and the task's own parameters, as views."""
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
        """Write the weights that phi makes of base (P,) into theta (P,)."""
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
        """Write into out (Q,) the gradient in phi, given the gradient `grad` (P,) in theta."""
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
    """View (out, in) with as many trailing axes as a weight (out, in, ...), to broadcast."""
    return matrix.view(*matrix.shape, *[1] * (weight.dim() - 2))


def _summed(weight: Tensor) -> Tensor:
    """Sum (out, in, ...) over the places of the kernel: (out, in)."""
    return weight.flatten(2).sum(-1) if weight.dim() > 2 else weight


class Decomposition(NamedTuple):
    """The scalings that fit a warmed-up weight, and the SVD of what they leave over."""

    r: Tensor
    s: Tensor
    sigma: Tensor  # (n,) falling
    left: Tensor  # (out, n)
    right: Tensor  # (n, in)
    places: int  # of the kernel

    def factors(self, rank: int) -> LowRankFactors:
        """R, S, U and V, with U V the best approximation of the residual of this rank."""
        root = self.sigma[:rank].sqrt()
        return LowRankFactors(
            self.r, self.s, self.left[:, :rank] * root, root[:, None] * self.right[:rank]
        )


@torch.no_grad()
def decompose(base: Tensor, warm: Tensor, rounds: int) -> Decomposition:
    """Fit R and S to minimise |warm - R base S|^2, and decompose the residual.

    R is fitted first with S = 1, then S given R, `rounds` times. For a convolution the mean of the
    residual over the kernel is decomposed.
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
    """The least-squares factors from `of` to `to`, row by row; 1 where a row of `of` is 0."""
    norm = of.square().sum(over)
    return torch.where(norm > 0, (of * to).sum(over) / norm.clamp_min(1e-20), 1.0)


def scores(parts: Sequence[Decomposition], importances: Tensor) -> list[Tensor]:
    """The estimated loss without each singular direction: importance x squared norm of it."""
    pairs = zip(parts, importances, strict=True)
    return [part.places * part.sigma.square() * weight for part, weight in pairs]


def by_share(found: list[Tensor], share: float) -> list[int]:
    """Ranks by `share`: the fewest directions that hold this fraction of the total score."""
    together, order = in_float64(torch.cat(found)).sort(descending=True, stable=True)
    sums = together.cumsum(0)
    if not bool(sums[-1] > 0):
        return [0] * len(found)
    count = int(torch.searchsorted(sums, share * sums[-1])) + 1
    return _counted(found, order[:count])


def by_budget(found: list[Tensor], costs: list[int], budget: int) -> list[int]:
    """Ranks within a budget: directions in the order of score per cost, while they fit."""
    pairs = list(zip(costs, found, strict=True))
    order = torch.cat([v / cost for cost, v in pairs]).sort(descending=True, stable=True).indices
    each = torch.tensor([cost for cost, values in pairs for _ in range(len(values))])
    spent = each[order.cpu()].cumsum(0)
    return _counted(found, order[: int((spent <= budget).sum())])


def _counted(found: list[Tensor], chosen: Tensor) -> list[int]:
    owner = torch.cat([torch.full((len(v),), i) for i, v in enumerate(found)])
    return owner[chosen.cpu()].bincount(minlength=len(found)).tolist()


def equal_ranks(limits: list[int], costs: list[int], budget: int) -> list[int]:
    """The same rank in all layers, up to each layer's limit, within the budget."""
    best = 0
    for rank in range(1, max(limits, default=0) + 1):
        if sum(min(rank, limit) * cost for limit, cost in zip(limits, costs, strict=True)) > budget:
            break
        best = rank
    return [min(best, limit) for limit in limits]


def topk_mask(values: Tensor, count: int) -> Tensor:
    """(n,) bool: True at the `count` largest of `values` (n,)."""
    if count >= len(values):
        return torch.ones_like(values, dtype=torch.bool)
    kept = values.topk(max(count, 0)).indices
    return torch.zeros_like(values, dtype=torch.bool).index_fill(0, kept, True)


def layers_of(flat: FlatParams, head: object) -> Iterator[tuple[str, tuple[int, int]]]:
    """Names and shapes (out, in) of the linear and convolutional weights but the head's.

    Position embeddings and scales of whole layers also have several axes, and are none of them.
    """
    for name, shape in flat.shapes.items():
        owner = flat.owners[name]
        if len(shape) > 1 and owner is not head and isinstance(owner, WEIGHTED):
            yield name, (shape[0], shape[1])


def required_layers(flat: FlatParams, head: object, method: str) -> list[str]:
    """The names of `layers_of`; UserError where a method that works on them has none."""
    names = [name for name, _ in layers_of(flat, head)]
    if not names:
        raise UserError(
            f"method={method}: it works on nn.Linear and nn.Conv layers before the head, and this "
            "model trains none; use another model"
        )
    return names
