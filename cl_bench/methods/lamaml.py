"""La-MAML, Sync and C-MAML (Gupta, Yadav & Paull 2020, arXiv:2007.13904)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from cl_bench.base.bounds import Count, NonNegative, Positive
from cl_bench.core.buffer import Buffer
from cl_bench.core.inner_loop import By
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch
from cl_bench.methods.base import Rehearsal


class LaMAML(Rehearsal):
    """Descend on the mean over i of L(theta_i; new and old), with theta_i = theta_{i-1} - a * g_i.

    g_i is the gradient on the i-th slice of the new batch, with entries clipped to +-clip; a (P,)
    has a learning rate for each parameter, never below 0. L is differentiated in theta_0 and in a,
    and both gradients are clipped to the norm `clip`.
    rates=learned  first a <- a - rate_lr * gradient in a; fixed: a is constant
    update=rates   then theta <- theta - a * gradient in theta; sgd: the optimizer's learning rate
    order=second   differentiate through the g_i; first: take them as constants
    La-MAML is (learned, rates), Sync (learned, sgd), C-MAML (fixed, sgd). Each batch is used
    `passes` times, each time with a new draw from the memory. `batch_norm` says how batch norm
    treats slices, and new and old samples together (`InnerLoop.batch_norm_mode`). C-MAML does not
    use rate_lr, La-MAML not optimizer.lr.
    """

    requires_plain_sgd = True

    def __init__(
        self,
        learner: Learner,
        buffer: Callable[..., Buffer],
        inner_lr: NonNegative,
        rate_lr: NonNegative,
        rates: Literal["learned", "fixed"],
        update: Literal["rates", "sgd"],
        order: Literal["first", "second"],
        passes: Count,
        slice_size: Count,
        replay: Count,
        clip: Positive,
        batch_norm: By,
    ) -> None:
        super().__init__(learner, buffer)
        self.a = torch.full_like(learner.flat.grad, inner_lr)
        self.rate_lr, self.rates, self.update, self.order = rate_lr, rates, update, order
        self.passes, self.slice_size, self.replay, self.clip = passes, slice_size, replay, clip
        self.batch_norm: By = batch_norm

    @staticmethod
    def unused(config: dict[str, Any]) -> set[str]:
        by_lr = "method.rate_lr" if config["method"]["rates"] == "fixed" else None
        by_rates = "optimizer.lr" if config["method"]["update"] == "rates" else None
        return {key for key in (by_lr, by_rates) if key}

    def observe(self, batch: Batch) -> Tensor:
        losses = []
        for number in range(self.passes):
            shuffled = torch.randperm(len(batch.y), generator=self.learner.rng)
            losses.append(self._pass(batch.rows(shuffled)))
            if number == 0:
                self.memory.add(batch)
        return losses[0]

    def _pass(self, batch: Batch) -> Tensor:
        seen = batch.cat(self.memory.sample(self.replay)) if len(self.memory) else batch
        seen, fresh = self.learner.augmented(seen), self.learner.augmented(batch)
        ahead = self._second if self.order == "second" else self._first
        with self.learner.inner.batch_norm_mode(self.batch_norm, fresh):
            loss, slope, slope_a = ahead(list(fresh.slices(self.slice_size)), seen)
        self._move(
            self._cut(self.learner.mask_frozen(slope)), self._cut(self.learner.mask_frozen(slope_a))
        )
        return loss

    def _first(self, slices: list[Batch], seen: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """d L(theta_i) / d theta = grad L(theta_i), d / d a = -(g_1 + ... + g_i) * grad L."""
        learner, theta = self.learner, self.learner.flat.theta.detach()
        start, a, losses = theta.clone(), self.a.clamp(min=0), []
        walked, slope, slope_a = (torch.zeros_like(start) for _ in range(3))
        for each in slices:
            learner.loss_gradient(each)
            g = learner.flat.grad.clamp(-self.clip, self.clip)
            walked.add_(g)
            theta.addcmul_(a, g, value=-1)
            losses.append(learner.loss_gradient(seen))
            slope.add_(learner.flat.grad)
            slope_a.addcmul_(learner.flat.grad, walked, value=-1)
        theta.copy_(start)
        count = len(slices)
        return torch.stack(losses).mean(), slope / count, slope_a * (self.a > 0) / count

    def _second(self, slices: list[Batch], seen: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The same gradients, differentiated through the inner steps."""
        learner = self.learner
        theta = learner.flat.theta.detach().clone().requires_grad_()
        a = self.a.clone().requires_grad_()
        rates, fast, losses = a.relu(), theta, []
        for each in slices:
            (g,) = torch.autograd.grad(learner.loss(fast, each), fast, create_graph=True)
            fast = fast - rates * learner.mask_frozen(g).clamp(-self.clip, self.clip)
            losses.append(learner.loss(fast, seen))
        loss = torch.stack(losses).mean()
        slope, slope_a = torch.autograd.grad(loss, (theta, a))
        new = sum(len(each.y) for each in slices)
        learner.sample_gradients += 2 * new + len(slices) * len(seen.y)
        return loss.detach(), slope, slope_a

    def _cut(self, slope: Tensor) -> Tensor:
        """Scale a gradient to the norm `clip` at most, without synchronising the device."""
        norm = slope.norm().clamp(min=torch.finfo(slope.dtype).tiny)
        return slope * (self.clip / norm).clamp(max=1)

    @torch.no_grad()
    def _move(self, slope: Tensor, slope_a: Tensor) -> None:
        learner = self.learner
        if self.rates == "learned":
            self.a.sub_(slope_a, alpha=self.rate_lr * learner.lr_factor)
        if self.update == "rates":
            learner.flat.theta.addcmul_(self.a.clamp(min=0), slope, value=-learner.lr_factor)
        else:
            learner.flat.theta.sub_(slope, alpha=learner.lr)
