"""La-MAML, Sync and C-MAML (Gupta, Yadav & Paull 2020, arXiv:2007.13904)."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor

from cl_bench.base.bounds import Count, NonNegative, Positive
from cl_bench.core.decisions import decide
from cl_bench.core.gradient import clip_norm
from cl_bench.core.inner_loop import By
from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer
from cl_bench.core.types import Batch
from cl_bench.methods.base import Rehearsal


class LaMAML(Rehearsal):
    """Descend on the mean over i of L(theta_i; new and old), with theta_i = theta_{i-1} - a * g_i.

    g_i is the gradient on the i-th slice of the new batch, with entries clipped to +-clip; a (P,)
    has a learning rate for each parameter. L is differentiated in theta_0 and in a, and both
    gradients are clipped to the norm `clip`.
    rates=learned  first a <- a - rate_lr * gradient in a; fixed: a is constant
    update=rates   then theta <- theta - max(a, 0) * gradient in theta; sgd: the optimizer's
                   learning rate in place of max(a, 0)
    order=second   differentiate through the g_i; first: take them as constants
    La-MAML is (learned, rates), Sync (learned, sgd), C-MAML (fixed, sgd). Each batch is used
    `passes` times, each time with a new draw from the memory. `batch_norm` says how batch norm
    treats slices, and new and old samples together (`InnerLoop.batch_norm_mode`). C-MAML does not
    use rate_lr, La-MAML not optimizer.lr.

    The authors' code for CIFAR-100 has inner_rates=signed: inner steps take a as it is, where
    nonnegative takes max(a, 0). Their code for MNIST clips no inner gradient, by oversight
    (clip_inner=false).
    """

    requires_plain_sgd = True
    task_free = True

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
        inner_rates: Literal["nonnegative", "signed"],
        clip_inner: bool,
    ) -> None:
        super().__init__(learner, buffer)
        self.a = torch.full_like(learner.flat.grad, inner_lr)
        self.rate_lr, self.rates, self.update, self.order = rate_lr, rates, update, order
        self.passes, self.slice_size, self.replay, self.clip = passes, slice_size, replay, clip
        self.batch_norm: By = batch_norm
        self.inner_rates, self.bound = inner_rates, clip if clip_inner else inf

    @staticmethod
    def unused(config: dict[str, Any]) -> set[str]:
        by_lr = "method.rate_lr" if config["method"]["rates"] == "fixed" else None
        by_rates = "optimizer.lr" if config["method"]["update"] == "rates" else None
        moving = config["method"]["rates"] == "learned"  # else they are never negative
        sign = None if moving else "method.inner_rates"
        return {key for key in (by_lr, by_rates, sign) if key}

    def observe(self, batch: Batch) -> Tensor:
        losses = []
        for number in range(self.passes):
            shuffled = decide(lambda: self._order(len(batch.y)), batch.y)
            losses.append(self._pass(batch.rows(shuffled)))
            if number == 0:
                self.memory.add(batch)
        return losses[0]

    def _order(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self.learner.rng)

    def _pass(self, batch: Batch) -> Tensor:
        seen = self.learner.augmented(self.with_old(batch, self.replay))
        fresh = self.learner.augmented(batch)
        ahead = self._second if self.order == "second" else self._first
        with self.learner.inner.batch_norm_mode(self.batch_norm, fresh):
            loss, slope, slope_a = ahead(list(fresh.slices(self.slice_size)), seen)
        masked = map(self.learner.mask_frozen, (slope, slope_a))
        self._move(*(clip_norm(gradient, self.clip) for gradient in masked))
        return loss

    def _inner_rates(self) -> Tensor:
        """The learning rates (P,) of the inner steps."""
        return self.a if self.inner_rates == "signed" else self.a.clamp(min=0)

    def _first(self, slices: list[Batch], seen: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """d L(theta_i) / d theta = grad L(theta_i), d / d a = -(g_1 + ... + g_i) * grad L."""
        learner, theta = self.learner, self.learner.flat.theta.detach()
        start, a, losses = theta.clone(), self._inner_rates(), []
        walked, slope, slope_a = (torch.zeros_like(start) for _ in range(3))
        for each in slices:
            learner.loss_gradient(each)
            g = learner.flat.grad.clamp(-self.bound, self.bound)
            walked.add_(g)
            theta.addcmul_(a, g, value=-1)
            losses.append(learner.loss_gradient(seen))
            slope.add_(learner.flat.grad)
            slope_a.addcmul_(learner.flat.grad, walked, value=-1)
        theta.copy_(start)
        count = len(slices)
        return torch.stack(losses).mean(), slope / count, self._mask_negative_rates(slope_a) / count

    def _second(self, slices: list[Batch], seen: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The same gradients, differentiated through the inner steps, from the last one back.

        With m_i = grad L(theta_i) / n and H_i the Hessian of slice i's loss at theta_{i-1}, 0 in
        the rows of clipped entries, the gradient in theta_{i-1} of all the losses from there on is
        l_{i-1} = m_{i-1} + l_i - H_i (a * l_i), with m_0 = 0. The gradient in a is the sum over i
        of -l_i * g_i.
        """
        learner, theta = self.learner, self.learner.flat.theta.detach()
        start, rates, steps, losses = theta.clone(), self._inner_rates(), [], []
        for each in slices:
            here = theta.clone().requires_grad_()
            (raw,) = torch.autograd.grad(learner.loss(here, each), here, create_graph=True)
            g = learner.mask_frozen(raw.detach()).clamp(-self.bound, self.bound)
            theta.addcmul_(rates, g, value=-1)
            losses.append(learner.loss_gradient(seen))
            steps.append((here, raw, g, learner.flat.grad / len(slices)))
        theta.copy_(start)
        slope, slope_a = torch.zeros_like(start), torch.zeros_like(start)
        for here, raw, g, following in reversed(steps):
            slope.add_(following)
            slope_a.addcmul_(slope, g, value=-1)
            vector = learner.mask_frozen((rates * slope).masked_fill_(raw.detach() != g, 0))
            slope.sub_(torch.autograd.grad(raw, here, vector)[0])
        learner.sample_gradients += 2 * sum(len(each.y) for each in slices)
        return torch.stack(losses).mean(), slope, self._mask_negative_rates(slope_a)

    def _mask_negative_rates(self, slope_a: Tensor) -> Tensor:
        """The gradient in a, 0 where inner steps take 0 in place of a."""
        return slope_a if self.inner_rates == "signed" else slope_a * (self.a > 0)

    @torch.no_grad()
    def _move(self, slope: Tensor, slope_a: Tensor) -> None:
        learner = self.learner
        if self.rates == "learned":
            self.a.sub_(slope_a, alpha=self.rate_lr * learner.lr_factor)
        if self.update == "rates":
            learner.flat.theta.addcmul_(self.a.clamp(min=0), slope, value=-learner.lr_factor)
        else:
            learner.flat.theta.sub_(slope, alpha=learner.lr)
