"""The sums over batches that the Kronecker factors of a layer are made of.

Shapes: B samples, R roots, L places of a convolution (1 of a linear layer), d inputs of a unit (1
appended for the bias), in the order of the flat vector.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench.core.learner import Learner
from cl_bench.curvature.blocks import Place
from cl_bench.curvature.capture import FLOATS, Site
from cl_bench.curvature.elementwise import elementwise, patches
from cl_bench.curvature.kronecker import KroneckerFactors

PATCHES = {"cpu": 2**20}  # floats of patches at once: 4 MiB stay in the cache
BANDS = {"cpu": 4}  # of a symmetric product: more save little, and elsewhere a launch costs more
BAND = 64  # rows of one at least


class Sum:
    """A (d, d) and G (out, out) of a layer for K-FAC, summed over the samples so far."""

    def __init__(self, name: str, layer: nn.Module, learner: Learner) -> None:
        self.place, self.channels_last = Place.of(name, learner.flat), learner.flat.channels_last
        self.size = self.place.inputs
        self.core = learner.flat.grad.new_zeros(self.size, self.size)
        self.edge = learner.flat.grad.new_zeros(self.size + 1)  # of the bias: its row of A
        self.g = learner.flat.grad.new_zeros(self.place.out, self.place.out)

    def outputs(self, site: Site, s: Tensor) -> None:
        """Add the output gradients of a group of roots: s (R, B, out[, H, W])."""
        s = places(s).flatten(0, 1)
        gram(self.g, s, s, 1 / s.shape[-1])

    def inputs(self, site: Site) -> None:
        """Add the inputs of the layer; called once for a batch, after all of its roots."""
        for a, _ in self._inputs(site):
            self._add(a, None)

    def factors(self, samples: int) -> KroneckerFactors:
        """The means over the samples."""
        g = mirrored(self.g) / samples
        return KroneckerFactors(self.place, self.a() / samples, g, g.new_ones(()))

    def a(self) -> Tensor:
        """(d, d): the sum so far."""
        core = mirrored(self.core)
        if self.place.bias is None:
            return core
        above = torch.cat([core, self.edge[:-1].unsqueeze(1)], 1)
        return torch.cat([above, self.edge.unsqueeze(0)])

    def seen(self, site: Site) -> Iterator[tuple[Tensor, slice]]:
        """a (b, d, L) in the order of the flat vector, for parts of the batch that fit."""
        for a, part in self._inputs(site):
            yield a if self.place.bias is None else F.pad(a, (0, 0, 0, 1), value=1.0), part

    def _add(self, a: Tensor, weights: Tensor | None) -> None:
        """Add to A; the bias's row and column are summed without appending a 1 to patches."""
        left = a if weights is None else a * weights.unsqueeze(1)
        gram(self.core, left, a, 1.0)
        if self.place.bias is not None:
            self.edge[:-1].add_(left.sum((0, 2)))
            self.edge[-1].add_(a[:, 0].numel() if weights is None else weights.sum())

    def _inputs(self, site: Site) -> Iterator[tuple[Tensor, slice]]:
        """The same without the bias's 1."""
        fitting = PATCHES.get(site.input.device.type, FLOATS)
        size = max(1, fitting // (self.place.size * self._places(site)))
        for start in range(0, len(site.input), size):
            part = slice(start, start + size)
            yield self._patches(site.layer, site.input[part]), part

    def _places(self, site: Site) -> int:
        return site.output[0, 0].numel()

    def _patches(self, layer: nn.Module, a: Tensor) -> Tensor:
        if isinstance(layer, nn.Conv2d):
            channels, a = a.shape[1], patches(layer, a)
            if self.channels_last:
                a = a.unflatten(1, (channels, -1)).transpose(1, 2).flatten(1, 2)
            return a
        return a.unsqueeze(-1)


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
        self.weights: Tensor | float = 0.0  # (B, L): sum over roots of |s_l|^2, of this batch

    def outputs(self, site: Site, s: Tensor) -> None:
        s = places(s)
        self.weights = self.weights + s.square().sum((0, 2))
        weighted = s * self._norms(site).unsqueeze(1)
        gram(self.g, weighted.flatten(0, 1), s.flatten(0, 1), 1.0)

    def inputs(self, site: Site) -> None:
        if isinstance(self.weights, Tensor):
            for a, part in self._inputs(site):
                self._add(a, self.weights[part])
        self.weights = 0.0

    def factors(self, samples: int) -> KroneckerFactors:
        a = self.a()
        delta = a.trace()
        unit = delta.clamp(min=torch.finfo(delta.dtype).tiny)
        return KroneckerFactors(self.place, a / unit, mirrored(self.g) / unit, delta / samples)

    def _norms(self, site: Site) -> Tensor:
        """(B, L): |a_l|^2, with the 1 for the bias."""
        layer, squares = site.layer, site.input.square().sum(1, keepdim=True)
        if isinstance(layer, nn.Conv2d):
            ones = squares.new_ones(1, 1, *layer.kernel_size)
            assert isinstance(layer.padding, tuple)
            squares = F.conv2d(squares, ones, None, layer.stride, layer.padding, layer.dilation)
        return squares.flatten(1) + (self.place.bias is not None)


class ExactlyTraced(Traced):
    """The sums for TK-FAC with delta=exact: the trace of the layer's Fisher."""

    def __init__(self, name: str, layer: nn.Module, learner: Learner) -> None:
        super().__init__(name, layer, learner)
        self.trace = self.g.new_zeros(())

    def outputs(self, site: Site, s: Tensor) -> None:
        super().outputs(site, s)
        for _, value in elementwise(site, s, torch.square):
            self.trace.add_(value.sum())

    def factors(self, samples: int) -> KroneckerFactors:
        found = super().factors(samples)
        return KroneckerFactors(self.place, found.a, found.g, self.trace / samples)


def places(s: Tensor) -> Tensor:
    """(R, B, out[, H, W]) -> (R, B, out, L)."""
    return s.unsqueeze(-1) if s.dim() == 3 else s.flatten(3)


def gram(total: Tensor, left: Tensor, x: Tensor, scale: float) -> None:
    """total (d, d) += scale sum_nl left_nl x_nl', for two (N, d, L) whose product is symmetric.

    On and below the diagonal (`mirrored`): a large matrix in bands, each up to its diagonal.
    """
    size = max(BAND, -(-len(total) // BANDS.get(total.device.type, 1)))
    for start in range(0, len(total), size):
        end = min(start + size, len(total))
        part, band, right = total[start:end, :end], left[:, start:end], x[:, :end]
        if x.shape[-1] == 1:
            part.addmm_(band.squeeze(-1).T, right.squeeze(-1), alpha=scale)
        else:
            part.addbmm_(band, right.transpose(1, 2), alpha=scale)


def mirrored(total: Tensor) -> Tensor:
    """(d, d): symmetric, from what `gram` summed."""
    return total.tril() + total.tril(-1).T
