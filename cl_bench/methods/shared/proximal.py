"""Proximal steps of sums of absolute values, for each entry of a vector."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cl_bench.core.state import stored_as


def soft_threshold(x: Tensor, by: Tensor) -> Tensor:
    """Soft thresholding: argmin_y |y - x|^2 / 2 + by |y|."""
    return x - x.clamp(-by, by)


@stored_as("piecewise_linear")
class PiecewiseLinear(NamedTuple):
    """f(x) = l1 sum_i |tau_i + M_i (x_0 - x)| over t tasks, for each of P entries of x.

    Its breakpoints lie at x_0 where all tau_i are 0; at the other entries, `some`, apart.
    """

    start: Tensor  # (P,) x_0
    hold: Tensor  # (P,) the sum of the slopes, l1 M_i
    some: Tensor  # (n,)
    breakpoints: Tensor  # (t, n), rising
    slopes: Tensor  # (t + 1, n): minus f's slope before, between and after them

    @staticmethod
    def of(start: Tensor, l1: float, taus: list[Tensor], masks: list[Tensor]) -> PiecewiseLinear:
        """Requires M_i > 0, or M_i = 0 where tau_i is 0 too."""
        some = torch.stack([tau != 0 for tau in taus]).any(0).nonzero().squeeze(1)
        shares = torch.stack([mask[some] for mask in masks])
        shares = shares.clamp(min=torch.finfo(shares.dtype).tiny)
        breakpoints = start[some] + torch.stack([tau[some] for tau in taus]) / shares
        breakpoints, order = breakpoints.sort(0)
        slopes = l1 * shares.gather(0, order)
        passed = torch.cat([torch.zeros_like(slopes[:1]), slopes.cumsum(0)])
        hold = l1 * torch.stack(masks).sum(0)
        return PiecewiseLinear(start, hold, some, breakpoints, passed[-1] - 2 * passed)

    def step(self, x: Tensor, stride: Tensor) -> Tensor:
        """argmin_y |y - x|^2 / (2 stride) + f(y).

        The median of the breakpoints and of where each slope leads (Li & Osher 2009).
        """
        found = self.start + soft_threshold(x - self.start, stride * self.hold)
        ends = x[self.some] + stride[self.some] * self.slopes
        # the middle one; `median` has no deterministic kernel on CUDA
        found[self.some] = torch.cat([self.breakpoints, ends]).sort(0).values[len(self.breakpoints)]
        return found
