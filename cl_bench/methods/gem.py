"""Gradient Episodic Memory (Lopez-Paz & Ranzato 2017, arXiv:1706.08840)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cl_bench.base.bounds import Count, NonNegative, Positive
from cl_bench.core.gradient import clip_norm
from cl_bench.core.gradient_matrix import gradients
from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer
from cl_bench.core.types import Batch
from cl_bench.methods.base import Rehearsal


class GEM(Rehearsal):
    """The gradient g + G'v, v = argmin_{v >= margin} 1/2 v'(GG' + ridge I) v + (G g)'v (eq. 11).

    The rows of G (t, P) are the gradients on all samples stored of each past task. Where g raises
    the loss on none of them it stays as it is. With margin = ridge = 0 the result is the gradient
    nearest to g that raises the loss on no past task (eq. 7, 8). The authors' code has both above
    0; a margin also moves g along tasks whose loss it would not raise. With `clip`, g and each row
    of G are first scaled to that norm at most, as in La-MAML's code. Each batch is used `passes`
    times. The quadratic program is solved on the CPU in float64, which synchronises a CUDA device
    at every step.
    """

    allows_folding = True

    def __init__(
        self,
        learner: Learner,
        buffer: Callable[..., Buffer],
        margin: NonNegative,
        ridge: NonNegative,
        passes: Count,
        clip: Positive | None,
    ) -> None:
        super().__init__(learner, buffer)
        self.margin, self.ridge, self.passes, self.clip = margin, ridge, passes, clip

    def observe(self, batch: Batch) -> Tensor:
        past = [] if self.memory.empty else self.memory.by_task()
        losses = [self._step(past, batch) for _ in range(self.passes)]
        self.memory.add(batch)
        return losses[0]

    def _step(self, past: list[Batch], batch: Batch) -> Tensor:
        if past:
            loss = self._guarded(past, batch)
        else:
            loss = self.learner.gradient(batch)
            clip_norm(self.learner.flat.grad, self.clip)
        self.learner.step()
        return loss

    def _guarded(self, past: list[Batch], batch: Batch) -> Tensor:
        rows, loss = gradients(self.learner, [*past, batch])
        products = rows.products().cpu()
        scale = self._scale(products.diagonal())
        products = products * scale * scale[:, None]
        v = multipliers(products[:-1, :-1], products[:-1, -1], self.margin, self.ridge)
        rows.write(torch.cat([v, torch.ones(1)]) * scale)
        return loss

    def _scale(self, squares: Tensor) -> Tensor:
        """The factors that clip gradients of these squared norms."""
        if self.clip is None:
            return torch.ones_like(squares)
        return (self.clip / squares.clamp(min=0).sqrt()).clamp(max=1)


def multipliers(past: Tensor, dots: Tensor, margin: NonNegative, ridge: NonNegative) -> Tensor:
    """v (t,) in float64 from GG' (t, t) and G g (t,); 0 if no entry of G g is negative.

    Also 0 if an entry is not finite: then the loss is not finite either, and ends the run.
    """
    finite = bool(past.isfinite().all() and dots.isfinite().all())
    if not finite or bool((dots >= 0).all()):
        return torch.zeros_like(dots)
    matrix = (past + past.T) / 2 + ridge * torch.eye(len(dots), dtype=torch.float64)
    return margin + nonnegative(matrix, dots + margin * matrix.sum(1))


def nonnegative(A: Tensor, b: Tensor) -> Tensor:
    """argmin_{x >= 0} 1/2 x'Ax + b'x by active sets (Lawson & Hanson 1974, chapter 23).

    A (t, t) is positive semi-definite, b (t,); in float64, exact up to rounding.
    """
    x, free = torch.zeros_like(b), torch.zeros_like(b, dtype=torch.bool)
    tiny = 1e-12 * float(b.abs().max())
    for _ in range(3 * len(b)):
        slope = torch.where(free, torch.inf, A @ x + b)
        if bool((slope >= -tiny).all()):
            break
        free[slope.argmin()] = True
        x = _within(A, b, x, free)
    return x


def _within(A: Tensor, b: Tensor, x: Tensor, free: Tensor) -> Tensor:
    """The minimiser over the free entries, or as far towards it as all stay at 0 or above."""
    while True:
        target = torch.zeros_like(x)
        target[free] = torch.linalg.lstsq(A[free][:, free], -b[free], driver="gelsd").solution
        low = free & (target <= 0)
        if not bool(low.any()):
            return target
        share = (x[low] / (x[low] - target[low])).min()
        x = (x + share * (target - x)).clamp(min=0)
        blocked = low & (x <= 1e-15 * x.max())
        free &= ~blocked if bool(blocked.any()) else ~low
        x = torch.where(free, x, 0.0)
