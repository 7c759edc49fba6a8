"""The sums over batches that the Kronecker factors of a layer are made of.

Shapes: B samples, R roots, L places of a convolution (1 of a linear layer), g groups (1 of a linear
layer), d inputs of a unit (1 appended for the bias), in the order of the flat vector.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench.core.learner import Learner
from cl_bench.curvature.blocks import Place
from cl_bench.curvature.capture import FLOATS, PATCHES, Site
from cl_bench.curvature.elementwise import elementwise, kernel_gradients, windows
from cl_bench.curvature.kronecker import KroneckerFactors

BANDS = {"cpu": 4}  # of a symmetric product: more save little, and elsewhere a launch costs more
BAND = 64  # rows of one at least


class Sum:
    """A (g, d, d) and G (g, out / g, out / g) of a layer for K-FAC, summed over samples."""

    def __init__(self, name: str, layer: nn.Module, learner: Learner) -> None:
        self.place = Place.of(name, layer, learner.flat)
        self.channels_last = learner.flat.channels_last
        zeros, groups, size = learner.flat.grad.new_zeros, self.place.groups, self.place.inputs
        self.core = zeros(groups, size, size)
        self.edge = zeros(groups, size + 1)  # of the bias: its row of A
        self.g = zeros(groups, self.place.out // groups, self.place.out // groups)

    def outputs(self, site: Site, s: Tensor) -> None:
        """Add the output gradients of a group of roots: s (R, B, out[, H, W])."""
        s = self.by_group(s)
        gram(self.g, s.flatten(2), s.flatten(2), 1 / s.shape[-1])

    def inputs(self, site: Site) -> None:
        """Add the inputs of the layer; called once for a batch, after all of its roots."""
        for a, _ in self._inputs(site):
            self._add(a.flatten(2), None)

    def factors(self, samples: int) -> KroneckerFactors:
        """The means over the samples."""
        a, g = self.a() / samples, mirrored(self.g) / samples
        return self._factors(a, g, g.new_ones(len(g)))

    def _factors(self, a: Tensor, g: Tensor, scale: Tensor) -> KroneckerFactors:
        parts = (self.place.one_or_all(part) for part in (a, g, scale))
        return KroneckerFactors(self.place, *parts)

    def a(self) -> Tensor:
        """(g, d, d): the sum so far."""
        core = mirrored(self.core)
        if self.place.bias is None:
            return core
        above = torch.cat([core, self.edge[:, :-1].unsqueeze(-1)], -1)
        return torch.cat([above, self.edge.unsqueeze(1)], 1)

    def by_group(self, s: Tensor) -> Tensor:
        """(R, B, out[, H, W]) -> (g, out / g, R, B, L)."""
        s = s.unsqueeze(-1) if s.dim() == 3 else s.flatten(3)
        return s.movedim(2, 0).unflatten(0, (self.place.groups, -1))

    def seen(self, site: Site) -> Iterator[tuple[Tensor, slice]]:
        """a (g, d, b, L) in the order of the flat vector, for parts of the batch that fit."""
        for a, part in self._inputs(site):
            ones = (0, 0, 0, 0, 0, 1)  # after the last of the d
            yield a if self.place.bias is None else F.pad(a, ones, value=1.0), part

    def _add(self, a: Tensor, weights: Tensor | None) -> None:
        """Add (g, d, b L) to A, each column with its weight (g, b L).

        The bias's row and column are summed without appending a 1 to patches.
        """
        left = a if weights is None else a * weights.unsqueeze(1)
        gram(self.core, left, a, 1.0)
        if self.place.bias is not None:
            self.edge[:, :-1].add_(left.sum(-1))
            self.edge[:, -1].add_(a.shape[-1] if weights is None else weights.sum(-1))

    def _inputs(self, site: Site) -> Iterator[tuple[Tensor, slice]]:
        """What `seen` yields, without the bias's 1."""
        fitting, places = PATCHES.get(site.input.device.type, FLOATS), site.places
        size = max(1, fitting // (self.place.groups * self.place.inputs * places))
        for start in range(0, len(site.input), size):
            part = slice(start, start + size)
            yield self._patches(site.layer, site.input[part]), part

    def _patches(self, layer: nn.Module, a: Tensor) -> Tensor:
        """(B, in[, H, W]) -> (g, d, B, L): the inputs of each place of the output."""
        if not isinstance(layer, nn.Conv2d):
            a = a.unsqueeze(-1) if a.dim() == 2 else a  # (B, in, L)
            return a.transpose(0, 1).unsqueeze(0)
        seen = windows(layer, a).unflatten(0, (layer.groups, -1))
        if self.channels_last:
            seen = seen.movedim(1, 3)
        return seen.flatten(-2).flatten(1, 3)


class ReducedSum(Sum):
    """A and G of the mean input and the summed gradient over the places (K-FAC-reduce)."""

    def outputs(self, site: Site, s: Tensor) -> None:
        s = self.by_group(s).sum(-1)
        gram(self.g, s.flatten(2), s.flatten(2), 1.0)

    def inputs(self, site: Site) -> None:
        for a, _ in self._inputs(site):
            self._add(a.mean(-1), None)


class UnitSum:
    """The block of each output of a convolution whose groups have one output, summed exactly.

    Depthwise convolutions are of this kind. A group's block (d, d) is no larger than a Kronecker
    factor of it would be.
    """

    def __init__(self, name: str, layer: nn.Module, learner: Learner) -> None:
        self.place = Place.of(name, layer, learner.flat)
        self.channels_last = learner.flat.channels_last
        size = self.place.size
        self.total = learner.flat.grad.new_zeros(self.place.out, size, size)

    def outputs(self, site: Site, s: Tensor) -> None:
        """Add the outer products of the gradients of a group of roots: s (R, B, out, H, W)."""
        assert isinstance(site.layer, nn.Conv2d)
        slopes = torch.stack(list(kernel_gradients(site.layer, site.input, s)), -1)
        slopes = (slopes.mT if self.channels_last else slopes).flatten(3)
        if self.place.bias is not None:
            slopes = torch.cat([slopes, s.flatten(3).sum(3, keepdim=True)], -1)
        slopes = slopes.flatten(0, 1).transpose(0, 1)  # (out, R B, d)
        self.total.baddbmm_(slopes.mT, slopes)

    def inputs(self, site: Site) -> None: ...

    def factors(self, samples: int) -> KroneckerFactors:
        """The means over the samples: G is 1, A the block itself."""
        ones = self.total.new_ones(len(self.total))
        return KroneckerFactors(self.place, self.total / samples, ones[:, None, None], ones)


class Squares:
    """The diagonal (P,) of the Fisher of batch norm's weights, where it is wanted."""

    def __init__(self, learner: Learner, wanted: bool) -> None:
        self.total, self.wanted = torch.zeros_like(learner.flat.grad), wanted
        self.views = learner.flat.views(self.total)

    def outputs(self, site: Site, s: Tensor) -> None:
        if self.wanted:
            for name, value in elementwise(site, s, torch.square):
                self.views[name].add_(value)

    def inputs(self, site: Site) -> None: ...


class Traced(Sum):
    """The sums for TK-FAC: each place is weighted by the trace of the other factor there."""

    def __init__(self, name: str, layer: nn.Module, learner: Learner) -> None:
        super().__init__(name, layer, learner)
        self.weights: Tensor | float = 0.0  # (g, B, L): sum over roots of |s_l|^2, of this batch

    def outputs(self, site: Site, s: Tensor) -> None:
        s = self.by_group(s)
        self.weights = self.weights + s.square().sum((1, 2))
        weighted = s * self._norms(site)[:, None, None]
        gram(self.g, weighted.flatten(2), s.flatten(2), 1.0)

    def inputs(self, site: Site) -> None:
        if isinstance(self.weights, Tensor):
            for a, part in self._inputs(site):
                self._add(a.flatten(2), self.weights[:, part].flatten(1))
        self.weights = 0.0

    def factors(self, samples: int) -> KroneckerFactors:
        a = self.a()
        delta = a.diagonal(dim1=-2, dim2=-1).sum(-1)
        unit = delta.clamp(min=torch.finfo(delta.dtype).tiny)[:, None, None]
        return self._factors(a / unit, mirrored(self.g) / unit, delta / samples)

    def _norms(self, site: Site) -> Tensor:
        """(g, B, L): |a_l|^2, with the 1 for the bias."""
        layer, groups = site.layer, self.place.groups
        squares = site.input.square().unflatten(1, (groups, -1)).sum(2)
        if isinstance(layer, nn.Conv2d):
            assert isinstance(layer.padding, tuple)
            ones = squares.new_ones(groups, 1, *layer.kernel_size)
            moves = layer.stride, layer.padding, layer.dilation
            squares = F.conv2d(squares, ones, None, *moves, groups)
        squares = squares.unsqueeze(-1) if squares.dim() == 2 else squares.flatten(2)
        return squares.transpose(0, 1) + (self.place.bias is not None)


class ExactlyTraced(Traced):
    """The sums for TK-FAC with delta=exact: the trace of the layer's Fisher."""

    def __init__(self, name: str, layer: nn.Module, learner: Learner) -> None:
        super().__init__(name, layer, learner)
        self.trace = self.g.new_zeros(len(self.g))

    def outputs(self, site: Site, s: Tensor) -> None:
        super().outputs(site, s)
        if has_few_places(site.places, self.place):
            self._add_by_places(site, self.by_group(s))
            return
        for _, value in elementwise(site, s, torch.square):
            self.trace.add_(value.unflatten(0, (self.place.groups, -1)).flatten(1).sum(1))

    def _add_by_places(self, site: Site, s: Tensor) -> None:
        """Add |sum_l s_l a_l'|^2 = sum_lm (s_l's_m)(a_l'a_m): no gradient of a sample is built."""
        for a, part in self.seen(site):
            a, own = a.transpose(1, 2), s[:, :, :, part].permute(0, 2, 3, 1, 4)
            products = (a.mT @ a).unsqueeze(1) * (own.mT @ own)  # (g, R, b, L, L)
            self.trace.add_(products.flatten(1).sum(1))

    def factors(self, samples: int) -> KroneckerFactors:
        found, trace = super().factors(samples), self.place.one_or_all(self.trace)
        return KroneckerFactors(self.place, found.a, found.g, trace / samples)


def has_few_places(places: int, place: Place) -> bool:
    """Whether L (out + d) < out d: products of all pairs of L places cost less than a gradient."""
    out = place.out // place.groups
    return places * (out + place.size) < out * place.size


def gram(total: Tensor, left: Tensor, x: Tensor, scale: float) -> None:
    """total (g, d, d) += scale left x', for two (g, d, N) whose product is symmetric.

    On and below the diagonal (`mirrored`): a large matrix in bands, each up to its diagonal.
    """
    size = max(BAND, -(-total.shape[-1] // BANDS.get(total.device.type, 1)))
    for one, rows, columns in zip(total, left, x, strict=True):
        for start in range(0, len(one), size):
            end = min(start + size, len(one))
            one[start:end, :end].addmm_(rows[start:end], columns[:end].T, alpha=scale)


def mirrored(total: Tensor) -> Tensor:
    """(..., d, d): symmetric, from what `gram` summed."""
    return total.tril() + total.tril(-1).mT
